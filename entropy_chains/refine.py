"""The paper's multi-step loop (arXiv 2510.08146): a fixed number of calls, each reading the earlier ones, ended when sure.

It needs no thinking tags: a step is one call, its entropy the mean over the call's completion tokens, and the answer of
every step is free to read. What is asked, when it ends and who gets the calls that others saved is decided in one place, without
I/O; :func:`run_refine` and :func:`arun_refine` only make the calls.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from entropy_chains.backends import Backend, Generation, MayLackLogprobs, Message, Sampling
from entropy_chains.core.finish_reasons import is_cut
from entropy_chains.core.monitor import Decision, Monitor, Outcome
from entropy_chains.core.policy import Policy, stopping_enabled
from entropy_chains.core.signals import StepRecord
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import BackendError, BatchError, SettingsError, outcomes
from entropy_chains.options import OnMismatch

if TYPE_CHECKING:
    from entropy_chains.backends import AsyncBackend

AGAIN = "Check your answer: work the question again, then give the final answer."
"""The turn that asks for the next step."""

PER_CALL = Segmentation("call", 1)

STRIDE = 100_003
"""What a seed moves on by with every call: the same draws twice would repeat a call's error."""


@dataclass(frozen=True, slots=True)
class RefineRun:
    """One finished loop.

    Attributes:
        answer: the last call's answer.
        calls: every call made, in order.
        records: each call's statistics, in order, numbered from 1.
        outcome: whether the loop was ended early, and why or why not; its tokens are those of all calls.
    """

    answer: str | None
    calls: tuple[Generation, ...]
    records: tuple[StepRecord, ...]
    outcome: Outcome


class RefineError(BatchError):
    """Some conversations of a loop failed; the others' :class:`RefineRun` are on it, none of them lost."""


def run_refine(
    backend: Backend,
    conversations: Sequence[Sequence[Message]],
    *,
    policy: Policy | None = None,
    steps: int = 4,
    sampling: Sampling = Sampling(),
    stop: bool = True,
    holdout: Sequence[bool] | None = None,
    again: str = AGAIN,
    on_mismatch: OnMismatch = "error",
    on_done: Callable[[int], None] | None = None,
    reallocate: bool = False,
    max_steps: int | None = None,
) -> list[RefineRun]:
    """Run the loop on every conversation, those not yet sure together in one batch a step.

    A call without an answer is never a stop and leaves no trace in the thread: the same messages are sent again. Nor is a call a
    stop that was cut off.

    Args:
        backend: where the calls go.
        conversations: the questions, as messages.
        policy: when to end early; its mode must be ``refine``.
        steps: calls scheduled for a conversation, at least 1; the last one is never an early stop.
        sampling: settings of every call; a seed moves on with every step.
        stop: False only watches: the outcome tells where it would have ended.
        holdout: conversations that run their schedule in full on purpose.
        again: the turn that asks for the next step.
        on_mismatch: ``error`` or ``warn``.
        on_done: called with the number of conversations that have just ended.
        reallocate: calls that sure conversations did not need go to those still unsure after their schedule, one each a round, the
            least sure first (highest signal; a missing one last; ties in order), until they are sure, have ``max_steps``, or
            nothing is left. Never more than ``steps`` × conversations in all. The last scheduled call is judged too: ``max_steps``
            is then what is never an early stop. Conversations that may not stop neither give nor get.
        max_steps: most calls a conversation with ``reallocate``; None: twice ``steps``.

    Raises:
        SettingsError: settings that cannot work. PolicyMismatch: the policy is for something else.
        RefineError: some conversations failed (a call that fails ends all conversations of its batch, unless the backend tells by a
            BatchError which it was); the finished ones are on it. Where every one failed, the first one's own error.
    """
    limit = _call_limit(steps, reallocate, max_steps)
    loops = _open(backend, conversations, policy, steps, limit, sampling, stop, holdout, again, on_mismatch)
    backend = _for_loop(backend, policy, stop, on_mismatch)
    for batch in chain(_scheduled(loops), _reallocated(loops)):
        # All of a batch are at the same step: who is left out of a round finds nothing left in the next.
        settings: dict[str, Any] = {"sampling": _reseeded(sampling, batch[0].step), "segmentation": PER_CALL}
        threads = [loop.thread for loop in batch]
        results: list[Generation | Exception]
        try:
            results = outcomes(partial(backend.generate, threads, **settings))
        except Exception as error:  # noqa: BLE001 (whatever a backend raises: the other conversations' runs must not be lost)
            results = [error] * len(batch)
        for loop, call in zip(batch, results, strict=True):
            if isinstance(call, Exception):
                loop.fail(call, is_own=results.count(call) == 1)
            else:
                loop.take(call)
        if on_done:
            on_done(sum(loop.ended for loop in batch))
    return _close(loops, on_done)


async def arun_refine(
    backend: AsyncBackend,
    conversations: Sequence[Sequence[Message]],
    *,
    concurrency: int = 8,
    policy: Policy | None = None,
    steps: int = 4,
    sampling: Sampling = Sampling(),
    stop: bool = True,
    holdout: Sequence[bool] | None = None,
    again: str = AGAIN,
    on_mismatch: OnMismatch = "error",
    on_done: Callable[[int], None] | None = None,
    reallocate: bool = False,
    max_steps: int | None = None,
) -> list[RefineRun]:
    """Run the loop on every conversation by itself, ``concurrency`` of them at a time.

    The arguments are those of :func:`run_refine`. A call that fails ends its own conversation only. With ``reallocate`` all
    schedules run first, then the rounds of further calls, each round together: who gets a call depends on no timing.
    """
    if concurrency < 1:
        raise SettingsError(f"concurrency is {concurrency}; at least 1 conversation must run")
    limit = _call_limit(steps, reallocate, max_steps)
    loops = _open(backend, conversations, policy, steps, limit, sampling, stop, holdout, again, on_mismatch)
    backend = _for_loop(backend, policy, stop, on_mismatch)
    room = asyncio.Semaphore(concurrency)

    async def work(loop: _Loop) -> None:
        async with room:
            try:
                while True:
                    drawn = _reseeded(sampling, loop.step)
                    (call,) = await backend.agenerate([loop.thread], sampling=drawn, segmentation=PER_CALL)
                    loop.take(call)
                    if not loop.due:
                        break
            except Exception as error:  # noqa: BLE001 (as above)
                loop.fail(error)
        if on_done and loop.ended:
            on_done(1)

    for batch in chain([loops], _reallocated(loops)):
        async with asyncio.TaskGroup() as group:
            for loop in batch:
                group.create_task(work(loop))
    return _close(loops, on_done)


# --- the loop without I/O


class _Loop:
    """One conversation: ``thread`` is what to ask next, ``take`` takes the call made of it."""

    def __init__(
        self,
        conversation: Sequence[Message],
        policy: Policy | None,
        again: str,
        schedule: int,
        limit: int,
        stop: bool,
        holdout: bool,
        agreeing: bool,
    ):
        self.thread = list(conversation)
        self.error: Exception | None = None
        self.sure = False
        self._monitor = Monitor(policy, segmentation=PER_CALL, stop=stop, holdout=holdout)
        self._policy, self._again, self._agreeing = policy, again, agreeing
        self._schedule, self._limit = schedule, limit
        self._calls: list[Generation] = []
        self._records: list[StepRecord] = []

    @property
    def step(self) -> int:
        """Number of the next call, from 1."""
        return len(self._calls) + 1

    @property
    def ended(self) -> bool:
        """No call may follow."""
        return self.error is not None or self.sure or len(self._calls) >= self._limit

    @property
    def due(self) -> bool:
        """A call of its schedule follows."""
        return not self.ended and len(self._calls) < self._schedule

    @property
    def unused(self) -> int:
        """Calls of its schedule that it will not need; none where it failed or is not sure."""
        return max(0, self._schedule - len(self._calls)) if self.sure else 0

    @property
    def rank(self) -> float:
        """Place among the unsure: the higher the last call's signal, the earlier; a missing one last."""
        value = self._records[-1].value(self._policy.signal, self._policy.mass_floor) if self._policy else None
        return math.inf if value is None else -value

    def fail(self, error: Exception, *, is_own: bool = True) -> None:
        """Take what the call failed with. An error of this conversation's own carries the calls before it."""
        self.error = error
        if is_own and self._calls and isinstance(error, BackendError):
            error.run = self.run()

    def take(self, call: Generation) -> None:
        """Take the finished call: judge it, unless nothing may follow it, and write the next turn."""
        number = self.step
        unknown = StepRecord(number, call.tokens)
        record = replace(call.steps[-1].record, step=number) if call.steps else unknown
        self._calls.append(call)
        self._records.append(record)
        if number == 1 and self._policy and self._agreeing and self._blind:
            self._policy = self._policy.by_agreement()
            self._monitor.judge_by(self._policy)
        if not self.ended:
            # A sure call without a whole answer would end the loop with nothing, or half an answer, to show.
            answer = None if is_cut(call.finish_reason) else call.answer
            self.sure = self._monitor.take(record if answer else unknown, answer) is Decision.STOP
        if not self.ended and call.answer:
            self.thread += [{"role": "assistant", "content": call.answer}, {"role": "user", "content": self._again}]

    @property
    def _blind(self) -> bool:
        """The rule reads a signal, and no call had one."""
        reads = self._policy is not None and self._policy.active and self._policy.stop_rule.reads_signal
        return reads and all(record.entropy is None for record in self._records)

    def run(self) -> RefineRun:
        """The finished loop."""
        if self._blind:
            self._monitor.switch_off("no call has an entropy: there are no logprobs")
        outcome = self._monitor.finish(tokens=sum(call.tokens for call in self._calls))
        call_count = len(self._calls)
        if outcome.active and not self.sure:
            left = "; nothing was left to reallocate" if call_count < self._limit else ""
            outcome = replace(outcome, reason=f"all {call_count} calls made{left}")
        elif self.sure and call_count >= self._schedule:
            outcome = replace(outcome, tokens_saved=None)  # against the schedule it saved nothing
        return RefineRun(self._calls[-1].answer, tuple(self._calls), tuple(self._records), outcome)


def _call_limit(steps: int, reallocate: bool, max_steps: int | None) -> int:
    """Most calls of a conversation. Raises SettingsError for settings that contradict each other."""
    if steps < 1:
        raise SettingsError(f"steps is {steps}; the loop needs at least 1 call")
    if max_steps is not None and not reallocate:
        raise SettingsError(f"max_steps is {max_steps}, but only reallocate=True makes more calls than steps; set it or leave this")
    if max_steps is not None and max_steps < steps:
        raise SettingsError(f"max_steps is {max_steps}; with {steps} steps scheduled it must be at least {steps}")
    return (max_steps or 2 * steps) if reallocate else steps


def _open(
    backend: Backend | AsyncBackend,
    conversations: Sequence[Sequence[Message]],
    policy: Policy | None,
    steps: int,
    limit: int,
    sampling: Sampling,
    stop: bool,
    holdout: Sequence[bool] | None,
    again: str,
    on_mismatch: OnMismatch,
) -> list[_Loop]:
    """A loop for each conversation, once the settings are known to work; ``limit``: most calls of one that may stop."""
    if holdout is not None and len(holdout) != len(conversations):
        raise SettingsError(f"holdout has {len(holdout)} values for {len(conversations)} conversations; give one for each")
    if policy is not None:
        running = backend.details(sampling, PER_CALL)
        fields = {n: running[n] for n in ("k", "estimator", "template", "temperature", "temperature_mode") if n in running}
        policy.check(mode="refine", model=backend.model, on_mismatch=on_mismatch, max_tokens=sampling.max_tokens, **fields)
    stop = stop and stopping_enabled()
    held = holdout or [False] * len(conversations)
    agreeing = isinstance(backend, MayLackLogprobs) and backend.without_logprobs == "agreement"
    return [
        _Loop(conversation, policy, again, steps, steps if full else limit, stop, bool(full), agreeing)
        for conversation, full in zip(conversations, held, strict=True)
    ]


def _for_loop(backend: Any, policy: Policy | None, stop: bool, on_mismatch: OnMismatch) -> Any:
    """The backend, or what it gives for a loop that may need less of its calls."""
    return backend.for_loop(policy, stop=stop, on_mismatch=on_mismatch) if isinstance(backend, MayLackLogprobs) else backend


def _reseeded(sampling: Sampling, step: int) -> Sampling:
    return sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + STRIDE * (step - 1))


def _scheduled(loops: Sequence[_Loop]) -> Iterator[list[_Loop]]:
    """Who is asked together at each step of the schedule."""
    while due := [loop for loop in loops if loop.due]:
        yield due


def _reallocated(loops: Sequence[_Loop]) -> Iterator[list[_Loop]]:
    """Who gets a further call, round by round, from what the sure ones left. Nobody where no loop may go on."""
    pool = sum(loop.unused for loop in loops)
    while batch := sorted((loop for loop in loops if not loop.ended), key=lambda loop: loop.rank)[:pool]:
        pool -= len(batch)
        yield batch


def _close(loops: Sequence[_Loop], on_done: Callable[[int], None] | None) -> list[RefineRun]:
    """Every run; raises where there were errors."""
    waiting = sum(not loop.ended for loop in loops)
    if on_done and waiting:
        on_done(waiting)
    errors = [loop.error for loop in loops]
    runs = [None if loop.error else loop.run() for loop in loops]
    RefineError.check(runs, errors)
    return [run for run in runs if run is not None]
