"""The two quickstarts under ``examples/``: what they have in common, and how the demo runs them at its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[2] / "examples"
QUICKSTARTS = {
    "langchain_quickstart.py": (("langchain", "langchain_entropy_chains"), "pip install 'langchain-entropy-chains[agents]'"),
    "llama_index_quickstart.py": (
        ("llama_index.core", "llama_index.llms.entropy_chains"),
        "pip install llama-index-llms-entropy-chains",
    ),
}
"""Each file, what it imports, and the line that installs that."""

Runs = Sequence[tuple[bool, int]]
"""Of each question: whether the answer is right, and the tokens computed."""


def compared(full: Runs, early: Runs) -> dict[str, Any]:
    """The same questions in full and with stopping; changes as fractions, negative = worse."""
    tokens_full, tokens = (sum(t for _, t in runs) for runs in (full, early))
    accuracy_full, accuracy = (sum(right for right, _ in runs) / len(runs) for runs in (full, early))
    return {
        "questions": len(full),
        "accuracy_full": accuracy_full,
        "accuracy": accuracy,
        "accuracy_change": accuracy - accuracy_full,
        "tokens_full": tokens_full,
        "tokens": tokens,
        "tokens_saved": 1 - tokens / tokens_full,
    }


def show_quickstarts(results: Mapping[str, Mapping[str, Any]]) -> None:
    """The figures as a table; a quickstart that could not run says why."""
    from rich.table import Table

    from entropy_chains.show.printing import console

    table = Table("before and after the one added line", "questions", "right", "tokens", "saved", title="In your framework")
    for name, f in results.items():
        if "skipped" in f:
            table.add_row(name, "", "", "", f["skipped"])
            continue
        right = f"{f['accuracy_full']:.0%} → {f['accuracy']:.0%}"
        table.add_row(name, str(f["questions"]), right, f"{f['tokens_full']:,} → {f['tokens']:,}", f"{f['tokens_saved']:.0%}")
    console().print(table)


def add_quickstarts(story: dict[str, Any], out: Path, track: Callable[[str, int], Callable[[int], None]]) -> None:
    """Run both with the policy in ``out`` and add their figures to the story and to its ``demo.json``."""
    from entropy_chains.demo.story import write_story  # only here: the examples import this module

    story["quickstarts"] = run_quickstarts(out / "policy.json", track("LangChain and LlamaIndex", len(QUICKSTARTS)))
    write_story(story, out)


def run_quickstarts(policy: Path, advance: Callable[[int], None]) -> dict[str, dict[str, Any]]:
    """Run both with this policy, at once, each in a process of its own; one that cannot run is told with the line to type."""
    results: dict[str, dict[str, Any]] = {}
    with ThreadPoolExecutor(len(QUICKSTARTS)) as pool:
        for result in pool.map(partial(_result, policy), QUICKSTARTS):
            results |= result
            advance(1)
    return results


def _result(policy: Path, file: str) -> dict[str, dict[str, Any]]:
    needed, line = QUICKSTARTS[file]
    missing = [name for name in needed if not _is_there(name)]
    if missing:
        return {file: {"skipped": f"{missing[0]} is not installed; type: {line}"}}
    if not (EXAMPLES / file).exists():
        return {file: {"skipped": "the examples are in the repository, not in the installed package"}}
    return _run(file, policy)


def _run(file: str, policy: Path) -> dict[str, dict[str, Any]]:
    command = [sys.executable, str(EXAMPLES / file), "--policy", str(policy.resolve()), "--json"]
    alone = os.environ | {"OMP_NUM_THREADS": "1"}  # threads of so small a model wait for each other where there is other work
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=alone)  # noqa: S603 (our own file)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {file: {"skipped": f"it failed: {why}"}}
    results: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return results


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ImportError:
        return False
