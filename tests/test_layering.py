"""Imports point one way, and importing the package costs nothing. The tree is walked: a new file is covered at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from imports import Package, imports

import entropy_chains

ROOT = Path(entropy_chains.__file__).parent
PACKAGE = Package("entropy_chains", ROOT)
LAYERS = (
    {"errors", "lazy"},
    {"files", "intervals", "options", "validation"},
    {"core"},
    {"backends", "offline", "savings"},
    {"grading", "questions", "refine", "subclasses", "workers"},
    {"recording", "doctor", "show"},
    {"adapters", "demo"},
    {"progress", "cli_files"},
    {"cli_record", "cli_backends"},
    {"cli"},
)
"""Folders and files of the package's top, lowest first. Each may import what stands in rows above its own line, and itself."""
PAGE = ROOT.parent / "docs" / "architecture.md"
OUTPUT = {"click", "jinja2", "matplotlib", "rich"}
"""What shows results: for the commands and for ``show``, ``doctor`` and ``demo`` only."""
HEAVY = {"torch", "transformers", "numpy", "scipy", "openai", "langchain", "langchain_core", "llama_index", "rich", "click"}
FILES = PACKAGE.files
dotted = PACKAGE.dotted


def row(name):
    """The row of what stands at the package's top."""
    return next((n for n, names in enumerate(LAYERS) if name in names), None)


def test_everything_has_a_row():
    """What is new at the top is put into its row, and what is gone leaves it."""
    assert {dotted(path).partition(".")[0] for path in FILES} == set().union(*LAYERS)


def test_the_page_shows_every_row():
    """``docs/architecture.md`` names all that stands at the package's top."""
    page = PAGE.read_text(encoding="utf-8")
    names = {name for row in LAYERS for name in row}
    assert [name for name in sorted(names) if f"`{name}.py`" not in page and f"`{name}/`" not in page] == []


@pytest.mark.parametrize("path", FILES, ids=dotted)
def test_imports_point_one_way(path):
    """A file imports from rows above its own, and from its own folder."""
    top = dotted(path).partition(".")[0]
    others = {name.partition(".")[0] for name in PACKAGE.own_imports(path)} - {top}
    assert not {name for name in others if row(name) >= row(top)}


@pytest.mark.parametrize("path", FILES, ids=dotted)
def test_a_file_reads_at_a_sitting(path):
    """At most 400 lines; a longer one holds two concerns."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_there_is_no_circle():
    """The modules can be put in an order in which each imports only earlier ones."""
    assert PACKAGE.circle() == []


@pytest.mark.parametrize("path", FILES, ids=dotted)
def test_what_shows_results_stands_at_the_end(path):
    """Nothing below them knows a page, a plot, a terminal or a command."""
    top = dotted(path).partition(".")[0]
    taken = {name.partition(".")[0] for name in imports(path)} & OUTPUT
    assert not taken or top in ("show", "doctor", "demo", "progress") or top.startswith("cli")


IMPORTS = {
    "from": "from entropy_chains.backends import scripted",
    "import": "import entropy_chains.backends.scripted",
    "import as": "import entropy_chains.backends.scripted as told",
    "within a function": "def f():\n    from entropy_chains.backends.scripted import Script",
    "used dotted": "import entropy_chains\nScript = entropy_chains.backends.scripted.Script",
    "used dotted, renamed": "import entropy_chains as own\nScript = own.backends.scripted.Script",
    "used dotted, of a folder": "from entropy_chains import backends\nScript = backends.scripted.Script",
    "a text": 'import importlib\nimportlib.import_module("entropy_chains.backends.scripted")',
    "a text, by itself": 'from importlib import import_module\nimport_module("entropy_chains.backends.scripted")',
    "a text, the old way": '__import__("entropy_chains.backends.scripted")',
    "else": "if TYPE_CHECKING:\n    import typing\nelse:\n    from entropy_chains.backends import scripted",
    "elif": "if TYPE_CHECKING:\n    import typing\nelif True:\n    from entropy_chains.backends import scripted",
    "not": "if not TYPE_CHECKING:\n    from entropy_chains.backends import scripted",
}
"""Every way in which a module may take another one."""
FOR_TYPES = [
    "if TYPE_CHECKING:\n    from entropy_chains.backends import scripted",
    "if typing.TYPE_CHECKING:\n    from entropy_chains.backends import scripted",
    "if not TYPE_CHECKING:\n    import typing\nelse:\n    from entropy_chains.backends import scripted",
]


def planted(folder, files):
    """A package of these files."""
    for name, source in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(source)
    return Package("entropy_chains", folder)


@pytest.mark.parametrize("name", ["core/planted.py", "offline/planted.py", "planted.py"])
@pytest.mark.parametrize("way", IMPORTS)
def test_an_import_the_wrong_way_is_seen(name, way, tmp_path, monkeypatch):
    """A module that nobody has heard of fails, in a folder by what it imports, at the top because it has no row."""
    made = planted(tmp_path, {"backends/scripted.py": "", name: IMPORTS[way]})
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", made)
    monkeypatch.setattr(sys.modules[__name__], "dotted", made.dotted)
    with pytest.raises((AssertionError, TypeError)):
        test_imports_point_one_way(tmp_path / name)


@pytest.mark.parametrize("source", FOR_TYPES)
def test_what_is_imported_for_types_is_none(source, tmp_path):
    """It never runs."""
    made = planted(tmp_path, {"backends/scripted.py": "", "core/planted.py": source})
    assert made.own_imports(tmp_path / "core/planted.py") == set()


@pytest.mark.parametrize("way", IMPORTS)
def test_a_circle_is_seen(way, tmp_path):
    """Of two modules, or of more: whatever way one of them takes the next."""
    back = {"a.py": "from entropy_chains.b import f", "b.py": "from entropy_chains.backends.scripted import f"}
    made = planted(
        tmp_path, {**back, "backends/scripted.py": IMPORTS[way].replace("backends.scripted", "a").replace("backends", "a")}
    )
    assert made.circle() == ["a", "b", "backends.scripted"]


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
