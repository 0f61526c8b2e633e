"""What a step was like: its statistics, from running sums in constant memory. The one place of the formulas."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from heapq import heappush, heapreplace, nlargest
from typing import TYPE_CHECKING, Any

from entropy_chains.core.entropy import EntropyBounds
from entropy_chains.core.policy import MassFloor

if TYPE_CHECKING:
    import numpy as np

COVERAGE = 0.9
"""Least share of a step's tokens that must have logprobs; below it the step's entropy is None."""

TAIL = 32
"""Tokens at a step's end that ``tail_entropy`` is the mean of."""

TOP = 512
"""Most tokens that ``top_tenth_entropy`` keeps; beyond 5,120 tokens a step it is the mean of the highest 512."""

SIGNALS = ("mean_entropy", "sum_entropy", "top_tenth_entropy", "tail_entropy", "max_entropy", "deepconf")
"""What a step records. All in bits and lower = surer, but ``deepconf``: nats, higher = surer."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A step just ended.

    Attributes:
        step: its number, from 1.
        tokens: tokens computed since the last boundary, thinking tags and forced tokens included.
        entropy: mean over its reasoning tokens, bits; None where fewer than 90 % of them have logprobs.
        mass, lower, upper: means of the same tokens' mass and entropy bounds.
        signals: the statistics named in :data:`SIGNALS` except the mean; empty where the entropy is None.
    """

    step: int
    tokens: int
    entropy: float | None = None
    mass: float | None = None
    lower: float | None = None
    upper: float | None = None
    signals: dict[str, float] = field(default_factory=dict)

    def value(self, signal: str, floor: MassFloor) -> float | None:
        """The signal a rule reads; None where it is missing or the mass is too low to be trusted."""
        if self.entropy is None or (self.mass is not None and self.mass < floor.step):
            return None
        return self.entropy if signal == "mean_entropy" else self.signals.get(signal)


class Tally:
    """The running statistics of the step in progress, fed one token at a time or many at once."""

    __slots__ = ("_floor", "_heap", "_missing", "_peak", "_recent", "_sums", "count")

    def __init__(self, floor: MassFloor | None = None):
        self._floor = floor or MassFloor()
        self.count = self._missing = 0  # reasoning tokens with and without logprobs
        self._sums = [0.0, 0.0, 0.0, 0.0, 0.0]
        self._peak = 0.0
        self._recent: list[float] = []
        self._heap: list[float] = []

    def add(self, bounds: EntropyBounds | None) -> None:
        """Take one reasoning token; None or NaN means that its logprobs are missing."""
        if bounds is None or bounds.entropy != bounds.entropy:
            self._missing += 1
            return
        value = bounds.upper if bounds.mass < self._floor.position else bounds.entropy
        sums = self._sums
        sums[0] += value
        sums[1] += bounds.mass
        sums[2] += bounds.lower
        sums[3] += bounds.upper
        sums[4] += bounds.confidence
        if len(self._recent) < TAIL:
            self._recent.append(value)
        else:
            self._recent[self.count % TAIL] = value
        self.count += 1
        if value > self._peak:
            self._peak = value
        if len(self._heap) < TOP:
            heappush(self._heap, value)
        elif value > self._heap[0]:
            heapreplace(self._heap, value)

    def add_many(self, figures: np.ndarray[Any, Any]) -> None:
        """Take several: entropy, mass, lower, upper, confidence of each, [tokens, 5]; a NaN entropy is a missing one."""
        import numpy as np

        known = figures[:, 0] == figures[:, 0]
        self._missing += len(figures) - int(known.sum())
        # The sums so far come first: added one after the other they are the same to the last bit as those of `add`.
        figures = np.concatenate([[self._sums], figures[known]])
        low = figures[1:, 1] < self._floor.position
        if low.any():
            figures[1:][low, 0] = figures[1:][low, 3]
        values = figures[1:, 0].tolist()
        self._sums = figures.sum(0).tolist()
        at = self.count % TAIL if len(self._recent) == TAIL else 0  # the ring's oldest place
        self._recent = (self._recent[at:] + self._recent[:at] + values)[-TAIL:]
        self.count += len(values)
        at = self.count % TAIL if len(self._recent) == TAIL else 0
        self._recent = self._recent[TAIL - at :] + self._recent[: TAIL - at] if at else self._recent
        self._peak = max(self._peak, *values) if values else self._peak
        self._heap += values
        if len(self._heap) > TOP:
            self._heap = nlargest(TOP, self._heap)
        self._heap.sort()  # a sorted list is a heap

    def trial(self) -> dict[str, float]:
        """``trial_entropy`` of an answer's tokens, bits, if it is one to be trusted: as a step's mean."""
        mean = self.record(1, self.count).value("mean_entropy", self._floor)
        return {} if mean is None else {"trial_entropy": mean}

    def record(self, step: int, tokens: int) -> StepRecord:
        """The step as it is now. ``tokens``: all of it, tags and forced ones included."""
        count, missing = self.count, self._missing
        if not count or count < COVERAGE * (count + missing):
            return StepRecord(step, tokens)
        mean, mass, lower, upper, confidence = (s / count for s in self._sums)
        highest = sorted(self._heap, reverse=True)[: max(1, min(TOP, math.ceil(count / 10)))]
        signals = {
            "sum_entropy": mean * (count + missing),  # a missing position counts as an average one, never as 0
            "top_tenth_entropy": math.fsum(highest) / len(highest),
            "tail_entropy": math.fsum(self._recent) / len(self._recent),
            "max_entropy": self._peak,
            "deepconf": confidence,
        }
        return StepRecord(step, tokens, mean, mass, lower, upper, signals)
