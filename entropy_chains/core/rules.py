"""Stop rules: one small frozen class each, asked "stop after this step?".

A rule says once what it stops on, in :meth:`Rule.met` and :meth:`Rule.value`, for one reading and for many rows alike. The monitor
asks :meth:`Rule.stops`, replay and ``compare`` ask :meth:`Rule.stops_rows`, a certificate asks :meth:`Rule.first_settings`.
A new rule is a class and its entry in :data:`RULES`. Whoever acts by a rule asks it, and nobody compares its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from entropy_chains.core import answers
from entropy_chains.core.signals import MEAN, MassFloor, Signal, StepRecord
from entropy_chains.options import OPTIONS

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

MISSING = float("nan")


@dataclass(frozen=True, slots=True)
class Reading:
    """What a rule may read after a step.

    Attributes:
        step: the step just ended, from 1.
        value: the signal of its policy, lower = surer; NaN where it is missing or not eligible.
        answer: the answer if reasoning stopped here; None unless it was asked for and given.
        previous: the same after the step before.
        others: the further signals that the rule reads, by name, as ``value``.
        same: how two answers are compared.
    """

    step: int
    value: float
    answer: str | None = None
    previous: str | None = None
    others: Mapping[str, float] = field(default_factory=dict)
    same: answers.Same = answers.same

    @property
    def agrees(self) -> bool:
        """The answer equals that after the step before; a missing one equals nothing."""
        return self.same(self.previous, self.answer)


@dataclass(frozen=True, slots=True, eq=False)
class Readings:
    """The readings of many steps, arrays of the same length: as in :class:`Reading`, field by field."""

    step: Array
    value: Array
    agrees: Array
    others: Mapping[str, Array] = field(default_factory=dict)

    def take(self, at: Array) -> Readings:
        """Some of the rows, by index."""
        others = {name: values[at] for name, values in self.others.items()}
        return Readings(self.step[at], self.value[at], self.agrees[at], others)


def threshold_at(thresholds: tuple[float | None, ...], step: int) -> float | None:
    """The threshold of ``step`` (from 1): the last one repeats; None = never stop there."""
    return thresholds[min(step, len(thresholds)) - 1]


@dataclass(frozen=True, slots=True)
class Rule:
    """A stop rule with the numbers of one policy; by default it stops where its signal is at or under the threshold.

    Attributes:
        thresholds: one for all steps, or one a step with the last repeated; None = never stop there.
        min_steps: the first step, from 1, after which it may stop.
        signal: name of the signal that is compared with the thresholds.
        name: the rule's, as in policies and commands.
        reads_signal: it compares a signal with a threshold, so a server that gives no logprobs cannot serve it.
        also_reads: names of further signals that it reads.
        compares_answers: it compares the last two answers.
        sets_step: its one parameter is ``min_steps``, the step to stop at, and no threshold.
        earliest: the first step after which it can ever stop.
        limited: it can be kept from stopping after a step, as :meth:`until` does.
        certified_in: modes in which calibration can certify it.
    """

    thresholds: tuple[float | None, ...] = (None,)
    min_steps: int = 1
    signal: str = MEAN

    name: ClassVar[str]
    reads_signal: ClassVar[bool] = True
    also_reads: ClassVar[tuple[str, ...]] = ()
    compares_answers: ClassVar[bool] = False
    sets_step: ClassVar[bool] = False
    earliest: ClassVar[int] = 1
    limited: ClassVar[bool] = True
    certified_in: ClassVar[tuple[str, ...]] = OPTIONS["mode"]

    # --- what it stops on: arguments and results are of one reading, or arrays over rows

    def met(self, at: Reading | Readings) -> Any:
        """Whether the conditions hold that have no parameter."""
        return True

    def value(self, at: Reading | Readings) -> Any:
        """What is compared with the threshold; NaN = missing, never a reason to stop."""
        return at.value

    def _holds(self, at: Reading | Readings, threshold: Any) -> Any:
        holds = (at.step >= self.min_steps) & self.met(at)
        return holds & (self.value(at) <= threshold) if self.reads_signal else holds

    def stops(self, reading: Reading) -> bool:
        """Whether to stop after the step read."""
        threshold = threshold_at(self.thresholds, reading.step)
        return bool(self._holds(reading, MISSING if threshold is None else threshold))

    def stops_rows(self, rows: Readings) -> Array:
        """The same of each row, bool [rows]."""
        import numpy as np

        thresholds = np.array([MISSING if t is None else t for t in self.thresholds])
        stops: Array = self._holds(rows, thresholds[np.minimum(rows.step, len(thresholds)) - 1])
        return stops

    # --- what it reads

    @property
    def signals(self) -> tuple[Signal, ...]:
        """The signals that it reads, the one compared with the thresholds first."""
        return tuple(map(Signal.named, (self.signal, *self.also_reads))) if self.reads_signal else ()

    @property
    def reads_probes(self) -> bool:
        """It reads a signal of the answer asked for after a step."""
        return any(s.source == "probe" for s in self.signals)

    @property
    def unrecorded(self) -> tuple[str, ...]:
        """Names of the signals that it reads and that do not come with every step."""
        return tuple(s.name for s in self.signals if s.source != "step")

    @property
    def uncomputed(self) -> tuple[str, ...]:
        """Names of the signals that it reads and that nothing here computes: live they are missing."""
        return tuple(s.name for s in self.signals if s.source == "trace")

    @property
    def reads_answers(self) -> bool:
        """It needs the answer after every step, which costs a probe in thinking mode."""
        return self.compares_answers or self.reads_probes

    def sees_answers(self, mode: str, scope: str) -> bool:
        """Whether the answer after a step costs nothing to see; where there is none, that is no place to stop.

        The rule asks for it anyway, or a step is a whole call. An agent's step has no answer before its loop is ended.
        """
        return self.reads_answers or (mode == "refine" and scope == "call")

    def reading(
        self,
        record: StepRecord,
        floor: MassFloor,
        answer: str | None,
        previous: str | None,
        same: answers.Same = answers.same,
    ) -> Reading:
        """What it may read after a step with this record and this answer; of no answer nobody is sure."""

        def value(name: str) -> float:
            of_probe = Signal.named(name).source == "probe"
            figure = None if of_probe and answer is None else record.value(name, floor)
            return MISSING if figure is None else figure

        others = {name: value(name) for name in self.also_reads}
        return Reading(record.step, value(self.signal), answer, previous, others, same)

    def threshold(self, step: int) -> float | None:
        """The threshold after ``step`` (from 1); None = never stop there, or it reads none."""
        return threshold_at(self.thresholds, step) if self.reads_signal else None

    def may_stop_after(self, step: int) -> bool:
        """Whether it can stop at a step later than ``step`` (from 1)."""
        return not self.reads_signal or any(t is not None for t in self.thresholds[min(step, len(self.thresholds) - 1) :])

    # --- its parameter, walked by a certificate from strict to lenient

    def settings(self, last_step: int, k: int | None, vocab_size: int | None) -> Array:
        """Every setting of the parameter, the strictest first, fixed before any data are seen: thresholds here."""
        return Signal.named(self.signal).grid(k, vocab_size)

    def first_settings(self, rows: Readings, settings: Array) -> Array:
        """Index of the strictest of the settings at which it stops after each row; their number where at none."""
        import numpy as np

        first = np.full(len(rows.step), len(settings))
        can = np.flatnonzero((rows.step >= self.min_steps) & self.met(rows))
        first[can] = np.searchsorted(settings, self.value(rows)[can])
        return first

    def with_setting(self, setting: float, scales: tuple[float, ...] = (1.0,)) -> Self:
        """The rule at this setting; ``scales``: each step's threshold relative to it, NaN = never stop there."""
        return replace(self, thresholds=tuple(None if s != s else setting * s for s in scales))

    def until(self, last_step: int | None) -> Self:
        """The same with no stop after a step; None: no limit."""
        if last_step is None:
            return self
        return replace(self, thresholds=(*(threshold_at(self.thresholds, s) for s in range(1, last_step + 1)), None))

    # --- in words

    @property
    def title(self) -> str:
        """Its name, and the signals that it reads."""
        read = " and ".join(s.name for s in self.signals)
        return f"{self.name} on {read}" if read else self.name

    def reason(self, step: int) -> str:
        """Why it stopped after this step."""
        return f"{self.signal} at or under the threshold"

    def describe(self) -> str:
        """What it does, as an order."""
        return "stop where the signal is at or under the threshold"


@dataclass(frozen=True, slots=True)
class EntropyRule(Rule):
    """Stop where the step's entropy is at or under its threshold (arXiv 2510.08146, read after every step)."""

    name: ClassVar[str] = "entropy"


@dataclass(frozen=True, slots=True)
class EntropyAgreementRule(Rule):
    """The entropy rule, and the last two answers agree."""

    name: ClassVar[str] = "entropy+agreement"
    compares_answers: ClassVar[bool] = True
    earliest: ClassVar[int] = 2

    def met(self, at: Reading | Readings) -> Any:
        return at.agrees

    def reason(self, step: int) -> str:
        return f"{self.signal} at or under the threshold, answers agree"

    def describe(self) -> str:
        return "stop where the signal is at or under the threshold and the last two answers agree"


@dataclass(frozen=True, slots=True)
class StepRule(Rule):
    """A rule that reads no signal. A certificate walks the first step at which it may stop, from the last to earlier ones."""

    reads_signal: ClassVar[bool] = False
    limited: ClassVar[bool] = False

    def settings(self, last_step: int, k: int | None, vocab_size: int | None) -> Array:
        """Steps, the latest first."""
        import numpy as np

        return np.arange(last_step, self.min_steps - 1, -1)

    def first_settings(self, rows: Readings, settings: Array) -> Array:
        import numpy as np

        latest = self.min_steps + len(settings) - 1
        first: Array = np.where(self.met(rows), np.clip(latest - rows.step, 0, len(settings)), len(settings))
        return first

    def with_setting(self, setting: float, scales: tuple[float, ...] = (1.0,)) -> Self:
        return replace(self, min_steps=int(setting))

    def until(self, last_step: int | None) -> Self:
        return self


@dataclass(frozen=True, slots=True)
class FixedStepRule(StepRule):
    """Stop after ``min_steps`` steps, whatever the entropy."""

    name: ClassVar[str] = "fixed-step"
    sets_step: ClassVar[bool] = True

    def may_stop_after(self, step: int) -> bool:
        return self.min_steps > step

    def with_setting(self, setting: float, scales: tuple[float, ...] = (1.0,)) -> Self:
        return replace(self, thresholds=(setting,), min_steps=int(setting))

    def reason(self, step: int) -> str:
        return f"step {step} is the fixed step"

    def describe(self) -> str:
        return f"stop after step {self.min_steps}, whatever the entropy"


@dataclass(frozen=True, slots=True)
class AgreementRule(StepRule):
    """The last two answers agree, whatever the entropy: for servers without logprobs."""

    name: ClassVar[str] = "agreement"
    compares_answers: ClassVar[bool] = True
    earliest: ClassVar[int] = 2
    certified_in: ClassVar[tuple[str, ...]] = ("refine",)

    def met(self, at: Reading | Readings) -> Any:
        return at.agrees

    def reason(self, step: int) -> str:
        return "answers agree"

    def describe(self) -> str:
        return f"stop where the last two answers agree, from step {max(self.min_steps, self.earliest)} on, whatever the entropy"


RULES: dict[str, type[Rule]] = {rule.name: rule for rule in (EntropyRule, EntropyAgreementRule, FixedStepRule, AgreementRule)}
"""Every rule by name."""


def certifiable() -> tuple[str, ...]:
    """Names of the rules that calibration can certify in some mode."""
    return tuple(name for name, rule in RULES.items() if rule.certified_in)
