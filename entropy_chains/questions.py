"""Questions to be recorded: read from a file, and judged before anything is spent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from entropy_chains.errors import InputError
from entropy_chains.validation import read_json, short, utf8_text

Question = Mapping[str, Any]
"""``id``, ``question`` and, where it is known, ``gold``."""

LOOKS = 'each line must look like {"id": "q1", "question": "…", "gold": "…"}, with texts for values'
"""What is said of a line that does not."""


def read_questions(path: str | Path, limit: int | None = None) -> list[dict[str, Any]]:
    """Read a JSONL file of questions. Numbers for ``id`` and ``gold`` become texts.

    Raises:
        InputError: the file is missing or empty, or a line is not an object with ``id`` and ``question``, holds a value that no
            trace may hold, or repeats an id.
    """
    try:
        lines = utf8_text(Path(path).read_bytes()).split("\n")  # a text may hold other line separators
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except InputError as error:
        raise InputError(f"{path} is {error}") from error
    placed = [(f"{path}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    questions = together([(place, _question(line, place)) for place, line in placed], limit)
    if not questions:
        raise InputError(f"{path} holds no questions; {LOOKS}")
    return questions


def together(placed: Sequence[tuple[str, dict[str, Any]]], limit: int | None = None) -> list[dict[str, Any]]:
    """Questions that can be recorded in one file. Raises InputError for an id that stands twice."""
    ids = set()
    for place, question in placed:
        if question["id"] in ids:
            raise InputError(f"{place}: id {short(question['id'])} stands twice; ids must be unique")
        ids.add(question["id"])
    return [question for _, question in placed[:limit]]


def _question(line: str, place: str) -> dict[str, Any]:
    """The question of a line. Raises InputError that names the place and the field."""
    try:
        value = read_json(line)
    except InputError as error:
        raise InputError(f"{place}: {error}; {LOOKS}") from error
    return checked(value if isinstance(value, dict) else {}, place)


def checked(question: dict[str, Any], place: str) -> dict[str, Any]:
    """The question, numbers as texts. Raises InputError that names the place and the field."""
    for name in ("id", "question", "gold", "group"):
        value, needed = question.get(name), name in ("id", "question")
        is_number = name == "gold" and isinstance(value, int | float) and abs(value) < math.inf
        if is_number or (name == "id" and type(value) is int):
            value = question[name] = str(value)
        if not _is_text(value, needed) and (needed or value is not None):
            raise InputError(f"{place}: {name!r} is {short(value)}; {LOOKS}")
    return question


def _is_text(value: object, filled: bool) -> bool:
    """Whether a value is a text that can be written as UTF-8."""
    halves = isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value)
    return isinstance(value, str) and not halves and (bool(value) or not filled)
