"""Calls that come at once ask the server who it is only once; what failed is asked again."""

from __future__ import annotations

import asyncio
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from loopback import Loopback

from entropy_chains.backends.openai import AsyncOpenAIBackend, OpenAIBackend
from entropy_chains.backends.remote.introductions import Introduction
from entropy_chains.backends.remote.servers import Server
from scripts import quick

CALLS = 50
ASKED = [[{"role": "user", "content": "What is 6*7?"}]]


class Asked:
    """Asks slowly, and counts it. ``made``: what comes, in turn: a server, None, or an error."""

    def __init__(self, *made):
        self.made, self.count, self.go = list(made), 0, threading.Event()

    def sync(self):
        self.count += 1
        made = self.made.pop(0)
        assert self.go.wait(5)
        if isinstance(made, BaseException):
            raise made
        return made

    async def awaited(self):
        self.count += 1
        made = self.made.pop(0)
        await asyncio.sleep(0.01)
        if isinstance(made, BaseException):
            raise made
        return made


def in_threads(introduction, asked):
    """What each of many threads is told, all of which wait for one question."""
    with ThreadPoolExecutor(CALLS) as pool:
        waiting = [pool.submit(introduction.who, asked.sync) for _ in range(CALLS)]
        asked.go.set()
        return [future.exception(5) or future.result() for future in waiting]


def in_tasks(introduction, asked):
    async def run():
        return await asyncio.gather(*(introduction.awho(asked.awaited) for _ in range(CALLS)), return_exceptions=True)

    return asyncio.run(run())


@pytest.mark.parametrize("together", [in_threads, in_tasks])
def test_one_question_is_asked_for_all(together):
    """And none by those that come later."""
    asked, introduction = Asked(server := Server("vllm")), Introduction()
    assert together(introduction, asked) == [server] * CALLS
    assert together(introduction, asked) == [server] * CALLS
    assert asked.count == 1


@pytest.mark.parametrize("failed", [None, OSError("nobody there")])
def test_a_failure_is_told_to_all_that_wait_and_not_remembered(failed):
    """The next wave asks again, and learns it."""
    asked, introduction = Asked(failed, server := Server("vllm")), Introduction()
    assert in_tasks(introduction, asked) == [failed] * CALLS
    assert (introduction.server, asked.count) == (None, 1)
    assert in_tasks(introduction, asked) == [server] * CALLS
    assert asked.count == 2


def test_a_failure_in_threads_reaches_those_that_wait():
    """None of them waits for ever."""
    failed = OSError("nobody there")
    asked, introduction = Asked(*[failed] * CALLS), Introduction()
    assert set(in_threads(introduction, asked)) == {failed}
    assert introduction.server is None


def test_where_the_one_that_asks_is_cancelled_another_one_asks():
    """The others are not cancelled with it."""
    asked, introduction = Asked(None, server := Server("vllm")), Introduction()

    async def run():
        first, *others = [asyncio.create_task(introduction.awho(asked.awaited)) for _ in range(CALLS)]
        await asyncio.sleep(0)
        first.cancel()
        return await asyncio.gather(*others)

    assert asyncio.run(run()) == [server] * (CALLS - 1)
    assert asked.count == 2


def test_loops_and_threads_do_not_wait_for_each_other():
    """A thread that asks in the middle of a loop's question would wait for ever."""
    asked, introduction = Asked(server := Server("vllm"), server), Introduction()
    asked.go.set()

    async def run():
        task = asyncio.create_task(introduction.awho(asked.awaited))
        await asyncio.sleep(0)
        return introduction.who(asked.sync), await task

    assert asyncio.run(run()) == (server, server)


@pytest.fixture
def server():
    """A server that takes a while to say who it is."""
    with Loopback(quick) as running:
        running.slow = 0.1
        yield running


def test_one_backend_asks_once(server):
    """However many threads begin with it at once, and however many tasks."""
    with openai.OpenAI(base_url=server.url, api_key="none") as client, ThreadPoolExecutor(10) as pool:
        backend = OpenAIBackend(client, "scripted", plugin=False)
        assert {runs[0].answer for runs in pool.map(lambda _: backend.generate(ASKED), range(10))} == {"42"}
    assert server.listed == 1

    async def run():
        async with openai.AsyncOpenAI(base_url=server.url, api_key="none") as client:
            backend = AsyncOpenAIBackend(client, "scripted", plugin=False)
            return await asyncio.gather(*(backend.agenerate(ASKED) for _ in range(10)))

    assert {runs[0].answer for runs in asyncio.run(run())} == {"42"}
    assert server.listed == 2


def test_no_thread_waits_for_a_question_that_is_over():
    """However the threads take turns: all of them are told, and one question is enough."""
    interval, server, waves = sys.getswitchinterval(), Server("vllm"), 300
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(waves):
            introduction, asked = Introduction(), Asked(*[server] * 8)
            asked.go.set()
            threads = [threading.Thread(target=introduction.who, args=(asked.sync,), daemon=True) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(5)
            assert [thread for thread in threads if thread.is_alive()] == []
            assert asked.count == 1
    finally:
        sys.setswitchinterval(interval)
