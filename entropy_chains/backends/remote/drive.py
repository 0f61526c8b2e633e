"""The two loops, sync and async, that send what an :class:`.events.Exchange` asks for. Whatever asks a server uses one of them.

What differs is passed in. ``send(request)`` opens one stream and gives its updates; closing what it gives closes the connection.
How chunks are shown is up to the caller, who gets every :class:`.events.Show`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import aclosing, closing

from entropy_chains.backends.remote.events import Close, Control, Exchange, Finish, R, Send, Show, Try
from entropy_chains.backends.remote.readers import Update
from entropy_chains.errors import BackendError


def drive(
    exchange: Exchange[R],
    send: Callable[[R], Generator[Update, None, None]],
    control: Callable[[str | None], bool] | None = None,
) -> Generator[Show, None, None]:
    """Send what the exchange asks for, until it is over, and give what there is to show.

    Args:
        exchange: what to send, and what follows from what comes.
        send: opens a request; raises BackendError where it cannot be had.
        control: tells the server to end the thinking of the running stream with this id; returns whether it did.
    """
    step: Send[R] | Finish = exchange.start()
    while isinstance(step, Send):
        try:
            with closing(send(step.request)) as updates:
                for update in updates:
                    events = exchange.feed(update)
                    for event in events:
                        match event:
                            case Show():
                                yield event
                            case Try(probe):
                                with closing(drive(probe, send)) as tried:
                                    for _ in tried:
                                        yield Show(())  # whoever waits may leave here
                                events += exchange.tried()  # these follow in the same loop
                            case Control(stream):
                                exchange.controlled(control is not None and control(stream))
                            case Close():
                                updates.close()
            rest, step = exchange.over()
            yield from rest
        except BackendError as error:
            step = exchange.failed(error)


async def adrive(
    exchange: Exchange[R],
    send: Callable[[R], AsyncGenerator[Update, None]],
    control: Callable[[str | None], Awaitable[bool]] | None = None,
) -> AsyncGenerator[Show, None]:
    """The same for ``asyncio``."""
    step: Send[R] | Finish = exchange.start()
    while isinstance(step, Send):
        try:
            async with aclosing(send(step.request)) as updates:
                async for update in updates:
                    events = exchange.feed(update)
                    for event in events:
                        match event:
                            case Show():
                                yield event
                            case Try(probe):
                                async with aclosing(adrive(probe, send)) as tried:
                                    async for _ in tried:
                                        yield Show(())  # whoever waits may leave here
                                events += exchange.tried()  # these follow in the same loop
                            case Control(stream):
                                exchange.controlled(control is not None and await control(stream))
                            case Close():
                                await updates.aclose()
            rest, step = exchange.over()
            for show in rest:
                yield show
        except BackendError as error:
            step = exchange.failed(error)
