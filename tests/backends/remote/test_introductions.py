"""Who a server is: whatever it says of itself, the user's own request goes out, sync and async."""

from __future__ import annotations

import asyncio
import socket
import time

import openai
import pytest
from hostile import ODD, Hostile, begin, end, events
from loopback import SURE, UNSURE, Loopback, Reply, is_answer_call, said, thinking

from entropy_chains.backends.openai import AsyncOpenAIBackend, OpenAIBackend
from entropy_chains.backends.remote import introductions
from entropy_chains.backends.remote.introductions import awho, who
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import UnreachableError

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))
ASKED = [{"role": "user", "content": "What is 6*7?"}]
QUICK = {"api_key": "none", "max_retries": 0, "timeout": 2.0}


def quick(request):
    reply = Reply(said("42")) if is_answer_call(request.body) else thinking(UNSURE, SURE, SURE, words=32, answer="42")
    return [*begin(), *events(reply, request.body), *end(len(reply.tokens))]


def sync(url, **settings):
    with openai.OpenAI(base_url=url, **(QUICK | settings)) as client:
        return OpenAIBackend(client, "scripted").generate([ASKED], policy=POLICY)


def asynchronous(url, **settings):
    async def run():
        async with openai.AsyncOpenAI(base_url=url, **(QUICK | settings)) as client:
            return await AsyncOpenAIBackend(client, "scripted").agenerate([ASKED], policy=POLICY)

    return asyncio.run(run())


BOTH = pytest.mark.parametrize("run", [sync, asynchronous])


@BOTH
@pytest.mark.parametrize("about", ODD.values(), ids=ODD)
def test_a_server_that_says_nothing_of_use_is_asked_all_the_same(run, about):
    """The run is stopped as on a server that is not known."""
    with Hostile(quick, about=about) as server:
        (made,) = run(server.url)
    assert (made.answer, made.outcome.stopped) == ("42", True)


@BOTH
def test_where_there_is_no_connection_it_is_said(run):
    """With the address; nothing can be sent there."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(UnreachableError, match=r"127\.0\.0\.1"):
            run(f"http://127.0.0.1:{taken.getsockname()[1]}/v1")


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_a_silent_server_is_waited_for_a_short_time_only(timeout, monkeypatch):
    """However patient the client is."""
    monkeypatch.setattr(introductions, "LONGEST_WAIT", 0.2)
    with (
        Hostile(quick, about=ODD["silent"]) as server,
        openai.OpenAI(base_url=server.url, **(QUICK | {"timeout": timeout})) as client,
    ):
        began = time.monotonic()
        found = who(client, "scripted")
    assert time.monotonic() - began < 2
    assert found is not None
    assert found.kind == "unknown"


def test_nobody_is_none_where_that_is_no_error():
    """An app's own request will say so; later it may be asked again."""
    with openai.OpenAI(base_url="http://127.0.0.1:9/v1", **QUICK) as client:
        assert who(client, "scripted", needed=False) is None


@pytest.mark.parametrize("plugin", ["0.1.0", None])
def test_both_kinds_of_client_learn_the_same(plugin):
    """Kind, ways and plug-in."""

    async def asked(url):
        async with openai.AsyncOpenAI(base_url=url, **QUICK) as client:
            return await awho(client, "scripted", plugin=True)

    with Loopback(plugin=plugin) as server, openai.OpenAI(base_url=server.url, **QUICK) as client:
        found = who(client, "scripted", plugin=True)
        assert asyncio.run(asked(server.url)) == found
    assert found is not None
    assert (found.kind, found.plugin) == ("vllm", plugin)
