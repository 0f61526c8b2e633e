"""What docstrings refer to exists: a reference outlives a move, and nobody notices."""

from __future__ import annotations

import ast
import importlib
import re

import pytest
from places import ROOT

PLACES = ("entropy_chains", "integrations/langchain-entropy-chains", "integrations/llama-index-llms-entropy-chains")
FILES = sorted(path for place in PLACES for path in (ROOT / place).rglob("*.py") if "tests" not in path.parts)
REFERENCE = re.compile(r":(class|func|meth|mod|attr|data|exc):`~?([^`<]+)`")
OWN = ("entropy_chains.", "langchain_entropy_chains.", "llama_index.")
BUILT_IN = {"str", "int", "float", "bool", "None"}


def names_of(path):
    """Every name that a file defines, imports or sets, at any level; its own, and its folder's."""
    made = {path.stem, path.parent.name}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                made.add(node.name)
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name):
                made.add(name.rpartition(".")[2])
    return made


def found(name):
    """Whether a full name can be had."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:n]))
        except ImportError:
            continue
        for part in parts[n:]:
            fields = {**getattr(value, "model_fields", {}), **getattr(value, "__annotations__", {})}
            if not hasattr(value, part) and part not in fields:
                return False
            value = getattr(value, part, None)
        return True
    return False


def missing(path, known):
    """References of a file that lead nowhere."""
    for _, name in REFERENCE.findall(path.read_text(encoding="utf-8")):
        if name.startswith(OWN):
            if not found(name):
                yield name
        elif not {*name.removeprefix(".").split(".")} <= known | BUILT_IN:
            yield name


@pytest.fixture(scope="module")
def known():
    """Every name of our packages."""
    return set().union(*map(names_of, FILES))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_what_a_docstring_refers_to_exists(path, known):
    """A full name can be imported; of a short one every part is a name in our packages."""
    assert list(missing(path, known)) == []


@pytest.mark.parametrize(
    "stale", ["entropy_chains.backends.served.ServedModel", ".ServedMode", "Gone", "entropy_chains.Policy.gone"]
)
def test_a_stale_reference_is_seen(stale, known, tmp_path):
    """Of each kind."""
    (tmp_path / "planted.py").write_text(f'"""See :class:`{stale}`."""')
    assert list(missing(tmp_path / "planted.py", known)) == [stale]
