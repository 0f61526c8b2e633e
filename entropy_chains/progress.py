"""What a long command shows while it runs, and how it is ended: bars, lines in a log, Ctrl-C."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol


class Track(Protocol):
    """``track(name, total)`` gives the function that moves a bar on."""

    def __call__(self, name: str, total: int) -> Callable[[int], None]: ...

    def say(self, text: str) -> None:
        """A line on standard error, above the bars."""
        ...


LOG_EVERY = 10.0
"""Seconds between two lines of progress where standard error is no terminal."""


@contextmanager
def progress(quiet: bool = False) -> Iterator[Track]:
    """Progress on standard error: bars on a terminal; elsewhere a line now and then, and none if ``quiet``."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from entropy_chains.show.printing import console as clean

    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    console = clean(stderr=True, soft_wrap=True)
    bars = Progress(*columns, console=console, disable=quiet and not sys.stderr.isatty())
    logged = time.monotonic()

    class Bars:
        def __call__(self, name: str, total: int) -> Callable[[int], None]:
            task, done = bars.add_task(name, total=total), 0

            def advance(count: int) -> None:
                nonlocal done, logged
                done += count
                bars.advance(task, count)
                if not bars.disable and not console.is_terminal and time.monotonic() >= logged + LOG_EVERY:
                    logged = time.monotonic()
                    self.say(f"{name}: {done}/{total}")

            return advance

        def say(self, text: str) -> None:
            console.print(text)

    with bars:
        yield Bars()


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets, in the place of an exception, so that nothing is torn. A second one is an exception."""
    event = threading.Event()

    def tell(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    on_main_thread = threading.current_thread() is threading.main_thread()  # elsewhere Python sets no handlers
    signals = [s for s in (signal.SIGINT, signal.SIGTERM) if on_main_thread and signal.getsignal(s) is not signal.SIG_IGN]
    before = {s: signal.signal(s, tell) for s in signals}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
