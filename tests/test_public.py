"""The package's table of contents: explicit, sorted, lazy, documented; one version everywhere."""

from __future__ import annotations

import ast
import inspect
import pkgutil
import subprocess
import sys
import tomllib
from importlib import import_module, metadata
from pathlib import Path

import pytest
from places import ROOT

import entropy_chains


def typed_imports() -> dict[str, str]:
    """Public name to module, as the ``if TYPE_CHECKING`` block says it."""
    tree = ast.parse(Path(entropy_chains.__file__).read_text(encoding="utf-8"))
    block = next(n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    assert all(isinstance(n, ast.ImportFrom) for n in block.body)
    return {a.asname or a.name: str(n.module) for n in block.body if isinstance(n, ast.ImportFrom) for a in n.names}


def test_the_list_is_sorted():
    assert entropy_chains.__all__ == sorted(entropy_chains.__all__, key=str.casefold)
    assert list(entropy_chains._HOME) == sorted(entropy_chains._HOME, key=str.casefold)


def test_the_three_lists_agree():
    assert set(entropy_chains.__all__) == set(entropy_chains._HOME)
    assert typed_imports() == {name: f"entropy_chains.{home}" for name, home in entropy_chains._HOME.items()}


@pytest.mark.parametrize("name", entropy_chains.__all__)
def test_a_name_leads_to_something_documented(name):
    found = getattr(entropy_chains, name)
    assert inspect.getmodule(found).__name__ == f"entropy_chains.{entropy_chains._HOME[name]}"
    assert vars(found).get("__doc__") if isinstance(found, type) else found.__doc__


def test_no_name_is_a_module():
    """``from entropy_chains import x`` must not depend on whether the module x was imported before."""
    modules = {m.name for m in pkgutil.iter_modules(entropy_chains.__path__)}
    assert modules.isdisjoint(entropy_chains.__all__)


def test_dir_is_the_list():
    assert dir(entropy_chains) == sorted([*entropy_chains.__all__, "__version__"])


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = entropy_chains.nothing
    with pytest.raises(ImportError):
        from entropy_chains import nothing  # noqa: F401


def test_importing_it_loads_nothing_heavy():
    heavy = "torch transformers numpy scipy openai langchain_core llama_index matplotlib jinja2 rich click"
    code = f"import sys, entropy_chains; print([m for m in {heavy!r}.split() if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_it_is_typed():
    assert (Path(entropy_chains.__file__).parent / "py.typed").is_file()


def test_one_version_everywhere():
    files = [ROOT / "pyproject.toml", *(ROOT / "integrations").glob("*/pyproject.toml")]
    assert len(files) == 4
    projects = [tomllib.loads(f.read_text(encoding="utf-8"))["project"] for f in files]
    assert {p["version"] for p in projects} == {entropy_chains.__version__} == {metadata.version("entropy-chains")}
    assert import_module("langchain_entropy_chains._version").__version__ == entropy_chains.__version__
    core = {f"{name}=={entropy_chains.__version__}" for name in ("entropy-chains", "entropy-chains[openai]")}
    assert all(core & set(p["dependencies"]) for p in projects[1:])
