"""Imports point one way, and importing the package costs nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import entropy_chains

ROOT = Path(entropy_chains.__file__).parent
PURE = [
    "errors",
    "validation",
    "files",
    "tokens",
    "finish_reasons",
    "entropy",
    "steps",
    "answers",
    "rules",
    "policy",
    "records",
    "monitor",
]
"""The decision, in order: each may import those before it."""
OFFLINE = [
    "trace_lines",
    "traces",
    "tables",
    "diagnosis",
    "certificates",
    "calibration",
    "replaying",
    "savings",
    "baselines",
    "contenders",
    "comparing",
    "figures",
]
"""The offline half: it reads recorded runs, and no backend."""
OUTPUT = ["wording", "plots", "report", "display", "cli_files"]
"""What shows results; imported by the command line only."""
HEAVY = {"torch", "transformers", "numpy", "scipy", "openai", "langchain", "langchain_core", "llama_index", "rich", "click"}


def own_imports(path):
    """Names of the package's modules that a file imports at any level, those for type checking left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "entropy_chains":
            parts = node.module.split(".")[1:]
            found |= {".".join(parts)} if parts else {a.name for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.partition(".")[2] for a in node.names if a.name.startswith("entropy_chains.")}
    return found


@pytest.mark.parametrize("name", PURE)
def test_the_decision_imports_backwards_only(name):
    """In order: errors ← validation ← files ← tokens ← entropy ← steps ← answers ← rules ← policy ← records ← monitor."""
    assert own_imports(ROOT / f"{name}.py") <= set(PURE[: PURE.index(name)])


@pytest.mark.parametrize("name", [n for n in OFFLINE if (ROOT / f"{n}.py").exists()])
def test_the_offline_half_knows_no_backend(name):
    """It reads traces and policies; nothing of it opens a model, a page or a terminal."""
    allowed = set(PURE) | set(OFFLINE)
    assert own_imports(ROOT / f"{name}.py") <= allowed


@pytest.mark.parametrize("path", sorted((ROOT / "backends").glob("*.py")), ids=lambda p: p.stem)
def test_backends_know_the_decision_only(path):
    """No backend imports the offline half, the loop over it, or what shows results."""
    allowed = set(PURE) | {"backends"} | {f"backends.{p.stem}" for p in (ROOT / "backends").glob("*.py")}
    assert own_imports(path) <= allowed


@pytest.mark.parametrize("name", [n for n in PURE + OFFLINE + ["refine", "recording"] if (ROOT / f"{n}.py").exists()])
def test_nothing_below_knows_what_is_shown(name):
    """Pages, plots, commands and the demo stand at the end."""
    assert not own_imports(ROOT / f"{name}.py") & {*OUTPUT, "cli", "demo", "demo.story"}


def test_there_is_no_circle():
    """The modules can be put in an order in which each imports only earlier ones."""
    files = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in ROOT.rglob("*.py")}
    files = {name: p for name, p in files.items() if name not in ("__init__", "__main__")}
    waiting = {name: own_imports(p) & set(files) - {name} for name, p in files.items()}
    while waiting:
        free = {name for name, needs in waiting.items() if not needs & set(waiting)}
        assert free, f"these import each other: {sorted(waiting)}"
        waiting = {name: needs for name, needs in waiting.items() if name not in free}


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
    names = ", ".join(f"entropy_chains.{n}" for n in [*PURE, "backends", "backends.scripted", "refine", "traces"])
    assert not loaded_by(f"import {names}; from entropy_chains import Monitor, Policy, Token, token_entropy") & HEAVY


def test_the_check_can_fail():
    """A module that does load numpy is seen to."""
    assert "numpy" in loaded_by("import entropy_chains.offline.table") & HEAVY
