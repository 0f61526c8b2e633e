"""Calls that come at once on a fresh LLM ask the server who it is only once, over real HTTP (a scripted server)."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from llms import ASKED, wrapped
from loopback import Loopback

from scripts import quick

CALLS = 8


@pytest.fixture
def server():
    """A server that takes a while to say who it is."""
    with Loopback(quick) as running:
        running.slow = 0.1
        yield running


def in_threads(llm):
    with ThreadPoolExecutor(CALLS) as pool:
        return [*pool.map(lambda _: llm.chat(ASKED), range(CALLS))]


def in_tasks(llm):
    async def run():
        return await asyncio.gather(*(llm.achat(ASKED) for _ in range(CALLS)))

    return asyncio.run(run())


@pytest.mark.parametrize("together", [in_threads, in_tasks])
@pytest.mark.parametrize("reuse_client", [True, False])
def test_the_first_wave_asks_once(server, together, reuse_client):
    """All of them are stopped, by what the one request told; later calls, sync and async, ask no more."""
    llm = wrapped(server, inner={"reuse_client": reuse_client})
    responses = together(llm)
    assert {(r.message.content, r.additional_kwargs["early_stop_stopped"]) for r in responses} == {("42", True)}
    llm.chat(ASKED)
    asyncio.run(llm.achat(ASKED))
    assert server.listed == 1
