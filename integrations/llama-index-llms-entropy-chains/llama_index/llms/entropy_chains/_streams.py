"""Ending the running stream of an inner LLM: the server stops working, and the inner LLM ends as after a whole reply.

LlamaIndex never closes the SDK's stream, and closing LlamaIndex's generator does not either: ``openai.Stream`` is a reference
cycle, so the server goes on until some later garbage collection. Here a call is made by a *copy* of the LLM whose copy of the
client hands out streams of the kind of :class:`SoftStream`: iterators that close the real stream, and end, once
:class:`End` says so. Of the ways tried (httpx hooks, a transport, walking referents, cancelling) it is the smallest that holds
in every case: chat, completions and the Responses API, sync and async, ``reuse_client`` on and off, either of the SDK's HTTP
libraries. The user's LLM and client are not changed, and nothing is shared between calls.

LLMs of other providers: an async stream is ended by cancelling the task that waits for its next chunk, which runs every
``finally`` on the way. A sync one is closed as Python generators are; whether its server stops is up to the provider's class.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from entropy_chains.adapters import ChatReader, Transfer

if TYPE_CHECKING:
    from llama_index.core.llms import LLM

current_end: ContextVar[End | None] = ContextVar("current_end", default=None)
"""The end of the stream whose chunk is just being handed out, for what only sees events."""


@dataclass(slots=True)
class End:
    """Ends one stream when asked to.

    Attributes:
        due: the stream gives no further chunk, and is closed.
        soft: a stream that obeys was opened; False for the LLMs of other providers.
        transfer: its bytes.
    """

    due: bool = False
    soft: bool = False
    transfer: Transfer = field(default_factory=Transfer)


class SoftStream:
    """An SDK's stream that ends when told."""

    def __init__(self, stream: Any, end: End):
        self._stream, self._end = end.transfer.listen(stream), end
        end.soft = True

    def __iter__(self) -> Iterator[Any]:
        try:
            for chunk in self._stream:
                if not _readable(chunk):
                    continue
                _join_calls(chunk)
                current_end.set(self._end)
                yield chunk
                if self._end.due:
                    break
        finally:
            self._stream.close()


class AsyncSoftStream:
    """The same for ``asyncio``."""

    def __init__(self, stream: Any, end: End):
        self._stream, self._end = end.transfer.listen(stream), end
        end.soft = True

    async def __aiter__(self) -> AsyncIterator[Any]:
        first = True
        try:
            async for chunk in self._stream:
                if not _readable(chunk):
                    continue
                if first:
                    first = _give_content(chunk)
                _join_calls(chunk)
                current_end.set(self._end)
                yield chunk
                if self._end.due:
                    break
        finally:
            await (self._stream.aclose() if isinstance(self._stream, AsyncGenerator) else self._stream.close())


def _readable(chunk: Any) -> bool:
    """Whether LlamaIndex can read a chunk. One without choices says nothing, or is an error: then raises BackendError."""
    if getattr(chunk, "choices", ()) is not None:
        return True
    ChatReader().feed(chunk)
    return False


def _give_content(chunk: Any) -> bool:
    """LlamaIndex's async classes drop a first chunk without content, and with it the first token of the thinking: give it one."""
    for choice in getattr(chunk, "choices", None) or ():
        if getattr(choice, "delta", None) is not None and choice.delta.content is None:
            choice.delta.content = ""
    return False


def _join_calls(chunk: Any) -> None:
    """LlamaIndex reads one part of a tool call from a chunk, and an engine that is ahead sends several: make them one."""
    for choice in getattr(chunk, "choices", None) or ():
        parts = getattr(getattr(choice, "delta", None), "tool_calls", None) or []
        joined = list[Any]()
        for part in parts:
            if joined and joined[-1].index == part.index and joined[-1].function and part.function:
                whole = joined[-1].function
                whole.arguments = (whole.arguments or "") + (part.function.arguments or "")
                whole.name = whole.name or part.function.name
            else:
                joined.append(part)
        if len(joined) < len(parts):
            choice.delta.tool_calls = joined


def uses_sdk(llm: LLM) -> bool:
    """Whether the LLM calls an OpenAI-compatible API through the ``openai`` SDK."""
    return is_openai_class(llm, "OpenAI") or is_openai_class(llm, "OpenAIResponses")


def is_openai_class(llm: LLM, name: str) -> bool:
    """Whether the LLM is one of ``llama_index.llms.openai``'s class ``name``; that package is loaded if it is."""
    module = sys.modules.get("llama_index.llms.openai")
    return module is not None and isinstance(llm, getattr(module, name))


def client_of(llm: Any) -> Any:
    """The ``openai.OpenAI`` an LLM works with."""
    return llm._get_client() if hasattr(llm, "_get_client") else llm._client


def async_client_of(llm: Any) -> Any:
    """The ``openai.AsyncOpenAI`` an LLM works with."""
    return llm._get_aclient() if hasattr(llm, "_get_aclient") else llm._aclient


def soft_client(client: Any, end_of: Callable[[Any], End]) -> Any:
    """A copy of an SDK's client, sync or async, whose streams end when told.

    Args:
        client: it stays as it is.
        end_of: makes the end of a request's stream, given the SDK's options of the request.
    """
    copy = client.with_options()
    send = copy.request

    def request(cast_to: Any, options: Any, **kwargs: Any) -> Any:
        response = send(cast_to, options, **kwargs)
        return soft_stream(response, end_of(options)) if kwargs.get("stream") else response

    copy.request = request
    return copy


def soft_stream(stream: Any, end: End) -> Any:
    """A client's stream, or the awaitable of one, as one that obeys ``end``."""
    return _soft_async_stream(stream, end) if isawaitable(stream) else SoftStream(stream, end)


async def _soft_async_stream(stream: Awaitable[Any], end: End) -> AsyncSoftStream:
    return AsyncSoftStream(await stream, end)


def is_soft_client(client: Any) -> bool:
    """Whether it was made by :func:`soft_client`."""
    return "request" in vars(client)


def endable(llm: Any, end: End) -> Any:
    """A copy of the LLM whose streams obey ``end``; the LLM itself where it does not use the SDK."""
    return copied(llm, _client=soft_client(client_of(llm), lambda _: end)) if uses_sdk(llm) else llm


def async_endable(llm: Any, end: End, client: Any) -> Any:
    """The same for its async streams, over ``client``."""
    return copied(llm, _aclient=soft_client(client, lambda _: end)) if uses_sdk(llm) else llm


def copied(llm: Any, **private: Any) -> Any:
    """A copy with these private attributes. With ``reuse_client`` off an LLM would make a further client, and not use ours."""
    copy = llm.model_copy(update={"reuse_client": True} if "reuse_client" in type(llm).model_fields else None)
    for name, value in private.items():
        setattr(copy, name, value)
    return copy


def finish_stream(chunks: Generator[Any, None, None], end: End) -> None:
    """End a running sync stream. It is read to its end, so that the inner LLM reports one."""
    end.due = True
    if end.soft:
        for _ in chunks:
            pass
    else:
        chunks.close()


async def afinish_stream(chunks: AsyncGenerator[Any, None], end: End) -> None:
    """The same for ``asyncio``."""
    end.due = True
    if end.soft:
        async for _ in chunks:
            pass
        return
    over = False
    while not over:  # a chunk that was received already comes without waiting
        pending = asyncio.ensure_future(_anext(chunks))
        await asyncio.sleep(0)
        pending.cancel()
        await asyncio.wait([pending])
        over = pending.cancelled() or pending.exception() is not None or pending.result()


async def _anext(chunks: AsyncGenerator[Any, None]) -> bool:
    """Whether the stream is over."""
    with suppress(StopAsyncIteration):
        await anext(chunks)
        return False
    return True
