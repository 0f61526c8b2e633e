"""Runs on servers that misbehave: what such a server thinks and answers, and the four ways to ask it."""

from __future__ import annotations

import asyncio
from itertools import chain, repeat

import openai
import pytest
from hostile import begin, end, events
from loopback import SURE, UNSURE, Reply, said, thinking

from entropy_chains.backends.openai import AsyncOpenAIBackend, OpenAIBackend
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import BatchError

KEY = "sk-verysecret123"
ASKED = [{"role": "user", "content": "What is 6*7?"}]
POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))
THOUGHT = thinking(UNSURE, UNSURE, SURE, SURE, SURE, SURE, answer="The answer is 42")
ANSWER = said("The answer is 42")
FULL, STOP = len(THOUGHT.tokens), 120
"""Tokens of the full run, and up to the boundary at which the policy stops."""
SHORT, LONG = 1.5, 60.0
"""Seconds of the client's timeout, where the server is silent and where it is not."""


def whole_run(request):
    return [*begin(), *events(THOUGHT, request.body), *end(FULL)]


def answered(request):
    return [*begin(), *events(Reply(ANSWER), request.body), *end(len(ANSWER))]


def some(request, count=50):
    """A run that begins well."""
    return [*begin(), *events(THOUGHT, request.body)[:count]]


def endless(request):
    """A thinking that never ends."""
    return chain(begin(), chain.from_iterable(repeat(events(thinking(UNSURE), request.body))))


def sync(url, policy, **settings):
    with openai.OpenAI(base_url=url, **settings) as client:
        return OpenAIBackend(client, "scripted").generate([ASKED], policy=policy)[0]


def sync_stream(url, policy, **settings):
    with openai.OpenAI(base_url=url, **settings) as client:
        return list(OpenAIBackend(client, "scripted").stream(ASKED, policy=policy))[-1].final


def asynchronous(url, policy, **settings):
    async def run():
        async with openai.AsyncOpenAI(base_url=url, **settings) as client:
            return (await AsyncOpenAIBackend(client, "scripted").agenerate([ASKED], policy=policy))[0]

    return asyncio.run(run())


def async_stream(url, policy, **settings):
    async def run():
        async with openai.AsyncOpenAI(base_url=url, **settings) as client:
            return [c async for c in AsyncOpenAIBackend(client, "scripted").astream(ASKED, policy=policy)][-1].final

    return asyncio.run(run())


ALL = pytest.mark.parametrize("run", [sync, sync_stream, asynchronous, async_stream])
BOTH = pytest.mark.parametrize("run", [sync, asynchronous])


def many(run, server, conversations, *, concurrency=2, policy=None, http_client=None, **settings):
    """The error of a batch, or its runs."""
    given = {"base_url": server.url, "api_key": KEY, "max_retries": 0, "timeout": LONG, "http_client": http_client} | settings

    async def asynchronously():
        async with openai.AsyncOpenAI(**given) as client:
            return await AsyncOpenAIBackend(client, "scripted", concurrency=concurrency).agenerate(conversations, policy=policy)

    try:
        if run is asynchronous:
            return asyncio.run(asynchronously())
        with openai.OpenAI(**given) as client:
            return OpenAIBackend(client, "scripted", concurrency=concurrency).generate(conversations, policy=policy)
    except BatchError as error:
        return error
