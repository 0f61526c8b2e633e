"""What the integrations take of the package: its public names, errors, backends and adapters, and nothing else."""

from __future__ import annotations

import inspect

import pytest
from imports import Package, imports
from places import ROOT

from entropy_chains import adapters

ALLOWED = {"entropy_chains", "entropy_chains.errors", "entropy_chains.backends", "entropy_chains.adapters"}
PACKAGES = [
    Package("langchain_entropy_chains", ROOT / "integrations/langchain-entropy-chains/langchain_entropy_chains"),
    Package(
        "llama_index.llms.entropy_chains", ROOT / "integrations/llama-index-llms-entropy-chains/llama_index/llms/entropy_chains"
    ),
]
FILES = [path for package in PACKAGES for path in sorted(package.root.rglob("*.py"))]


def taken(path):
    """What a file takes of the package, at any level and in any way: the allowed module, and what of it."""
    for full in imports(path, for_types=True):
        if full.partition(".")[0] == "entropy_chains":
            module = max((m for m in ALLOWED if f"{full}.".startswith(f"{m}.")), key=len)
            yield module, full.removeprefix(module).removeprefix(".").partition(".")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_integrations_take_public_names_and_adapters(path):
    """They are published by themselves, so what they take is promised: deep modules may move."""
    for module, name in taken(path):
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


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_no_integration_imports_in_a_circle(package):
    """Its modules can be put in an order in which each imports only earlier ones."""
    assert package.files
    assert package.circle() == []


DEEP = [
    "import entropy_chains.core.policy",
    "def f():\n    from entropy_chains.core.steps import Scanner",
    "if TYPE_CHECKING:\n    from entropy_chains.core.steps import Scanner",
    "import entropy_chains\nPolicy = entropy_chains.core.policy.Policy",
    'importlib.import_module("entropy_chains.core.policy")',
    "from entropy_chains import core",
]


@pytest.mark.parametrize("source", DEEP)
def test_a_deep_import_is_seen(source, tmp_path):
    """At the top, within a function, for types, by attribute and by text."""
    planted = tmp_path / "planted.py"
    planted.write_text(source)
    with pytest.raises(AssertionError):
        test_integrations_take_public_names_and_adapters(planted)


@pytest.mark.parametrize("name", [package.name for package in PACKAGES])
def test_a_circle_of_an_integration_is_seen(name, tmp_path):
    """Of two modules of its own, be it within functions."""
    (tmp_path / "a.py").write_text(f"from {name} import b")
    (tmp_path / "b.py").write_text(f"def f():\n    import {name}.a")
    (tmp_path / "c.py").write_text(f"from {name}.a import g")
    assert Package(name, tmp_path).circle() == ["a", "b", "c"]
