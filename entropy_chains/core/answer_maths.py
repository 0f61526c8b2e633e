"""Whether two formulas are equal, asked of math-verify in a process of its own.

The library bounds its time by signals, which work on the main thread only. So it runs elsewhere: a process that is started at the
first question, serves all threads one after the other, and ends itself where a question takes too long. Formulas that are too
long or whose numbers are too large are not asked at all.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import subprocess
import sys
import threading
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import IO, cast

from entropy_chains.errors import MissingExtraError

LIBRARY, EXTRA = "math_verify", "math"
LONGEST_FORMULA = 1000
"""Characters of a formula at most."""
MOST_DIGITS, LARGEST_POWER, MOST_POWERS = 40, 1000, 12
"""Digits of a number, size of an exponent, and powers in one formula at most."""

_LONG_NUMBER = re.compile(rf"\d{{{MOST_DIGITS}}}")
_POWER = re.compile(r"(?:\^|\*\*)\s*\{?\s*[-+(]?\s*(\d*)")
_TOWER = re.compile(r"(?:\^|\*\*)[{(\s]*\d+[)}\s]*(?:\^|\*\*)|![)}\s]*[!^]")
_REPEATING = re.compile(r"!|\\(?:sum|prod|binom)(?![a-zA-Z])")
_BOUND = re.compile(r"\\(?:sum|prod)\s*_\{[^{}]*\}\s*\^")
_LARGE = re.compile(r"\d{4}|\d[)}\s]*(?:\^|\*\*)")
_NEVER = re.compile(r"\\(?:int|iint|oint|lim|dots|ldots|cdots)(?![a-zA-Z])|factorial|gamma\(", re.IGNORECASE)


@lru_cache(1)
def installed() -> bool:
    """Whether the library is there. It is not loaded into this process."""
    return find_spec(LIBRARY) is not None


def check_installed() -> None:
    """Raise MissingExtraError, which says what to install, unless the library is there."""
    if not installed():
        raise MissingExtraError("math-verify", EXTRA)


def within_limits(formula: str) -> bool:
    """Whether a formula can be worked on in a moment: short, without huge numbers, towers of powers, sums and factorials."""
    powers = _POWER.findall(formula)
    return (
        len(formula) <= LONGEST_FORMULA
        and len(powers) <= MOST_POWERS
        and all(int(p[:9] or 0) <= LARGEST_POWER for p in powers)
        and not _LONG_NUMBER.search(formula)
        and not _TOWER.search(formula)
        and not _NEVER.search(formula)
        and not (_REPEATING.search(formula) and _LARGE.search(_BOUND.sub(" ", formula)))
        and formula.count("(") + formula.count("{") + formula.count("[") <= 100
    )


_MORE = re.compile(r"^\s*(?:[<>≤≥≠]|\\(?:geq?|leq?|gt|lt|neq?)(?![a-z]))|\d_\{?\d")
"""What the library overlooks beside a number: an inequality without a left side, and a base."""


_NAMES = re.compile(
    r"(?<![\\a-zA-Z])(?:(?P<inverse>a(?=sin|cos|tan))?(?P<name>(?:arc)?(?:sin|cos|tan)h?|cot|sec|csc|log|ln|exp|pi|theta))(?![a-zA-Z])"
)
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|(\d+(?:\.\d+)?|[a-zA-Zπ]))")
_RAISED, _LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹", str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")
_SIGNS = {"!=": r"\ne ", "**": "^", "·": r"\cdot ", "×": r"\times "}


def as_latex(formula: str) -> str:
    """A formula with LaTeX for what is typed without it, which the library misreads: ``sin(x)**2``, ``2·√3``, ``x²``."""
    for typed, latex in _SIGNS.items():
        formula = formula.replace(typed, latex)
    formula = re.sub(rf"[{_RAISED}]+", lambda m: f"^{{{m[0].translate(_LOWERED)}}}", formula)
    formula = _ROOT.sub(lambda m: rf"\sqrt{{{m[1] or m[2]}}}", formula)
    return _NAMES.sub(lambda m: rf"\{'arc' if m['inverse'] else ''}{m['name']} ", formula)


def equal(gold: str, answer: str) -> bool:
    """Whether two formulas are equal; False where the library is not installed, or they are beyond the limits."""
    gold, answer = as_latex(gold), as_latex(answer)
    if bool(_MORE.search(gold)) is not bool(_MORE.search(answer)):
        return False
    return installed() and within_limits(gold) and within_limits(answer) and _WORKER.equal(gold, answer)


class _Worker:
    """The process that knows the library; one question at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._of = 0  # the process that started it: after a fork its pipes belong to the parent

    def equal(self, gold: str, answer: str) -> bool:
        with self._lock:
            for _ in range(2):  # it may have ended since the last question
                requests, replies = self._pipes()
                try:
                    requests.write(json.dumps([gold, answer]) + "\n")
                    requests.flush()
                except OSError:
                    self.close()
                    continue
                if line := replies.readline():
                    return bool(json.loads(line))
                self.close()
                return False
            return False

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        if self._process is None or self._of != os.getpid():
            script = Path(__file__).with_name("answer_maths_worker.py")
            env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
            command = [sys.executable, "-P", str(script)]
            self._process = subprocess.Popen(  # noqa: S603 (our own script)
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                env=env,
            )
            self._of = os.getpid()
        return cast("IO[str]", self._process.stdin), cast("IO[str]", self._process.stdout)

    def close(self) -> None:
        """End the process, if it is ours."""
        process, self._process = self._process, None
        if process is not None and self._of == os.getpid():
            process.kill()
            process.communicate()


_WORKER = _Worker()
atexit.register(_WORKER.close)
os.register_at_fork(after_in_child=lambda: _WORKER.__init__()) if hasattr(os, "register_at_fork") else None  # type: ignore[misc]
