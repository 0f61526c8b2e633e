"""The pure state machine at the centre: tokens in, decisions out. No I/O, no clock, no framework.

:class:`Monitor` follows one stream; :class:`BatchMonitor` follows the rows of a batch, whose figures come as arrays. Both keep
all their state to themselves, in constant memory, and decide through the same objects, so they decide alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

from entropy_chains.core.entropy import EntropyBounds, token_entropy
from entropy_chains.core.families import ThinkTags
from entropy_chains.core.phases import Phase
from entropy_chains.core.policy import Policy
from entropy_chains.core.rules import Reading
from entropy_chains.core.signals import MassFloor, StepRecord, Tally
from entropy_chains.core.steps import Scanner, Segmentation
from entropy_chains.errors import EntropyChainsError

if TYPE_CHECKING:
    import numpy as np

    from entropy_chains.core.tokens import Token

    Array = np.ndarray[Any, Any]


class Decision(Enum):
    """What a backend does next.

    ``GO_ON``: nothing. ``PROBE``: hand the answer that reasoning so far gives to ``Monitor.answer``. ``CLOSE``: close the
    thinking and let the model answer. ``STOP``: return the answer of the call just ended.
    """

    GO_ON = "go on"
    PROBE = "probe"
    CLOSE = "close"
    STOP = "stop"


NO_STEP, NO_THINKING = "no reasoning step ended", "no reasoning was seen: the reply begins with its answer"
"""Why a run with a policy was not stopped in which there was nothing to stop at."""

FLAT, DOTTED, TOTAL = "early_stop_", "entropy_chains.", "entropy_chains.total."
"""How an outcome's names begin: in metadata, beside those on OpenTelemetry spans, and of the sums on a root's span."""


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

    __slots__ = (
        "_asked", "_holdout", "_policy", "_previous", "_rule", "decided", "done", "off", "released", "step", "thought", "tokens",
    )  # fmt: skip

    def __init__(self, policy: Policy | None, *, stop: bool, holdout: bool):
        self._policy = policy
        self._rule = policy.stop_rule if policy and policy.active else None
        may_stop = stop and not holdout and self._rule is not None
        self.off = None if may_stop else "stopping is switched off"  # why nothing is stopped in this run, if so
        if policy is not None and policy.hindrance:
            self.off = self.off or policy.hindrance
        self._holdout = holdout
        self._previous: str | None = None
        self._asked: StepRecord | None = None  # waits for its answer
        self.decided: Reading | None = None  # the reading that stopped, or would have
        self.step = 0
        self.tokens = 0
        self.thought = False  # there was thinking, were it a token
        self.done = False
        self.released: str | None = None  # why nothing may be stopped any more

    def judge_by(self, policy: Policy) -> None:
        self._policy, self._rule = policy, policy.stop_rule if policy.active else None

    def ended(self, record: StepRecord, answer: str | None = None, *, answered: bool = False) -> Decision:
        self.step = record.step
        if self._rule is None or self._policy is None or self.decided is not None or self.released:
            return Decision.GO_ON
        if self._rule.reads_answers and not answered:
            if self.off:  # a probe costs tokens: a run that is only watched is judged without one, in replay
                return Decision.GO_ON
            self._asked = record
            return Decision.PROBE
        return self._judge(record, answer)

    def answer(self, text: str | None, signals: Mapping[str, float]) -> Decision:
        if self._asked is None:
            raise EntropyChainsError("answer() was called, but no probe is open: call it once after feed() returned PROBE")
        record, self._asked = self._asked, None
        return self._judge(replace(record, signals={**record.signals, **signals}), text)

    def _judge(self, record: StepRecord, answer: str | None) -> Decision:
        if self._rule is None or self._policy is None:
            return Decision.GO_ON
        reading = self._rule.reading(record, self._policy.mass_floor, answer, self._previous, self._policy.same)
        self._previous = answer
        missing = answer is None and self._rule.sees_answers(self._policy.mode, self._policy.scope)
        if missing or not self._rule.stops(reading):
            return Decision.GO_ON
        self.decided = reading
        if self.off:
            return Decision.GO_ON
        self.done = True
        return Decision.STOP if self._policy.mode == "refine" else Decision.CLOSE

    def outcome(self, why: str | None) -> Outcome:
        policy, rule, decided = self._policy, self._rule, self.decided
        stopped = self.done
        if policy is None:
            reason = "no policy: measuring only"
        elif not policy.active:
            reason = f"policy is not active: {policy.reason}"
        elif self._holdout:
            reason = "holdout: run in full on purpose"
        elif self.off:
            reason = self.off
        elif decided is None and self.released:
            reason = self.released
        elif decided is None or rule is None:
            reason = "reasoning ended by itself" if self.step else NO_STEP if self.thought else NO_THINKING
        else:
            reason = rule.reason(decided.step)
        return Outcome(
            active=self.off is None,
            stopped=stopped,
            reason=why or reason,
            step=decided.step if decided else None,
            entropy=None if decided is None or math.isnan(decided.value) else decided.value,
            threshold=rule.threshold(decided.step) if rule and decided else None,
            tokens=self.tokens,
            tokens_saved=policy.remaining_tokens(decided.step) if policy and decided and stopped else None,
            holdout=self._holdout,
            policy=policy.fingerprint if policy else None,
        )


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
        segmentation: how the stream is cut.
    """

    __slots__ = (
        "_counted", "_course", "_floor", "_in_step", "_k", "_scanner", "_tally", "_vocab_size", "last", "segmentation",
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
        self.segmentation = policy.segmentation if policy else segmentation or Segmentation()
        self._floor = policy.mass_floor if policy else MassFloor()
        # In the refine loop every token of a call is reasoning, and the caller ends the steps.
        boundary = self.segmentation.boundary
        self._scanner = Scanner(tags, boundary, thinking=thinking or boundary == "call")
        self._course = _Course(policy, stop=stop, holdout=holdout)
        self._k = policy.k if policy else None
        self._vocab_size = vocab_size
        self.last: StepRecord | None = None
        self._in_step = self._counted = 0
        self._tally = Tally(self._floor)

    @property
    def phase(self) -> Phase:
        """Where the stream is: before thinking, thinking, answer."""
        return self._scanner.phase

    @property
    def done(self) -> bool:
        """The run was stopped."""
        return self._course.done

    @property
    def may_stop(self) -> bool:
        """Nothing has switched it off so far."""
        return self._course.off is None

    @property
    def decided(self) -> bool:
        """A step was sure enough: the run was stopped, or would have been."""
        return self._course.decided is not None

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

    def feed(
        self, token: Token, bounds: EntropyBounds | None = None, *, forced: bool = False, phase: Phase | None = None
    ) -> Decision:
        """Take the next token.

        Args:
            token: the token; its entropy comes from its alternatives unless ``bounds`` is given.
            bounds: its entropy, where the backend has it from the device.
            forced: the token was put in, not chosen by the model: it moves the text on and never counts as uncertainty.
            phase: where the token belongs, if the server says so (a field of its own for the reasoning); its text's tags tell
                otherwise.
        """
        if self.advance(token.text, forced=forced, phase=phase):
            self._tally.add(bounds or token_entropy(token, k=self._k, vocab_size=self._vocab_size))
        return self.decide() if self.at_end else Decision.GO_ON

    def advance(self, text: str, *, forced: bool = False, phase: Phase | None = None) -> bool:
        """The text's half of :meth:`feed`: move on, and tell whether the token's entropy counts. See :class:`BatchMonitor`."""
        scanner = self._scanner
        if phase is not None:
            self.enter(phase)
        before = scanner.phase
        reasoning = scanner.feed(text) is Phase.THINKING and before is Phase.THINKING and not forced
        self._course.tokens += 1
        self._in_step += 1
        self._counted += reasoning
        self._course.thought = self._course.thought or scanner.phase is Phase.THINKING
        return reasoning

    def enter(self, phase: Phase) -> None:
        """The text that follows belongs here, as the prompt or the server says; its tags say no more."""
        self._scanner.enter(phase)

    def quiet(self, text: str) -> bool:
        """Whether a token with this text decides nothing, whatever came before; see :meth:`skim`."""
        return self._scanner.quiet(text)

    def skim(self, texts: Sequence[str]) -> None:
        """As :meth:`advance` for each of these: quiet tokens of the thinking, chosen by the model."""
        self._scanner.feed("".join(texts))
        self._course.tokens += len(texts)
        self._in_step += len(texts)
        self._counted += len(texts)
        self._course.thought = self._course.thought or bool(texts)

    @property
    def at_end(self) -> bool:
        """A step ends with the token last fed: a boundary, and long enough."""
        return self._scanner.at_boundary and self._counted >= self.segmentation.min_tokens and not self._course.done

    def absorb(self, figures: Array) -> None:
        """The figures' half of :meth:`feed`, for several tokens at once; see :meth:`Tally.add_many`."""
        self._tally.add_many(figures)

    def decide(self) -> Decision:
        """End the step with the token last fed."""
        return self._end(None, answered=False)

    def _end(self, answer: str | None, *, answered: bool) -> Decision:
        self.last = self._tally.record(self._course.step + 1, self._in_step)
        self._in_step = self._counted = 0
        self._tally = Tally(self._floor)
        return self._course.ended(self.last, answer, answered=answered)

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

    def answer(self, text: str | None, signals: Mapping[str, float] | None = None) -> Decision:
        """After ``PROBE``: the answer that reasoning so far gives, None if there was none, and what was read of the probe."""
        return self._course.answer(text, signals or {})

    def judge_by(self, policy: Policy) -> None:
        """From here on steps are judged by this policy; a run that may not be stopped stays so."""
        self._course.judge_by(policy)

    def release(self, why: str) -> None:
        """From here on nothing may be stopped: a tool call has begun, say."""
        self._course.released = self._course.released or why

    def switch_off(self, why: str) -> None:
        """Nothing is stopped in this run: its outcome is not active, with this reason."""
        self._course.off = self._course.off or why

    def finish(self, why: str | None = None, *, tokens: int | None = None) -> Outcome:
        """The stream has ended.

        Args:
            why: replaces the reason, where the backend knows better (an error, a full fallback).
            tokens: replaces the count of tokens fed, where more were computed.
        """
        self._course.tokens = self._course.tokens if tokens is None else tokens
        return self._course.outcome(why)
