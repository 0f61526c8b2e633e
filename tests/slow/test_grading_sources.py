"""Answers that nobody of this project wrote, where their source packages have been fetched (``python scripts/grading.py``)."""

from __future__ import annotations

import sys

import pytest
from places import ROOT

from entropy_chains.core import answer_maths
from entropy_chains.core.answers import same

sys.path.insert(0, str(ROOT / "scripts"))
from grading import CACHE, Row, rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found() -> list[Row]:
    """All rows, or a skip."""
    try:
        return rows(CACHE)
    except FileNotFoundError as error:
        pytest.skip(str(error))


def share_wrong(found: list[Row], *, equal: bool) -> float:
    """Share of the rows with this label that are graded otherwise."""
    verdicts = [same(row.answer, row.gold) for row in found if row.equal is equal]
    return sum(verdict is not equal for verdict in verdicts) / len(verdicts)


def test_hardly_a_wrong_answer_is_graded_right(found):
    """At most one in a hundred, on more than a thousand wrong ones, with the library of mathematics or without."""
    assert len(found) > 1500
    assert share_wrong(found, equal=False) <= 0.01


def test_right_answers_in_prose_are_seen(found):
    """At most one in a hundred is missed, library or not."""
    assert share_wrong([row for row in found if "worked" in row.source], equal=True) <= 0.01


@pytest.mark.skipif(not answer_maths.installed(), reason="needs math-verify (the extra math)")
def test_right_answers_are_seen(found):
    """At most one in a hundred is missed over all sources, formulas of all kinds included."""
    assert share_wrong(found, equal=True) <= 0.01
