"""The page of results holds exactly what its kept figures say, and its negative control takes away the signal and nothing else."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture(scope="module")
def script():
    """``scripts/results.py`` as a module, with the two beside it."""
    pytest.importorskip("transformers")
    sys.path.insert(0, str(SCRIPTS))
    try:
        import results
    finally:
        sys.path.remove(str(SCRIPTS))
    return results


def test_the_page_is_rendered_from_the_kept_figures(script):
    """``docs/results.md`` is what ``scripts/results.py --write-docs`` makes of ``docs/results.json``."""
    page = script.results_page
    assert page.PAGE.read_text(encoding="utf-8") == page.rendered(), "run: python scripts/results.py --write-docs"


def test_the_figures_are_of_enough_questions_and_of_every_rule(script):
    """At least 1,000 recorded questions, on which no rule lacks its signal."""
    kept = json.loads(script.results_page.KEPT.read_text(encoding="utf-8"))
    assert kept["recorded"]["questions"] == kept["home"]["questions"] >= 1000
    assert all(r["applicable"] for r in kept["home"]["rules"])


def test_dealing_anew_changes_who_has_a_figure_and_nothing_else(script):
    """At the named step every figure is still there once, with its signals; answers, tokens and other steps stay where they are."""
    runs = [
        {
            "id": str(n),
            "steps": [
                {"answer": str(n), "tokens": n, "entropy": float(10 * n + i), "signals": {"eat": float(10 * n + i)}}
                for i in range(3)
            ],
        }
        for n in range(30)
    ]
    made = script.dealt_anew(runs, lambda step: step == 2)

    def column(some, i, name):
        return [r["steps"][i][name] for r in some]

    for i in (0, 1, 2):
        assert column(made, i, "answer") == column(runs, i, "answer")
        assert column(made, i, "tokens") == column(runs, i, "tokens")
        assert [s["eat"] for s in column(made, i, "signals")] == column(made, i, "entropy")
    assert [column(made, i, "entropy") == column(runs, i, "entropy") for i in range(3)] == [True, False, True]
    assert sorted(column(made, 1, "entropy")) == column(runs, 1, "entropy")
