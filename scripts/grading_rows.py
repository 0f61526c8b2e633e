"""Rows of (answer, gold, equal?) from source packages of other projects, and what the readers of those packages share."""

from __future__ import annotations

import ast
import hashlib
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

PARTS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh")
"""The first, third and fourth were in view while the reader was made; the others were graded once before."""
LAST = ("opencompass", "tinker", "skyrl", "verifiers", "evalscope")
"""How the names begin of the sources of the fourth and fifth part."""
SIXTH = ("nemo-gym", "nemo-evaluator", "ai4math")
SEVENTH = ("eval-protocol", "theaios", "reward-doctor", "maths-engine", "retrain", "step-distill", "grounded-judge")
"""How the names begin of the sources of the sixth and the seventh part."""
LEFT_OUT = "gpqa"
"""A data set whose texts must not be used."""


class Row(NamedTuple):
    """An answer as it was written, the gold answer, whether they are equal, and where it stands."""

    answer: str
    gold: str
    equal: bool
    source: str

    @property
    def part(self) -> str:
        """By a hash of the answer the first or second half of the first sources, or of those added last (fourth, fifth)."""
        if self.source.startswith("inspect"):
            return "third"
        if self.source.startswith(SIXTH):
            return "sixth"
        if self.source.startswith(SEVENTH):
            return "seventh"
        odd = hashlib.sha256(self.answer.encode()).digest()[0] % 2
        if self.source.startswith(LAST):
            return "fifth" if odd else "fourth"
        return "second" if odd else "first"

    @property
    def end(self) -> tuple[str, str]:
        """The end of the answer, and gold: the same worked answers stand in several packages, with other first words."""
        return plain(self.answer)[-100:], self.gold


class Source(NamedTuple):
    """Source packages, and how they are read.

    Attributes:
        packages: file name's start of each, and what pip calls it.
        rows_of: rows of one file, by the package, the file's name in it, and its content.
    """

    packages: dict[str, str]
    rows_of: Callable[[str, str, bytes], Iterator[Row]]


def collect(folder: Path, sources: Iterable[Source]) -> list[Row]:
    """All rows of the source packages in a folder, each once. Raises FileNotFoundError where one is missing."""
    all_rows: dict[tuple[str, str], Row] = {}
    ends: set[tuple[str, str]] = set()
    for start, reader in ((start, source.rows_of) for source in sources for start in source.packages):
        path = next(iter(sorted(folder.glob(f"{start}-*.tar.gz"))), None)
        if path is None:
            raise FileNotFoundError(f"{folder} has no {start}-*.tar.gz")
        with tarfile.open(path) as archive:
            for member in archive:
                name = member.name.partition("/")[2]
                if LEFT_OUT not in name and (file := archive.extractfile(member)):
                    for row in reader(start, name, file.read()):
                        if row.end not in ends or row.part in PARTS[:3]:
                            all_rows.setdefault((row.answer, row.gold), row)
                        ends.add(row.end)
    return list(all_rows.values())


def literal(node: ast.expr) -> Any:
    """A literal's value; None of anything else."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def value_of(node: ast.expr, names: dict[str, Any]) -> Any:
    """A literal, a name's value, or a text in which names stand."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(value_of(v.value if isinstance(v, ast.FormattedValue) else v, names)) for v in node.values)
    return literal(node)


def with_wrong(told: list[tuple[str, str]], source: str) -> Iterator[Row]:
    """Worked answers of one task and their gold answers, and each with wrong ones."""
    for text, gold in told:
        yield Row(text, gold, True, source)
        wrong = {other for _, other in told if plain(other) != plain(gold)}
        if re.fullmatch(r"\(?[A-Z]\)?", gold):
            wrong |= {f"({letter})" for letter in "ABCD" if letter != gold.strip("()")}
        elif re.fullmatch(r"-?\d+", gold):
            wrong |= {number for number in re.findall(r"\d+", text) if int(number) != abs(int(gold))}
        elif gold.casefold() in ("yes", "no"):
            wrong |= {"no" if gold.casefold() == "yes" else "yes"}
        yield from (Row(text, other, False, source) for other in sorted(wrong)[:3])


def plain(text: str) -> str:
    """A text's letters and digits, small."""
    return re.sub(r"\W", "", text).casefold()
