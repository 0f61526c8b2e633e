"""A thousand streams at once on one backend and one policy: each run is its own, and no memory is kept of those that were."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc

import httpx
import openai
import pytest
from hostile import Hostile, begin, end, events
from loopback import SURE, UNSURE, Reply, is_answer_call, line, said

from entropy_chains.backends import Sampling
from entropy_chains.backends.openai import AsyncOpenAIBackend
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STREAMS, LINES, WORDS = 1000, 3, 6
POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", WORDS))


def asked(n):
    return [{"role": "user", "content": f"question {n}"}]


def number(body):
    return int(body["messages"][0]["content"].split()[-1])


def sure_from(n):
    """The line in which run n becomes sure; one more than there are: never."""
    return n % (LINES + 1) + 1


def thought(n):
    """Lines of 6 tokens that name their run, sure from :func:`sure_from` on."""
    return [t for i in range(1, LINES + 1) for t in line(" ".join([f"{n}.{i}"] * WORDS), SURE if i >= sure_from(n) else UNSURE)]


class Gate:
    """Opens when all streams stand before it."""

    def __init__(self, count):
        self.waiting, self.count, self.open = 0, count, asyncio.Event()

    async def __aenter__(self):
        self.waiting += 1
        if self.waiting == self.count:
            self.open.set()
        await self.open.wait()

    async def __aexit__(self, *error):
        pass


async def read(backend, n):
    """The run, and the texts of its thinking and its answer as a reader saw them."""
    shown = {"thinking": "", "answer": ""}
    async for chunk in backend.astream(asked(n), policy=POLICY, sampling=Sampling(max_tokens=100)):
        shown[chunk.phase.value] = shown.get(chunk.phase.value, "") + chunk.text
    return chunk.final, shown


async def rounds(count, streams=STREAMS, **settings):
    """Some thousands of streams one after the other, each thousand at once; the bytes held at most and after each."""
    figures = []

    async def script(request):
        for act in begin():
            yield act
        if is_answer_call(request.body):
            reply = Reply(said(f"answer {number(request.body)}"))
        else:
            async with gate:  # no stream goes on before all have begun
                reply = Reply([*thought(number(request.body)), *said(f"answer {number(request.body)}")])
        for act in (*events(reply, request.body), *end(len(reply.tokens))):
            yield act

    async with (
        Hostile(script) as server,
        openai.AsyncOpenAI(base_url=server.url, api_key="none", timeout=600, **settings) as client,
    ):
        backend = AsyncOpenAIBackend(client, "scripted")
        await backend.connect()
        for round_ in range(count):
            gate = Gate(streams)
            gc.collect()
            tracemalloc.reset_peak()
            first = round_ * streams
            made = await asyncio.gather(*(read(backend, n) for n in range(first, first + streams)))
            for n, (run, shown) in enumerate(made, first):
                check(n, run, shown)
            assert gate.waiting == streams
            del made, run, shown
            server.requests.clear()
            peak = tracemalloc.get_traced_memory()[1]
            gc.collect()
            figures.append((peak, tracemalloc.get_traced_memory()[0]))
        while server.busy:
            await asyncio.sleep(0.01)
    return figures


def check(n, run, shown):
    """Step, entropy's side, answer, tokens and text are those of this very run."""
    stop = sure_from(n) if sure_from(n) <= LINES else None
    assert (run.outcome.stopped, run.outcome.step) == (stop is not None, stop)
    assert run.answer == f"answer {n}" == shown["answer"].strip()
    assert run.tokens == WORDS * (stop or LINES) + len(said("answer 0"))
    texts = {word.partition(".")[0] for word in shown["thinking"].split()}
    assert texts == {str(n)}
    assert len(run.steps) == (stop or LINES)


def test_a_thousand_streams_are_each_their_own():
    """All stand open at the same time; a second and third thousand need no more memory, and none is kept."""
    tracemalloc.start()
    try:
        (first, after_first), (second, after_second), (third, after_third) = asyncio.run(rounds(3))
    finally:
        tracemalloc.stop()
    assert first / STREAMS < 300_000  # bytes a stream at most: client, server and both ends of the connection
    assert max(second, third) < 1.1 * first
    assert after_third - after_second < 0.02 * first
    assert after_second < 1.2 * after_first


def test_more_streams_than_the_sdk_has_connections():
    """Its client opens 1,000 at most, the rest waits for one of them: with room for all, as docs/openai.md says, all are served."""
    limits = httpx.Limits(max_connections=2000)
    assert asyncio.run(rounds(1, 1500, http_client=openai.DefaultAsyncHttpxClient(limits=limits)))
