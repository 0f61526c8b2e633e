"""The two shells around a :class:`.dialogue.Dialogue`, one sync, one async: everything that sends uses these.

``send(request)`` opens one request and gives its updates; closing what it gives closes the connection. An adapter that has more to
pass on than tokens (a framework's own chunks) finds it on the update: see :attr:`.chunks.Update.raw`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import aclosing, closing
from dataclasses import replace

from entropy_chains.backends import Chunk
from entropy_chains.backends.remote.continuations import Request
from entropy_chains.backends.remote.dialogue import Dialogue
from entropy_chains.backends.remote.readers import Update
from entropy_chains.errors import BackendError, NoLogprobsError

Heard = tuple[Update, list[Chunk]]
"""What came, and what a reader of the run sees of it."""


Send = Callable[[Request], Generator[Update, None, None]]
ASend = Callable[[Request], AsyncGenerator[Update, None]]


def talk(
    dialogue: Dialogue,
    send: Send,
    control: Callable[[str | None], bool] | None = None,
) -> Generator[Heard, None, None]:
    """Send what the dialogue asks for, until it is over.

    Args:
        dialogue: what to say.
        send: opens a request; raises BackendError where it cannot be had.
        control: tells the server to end the thinking of the running stream with this id; whether it did.

    Yields:
        Every update of the run and of its answer, with what a reader sees of it. A probe's answer, and text that was kept back
        until the stream ended, come with an empty update.
    """
    request: Request | None = dialogue.first()
    while request is not None:
        try:
            with closing(send(request)) as updates:
                for update in updates:
                    yield update, dialogue.feed(update)
                    if dialogue.wants_probe:
                        with closing(_probe(dialogue.wants_probe, send)) as probe:
                            for found in probe:
                                dialogue.feed_probe(found)
                        yield Update(), dialogue.probed()
                    if dialogue.wants_control:
                        dialogue.controlled(control is not None and control(dialogue.id))
                    if dialogue.closing:
                        break
                else:
                    if kept := dialogue.rest():
                        yield Update(), kept
            request = dialogue.next()
        except BackendError as error:
            request = dialogue.failed(error)


async def atalk(
    dialogue: Dialogue,
    send: ASend,
    control: Callable[[str | None], Awaitable[bool]] | None = None,
) -> AsyncGenerator[Heard, None]:
    """The same for ``asyncio``."""
    request: Request | None = dialogue.first()
    while request is not None:
        try:
            async with aclosing(send(request)) as updates:
                async for update in updates:
                    yield update, dialogue.feed(update)
                    if dialogue.wants_probe:
                        async with aclosing(_aprobe(dialogue.wants_probe, send)) as probe:
                            async for found in probe:
                                dialogue.feed_probe(found)
                        yield Update(), dialogue.probed()
                    if dialogue.wants_control:
                        dialogue.controlled(control is not None and await control(dialogue.id))
                    if dialogue.closing:
                        break
                else:
                    if kept := dialogue.rest():
                        yield Update(), kept
            request = dialogue.next()
        except BackendError as error:
            request = dialogue.failed(error)


def _probe(request: Request, send: Send) -> Generator[Update, None, None]:
    """A probe's updates. Where logprobs are refused for it alone it is asked again without: the run goes on."""
    try:
        with closing(send(request)) as updates:
            yield from updates
    except NoLogprobsError:
        with closing(send(replace(request, logprobs=False))) as updates:
            yield from updates


async def _aprobe(request: Request, send: ASend) -> AsyncGenerator[Update, None]:
    """The same for ``asyncio``."""
    try:
        async with aclosing(send(request)) as updates:
            async for update in updates:
                yield update
    except NoLogprobsError:
        async with aclosing(send(replace(request, logprobs=False))) as updates:
            async for update in updates:
                yield update
