"""A user who closes, forgets, cancels or interrupts a run ends the server's work, over real sockets."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import aclosing, closing

import openai
import pytest
from hostile import Hostile
from hostile_runs import ASKED, BOTH, KEY, POLICY, endless, many

from entropy_chains.backends import Sampling
from entropy_chains.backends.openai import AsyncOpenAIBackend, OpenAIBackend


def leave_sync(client, url):
    with closing(OpenAIBackend(client, "scripted").stream(ASKED, policy=POLICY)) as chunks:
        for _ in range(10):
            next(chunks)


def forget_sync(client, url):
    chunks = OpenAIBackend(client, "scripted").stream(ASKED, policy=POLICY)
    for _ in range(10):
        next(chunks)


@pytest.mark.parametrize("leave", [leave_sync, forget_sync])
def test_who_closes_or_forgets_a_stream_ends_the_work(leave):
    """The endless request ends by the client's leaving, while the client itself stays open."""
    with Hostile(endless) as server, openai.OpenAI(base_url=server.url, api_key=KEY) as client:
        leave(client, server.url)
        assert server.quiet()
        assert [r.gone for r in server.requests] == [True]


async def leave_async(backend):
    async with aclosing(backend.astream(ASKED, policy=POLICY)) as chunks:
        for _ in range(10):
            await anext(chunks)


async def forget_async(backend):
    async for _ in backend.astream(ASKED, policy=POLICY):
        break


async def cancel_stream(backend):
    async def read():
        async for _ in backend.astream(ASKED, policy=POLICY):
            begun.set()

    begun = asyncio.Event()
    await cancelled(asyncio.create_task(read()), begun)


async def cancel_batch(backend):
    async def read():
        await backend.agenerate([ASKED], policy=POLICY, sampling=Sampling())

    task = asyncio.create_task(read())
    while not backend.seen.requests or backend.seen.requests[0].sent < 10:
        await asyncio.sleep(0.005)
    await cancelled(task, None)


async def time_out(backend):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await backend.agenerate([ASKED], policy=POLICY)


async def cancelled(task, begun):
    if begun is not None:
        await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("leave", [leave_async, forget_async, cancel_stream, cancel_batch, time_out])
def test_who_leaves_or_cancels_ends_the_work(leave):
    """The same with asyncio: closing, breaking out of a loop, cancelling the task, a timeout around it; and it stays cancelled."""

    async def run():
        async with openai.AsyncOpenAI(base_url=server.url, api_key=KEY) as client:
            backend = AsyncOpenAIBackend(client, "scripted")
            backend.seen = server
            await leave(backend)
            assert await asyncio.to_thread(server.quiet)
            assert [r.gone for r in server.requests] == [True]

    with Hostile(endless) as server:
        asyncio.run(run())


@BOTH
def test_ctrl_c_ends_all_requests(run):
    """The signal comes while four of twenty conversations run: they end, the others are never asked."""

    def script(request):
        for n, act in enumerate(endless(request)):
            yield act
            if request.number == 3 and n == 50:
                os.kill(os.getpid(), signal.SIGINT)

    with Hostile(script) as server:
        with pytest.raises(KeyboardInterrupt):
            many(run, server, [ASKED] * 20, concurrency=4)
        assert server.empty()
        assert len(server.requests) == 4
