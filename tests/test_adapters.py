"""What the integrations take of the package: its public names, errors, backends and adapters, and nothing else."""

from __future__ import annotations

import ast
import inspect

import pytest
from places import ROOT

from entropy_chains import adapters

ALLOWED = {"entropy_chains", "entropy_chains.errors", "entropy_chains.backends", "entropy_chains.adapters"}
PACKAGES = [
    ROOT / "integrations/langchain-entropy-chains/langchain_entropy_chains",
    ROOT / "integrations/llama-index-llms-entropy-chains/llama_index/llms/entropy_chains",
]
FILES = [path for package in PACKAGES for path in sorted(package.rglob("*.py"))]


def taken(path):
    """The package's modules that a file imports from at any level, each with a name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "entropy_chains":
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.split(".")[0] == "entropy_chains")


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_integrations_take_public_names_and_adapters(path):
    """They are published by themselves, so what they take is promised: deep modules may move."""
    for module, name in taken(path):
        assert module in ALLOWED
        place = ROOT / module.replace(".", "/") / name
        assert not name or module == "entropy_chains.adapters" or not (place.is_dir() or place.with_suffix(".py").is_file())


def test_every_name_of_the_adapters_is_taken():
    """What no integration takes is not promised."""
    used = {name for path in FILES for module, name in taken(path) if module == "entropy_chains.adapters"}
    assert used == set(adapters.__all__)


def test_the_lists_agree():
    """The list is sorted, and says of each name where it lives."""
    assert adapters.__all__ == sorted(adapters.__all__, key=str.casefold)
    assert set(adapters._HOME) | {"forms", "lazy_names"} == set(adapters.__all__) == set(dir(adapters)) | {"forms", "lazy_names"}
    for name in adapters._HOME:
        value = getattr(adapters, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__module__ == f"entropy_chains.{adapters._HOME[name]}"


def test_the_check_can_fail(tmp_path):
    """An import of a deep module is seen, at the top and within a function."""
    planted = tmp_path / "planted.py"
    planted.write_text("import entropy_chains.core.policy\ndef f():\n    from entropy_chains.core.steps import Scanner\n")
    with pytest.raises(AssertionError):
        test_integrations_take_public_names_and_adapters(planted)
    assert {module for module, _ in taken(planted)} == {"entropy_chains.core.policy", "entropy_chains.core.steps"}
