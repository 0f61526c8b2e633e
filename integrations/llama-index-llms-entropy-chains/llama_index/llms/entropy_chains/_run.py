"""One run of the wrapper, from the first request to the last response: the shells, sync and async, of both modes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from llama_index.llms.entropy_chains._raw import with_whole_raw
from llama_index.llms.entropy_chains._responses import Telling, as_chat

from entropy_chains import Policy, Segmentation, arun_refine, run_refine
from entropy_chains.adapters import OnMismatch, RefineRun, Request, adrive, drive
from entropy_chains.backends import Generation, Message, Sampling

if TYPE_CHECKING:
    from llama_index.core.base.llms.types import ChatResponse
    from llama_index.llms.entropy_chains._inner import Call
    from llama_index.llms.entropy_chains._requests import Opened


@dataclass(frozen=True, slots=True)
class RunTerms:
    """On what terms a run may be stopped. ``why``: why it may not, if so. ``streams``: whether the caller reads a stream."""

    policy: Policy | None
    stop: bool
    holdout: bool
    on_mismatch: OnMismatch
    steps: int
    why: str | None
    logprobs: bool
    streams: bool

    def follow(self, call: Call) -> Telling:
        """A dialogue for the call, and what is told of it."""
        dialogue = call.dialogue(self.policy, self.stop, self.holdout, self.on_mismatch)
        return Telling(dialogue, call.tags, why=self.why, logprobs=self.logprobs)

    def first(self, call: Call) -> Request:
        """The request that such a dialogue begins with."""
        return self.follow(call).dialogue.start().request

    def as_asked(self, last: ChatResponse, call: Call) -> ChatResponse:
        """The last response, as the caller's method gives it."""
        return last if self.streams else with_whole_raw(last, call.run)

    def loop(self, call: Call) -> dict[str, Any]:
        """Arguments of the refine loop besides the backend."""
        return {
            "conversations": [[]],  # the call has the messages
            "policy": self.policy,
            "steps": self.steps,
            "sampling": call.sampling,
            "stop": self.stop,
            "holdout": [self.holdout],
            "on_mismatch": self.on_mismatch,
        }


def run(call: Call, terms: RunTerms, first: Opened) -> Generator[ChatResponse, None, None]:
    """The responses of a run that begins with a stream already called for."""
    telling = terms.follow(call)
    with closing(drive(telling.dialogue, partial(call.updates, first=first))) as events:
        for event in events:
            response = telling.tell(event)
            if response is not None:
                yield response
    last, outcome = telling.final()
    call.run.finish(outcome)
    yield terms.as_asked(last, call)


async def arun(call: Call, terms: RunTerms, first: Opened) -> AsyncGenerator[ChatResponse, None]:
    """The same for ``asyncio``."""
    telling = terms.follow(call)
    async with aclosing(adrive(telling.dialogue, partial(call.aupdates, first=first))) as events:
        async for event in events:
            response = telling.tell(event)
            if response is not None:
                yield response
    last, outcome = telling.final()
    call.run.finish(outcome)
    yield terms.as_asked(last, call)


def refine(call: Call, terms: RunTerms) -> Generator[ChatResponse, None, None]:
    """The last call's response, whole: which call is the last is known only after it."""
    steps: Any = Steps(call.for_loop(terms.policy, stop=terms.stop, on_mismatch=terms.on_mismatch))
    (refine_run,) = run_refine(steps, **terms.loop(call))
    call.run.finish(refine_run.outcome)
    yield terms.as_asked(steps.response(refine_run), call)


async def arefine(call: Call, terms: RunTerms) -> AsyncGenerator[ChatResponse, None]:
    """The same for ``asyncio``."""
    steps: Any = Steps(call.for_loop(terms.policy, stop=terms.stop, on_mismatch=terms.on_mismatch))
    (refine_run,) = await arun_refine(steps, **terms.loop(call))
    call.run.finish(refine_run.outcome)
    yield terms.as_asked(steps.response(refine_run), call)


class Steps:
    """The backend that the refine loop asks: each step is a call of the LLM inside. One conversation, so one call at a time."""

    def __init__(self, call: Call):
        self._call = call
        self.model, self.details, self.without_logprobs = call.model, call.details, call.without_logprobs
        self._last: Any = None

    def for_loop(self, policy: Policy | None, *, stop: bool, on_mismatch: OnMismatch = "error") -> Self:
        """As in :class:`entropy_chains.backends.MayLackLogprobs`: the call is for a loop already."""
        return self

    def generate(
        self, conversations: Sequence[Sequence[Message]], *, sampling: Sampling, segmentation: Segmentation
    ) -> list[Generation]:
        """As in :class:`entropy_chains.backends.Backend`."""
        (dialogue,) = [self._call.step(turns, sampling, segmentation) for turns in conversations]
        for event in drive(dialogue, self._call.updates):
            self._last = (event.update.raw and event.update.raw.response) or self._last
        return [dialogue.result()]

    async def agenerate(
        self, conversations: Sequence[Sequence[Message]], *, sampling: Sampling, segmentation: Segmentation
    ) -> list[Generation]:
        """As in :class:`entropy_chains.backends.AsyncBackend`."""
        (dialogue,) = [self._call.step(turns, sampling, segmentation) for turns in conversations]
        async for event in adrive(dialogue, self._call.aupdates):
            self._last = (event.update.raw and event.update.raw.response) or self._last
        return [dialogue.result()]

    def response(self, refine_run: RefineRun) -> ChatResponse:
        """The last step's response, with the outcome and the tokens of all steps."""
        last = as_chat(self._last)
        prompt = sum(c.prompt_tokens for c in refine_run.calls)
        counts = {
            "prompt_tokens": prompt,
            "completion_tokens": refine_run.outcome.tokens,
            "total_tokens": prompt + refine_run.outcome.tokens,
            "early_stop_calls": len(refine_run.calls),
            "finish_reason": refine_run.calls[-1].finish_told,
        }
        additional_kwargs = last.additional_kwargs | refine_run.outcome.metadata() | counts
        return last.model_copy(update={"delta": last.message.content or "", "additional_kwargs": additional_kwargs})
