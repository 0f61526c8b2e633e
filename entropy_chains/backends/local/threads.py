"""Local models under ``asyncio``: the work runs in a thread of its own, and ends when the task that waits for it is cancelled."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator

T = TypeVar("T")


async def in_thread(work: Callable[[threading.Event], T]) -> T:
    """What ``work(cancelled)`` returns. Cancelling the task sets ``cancelled`` and waits until the work has ended."""
    cancelled = threading.Event()
    with ThreadPoolExecutor(1, "entropy-chains-await") as pool:
        running = asyncio.get_running_loop().run_in_executor(pool, work, cancelled)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            cancelled.set()
            await asyncio.wait([running])
            raise
        finally:
            cancelled.set()


async def astream(stream: Generator[T, None, None]) -> AsyncGenerator[T, None]:
    """The items of ``stream``, each awaited; closing this closes ``stream`` before it returns, and so does a cancelled task."""
    loop = asyncio.get_running_loop()
    end = object()
    with ThreadPoolExecutor(1, "entropy-chains-await") as pool:  # one thread: closing waits for the item that is being made
        try:
            while (item := await loop.run_in_executor(pool, next, stream, end)) is not end:
                yield item  # type: ignore[misc]
        finally:
            await asyncio.shield(loop.run_in_executor(pool, stream.close))
