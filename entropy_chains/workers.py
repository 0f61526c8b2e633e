"""Work done part by part, in the calling thread or in several at once: what is done comes at once, and in any order."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from itertools import islice
from typing import TypeVar

Part = TypeVar("Part")
Result = TypeVar("Result")


def in_turn(
    work: Callable[[Part], Result], parts: Iterable[Part], stopped: Callable[[], bool]
) -> Generator[tuple[Part, Result], None, None]:
    """Each part with what ``work`` made of it, one after the other, until ``stopped()``: what is made after that is thrown away."""
    for part in parts:
        if stopped():
            return
        result = work(part)
        if stopped():
            return
        yield part, result


def in_threads(
    work: Callable[[Part], Result], parts: Iterable[Part], threads: int, stopped: Callable[[], bool], over: threading.Event
) -> Generator[tuple[Part, Result], None, None]:
    """The same from so many threads, each part as soon as it is done. What ``work`` raises is raised here.

    ``over`` is set once this has ended or is closed: what is under way then may end. Nobody waits for it: it may be a request to
    which the server says nothing.
    """
    waiting: queue.SimpleQueue[Part | None] = queue.SimpleQueue()
    # No SimpleQueue: interrupted by a signal at the wrong moment, Python 3.11's waits without a limit.
    ready: queue.Queue[tuple[Part, Result] | BaseException] = queue.Queue()

    def serve() -> None:
        while (part := waiting.get()) is not None:
            result: tuple[Part, Result] | BaseException
            try:
                result = part, work(part)
            except BaseException as error:  # noqa: BLE001 (handed to the reader, who raises it)
                result = error
            if not over.is_set():
                ready.put(result)

    left, running = iter(parts), 0
    try:
        for part in islice(left, threads):
            waiting.put(part)
            threading.Thread(target=serve, name="entropy-chains-worker", daemon=True).start()
            running += 1
        while running:
            try:
                result = ready.get(timeout=0.1)
            except queue.Empty:
                if stopped():
                    return
                continue
            running -= 1
            if isinstance(result, BaseException):
                raise result
            yield result
            # Not before what is done was taken: nothing is asked that nobody waits for.
            for part in () if stopped() else islice(left, 1):
                waiting.put(part)
                running += 1
    finally:
        over.set()
        for _ in range(threads):
            waiting.put(None)
