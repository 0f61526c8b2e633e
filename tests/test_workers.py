"""Work in turn and in threads: every part once, nothing after the end, and nobody waited for."""

from __future__ import annotations

import threading
import time
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_chains.workers import in_threads, in_turn


def never():
    return False


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers()), st.integers(1, 6))
def test_every_part_comes_once_with_what_was_made_of_it(parts, threads):
    """In turn in their order; in threads in any order, with ``over`` set at the end."""
    whole = [(part, part * 2) for part in parts]
    assert list(in_turn(lambda part: part * 2, parts, never)) == whole
    over = threading.Event()
    assert sorted(in_threads(lambda part: part * 2, parts, threads, never, over)) == sorted(whole)
    assert over.is_set()


def test_no_part_is_begun_that_nobody_waits_for():
    """A reader that holds the first one makes the threads stop at what they have."""
    begun = []
    with closing(in_threads(lambda part: begun.append(part), range(100), 3, never, threading.Event())) as found:
        next(found)
        time.sleep(0.1)
        assert len(begun) == 3


@pytest.mark.parametrize("leave", ["close", "stop"])
def test_nobody_waits_for_a_thread_that_hangs(leave):
    """What is finished comes; the end comes without the part that never ends, which is told to."""
    over, stopped = threading.Event(), threading.Event()
    found = in_threads(lambda part: over.wait(60) if part == 0 else True, [0, 1, 2], 2, stopped.is_set, over)
    begun = time.monotonic()
    assert sorted(part for part, _ in (next(found), next(found))) == [1, 2]
    if leave == "close":
        found.close()
    else:
        stopped.set()
        assert list(found) == []
    assert over.is_set()
    assert time.monotonic() - begun < 5


def test_what_is_made_after_the_stop_is_thrown_away():
    """A part that was cut short is none."""
    made = []
    assert [part for part, _ in in_turn(made.append, [1, 2, 3], lambda: len(made) == 2)] == [1]
    assert made == [1, 2]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
def test_what_work_raises_is_raised_where_it_is_waited_for(kind):
    """Nobody waits for ever for a part whose thread has died."""
    over = threading.Event()

    def work(part):
        if part == 2:
            raise kind("here")
        return part

    with pytest.raises(kind, match="here"):
        list(in_threads(work, range(4), 2, never, over))
    assert over.is_set()
