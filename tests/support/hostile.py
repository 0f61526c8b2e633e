"""An HTTP server that misbehaves as it is told, byte by byte, on one asyncio loop: what a scripted, well-behaved one cannot do.

A script gives the acts of each POST: bytes to send, or one of :class:`Act`. It asks who calls with ``GET /v1/models`` like any
server; every other GET is a 404. Requests, open sockets and requests still in work are counted on this side::

    with Hostile(lambda request: [*begin(), *events(thinking(2.0)), Act.RESET]) as server: ...
    async with Hostile(script) as server: ...     # on the caller's own loop
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from wire import HEAD, entry, top

if TYPE_CHECKING:
    from loopback import Reply


class Act(Enum):
    """What happens instead of more bytes."""

    CLOSE = "end the connection in order"
    RESET = "tear the connection down"
    SILENCE = "say nothing until the client is gone"


@dataclass
class Request:
    """A POST that came. ``sent``: acts done; ``gone``: the client left before the last; ``at``: seconds of a monotonic clock."""

    path: str
    body: dict[str, Any]
    headers: dict[str, str]
    number: int
    sent: int = 0
    gone: bool = False
    at: float = field(default_factory=time.monotonic)


Script = Callable[[Request], Iterable[bytes | Act] | AsyncIterable[bytes | Act]]


class Hostile:
    """The server; a context manager, with a thread of its own, and an async one, without."""

    def __init__(self, script: Script, *, owned_by: str = "vllm", about: Callable[[str], list[bytes | Act]] | None = None):
        self.script, self.owned_by, self.about = script, owned_by, about  # ``about``: the acts of a GET, by its path
        self.asked: list[str] = []  # paths of the GETs that came
        self.requests: list[Request] = []
        self.sockets = self.busy = 0
        self._ready, self._stop = threading.Event(), asyncio.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def __enter__(self) -> Hostile:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def __aenter__(self) -> Hostile:
        self._task = asyncio.create_task(self._serve())
        while not self._ready.is_set():
            await asyncio.sleep(0)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._stop.set()
        await self._task

    def quiet(self, seconds: float = 10.0) -> bool:
        """Whether no request is in work any more; waits for it."""
        return self._reaches(lambda: not self.busy, seconds)

    def empty(self, seconds: float = 10.0) -> bool:
        """Whether no socket is open any more; waits for it."""
        return self._reaches(lambda: not self.sockets, seconds)

    def _reaches(self, state: Callable[[], bool], seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not state() and time.monotonic() < end:
            time.sleep(0.005)
        return state()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=4096)
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        try:
            await self._stop.wait()
        finally:
            server.close()
            for task in asyncio.all_tasks() - {asyncio.current_task()} if self._owns_loop else ():
                task.cancel()

    @property
    def _owns_loop(self) -> bool:
        return hasattr(self, "_thread")

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.sockets += 1
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._request(reader, writer)
        finally:
            self.sockets -= 1
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the connection's one request: what ends an answer here is the end of the connection."""
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        method, path, _ = first.split(" ")
        if method == "GET":
            self.asked.append(path)
        if method == "GET" and self.about is not None:
            await _say(self.about(path), reader, writer)
            return
        if method == "GET":
            known = path.endswith("/models")
            models = {"object": "list", "data": [{"id": "scripted", "object": "model", "owned_by": self.owned_by}]}
            writer.write(whole(200 if known else 404, models if known else {"error": {"message": "not found"}}))
            return
        if "entropy_chains_hello" in (json.loads(body).get("vllm_xargs") or {}):  # no plug-in here: refused as vLLM does
            writer.write(whole(400, {"error": {"message": "Token id 2147483647 is out of vocabulary"}}))
            return
        request = Request(path, json.loads(body), headers, len(self.requests))
        self.requests.append(request)
        self.busy += 1
        gone = asyncio.ensure_future(reader.read(1))  # nothing is sent before the answer: only the end can come
        try:
            async for act in _acts(self.script(request)):
                if gone.done() or act is Act.SILENCE:
                    await gone
                    request.gone = True
                    return
                if act is Act.RESET:
                    linger = struct.pack("ii", 1, 0)
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    writer.transport.abort()
                if act in (Act.RESET, Act.CLOSE):
                    return
                writer.write(act)
                await writer.drain()
                request.sent += 1
                await asyncio.sleep(0)
        except ConnectionError:
            request.gone = True
            raise
        finally:
            gone.cancel()
            self.busy -= 1


async def _say(acts: list[bytes | Act], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The answer to a GET."""
    for act in acts:
        if isinstance(act, bytes):
            writer.write(act)
        elif act is Act.SILENCE:
            await reader.read(1)
        elif act is Act.RESET:
            writer.transport.abort()


async def _acts(given: Iterable[bytes | Act] | AsyncIterable[bytes | Act]) -> AsyncIterator[bytes | Act]:
    if isinstance(given, AsyncIterable):
        async for act in given:
            yield act
    else:
        for act in given:
            yield act


def whole(status: int, value: Any, *, kind: str = "application/json", headers: str = "") -> bytes:
    """A whole answer; ``value`` is JSON, or text that is sent as it is."""
    data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
    head = f"HTTP/1.1 {status} x\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\nConnection: close\r\n{headers}\r\n"
    return head.encode() + data


def listed(owner: object) -> bytes:
    """An answer to ``/models`` that names the model's owner."""
    return whole(200, {"object": "list", "data": [{"id": "scripted", "object": "model", "owned_by": owner}]})


def about_llama(path: str, props: bytes) -> list[bytes | Act]:
    """What a llama.cpp says of itself."""
    return [props if path.endswith("/props") else listed("llamacpp")]


ODD: dict[str, Callable[[str], list[bytes | Act]]] = {
    "empty": lambda path: [whole(200, "")],
    "a page as JSON": lambda path: [whole(200, "<html>welcome</html>")],
    "a page": lambda path: [whole(200, "<html>welcome</html>", kind="text/html")],
    "bad encoding": lambda path: [*begin("application/json"), b"\xff\xfe{"],
    "unknown encoding": lambda path: [whole(200, "{}", kind="application/json; charset=nonsense")],
    "bad gzip": lambda path: [whole(200, "no gzip", headers="Content-Encoding: gzip\r\n")],
    "deep": lambda path: [whole(200, "[" * 5000 + "]" * 5000)],
    "cut": lambda path: [whole(200, '{"data": [')],
    "a number": lambda path: [whole(200, 7)],
    "no entries": lambda path: [whole(200, {"data": [None, 3, {"owned_by": {"x": 1}}]})],
    "no JSON promised length": lambda path: [b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n{}"],
    "no HTTP": lambda path: [b"SSH-2.0-OpenSSH_9.6\r\n"],
    "closed": lambda path: [Act.CLOSE],
    "reset": lambda path: [Act.RESET],
    "redirects": lambda path: [whole(302, "", headers=f"Location: {path}\r\n")],
    "redirect to nowhere": lambda path: [whole(302, "", headers="Location: gopher://x\r\n")],
    "forbidden": lambda path: [whole(403, {"error": {"message": "not for this key"}})],
    "too many": lambda path: [whole(429, "slow down", headers="Retry-After: 1\r\n")],
    "broken": lambda path: [whole(500, "boom")],
    "silent": lambda path: [Act.SILENCE],
    "template is a number": lambda path: about_llama(path, whole(200, {"chat_template": 5})),
    "props are empty": lambda path: about_llama(path, whole(200, "")),
    "props are silent": lambda path: [Act.SILENCE] if path.endswith("/props") else [listed("llamacpp")],
}
"""What servers, and what stands in the place of one, may say of themselves."""


def begin(kind: str = "text/event-stream", headers: str = "") -> list[bytes]:
    """The head of a stream that ends with the connection."""
    return [f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nConnection: close\r\n{headers}\r\n".encode()]


def event(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def events(reply: Reply, body: dict[str, Any]) -> list[bytes]:
    """The tokens of a reply, an event each; :func:`end` is what follows them."""
    return [event(_chunk(body, t.text, t.reasoning, entry(t, top(body)) if body.get("logprobs") else None)) for t in reply.tokens]


def end(tokens: int | None = None, *, reason: str | None = "stop") -> list[bytes]:
    """The last events: finish reason, usage where ``tokens`` says how many, ``[DONE]``."""
    last = {**HEAD, "choices": [{"index": 0, "delta": {}, "text": "", "finish_reason": reason}]}
    usage = {**HEAD, "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + (tokens or 0)}}
    return [event(last), *([event(usage)] if tokens is not None else []), event(b"[DONE]")]


def _chunk(body: dict[str, Any], text: str, reasoning: bool, logprob: Any) -> dict[str, Any]:
    if "messages" not in body:
        return {**HEAD, "object": "text_completion", "choices": [{"index": 0, "text": text, "finish_reason": None}]}
    delta = {"reasoning_content" if reasoning else "content": text}
    logprobs = {"content": [logprob]} if logprob else None
    return {**HEAD, "choices": [{"index": 0, "delta": delta, "finish_reason": None, "logprobs": logprobs}]}
