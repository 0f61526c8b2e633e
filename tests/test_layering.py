"""Imports point one way, and importing the package costs nothing. The tree is walked: a new file is covered at once."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import entropy_chains

ROOT = Path(entropy_chains.__file__).parent
LAYERS = (
    {"errors", "lazy"},
    {"files", "intervals", "options", "validation"},
    {"core"},
    {"backends", "offline", "savings"},
    {"grading", "questions", "refine", "subclasses", "workers"},
    {"recording", "doctor", "show"},
    {"adapters", "demo"},
    {"progress", "cli_files"},
    {"cli_record"},
    {"cli"},
)
"""Folders and files of the package's top, lowest first. Each may import what stands in rows above its own line, and itself."""
OUTPUT = {"click", "jinja2", "matplotlib", "rich"}
"""What shows results: for the commands and for ``show``, ``doctor`` and ``demo`` only."""
HEAVY = {"torch", "transformers", "numpy", "scipy", "openai", "langchain", "langchain_core", "llama_index", "rich", "click"}
FILES = sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT or not path.stem.startswith("__"))


def dotted(path):
    """A file's module, without the package's name."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path):
    """Full names that a file imports at any level, those for type checking left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def own_imports(path):
    """The package's modules that a file imports."""
    own = [name.partition(".")[2] for name in imports(path) if name.partition(".")[0] == "entropy_chains"]
    found = {module(name) for name in own if name and not name.startswith("__")}
    return found - {dotted(path)}


def module(name):
    """The module that ``a.b.c`` stands in: itself, or what comes before."""
    while name and not (ROOT / name.replace(".", "/")).is_dir() and not (ROOT / f"{name.replace('.', '/')}.py").is_file():
        name = name.rpartition(".")[0]
    assert name, "the package's own names are taken from the module that they stand in"
    return name


def row(name):
    """The row of what stands at the package's top."""
    return next((n for n, names in enumerate(LAYERS) if name in names), None)


def test_everything_has_a_row():
    """What is new at the top is put into its row, and what is gone leaves it."""
    assert {dotted(path).partition(".")[0] for path in FILES} == set().union(*LAYERS)


@pytest.mark.parametrize("path", FILES, ids=dotted)
def test_imports_point_one_way(path):
    """A file imports from rows above its own, and from its own folder."""
    top = dotted(path).partition(".")[0]
    others = {name.partition(".")[0] for name in own_imports(path)} - {top}
    assert not {name for name in others if row(name) >= row(top)}


@pytest.mark.parametrize("path", FILES, ids=dotted)
def test_a_file_reads_at_a_sitting(path):
    """At most 400 lines; a longer one holds two concerns."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_there_is_no_circle():
    """The modules can be put in an order in which each imports only earlier ones."""
    waiting = {dotted(path): own_imports(path) for path in FILES}
    while waiting:
        free = {name for name, needs in waiting.items() if not needs & set(waiting)}
        assert free, f"these import each other: {sorted(waiting)}"
        waiting = {name: needs for name, needs in waiting.items() if name not in free}


@pytest.mark.parametrize("path", FILES, ids=dotted)
def test_what_shows_results_stands_at_the_end(path):
    """Nothing below them knows a page, a plot, a terminal or a command."""
    top = dotted(path).partition(".")[0]
    taken = {name.partition(".")[0] for name in imports(path)} & OUTPUT
    assert not taken or top in ("show", "doctor", "demo", "progress") or top.startswith("cli")


@pytest.mark.parametrize("name", ["core/planted.py", "offline/planted.py", "planted.py"])
def test_an_import_the_wrong_way_is_seen(name, tmp_path, monkeypatch):
    """A module that nobody has heard of fails, in a folder by what it imports, at the top because it has no row."""
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    for made in (tmp_path / "backends" / "scripted.py", tmp_path / name):
        made.parent.mkdir(exist_ok=True)
        made.write_text("from entropy_chains.backends import scripted\n" if made.stem == "planted" else "")
    with pytest.raises((AssertionError, TypeError)):
        test_imports_point_one_way(tmp_path / name)


def loaded_by(statement):
    """Top-level modules in a fresh interpreter after a statement."""
    code = f"import sys; {statement}; print(*{{m.partition('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_heavy():
    """No framework, no numbers, no terminal: names come when they are used."""
    assert not loaded_by("import entropy_chains; dir(entropy_chains)") & HEAVY


def test_the_decision_needs_only_the_standard_library():
    """Tokens to decision without numpy, scripted backend and loop included."""
    core = [dotted(path) for path in FILES if dotted(path).startswith("core")]
    names = ", ".join(f"entropy_chains.{n}" for n in [*core, "backends", "backends.scripted", "refine", "offline.traces"])
    assert not loaded_by(f"import {names}; from entropy_chains import Monitor, Policy, Token, token_entropy") & HEAVY


def test_the_check_can_fail():
    """A module that does load numpy is seen to."""
    assert "numpy" in loaded_by("import entropy_chains.offline.table") & HEAVY
