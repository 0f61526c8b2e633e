"""How everything here is measured: two things turn by turn in one run, and the median of their paired ratios.

A machine's speed changes from minute to minute, a ratio of neighbours hardly. Absolute figures stand beside the ratios for
orientation and belong to the machine that the results name.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PACKAGES = ("entropy-chains", "numpy", "scipy", "torch", "transformers")


@dataclass(frozen=True)
class Row:
    """One figure of the table.

    Attributes:
        benchmark: the script's name for it; figure: what was measured.
        value: the median; low, high: the lowest and the highest of the rounds, None where there was one.
        unit: ``×`` for a ratio.
        goal: the largest value that is good enough (``least``: the smallest), None where the figure only informs.
        note: what stands beside it.
    """

    benchmark: str
    figure: str
    value: float | None
    unit: str
    low: float | None = None
    high: float | None = None
    goal: float | None = None
    least: bool = False
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without a goal or a value."""
        if self.goal is None or self.value is None:
            return None
        return self.value >= self.goal if self.least else self.value <= self.goal

    def to_dict(self) -> dict:
        return asdict(self) | {"met": self.met}


@dataclass(frozen=True)
class Paired:
    """Rounds of A and B: seconds of each, in order."""

    a: list[float]
    b: list[float]

    def row(self, benchmark: str, figure: str, *, per: float = 1.0, scale: str = "", over: str = "", **given) -> Row:
        """The median of A/B; ``per`` and ``scale`` (ms, µs) turn seconds into what the note says of each side."""
        ratios = [x / y for x, y in zip(self.a, self.b, strict=True)]
        note = given.pop("note", "")
        if scale:
            factor = {"s": 1.0, "ms": 1e3, "µs": 1e6}[scale] / per
            sides = (f"{statistics.median(side) * factor:.3g}" for side in (self.a, self.b))
            note = "; ".join(filter(None, [note, f"{' against '.join(sides)} {scale}{over}"]))
        return Row(benchmark, figure, statistics.median(ratios), "×", min(ratios), max(ratios), note=note, **given)

    @property
    def flipped(self) -> Paired:
        """B against A: how many times faster A is."""
        return Paired(self.b, self.a)


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def turn_by_turn(rounds: int, *works: Callable[[], object], warm: bool = True) -> list[list[float]]:
    """Wall seconds of each, measured A B C A B C …; one call of each before, which does not count."""
    if warm:
        for work in works:
            work()
    taken: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for times, work in zip(taken, works, strict=True):
            times.append(seconds(work))
    return taken


def compare(a: Callable[[], object], b: Callable[[], object], rounds: int, *, warm: bool = True) -> Paired:
    """Two things, measured A B A B … after one call of each."""
    return Paired(*turn_by_turn(rounds, a, b, warm=warm))


def in_fresh_process(script: str, *arguments: object, threads: int = 1) -> dict:
    """The JSON object that a script here prints when it runs alone, with nothing of this process in its memory."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed:\n{done.stderr}")
    return json.loads(done.stdout)


# --- memory, where the system tells (Linux)


def peak_memory(work: Callable[[], object]) -> int | None:
    """Bytes that a call needed beyond what the process held before; None where the system does not tell."""
    try:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # what earlier calls left with the allocator must not hide what this one needs
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew at the present size
        before = _status("VmRSS")
        work()
        return _status("VmHWM") - before
    except OSError:
        return None


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


# --- the machine


def machine() -> dict:
    """What the figures belong to."""
    facts = {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
    for name in PACKAGES:
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            facts[name] = None
    return facts


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
