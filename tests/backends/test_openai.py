"""The OpenAI-compatible backend over real HTTP, against the scripted server of the tests (a fake: it thinks nothing)."""

from __future__ import annotations

import asyncio

import openai
import pytest
from loopback import Loopback

from entropy_chains.backends.openai import AsyncOpenAIBackend, OpenAIBackend
from entropy_chains.policy import Policy
from entropy_chains.steps import Segmentation

ASKED = [{"role": "user", "content": "What is 6*7?"}]
POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))


@pytest.fixture
def server():
    with Loopback() as running:
        yield running


def sync(server, policy=POLICY):
    with openai.OpenAI(base_url=server.url, api_key="none") as client:
        return OpenAIBackend(client, "scripted").generate([ASKED], policy=policy)[0]


def asynchronous(server, policy=POLICY):
    async def run():
        async with openai.AsyncOpenAI(base_url=server.url, api_key="none") as client:
            return (await AsyncOpenAIBackend(client, "scripted").agenerate([ASKED], policy=policy))[0]

    return asyncio.run(run())


@pytest.mark.parametrize("run", [sync, asynchronous])
def test_a_stop_ends_the_servers_work_and_gives_the_answer(server, run):
    """By the server's own count fewer tokens are made than planned, and the answer is the one after the closed thinking."""
    made = run(server)
    assert (made.answer, made.outcome.stopped, made.outcome.step) == ("The answer is 42", True, 3)
    reasoned, answered = server.calls
    assert reasoned.gone
    assert 120 <= reasoned.made <= 124 < reasoned.planned
    assert answered.body["continue_final_message"] is True
    assert answered.body["messages"][-1]["content"].endswith("</think>\n\n")
    assert made.tokens == 120 + answered.made


@pytest.mark.parametrize("run", [sync, asynchronous])
def test_without_a_policy_nothing_is_closed(server, run):
    """One request, read to its end; the tokens are the server's."""
    made = run(server, None)
    assert [c.gone for c in server.calls] == [False]
    assert made.tokens == server.made == server.calls[0].planned
