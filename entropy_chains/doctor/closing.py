"""What closing a stream does to the server, by the server's own counters. Pure; see :mod:`entropy_chains.doctor.server`."""

from __future__ import annotations

import re

from entropy_chains.doctor.asking import STREAMED, Ask, Asking, Book

READ = 20
"""Tokens that are read of a reply before it is closed."""
SHORT, LONG = 64, 1000
"""Most tokens of the reply that is closed: where its end cannot be seen, and where it can."""
WAIT, TRIES = 0.1, 100
"""Seconds between two looks at a server's counters, and how often they are looked at until nothing runs any more."""
UNCHANGING = 3
"""Looks at a count that must agree."""


def close(book: Book) -> Asking:
    """Close a stream, and see by the server's own counters whether it stops."""
    before = yield from _quiet(book)
    observable = before is not None and not before[1]
    more = {"ignore_eos": True} if observable else {}
    heard = yield from book.chat(LONG if observable else SHORT, read=READ, **STREAMED, **more)
    if observable and before is not None:
        count = yield from _settled(book, before[0])
        book.completion_tokens += max(0, (count or 0) - heard.tokens)
        stops = None if count is None else len(heard.pieces) <= count < LONG
        evidence = (
            "its counters never came to rest" if count is None else f"{len(heard.pieces)} of {LONG} tokens read, {count} made"
        )
        meanings = {
            True: "a stop saves the server's work",
            False: "a stop does not save the server's work",
            None: "not observable",
        }
        book.found("close_stops", stops, evidence, meanings[stops])
        over = None if count is None else max(0, count - len(heard.pieces))
        book.found("overshoot", over, "the server's count less the tokens read", "made after the close, and paid for")
    else:
        why = "others use the server" if before else "the server shows no counters that are known here (/metrics)"
        book.found("close_stops", None, why, "not observable: look at the server's log, or at the bill")
    has_usage = heard.usage is not None and heard.finish is None
    evidence = f"{len(heard.pieces)} tokens read, then closed: {'a count had come' if has_usage else 'no count had come'}"
    meaning = "tokens of a closed stream are counted by what came; a bill counts what was made until the close was noticed"
    book.found("usage_on_close", has_usage, evidence, meaning)


def _counters(book: Book, wait: float = 0.0) -> Asking:
    """Tokens made since the server's start and requests that run now, or None."""
    counters = book.server.can.counters
    if counters is None:
        return None
    heard = yield from book.ask(Ask(f"{book.server.root}/metrics", wait=wait))
    values = [[float(x) for x in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", str(heard.content), re.MULTILINE)] for name in counters]
    return tuple(int(sum(f)) for f in values) if all(values) else None


def _quiet(book: Book) -> Asking:
    """The counters once nothing runs: the last reply's end may not be counted yet. As they are where others keep it busy."""
    now = yield from _counters(book)
    for _ in range(TRIES // 10):
        if now is None or now[1] == 0:
            break
        now = yield from _counters(book, WAIT)
    return now


def _settled(book: Book, before: int) -> Asking:
    """Tokens made since, once nothing runs and nothing is counted any more; None where that never comes."""
    seen: list[int] = []
    for _ in range(TRIES):
        now = yield from _counters(book, WAIT)
        seen = [*seen, now[0]] if now is not None and now[1] == 0 else []
        if len(seen) >= UNCHANGING and len(set(seen[-UNCHANGING:])) == 1 and seen[-1] > before:
            return seen[-1] - before
    return None
