"""Stop rules: small frozen values with one question, "stop after this step?", asked once a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Reading:
    """What a rule may read after a step.

    Attributes:
        step: the step just ended, from 1.
        value: its signal in the policy's unit (bits), lower = surer; None where it is missing or not eligible.
        answer: the answer if reasoning stopped here; None unless it was asked for and given.
        previous: the same after the step before.
    """

    step: int
    value: float | None
    answer: str | None = None
    previous: str | None = None


class Rule(Protocol):
    """A stop rule.

    Attributes:
        reads_answers: it needs the answer after every step, which costs a probe in thinking mode.
        reads_signal: it compares the step's signal with a threshold, so a server that gives no logprobs cannot serve it.
    """

    @property
    def reads_answers(self) -> bool: ...

    @property
    def reads_signal(self) -> bool: ...

    def stops(self, reading: Reading) -> bool:
        """Whether to stop after the step read."""
        ...


def threshold_at(thresholds: tuple[float | None, ...], step: int) -> float | None:
    """The threshold of ``step`` (from 1): the last one repeats; None = never stop there."""
    return thresholds[min(step, len(thresholds)) - 1]


@dataclass(frozen=True, slots=True)
class EntropyRule:
    """Stop where the step's entropy is at or under its threshold (arXiv 2510.08146, read after every step).

    ``reads_answers``: the entropy is that of the answer after the step, so there must be one.
    """

    thresholds: tuple[float | None, ...]
    min_steps: int = 1
    reads_answers: bool = False
    reads_signal: bool = True

    def stops(self, reading: Reading) -> bool:
        threshold = threshold_at(self.thresholds, reading.step)
        if reading.step < self.min_steps or threshold is None or reading.value is None:
            return False
        return reading.value <= threshold and (reading.answer is not None or not self.reads_answers)


@dataclass(frozen=True, slots=True)
class AgreementRule:
    """The entropy rule, and the last two answers agree. ``same`` compares two answers; None equals nothing."""

    thresholds: tuple[float | None, ...]
    same: Callable[[str | None, str | None], bool]
    min_steps: int = 2
    reads_answers: bool = True
    reads_signal: bool = True

    def stops(self, reading: Reading) -> bool:
        return EntropyRule(self.thresholds, self.min_steps).stops(reading) and self.same(reading.previous, reading.answer)


@dataclass(frozen=True, slots=True)
class AnswersRule:
    """The last two answers agree, whatever the entropy: for servers without logprobs. Not certified."""

    same: Callable[[str | None, str | None], bool]
    min_steps: int = 2
    reads_answers: bool = True
    reads_signal: bool = False

    def stops(self, reading: Reading) -> bool:
        return reading.step >= self.min_steps and self.same(reading.previous, reading.answer)


@dataclass(frozen=True, slots=True)
class FixedStepRule:
    """Stop after a fixed number of steps, whatever the entropy."""

    step: int
    reads_answers: bool = False
    reads_signal: bool = False

    def stops(self, reading: Reading) -> bool:
        return reading.step >= self.step
