"""What the bytes of a stream say beyond its chunks: whether it ended with ``[DONE]``, and what came where no chunk did.

The SDKs tell nothing of either, and fail at what other clients pass over: a byte order mark, events without data. Nothing is read
twice: the bytes are looked at as they pass.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Awaitable, Generator
from dataclasses import replace
from inspect import isawaitable
from typing import Any, Self

from entropy_chains.backends.remote.readers import Update, chunk_of_whole, error_in, stray_in
from entropy_chains.errors import BackendError

DONE = re.compile(rb"[\r\n]data: ?\[DONE\]")
"""How a stream of chat or completion chunks ends in order, whatever its last chunk said."""

FAILED = re.compile(rb"[\r\n]event: ?error[\r\n]")

EMPTY = re.compile(rb"(?<![^\n])data:[ \t]*\r?(?=\n)")
BEGUN = re.compile(rb"(?<![^\n])(?:d|da|dat|data|data:[ \t]*\r?)\Z")
"""A line of an event without data, and what may become one."""

MARK = b"\xef\xbb\xbf"

LARGEST_PART = 16
"""Bytes that may belong to one that has not come whole."""

MOST_FIRST_BYTES = 4096
"""Most bytes that are kept of a reply's beginning: an error that came in the place of a stream."""


class Transfer:
    """One stream's bytes.

    Attributes:
        heard: somebody saw them; else nothing is known.
        done: the stream ended with ``[DONE]``.
        failed: an event named ``error`` has come.
        whole: a reply came as one JSON object, in the place of the stream that was asked for.
        stray: as of the stream's reader, where a framework reads it and passes such chunks over.
        first: its beginning.
    """

    __slots__ = ("_before", "_begun", "_last", "_opened", "done", "failed", "first", "heard", "stray", "whole")

    def __init__(self) -> None:
        self.heard = self.done = self.failed = self.whole = self._opened = False
        self.stray: BackendError | None = None
        self.first, self._begun = b"", b""
        self._last = self._before = b"\n"

    def take(self, data: bytes) -> bytes:
        """More bytes have come: those of them that the SDK is given now."""
        if self.first.lstrip().startswith(b"{"):  # no line of a stream begins so
            self.first += data
        elif len(self.first) < MOST_FIRST_BYTES:
            self.first += data[: MOST_FIRST_BYTES - len(self.first)] if self.first or not data.lstrip().startswith(b"{") else data
        near = self._last + data
        self.done = self.done or (b"[DONE]" in near and DONE.search(near) is not None)
        self.failed = self.failed or (b"event:" in near and FAILED.search(near) is not None)
        self._last = near[-LARGEST_PART:]
        data, self._begun = self._begun + data, b""
        if not self._opened:
            if len(data) < len(MARK) and MARK.startswith(data):
                self._begun = data
                return b""
            data, self._opened = data.removeprefix(MARK), True
        data = self._before + data  # so that it is seen where a line begins
        if begun := BEGUN.search(data):
            data, self._begun = data[: begun.start()], begun[0]
        clean, self._before = EMPTY.sub(b"", data)[len(self._before) :], data[-1:] or self._before
        return clean

    def rest(self) -> bytes:
        """What was kept back: it became no line. A reply that came whole follows as the stream that it would have been."""
        begun, self._begun = self._begun, b""
        chunk = chunk_of_whole(self.error)
        if chunk is None:
            return begun
        self.whole = self.done = True
        return begun + b"\n\ndata: " + json.dumps(chunk).encode() + b"\n\ndata: [DONE]\n\n"

    @property
    def error(self) -> dict[str, Any] | None:
        """What came in the place of a stream, if it is a JSON object, as an error with status 200 is, and a reply that is whole."""
        try:
            content = json.loads(self.first)
        except ValueError:
            return None
        return content if isinstance(content, dict) else None

    def mark(self, update: Update) -> Update:
        """The update, which says where it is the whole reply."""
        return replace(update, whole=True) if self.whole else update

    def listen(self, stream: Any) -> Any:
        """The stream of an SDK, sync or async, whose bytes are seen from now on; any other one as it is."""
        if hasattr(getattr(stream, "response", None), "iter_bytes"):
            stream.response, self.heard = _Response(stream.response, self), True
        return stream


class Listening:
    """One of the SDK's resources (``client.chat.completions``, sync or async) whose streams are listened to."""

    def __init__(self, resource: Any, transfer: Transfer):
        self._resource, self._transfer = resource, transfer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._resource, name)

    def create(self, **arguments: Any) -> Any:
        response = self._resource.create(**arguments)
        if isawaitable(response):
            return _awaited(response, self._transfer)
        return _Checked(self._transfer.listen(response), self._transfer)


async def _awaited(response: Awaitable[Any], transfer: Transfer) -> Any:
    return _Checked(transfer.listen(await response), transfer)


class _Checked:
    """An SDK's stream of which no chunk is an error: a framework may pass one over, and take what came before it for whole."""

    def __init__(self, stream: Any, transfer: Transfer):
        self._stream, self._transfer = stream, transfer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stream.close()

    def __iter__(self) -> Generator[Any, None, None]:
        for chunk in self._stream:
            yield self._checked(chunk)

    async def __aiter__(self) -> AsyncGenerator[Any, None]:
        async for chunk in self._stream:
            yield self._checked(chunk)

    def _checked(self, chunk: Any) -> Any:
        if error := error_in(chunk):
            raise error
        self._transfer.stray = self._transfer.stray or stray_in(chunk)
        return chunk


class _Response:
    """An HTTP response whose bytes are seen as they pass."""

    def __init__(self, response: Any, transfer: Transfer):
        self._response, self._transfer = response, transfer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._response, name)

    def iter_bytes(self, *args: Any) -> Generator[bytes, None, None]:
        for data in self._response.iter_bytes(*args):
            yield self._transfer.take(data)
        yield self._transfer.rest()

    async def aiter_bytes(self, *args: Any) -> AsyncGenerator[bytes, None]:
        async for data in self._response.aiter_bytes(*args):
            yield self._transfer.take(data)
        yield self._transfer.rest()
