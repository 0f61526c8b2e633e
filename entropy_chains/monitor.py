"""The pure state machine at the centre: tokens in, decisions out. No I/O, no clock, no framework.

:class:`Monitor` follows one stream; :class:`BatchMonitor` follows the rows of a batch with one vectorised computation a
token. Both keep all their state to themselves, in constant memory, and close a step through the same :class:`StepRecord`
and the same rule, so they decide alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from heapq import heappush, heapreplace
from typing import TYPE_CHECKING, Any

from entropy_chains.entropy import EntropyBounds, token_entropy
from entropy_chains.errors import EntropyChainsError
from entropy_chains.policy import MassFloor, Policy
from entropy_chains.rules import Reading
from entropy_chains.steps import Phase, Scanner, Segmentation, ThinkTags

if TYPE_CHECKING:
    import numpy as np

    from entropy_chains.tokens import Token

COVERAGE = 0.9
"""Least share of a step's tokens that must have logprobs; below it the step's entropy is None."""

TAIL = 32
"""Tokens at a step's end that ``tail_entropy`` is the mean of."""

TOP = 512
"""Most tokens that ``top_tenth_entropy`` keeps; beyond 5,120 tokens a step it is the mean of the highest 512."""

SIGNALS = ("mean_entropy", "sum_entropy", "top_tenth_entropy", "tail_entropy", "max_entropy", "deepconf")
"""What a step records. All in bits and lower = surer, but ``deepconf``: nats, higher = surer."""


class Decision(Enum):
    """What a backend does next.

    ``GO_ON``: nothing. ``PROBE``: hand the answer that reasoning so far gives to ``Monitor.answer``. ``CLOSE``: close the
    thinking and let the model answer. ``STOP``: return the answer of the call just ended.
    """

    GO_ON = "go on"
    PROBE = "probe"
    CLOSE = "close"
    STOP = "stop"


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


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a stream left behind: the contract's one table.

    Attributes:
        active: a policy was stopping.
        stopped: this run was stopped.
        reason: why it stopped, or why not.
        step: the deciding step, from 1, or None. For a run that was only watched: where it would have stopped.
        entropy, threshold: the deciding step's signal and its threshold, bits.
        tokens: tokens computed, all of them.
        tokens_saved: estimate from calibration, or None.
        policy: the policy's fingerprint, or None.
    """

    active: bool
    stopped: bool
    reason: str
    step: int | None
    entropy: float | None
    threshold: float | None
    tokens: int
    tokens_saved: int | None
    holdout: bool
    policy: str | None

    def metadata(self) -> dict[str, Any]:
        """Flat fields for response metadata, traces and spans; fields without a value are left out."""
        values = {
            "early_stop_active": self.active,
            "early_stop_stopped": self.stopped,
            "early_stop_reason": self.reason,
            "early_stop_step": self.step,
            "early_stop_entropy": self.entropy,
            "early_stop_threshold": self.threshold,
            "early_stop_tokens": self.tokens,
            "early_stop_tokens_saved_estimate": self.tokens_saved,
            "early_stop_holdout": self.holdout,
            "early_stop_policy": self.policy,
        }
        return {k: v for k, v in values.items() if v is not None}


class _Course:
    """One stream's steps and its decision: what the two faces share."""

    __slots__ = ("_holdout", "_policy", "_previous", "_reading", "_rule", "_stop", "decided", "done", "step", "tokens")

    def __init__(self, policy: Policy | None, *, stop: bool, holdout: bool):
        self._policy = policy
        self._rule = policy.stop_rule if policy and policy.active else None
        self._stop = stop and not holdout and self._rule is not None
        self._holdout = holdout
        self._previous: str | None = None
        self._reading: Reading | None = None  # waits for an answer
        self.decided: Reading | None = None  # the reading that stopped, or would have
        self.step = 0
        self.tokens = 0
        self.done = False

    def ended(self, record: StepRecord, answer: str | None = None, *, answered: bool = False) -> Decision:
        self.step = record.step
        if self._rule is None or self._policy is None or self.decided is not None:
            return Decision.GO_ON
        value = record.value(self._policy.signal, self._policy.mass_floor)
        reading = Reading(record.step, value, answer, self._previous)
        if self._rule.reads_answers and not answered:
            if not self._stop:  # a probe costs tokens: a run that is only watched is judged without one, in replay
                return Decision.GO_ON
            self._reading = reading
            return Decision.PROBE
        return self._judge(reading)

    def answer(self, text: str | None) -> Decision:
        if self._reading is None:
            raise EntropyChainsError("answer() was called, but no probe is open: call it once after feed() returned PROBE")
        reading, self._reading = replace(self._reading, answer=text), None
        return self._judge(reading)

    def _judge(self, reading: Reading) -> Decision:
        if self._rule is None or self._policy is None:
            return Decision.GO_ON
        self._previous = reading.answer
        if not self._rule.stops(reading):
            return Decision.GO_ON
        self.decided = reading
        if not self._stop:
            return Decision.GO_ON
        self.done = True
        return Decision.STOP if self._policy.mode == "refine" else Decision.CLOSE

    def outcome(self, why: str | None) -> Outcome:
        policy, decided = self._policy, self.decided
        stopped = self.done
        if policy is None:
            reason = "no policy: measuring only"
        elif not policy.active:
            reason = f"policy is not active: {policy.reason}"
        elif self._holdout:
            reason = "holdout: run in full on purpose"
        elif not self._stop:
            reason = "stopping is switched off"
        elif decided is None:
            reason = "reasoning ended by itself" if self.step else "no reasoning step ended"
        elif policy.rule == "fixed-step":
            reason = f"step {decided.step} is the fixed step"
        else:
            reason = f"{policy.signal} at or under the threshold" + (", answers agree" if self._rule_reads_answers else "")
        threshold = policy.threshold(decided.step) if policy and decided and policy.rule != "fixed-step" else None
        return Outcome(
            active=self._stop,
            stopped=stopped,
            reason=why or reason,
            step=decided.step if decided else None,
            entropy=decided.value if decided else None,
            threshold=threshold,
            tokens=self.tokens,
            tokens_saved=policy.remaining_tokens(decided.step) if policy and decided and stopped else None,
            holdout=self._holdout,
            policy=policy.fingerprint if policy else None,
        )

    @property
    def _rule_reads_answers(self) -> bool:
        return self._rule is not None and self._rule.reads_answers


def _record(
    step: int, tokens: int, count: int, missing: int, sums: Sequence[float], tail: Any, top: Any, peak: float
) -> StepRecord:
    """A step from its running sums (entropy, mass, lower, upper, confidence) and its kept values; the one place of the formulas."""
    if not count or count < COVERAGE * (count + missing):
        return StepRecord(step, tokens)
    mean, mass, lower, upper, confidence = (s / count for s in sums)
    highest = sorted(top, reverse=True)[: max(1, min(TOP, math.ceil(count / 10)))]
    signals = {
        "sum_entropy": mean * (count + missing),  # a missing position counts as an average one, never as 0
        "top_tenth_entropy": math.fsum(highest) / len(highest),
        "tail_entropy": math.fsum(tail) / len(tail),
        "max_entropy": peak,
        "deepconf": confidence,
    }
    return StepRecord(step, tokens, mean, mass, lower, upper, signals)


class Monitor:
    """Follows one stream token by token.

    Args:
        policy: when to stop; None, or one that is not active, only measures.
        segmentation: only without a policy; the policy's own otherwise.
        tags: the model family's thinking tags.
        thinking: the prompt already opened the thinking.
        stop: False only watches: the outcome tells where it would have stopped.
        holdout: this run is in the holdout and runs in full.
        vocab_size: for the upper bound of tokens that come with alternatives.

    Attributes:
        last: the :class:`StepRecord` of the step last ended, or None.
    """

    __slots__ = (
        "_count", "_course", "_floor", "_heap", "_in_step", "_k", "_min_tokens", "_missing", "_peak", "_ring", "_scanner",
        "_segmentation", "_sums", "_vocab_size", "last",
    )  # fmt: skip

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        segmentation: Segmentation | None = None,
        tags: ThinkTags | None = None,
        thinking: bool = False,
        stop: bool = True,
        holdout: bool = False,
        vocab_size: int | None = None,
    ):
        self._segmentation = policy.segmentation if policy else segmentation or Segmentation()
        self._floor = policy.mass_floor if policy else MassFloor()
        self._min_tokens = self._segmentation.min_tokens
        # In the refine loop every token of a call is reasoning, and the caller ends the steps.
        self._scanner = Scanner(tags, self._segmentation.boundary, thinking=thinking or self._segmentation.boundary == "call")
        self._course = _Course(policy, stop=stop, holdout=holdout)
        self._k = policy.k if policy else None
        self._vocab_size = vocab_size
        self.last: StepRecord | None = None
        self._reset()

    def _reset(self) -> None:
        self._in_step = self._count = self._missing = 0
        self._sums = [0.0, 0.0, 0.0, 0.0, 0.0]
        self._peak = 0.0
        self._ring: list[float] = []
        self._heap: list[float] = []

    @property
    def phase(self) -> Phase:
        """Where the stream is: before thinking, thinking, answer."""
        return self._scanner.phase

    @property
    def steps(self) -> int:
        """Steps ended so far."""
        return self._course.step

    @property
    def tokens(self) -> int:
        """Tokens fed so far."""
        return self._course.tokens

    @property
    def tokens_in_step(self) -> int:
        """Tokens since the last boundary."""
        return self._in_step

    def feed(self, token: Token, bounds: EntropyBounds | None = None, *, forced: bool = False) -> Decision:
        """Take the next token.

        Args:
            token: the token; its entropy comes from its alternatives unless ``bounds`` is given.
            bounds: its entropy, where the backend has it from the device.
            forced: the token was put in, not chosen by the model: it moves the text on and never counts as uncertainty.
        """
        before = self._scanner.phase
        phase = self._scanner.feed(token.text)
        self._course.tokens += 1
        self._in_step += 1
        if before is Phase.THINKING and phase is Phase.THINKING and not forced:
            self._add(bounds or token_entropy(token, k=self._k, vocab_size=self._vocab_size))
        if self._course.done or not self._scanner.at_boundary or self._count + self._missing < self._min_tokens:
            return Decision.GO_ON
        return self._end(None, answered=False)

    def _add(self, bounds: EntropyBounds | None) -> None:
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
        if len(self._ring) < TAIL:
            self._ring.append(value)
        else:
            self._ring[self._count % TAIL] = value
        self._count += 1
        if value > self._peak:
            self._peak = value
        if len(self._heap) < TOP:
            heappush(self._heap, value)
        elif value > self._heap[0]:
            heapreplace(self._heap, value)

    def _end(self, answer: str | None, *, answered: bool) -> Decision:
        record = _record(
            self._course.step + 1, self._in_step, self._count, self._missing, self._sums, self._ring, self._heap, self._peak
        )
        self.last = record
        self._reset()
        return self._course.ended(record, answer, answered=answered)

    def end_step(self, answer: str | None = None) -> Decision:
        """In the refine loop: the call has ended with this answer, which a rule may read at no cost."""
        return Decision.GO_ON if self._course.done else self._end(answer, answered=True)

    def take(self, record: StepRecord, answer: str | None = None) -> Decision:
        """In the refine loop over a backend that measured the call itself: its record, under this monitor's step number."""
        if self._course.done:
            return Decision.GO_ON
        self._course.tokens += record.tokens
        self.last = replace(record, step=self._course.step + 1)
        return self._course.ended(self.last, answer, answered=True)

    def answer(self, text: str | None) -> Decision:
        """After ``PROBE``: the answer that reasoning so far gives, None if there was none."""
        return self._course.answer(text)

    def finish(self, why: str | None = None, *, tokens: int | None = None) -> Outcome:
        """The stream has ended.

        Args:
            why: replaces the reason, where the backend knows better (an error, a full fallback).
            tokens: replaces the count of tokens fed, where more were computed.
        """
        self._course.tokens = self._course.tokens if tokens is None else tokens
        return self._course.outcome(why)


class BatchMonitor:
    """Follows the rows of a batch: one vectorised computation a token for all rows, per-row work only where a step ends.

    Args:
        policy: as in :class:`Monitor`.
        rows: batch size.
        segmentation, tags, thinking, stop, holdout: as in :class:`Monitor`, the last for each row.
    """

    def __init__(
        self,
        policy: Policy | None,
        rows: int,
        *,
        segmentation: Segmentation | None = None,
        tags: ThinkTags | None = None,
        thinking: bool = False,
        stop: bool = True,
        holdout: Sequence[bool] | None = None,
    ):
        import numpy as np

        self._np = np
        self.segmentation = policy.segmentation if policy else segmentation or Segmentation()
        self._floor = policy.mass_floor if policy else MassFloor()
        boundary = self.segmentation.boundary
        self._scanners = [Scanner(tags, boundary, thinking=thinking or boundary == "call") for _ in range(rows)]
        self.courses = [_Course(policy, stop=stop, holdout=bool(holdout and holdout[r])) for r in range(rows)]
        self.last: list[StepRecord | None] = [None] * rows
        self._in_step = np.zeros(rows, np.int64)
        self._count = np.zeros(rows, np.int64)
        self._missing = np.zeros(rows, np.int64)
        self._sums = np.zeros((rows, 5))
        self._peak = np.zeros(rows)
        self._ring = np.zeros((rows, TAIL))
        self._values: list[list[float]] = [[] for _ in range(rows)]

    def feed(
        self, texts: Sequence[str], figures: np.ndarray[Any, Any], live: np.ndarray[Any, Any], forced: np.ndarray[Any, Any]
    ) -> dict[int, Decision]:
        """Take the next token of every row.

        Args:
            texts: each row's token text, [rows].
            figures: entropy, mass, lower, upper (bits, bits), confidence of each row's token, [rows, 5]; NaN entropy = missing.
            live: rows that are still generating, bool [rows].
            forced: rows whose token was put in, bool [rows].

        Returns:
            The decision of every row whose step ended with this token.
        """
        np = self._np
        reasoning = np.zeros(len(texts), bool)
        boundary = []
        for row in np.flatnonzero(live):
            scanner = self._scanners[row]
            before = scanner.phase
            reasoning[row] = scanner.feed(texts[row]) is Phase.THINKING and before is Phase.THINKING
            self.courses[row].tokens += 1
            if scanner.at_boundary:
                boundary.append(int(row))
        reasoning &= ~forced
        known = reasoning & ~np.isnan(figures[:, 0])
        self._in_step += live
        self._missing += reasoning & ~known
        values = np.where(figures[:, 1] < self._floor.position, figures[:, 3], figures[:, 0])
        rows = np.flatnonzero(known)
        self._sums[rows, 0] += values[rows]
        self._sums[rows, 1:] += figures[rows, 1:]
        self._ring[rows, self._count[rows] % TAIL] = values[rows]
        self._count += known
        self._peak[rows] = np.maximum(self._peak[rows], values[rows])
        for row in rows:
            kept = self._values[row]
            if len(kept) < TOP:
                heappush(kept, float(values[row]))
            elif values[row] > kept[0]:
                heapreplace(kept, float(values[row]))
        return {row: self._end(row) for row in boundary if self._long_enough(row)}

    def _long_enough(self, row: int) -> bool:
        return not self.courses[row].done and self._count[row] + self._missing[row] >= self.segmentation.min_tokens

    def _end(self, row: int, answer: str | None = None, *, answered: bool = False) -> Decision:
        count = int(self._count[row])
        record = _record(
            self.courses[row].step + 1,
            int(self._in_step[row]),
            count,
            int(self._missing[row]),
            self._sums[row].tolist(),
            self._ring[row, : min(count, TAIL)].tolist(),
            self._values[row],
            float(self._peak[row]),
        )
        self.last[row] = record
        self._in_step[row] = self._count[row] = self._missing[row] = 0
        self._sums[row] = self._peak[row] = 0.0
        self._values[row] = []
        return self.courses[row].ended(record, answer, answered=answered)

    def answer(self, row: int, text: str | None) -> Decision:
        """After ``PROBE``: the answer that the row's reasoning so far gives, None if there was none."""
        return self.courses[row].answer(text)

    def end_step(self, row: int, answer: str | None = None) -> Decision:
        """In the refine loop: the row's call has ended with this answer."""
        return Decision.GO_ON if self.courses[row].done else self._end(row, answer, answered=True)

    def phase(self, row: int) -> Phase:
        """Where the row's stream is."""
        return self._scanners[row].phase

    def tokens_in_step(self, row: int) -> int:
        """The row's tokens since its last boundary."""
        return int(self._in_step[row])

    def finish(self, row: int, why: str | None = None, *, tokens: int | None = None) -> Outcome:
        """The row has ended; arguments as in :meth:`Monitor.finish`."""
        self.courses[row].tokens = self.courses[row].tokens if tokens is None else tokens
        return self.courses[row].outcome(why)
