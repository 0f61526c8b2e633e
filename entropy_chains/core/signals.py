"""What a step was like: the table of signals, and their formulas, from running sums in constant memory.

A new statistic of a step is a row of :data:`SIGNALS` and a line in :meth:`Tally.record`. A new one of the answer that is asked for
after a step is a row, and a line in the backends that ask.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from heapq import heappush, heapreplace, nlargest
from typing import TYPE_CHECKING, Any, Literal

from entropy_chains.core.entropy import EntropyBounds
from entropy_chains.errors import PolicyError, one_line
from entropy_chains.validation import is_amount, short

if TYPE_CHECKING:
    import numpy as np

MEAN = "mean_entropy"
"""The signal that a trace's ``entropy`` holds, and a rule reads, where nothing else is said."""

COVERAGE = 0.9
"""Least share of a step's tokens that must have logprobs; below it the step's entropy is None."""

TAIL = 32
"""Tokens at a step's end that ``tail_entropy`` is the mean of."""

TOP = 512
"""Most tokens that ``top_tenth_entropy`` keeps; beyond 5,120 tokens a step it is the mean of the highest 512."""

SMALLEST = -14
"""A grid's first threshold above 0 is 2^-14: models with very low entropies are resolved too."""
PER_OCTAVE = 16
GRID = "0 and 2^-14 to the signal's maximum, 16 an octave"
LARGEST_EXPONENT = 14
"""The grid of a signal that one token does not bound ends at 2^14."""
DEFAULT_BITS = 18.0
"""Largest entropy, bits, of a full vocabulary whose size is not recorded."""
LONGEST_NAME = 40
"""Characters shown of the name of a signal without a row."""


@dataclass(frozen=True, slots=True)
class Signal:
    """What is known about a signal: a statistic of a step that a rule may compare with a threshold.

    Attributes:
        name: as in traces and policies.
        label: what it is, for people, without its unit.
        unit: ``bits``, ``nats`` or ``probability``; empty where it is not known.
        source: who records it. ``step``: :class:`Tally`, with every step, inside an engine too. ``probe``: whoever asks for an
            answer after the step, so that a rule on it pays for a probe after every step. ``trace``: nobody here, it is the user's.
        higher_is_surer: its direction. Rules stop at or under a threshold, so none reads a signal of which higher means surer.
        bits_a_token: it is in bits a token, so no value is above log2 k; else it grows with the step, or its range is not known.
        whole_vocabulary: it needs the probabilities of all tokens, of which a server tells only the likeliest.
        tried: calibration tries it unasked where it is recorded, beside the traces' own; ``compare`` shows it.
    """

    name: str
    label: str
    unit: str = "bits"
    source: Literal["step", "probe", "trace"] = "step"
    higher_is_surer: bool = False
    bits_a_token: bool = True
    whole_vocabulary: bool = False
    tried: bool = False

    @classmethod
    def named(cls, name: str) -> Signal:
        """The row of a name.

        A name without a row is a signal of the user's own traces: it can be diagnosed, calibrated, replayed and compared. Lower is
        taken for surer, the grid ends at 2^14 in its own unit, and people read its name, made printable and short. Nothing here
        computes it, so live it is missing, and what is missing never stops.
        """
        return SIGNALS.get(name) or cls(name, _short_name(name), unit="", source="trace", bits_a_token=False)

    @property
    def title(self) -> str:
        """The label with its unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def largest(self, k: int | None, vocab_size: int | None = None) -> float:
        """The largest threshold of its grid: log2 k bits, that of the vocabulary where k is None, or 2^14."""
        if not self.bits_a_token:
            return 2.0**LARGEST_EXPONENT
        return math.log2(k) if k else math.log2(vocab_size) if vocab_size else DEFAULT_BITS

    def grid(self, k: int | None, vocab_size: int | None = None) -> np.ndarray[Any, Any]:
        """The thresholds that a certificate walks, ascending; fixed before any data are seen, as :data:`GRID` says."""
        import numpy as np

        if (largest := self.largest(k, vocab_size)) <= 0:
            return np.zeros(1)
        exponents = SMALLEST + np.arange(math.floor((math.log2(largest) - SMALLEST) * PER_OCTAVE) + 1) / PER_OCTAVE
        return np.unique(np.concatenate([[0.0], 2.0**exponents, [largest]]))


def _short_name(name: str) -> str:
    name = one_line(name)
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


SIGNALS: dict[str, Signal] = {
    row.name: row
    for row in (
        Signal(MEAN, "mean entropy of the step"),
        Signal("sum_entropy", "summed entropy of the step", bits_a_token=False, tried=True),
        Signal("top_tenth_entropy", "mean entropy of the step's highest tenth"),
        Signal("tail_entropy", "mean entropy of the step's last tokens"),
        Signal("max_entropy", "highest entropy of the step"),
        Signal("deepconf", "mean token confidence of the step", "nats", higher_is_surer=True, bits_a_token=False),
        Signal("trial_entropy", "mean entropy of the answer tried after the step", source="probe", tried=True),
        Signal("eat", "entropy after the closing tag", source="probe", whole_vocabulary=True),
        Signal(
            "trial_confidence",
            "mean token probability of the answer tried after the step",
            "probability",
            source="probe",
            higher_is_surer=True,
            bits_a_token=False,
        ),
    )
}
"""Every signal that is recorded here, by name. The one place of what is known about them."""

READ_BY_RULES = tuple(row.name for row in SIGNALS.values() if not row.higher_is_surer)
"""Names of those that a rule may read."""

STEP_SIGNALS = tuple(row.name for row in SIGNALS.values() if row.source == "step")
"""Names of those that come with every step."""


@dataclass(frozen=True, slots=True)
class MassFloor:
    """Below ``position`` a position enters with its upper bound; a step with a mean mass below ``step`` is never a stop."""

    position: float = 0.5
    step: float = 0.8

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not (is_amount(value) and value <= 1):
                raise PolicyError(f"mass_floor.{name} is {short(value)}; it must be between 0 and 1")


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A step just ended.

    Attributes:
        step: its number, from 1.
        tokens: tokens computed since the last boundary, thinking tags and forced tokens included.
        entropy: mean over its reasoning tokens, bits; None where fewer than 90 % of them have logprobs.
        mass, lower, upper: means of the same tokens' mass and entropy bounds.
        signals: the statistics named in :data:`STEP_SIGNALS` except the mean, and those of a probe; empty without an entropy.
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
        return self.entropy if signal == MEAN else self.signals.get(signal)


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

        present = figures[:, 0] == figures[:, 0]
        self._missing += len(figures) - int(present.sum())
        # The sums so far come first: added one after the other they are the same to the last bit as those of `add`.
        figures = np.concatenate([[self._sums], figures[present]])
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
        mean = self.record(1, self.count).value(MEAN, self._floor)
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
