"""A call whose reply cannot be followed as one stream: the LLM inside makes it by the method that the caller used, as it is."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import TYPE_CHECKING, Any

from llama_index.llms.entropy_chains._responses import as_chat
from llama_index.llms.entropy_chains._streams import End, afinish_stream, finish_stream

from entropy_chains import Monitor
from entropy_chains.adapters import Request, hiding

if TYPE_CHECKING:
    from llama_index.core.base.llms.types import ChatResponse
    from llama_index.llms.entropy_chains._inner import Call
    from llama_index.llms.entropy_chains._run import RunTerms

NOTHING_MORE = Request("full", (), 0, logprobs=False)
"""The request has no settings besides the user's own."""


class Passing:
    """One such call: what the LLM inside is asked, and what is told of its responses.

    Args:
        call: the call.
        terms: say why it is not stopped, and whether the caller reads a stream.
    """

    def __init__(self, call: Call, terms: RunTerms):
        self.call, self._terms, self.streams = call, terms, terms.streams
        self.end, self.run_request = End(), call.run.ask("full")
        self._last: Any = None

    def ask(self) -> Any:
        """Returns the stream or the response of the LLM inside."""
        with self.call.inside(self.run_request):
            return self._ask("", self.call.endable(NOTHING_MORE, self.end))

    async def aask(self) -> Any:
        """The same for ``asyncio``."""
        with self.call.inside(self.run_request):
            return await self._ask("a", self.call.async_endable(NOTHING_MORE, self.end))

    def _ask(self, prefix: str, llm: Any) -> Any:
        llm, call = llm.model_copy(update=self.call.own_limiter(llm)), self.call
        name = prefix + ("stream_" if self.streams else "")
        if call.prompt is None:
            return getattr(llm, f"{name}chat")(call.messages, **call.kwargs)
        return getattr(llm, f"{name}complete")(call.prompt, True, **call.kwargs)

    def take(self, response: Any) -> ChatResponse:
        """Returns a response as it is."""
        if (tokens := response.additional_kwargs.get("completion_tokens")) is not None:
            self.run_request.count(response, tokens, response.additional_kwargs.get("prompt_tokens"))
        self._last = chat = as_chat(response)
        return chat

    def final(self) -> ChatResponse:
        """Returns the last response with the outcome; it tells no number of tokens where the server told none."""
        last: ChatResponse = self._last
        tokens = last.additional_kwargs.get("completion_tokens")
        outcome = Monitor(self._terms.policy, stop=False).finish(self._terms.why, tokens=tokens or 0)
        self.call.run.finish(outcome)
        table = outcome.metadata()
        if tokens is None:
            del table["early_stop_tokens"]
        changes = {"delta": ""} if self.streams else {}
        return last.model_copy(update={**changes, "additional_kwargs": last.additional_kwargs | table})


def passed(passing: Passing, reply: Any) -> Generator[ChatResponse, None, None]:
    """The responses of a call that is passed through, the last one with the outcome."""
    with hiding(passing.call.llm, passing.call.kwargs):
        try:
            for response in reply if passing.streams else (reply,):
                yield passing.take(response)
        finally:
            if passing.streams:
                finish_stream(reply, passing.end)
            passing.run_request.over()
    yield passing.final()


async def apassed(passing: Passing, reply: Any) -> AsyncGenerator[ChatResponse, None]:
    """The same for ``asyncio``."""
    with hiding(passing.call.llm, passing.call.kwargs):
        try:
            if passing.streams:
                async for response in reply:
                    yield passing.take(response)
            else:
                yield passing.take(reply)
        finally:
            if passing.streams:
                await afinish_stream(reply, passing.end)
            passing.run_request.over()
    yield passing.final()
