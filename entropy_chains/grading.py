"""Grading recorded answers: what is written beside each, what is said of all of them, and the user's own grader.

How two answers are compared stands in :mod:`entropy_chains.core.answers`.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from entropy_chains.core.answers import Comparer, Grader, comparer
from entropy_chains.errors import InputError, SettingsError, reason
from entropy_chains.offline.traces import Step, Trace
from entropy_chains.validation import short

MOST_SHOWN = 3
"""Answers that do not equal gold, kept to be shown."""


def check_gold(questions: Sequence[Mapping[str, Any]], grade: str) -> None:
    """Raise InputError where some questions have gold and others none, or a gold answer is not of the kind that is compared."""
    without = [q["id"] for q in questions if q.get("gold") is None]
    if 0 < len(without) < len(questions):
        named = ", ".join(map(short, without[:MOST_SHOWN])) + (", …" if len(without) > MOST_SHOWN else "")
        text = f"{len(without)} of {len(questions)} questions have no gold answer ({named})"
        raise InputError(f"{text}; give one to all of them, or to none")
    read = comparer(grade).normalise if grade in ("number", "choice") else None
    for question in questions if read else ():
        if question.get("gold") is not None and read and read(question["gold"]) is None:
            text = f"gold of question {short(question['id'])} is {short(question['gold'])}, which is no {grade}"
            raise InputError(f"{text}: no answer could be right; choose another grade, or another gold answer")


def graded(question: Mapping[str, Any], steps: list[Step], compared: Comparer) -> list[Step]:
    """The steps of a run, with what was read in each answer where that is not all of it, and whether it equals gold."""
    gold = question.get("gold")
    for step in steps:
        if step.answer is not None:
            read = compared.read(step.answer, gold or "")
            step.read = read if read != step.answer else None
            step.correct = None if gold is None else compared.same(step.answer, gold)
    return steps


@dataclass(slots=True)
class GradeTally:
    """How many full answers equal gold, and the first that do not.

    Attributes:
        equal: of those counted, how many equal gold; counted: full answers with gold. Runs that were cut off have none.
        unequal: the first that do not: the trace's id, the answer as written and as read, and gold.
    """

    equal: int = 0
    counted: int = 0
    unequal: list[dict[str, str | None]] = field(default_factory=list)

    def add(self, trace: Trace) -> None:
        """Count a trace."""
        if trace.gold is None or trace.is_cut:
            return
        last = trace.steps[-1]
        self.counted += 1
        self.equal += last.correct is True
        if last.correct is not True and len(self.unequal) < MOST_SHOWN:
            read = last.answer if last.read is None else last.read
            self.unequal.append({"id": trace.id, "answer": last.answer, "read": read, "gold": trace.gold})

    def to_dict(self) -> dict[str, Any]:
        """Its part of ``record --json``; empty where no full answer has gold."""
        return {"equal_to_gold": self.equal, "with_gold": self.counted, "unequal": self.unequal} if self.counted else {}


def told_of_gold(figures: Mapping[str, Any]) -> list[str]:
    """Lines for people of :meth:`GradeTally.to_dict`; none where no full answer has gold."""
    if not figures.get("with_gold"):
        return []
    lines = [f"{figures['equal_to_gold']} of {figures['with_gold']} full answers equal gold"]
    for row in figures["unequal"]:
        written = "" if row["read"] == row["answer"] else f", written {short(row['answer'])}"
        lines.append(f"  {short(row['id'])}: read {short(row['read'])}{written}; gold {short(row['gold'])}")
    return (
        [*lines, "  If these are equal, see docs/grading.md: which forms are read, --system, --grade."]
        if figures["unequal"]
        else lines
    )


def nothing_right(traces: Iterable[Trace]) -> list[str]:
    """What to tell of recorded runs of which no full answer equals gold."""
    tally = GradeTally()
    for trace in traces:
        tally.add(trace)
    return told_of_gold(tally.to_dict())


def named_grader(grade: str) -> Grader | None:
    """The function that a user names on the command line as ``python:MODULE:FUNCTION``; None for other grades.

    Raises:
        SettingsError: there is no such grade or function.
        MissingExtraError: the grade needs a library that is not installed.
    """
    kind, _, name = grade.partition(":")
    if kind != "python":
        comparer(grade)
        return None
    module, _, function = name.partition(":")
    sys.path.insert(0, os.getcwd())  # as with python -m
    try:
        candidate = getattr(importlib.import_module(module), function) if module and function else None
    except (ImportError, AttributeError) as error:
        raise SettingsError(f"grade is {short(grade)}: {reason(error)}; it must be python:MODULE:FUNCTION") from error
    finally:
        sys.path.remove(os.getcwd())
    if not callable(candidate):
        raise SettingsError(
            f"grade is {short(grade)}; it must be python:MODULE:FUNCTION, a function of an answer and a gold answer"
        )
    grader: Grader = candidate
    return grader
