"""Closing a stream of an inner model for good: the HTTP response itself, where the model's generator hides it.

Some clients (Groq's, Fireworks') leave the connection open when the generator over their stream is closed: the server computes the
whole reply. What a suspended generator holds is known to Python's garbage collector; nothing of the client is changed for it.
"""

from __future__ import annotations

import gc
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from types import AsyncGeneratorType, GeneratorType
from typing import Any

DEPTH = 8
"""Generators inside generators that are looked into."""


@contextmanager
def closing_response(stream: Any) -> Generator[Iterator[Any], None, None]:
    """A stream; at the end it is closed, and the response that it reads, too."""
    try:
        yield stream
    finally:
        responses = _responses(stream)
        stream.close()
        for response in responses:
            _close(response)


@asynccontextmanager
async def aclosing_response(stream: Any) -> AsyncGenerator[AsyncIterator[Any], None]:
    """The same for ``asyncio``."""
    try:
        yield stream
    finally:
        responses = _responses(stream)
        await stream.aclose()
        for response in responses:
            try:
                await response.aclose()
            except (AttributeError, RuntimeError):  # it is read by a thread
                _close(response)


def _close(response: Any) -> None:
    with suppress(RuntimeError):  # one of asyncio's, whose loop closes it
        response.close()


def _responses(stream: Any) -> list[Any]:
    """The responses that a generator, and those that it goes through, hold open: each belongs to this one request."""
    responses, seen, generators = list[Any](), set[int](), [stream]
    for _ in range(DEPTH):
        objects = [each for generator in generators for each in gc.get_referents(generator) if id(each) not in seen]
        seen.update(map(id, objects))
        for each in objects:
            response = each if _is_response(each) else getattr(each, "__dict__", {}).get("response")
            if _is_response(response) and not any(response is other for other in responses):
                responses.append(response)
        generators = [each for each in objects if isinstance(each, GeneratorType | AsyncGeneratorType)]
    return responses


def _is_response(value: Any) -> bool:
    """Whether it is an open response of httpx or httpx2, which every client here is built on; neither need be installed."""
    return type(value).__name__ == "Response" and getattr(value, "is_closed", None) is False
