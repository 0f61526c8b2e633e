"""The paper's multi-step loop (arXiv 2510.08146): a fixed number of calls, each reading the earlier ones, ended when sure.

It needs no thinking tags: a step is one call, its entropy the mean over the call's completion tokens, and the answer of
every step is free to read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from entropy_chains.backends import Backend, Generation, Message, Sampling
from entropy_chains.errors import SettingsError
from entropy_chains.monitor import Decision, Monitor, Outcome, StepRecord
from entropy_chains.policy import Policy, stopping_enabled
from entropy_chains.steps import Segmentation

AGAIN = "Check your answer: work the question again, then give the final answer."
"""The turn that asks for the next step."""

PER_CALL = Segmentation("call", 1)


@dataclass(frozen=True, slots=True)
class RefineRun:
    """One finished loop.

    Attributes:
        answer: the last call's answer.
        calls: every call made, in order.
        records: each call's statistics, in order.
        outcome: whether the loop was ended early, and why or why not; its tokens are those of all calls.
    """

    answer: str | None
    calls: tuple[Generation, ...]
    records: tuple[StepRecord, ...]
    outcome: Outcome


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
    on_mismatch: str = "error",
    on_done: Callable[[int], None] | None = None,
) -> list[RefineRun]:
    """Run the loop on every conversation, those not yet sure together in one batch a step.

    Args:
        backend: where the calls go.
        conversations: the questions, as messages.
        policy: when to end early; its mode must be ``refine``.
        steps: most calls a conversation, at least 1; the last one is never an early stop.
        sampling: settings of every call.
        stop: False only watches: the outcome tells where it would have ended.
        holdout: conversations that run in full on purpose.
        on_mismatch: ``error`` or ``warn``.
        again: the turn that asks for the next step.
        on_done: called with the number of conversations that have just ended.
    """
    if steps < 1:
        raise SettingsError(f"steps is {steps}; the loop needs at least 1 call")
    if policy is not None:
        running = backend.details(sampling, PER_CALL)
        fields = {n: running[n] for n in ("k", "estimator", "template", "temperature", "temperature_mode") if n in running}
        policy.check(mode="refine", model=backend.model, on_mismatch=on_mismatch, **fields)
    monitors = [
        Monitor(policy, segmentation=PER_CALL, stop=stop and stopping_enabled(), holdout=bool(holdout is not None and holdout[n]))
        for n in range(len(conversations))
    ]
    threads = [list(c) for c in conversations]
    calls: list[list[Generation]] = [[] for _ in conversations]
    records: list[list[StepRecord]] = [[] for _ in conversations]
    active = list(range(len(conversations)))
    for step in range(1, steps + 1):
        if not active:
            break
        made = backend.generate([threads[n] for n in active], sampling=sampling, segmentation=PER_CALL)
        goes_on = []
        for n, call in zip(active, made, strict=True):
            calls[n].append(call)
            if call.steps:
                decision = monitors[n].take(call.steps[-1].record, call.answer) if step < steps else Decision.GO_ON
                records[n].append(call.steps[-1].record)
            else:
                decision = Decision.GO_ON
            if step < steps and decision is not Decision.STOP:
                reply = call.answer or call.reasoning
                threads[n] += [{"role": "assistant", "content": reply}, {"role": "user", "content": again}]
                goes_on.append(n)
        if on_done:
            on_done(len(active) - len(goes_on))
        active = goes_on
    return [
        RefineRun(calls[n][-1].answer, tuple(calls[n]), tuple(records[n]), _whole(monitors[n], calls[n]))
        for n in range(len(conversations))
    ]


def _whole(monitor: Monitor, calls: Sequence[Generation]) -> Outcome:
    return monitor.finish(tokens=sum(c.tokens for c in calls))
