"""Asks a server who it is, through an SDK's client, sync or async; once for all calls that want to know it meanwhile.

The user did not ask for this. So whatever comes in reply, the user's own request is sent; a reply that cannot be read makes the
server an unknown one. Only where there is no connection at all an error is raised.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager, suppress
from dataclasses import replace
from inspect import isawaitable
from typing import Any

from entropy_chains.backends.remote.errors import not_connected
from entropy_chains.backends.remote.plugin import VERSION_PATH, hello, may_be_greeted, version_in
from entropy_chains.backends.remote.servers import Server, identify

LONGEST_WAIT = 3.0
"""Most seconds to wait for a server that is silent; less where the client's own timeout is shorter."""


def who(client: Any, model: str, *, plugin: bool = False, needed: bool = True) -> Server | None:
    """Returns what is known about the server of a client.

    Args:
        client: an ``openai.OpenAI``.
        model: the served model's name.
        plugin: ask a vLLM for this package's plug-in as well.
        needed: False asks once, and returns None where nobody can be reached: it may be asked again later.

    Raises:
        openai.APIConnectionError: nobody can be reached, though ``needed``.
    """
    try:
        awho(client, model, plugin=plugin, needed=needed).send(None)  # with a sync client it never waits
    except StopIteration as done:
        server: Server | None = done.value
        return server
    raise TypeError(f"client is {type(client).__name__}, which has to be awaited; give an openai.OpenAI")


async def awho(client: Any, model: str, *, plugin: bool = False, needed: bool = True) -> Server | None:
    """The same for an ``openai.AsyncOpenAI``."""
    options = {"timeout": _patience(client), "max_retries": 0}  # the SDK would wait that long again and again
    asking, reply = identify(str(client.base_url), model), None
    while True:
        try:
            address = asking.send(reply)
        except StopIteration as done:
            server: Server = done.value
            break
        reply = await _reply(client.get, address, options=options)
        if isinstance(reply, Exception) and not_connected(reply):
            if not needed:
                return None
            reply = await _reply(client.get, address)  # nobody there yet? as often as the user's client tries it
            if isinstance(reply, Exception) and not_connected(reply):
                raise reply
    if plugin and server.can.plugin and may_be_greeted(await _reply(client.get, f"{server.root}{VERSION_PATH}", options=options)):
        refusal = await _reply(client.post, "/completions", body=hello(model), options=options)
        server = replace(server, plugin=version_in(str(getattr(refusal, "message", ""))))
    return server


async def _reply(send: Callable[..., Any], address: str, **arguments: Any) -> Any:
    """Returns the JSON that comes, or the error that comes instead. Raises nothing."""
    try:
        response = send(address, cast_to=object, **arguments)
        return await response if isawaitable(response) else response
    except Exception as error:  # noqa: BLE001 (whatever a server answers to us must not stop the user's own request)
        return error


def _patience(client: Any) -> float:
    timeout = getattr(client.timeout, "read", client.timeout)  # seconds, one for each phase, or None
    return min(timeout, LONGEST_WAIT) if isinstance(timeout, int | float) else LONGEST_WAIT


Question = Future[Server | None]


class Introduction:
    """What a server said of itself. The first call asks, and those that come meanwhile wait for what it is told.

    A failure is told to all that wait, and is not remembered: the next call asks again. Where the one that asks is cancelled or
    interrupted, another one of them asks. Threads wait for threads, and tasks for tasks of their own loop: a loop never blocks.

    Attributes:
        server: what was learnt; None until then.
    """

    def __init__(self) -> None:
        self.server: Server | None = None
        self._lock = threading.Lock()
        self._open: dict[asyncio.AbstractEventLoop | None, Question] = {}  # what is asked now, by its loop; None: by a thread

    def who(self, ask: Callable[[], Server | None]) -> Server | None:
        """Returns the server, as ``ask`` learns it; None where it does not. Raises what ``ask`` does."""
        while self.server is None:
            question, own = self._question(None)
            if own:
                with self._answering(None, question):
                    self.server = ask()
                return self.server
            with suppress(CancelledError):
                return question.result()
        return self.server

    async def awho(self, ask: Callable[[], Awaitable[Server | None]]) -> Server | None:
        """The same for ``asyncio``."""
        loop = asyncio.get_running_loop()
        while self.server is None:
            question, own = self._question(loop)
            if own:
                with self._answering(loop, question):
                    self.server = await ask()
                return self.server
            told = asyncio.Event()
            question.add_done_callback(lambda _, told=told: loop.call_soon_threadsafe(told.set))  # type: ignore[misc]
            await told.wait()
            with suppress(CancelledError):
                return question.result()
        return self.server

    def _question(self, place: asyncio.AbstractEventLoop | None) -> tuple[Question, bool]:
        """What is asked in this place, and whether the caller is to ask it."""
        with self._lock:
            if self.server is not None:  # learnt since the caller looked
                answered = Question()
                answered.set_result(self.server)
                return answered, False
            asks = place not in self._open
            return self._open.setdefault(place, Question()), asks

    @contextmanager
    def _answering(self, place: asyncio.AbstractEventLoop | None, question: Question) -> Generator[None, None, None]:
        """Tells those that wait what comes of the question, which is open no more."""
        try:
            yield
        except BaseException as error:
            self._close(place)
            if isinstance(error, Exception):
                question.set_exception(error)
            else:
                question.cancel()
            raise
        self._close(place)
        question.set_result(self.server)

    def _close(self, place: asyncio.AbstractEventLoop | None) -> None:
        with self._lock:  # else one that looks now would wait for a question that nobody asks
            self._open.pop(place)
