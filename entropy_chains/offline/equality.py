"""Which answers of a recorded run are equal, by the grade of its traces."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

from entropy_chains.core import answers

MEMO = 16384
"""Distinct answers whose normal form is remembered while a table is built."""


class RunAnswers(NamedTuple):
    """The answers of a run's steps.

    Attributes:
        texts: as recorded; None where a step has none.
        forms: normal forms; equal ones mean equal answers.
        numbers: all forms are whole numbers, as most are, so the forms alone say what is equal.
    """

    texts: list[str | None]
    forms: list[str | None]
    numbers: bool


class Equality:
    """Compares answers of one grade, and remembers what it compared.

    Args:
        grade: of the traces; see :func:`entropy_chains.core.answers.comparer`.
        grader: the function of a grade ``python:NAME``; without it no two answers are equal, with a warning.
    """

    def __init__(self, grade: str, grader: answers.Grader | None):
        if grade.startswith("python:") and grader is None:
            text = f"the traces were graded by {grade}, whose function was not given: no two answers count as equal"
            warnings.warn(f"{text}; give it with Table.read(path, grader=…)", stacklevel=7)
        compared = answers.comparer(grade, grader or answers.never)
        self._by_form = grader is None
        self._normalise, self._same = lru_cache(MEMO)(compared.normalise), lru_cache(MEMO)(compared.same)

    def answers(self, steps: Sequence[Mapping[str, Any]]) -> RunAnswers:
        """The answers of these steps."""
        texts = [s["answer"] for s in steps]
        forms = [self._normalise(text) for text in texts]
        return RunAnswers(texts, forms, self._by_form and "".join(filter(None, forms)).isdecimal())

    def to(self, run: RunAnswers, other: str | None) -> list[bool]:
        """Whether each answer is equal to another text; a missing one equals nothing."""
        form = self._normalise(other)
        if run.numbers and form is not None and form.isdecimal():
            return [f == form for f in run.forms]
        pairs = zip(run.texts, run.forms, strict=True)
        return [f is not None and other is not None and (f == form or self._same(text, other)) for text, f in pairs]

    def to_previous(self, run: RunAnswers) -> list[bool]:
        """Whether each answer is equal to that of the step before."""
        equal = [False, *(a is not None and a == b for a, b in pairwise(run.forms))]
        if run.numbers:
            return equal
        pairs = [(None, None), *pairwise(run.texts)]
        return [e or (a is not None and b is not None and self._same(a, b)) for e, (a, b) in zip(equal, pairs, strict=True)]
