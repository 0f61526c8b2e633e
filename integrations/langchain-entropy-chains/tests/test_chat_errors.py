"""Errors of an EarlyStopChatModel: the inner model's own, those of a request after a stop, and bad settings."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from chats import ASKED, POLICY, chat, stopping
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnableLambda
from langchain_entropy_chains import EarlyStopChatModel
from langchain_openai import ChatOpenAI
from loopback import SURE, UNSURE, Reply, is_answer_call, said, thinking

from entropy_chains.errors import PolicyMismatch, SettingsError

# --- errors


def test_an_error_of_the_run_is_the_inners_own(server):
    """So fallbacks and retries that name the provider's errors work as before."""
    import openai

    server.script = lambda body: Reply(status=429, message="slow down")
    with pytest.raises(openai.RateLimitError):
        stopping(server).invoke(ASKED)
    other = EarlyStopChatModel(chat(server), POLICY).with_fallbacks([RunnableLambda(lambda _: AIMessage("else"))])
    assert other.invoke(ASKED).content == "else"


def test_a_retry_asks_again(server):
    """Two refusals, then a stopped run: with_retry around the model behaves as around any."""
    left = iter([500, 500])

    def script(body):
        status = next(left, None)
        return Reply(status=status) if status else (Reply(said("42")) if is_answer_call(body) else thinking(UNSURE, SURE, SURE))

    server.script = script
    message = stopping(server).with_retry(stop_after_attempt=3, wait_exponential_jitter=False).invoke(ASKED)
    assert (message.content, message.response_metadata["early_stop_stopped"]) == ("42", True)


def test_an_answer_that_cannot_be_had_is_run_in_full(server):
    """The answer's request is refused in every way: the question is asked again, without stopping, and the reason says so."""
    server.script = lambda body: Reply(status=500) if is_answer_call(body) else thinking(UNSURE, SURE, SURE, SURE, answer="42")
    message = stopping(server).invoke(ASKED)
    assert (message.content, message.response_metadata["early_stop_stopped"]) == ("42", False)
    assert "could not be had" in message.response_metadata["early_stop_reason"]
    assert "verysecret" not in message.response_metadata["early_stop_reason"]


def test_a_server_that_is_not_there_is_the_inners_error():
    """No other error than without the wrapper."""
    import openai

    model = EarlyStopChatModel(ChatOpenAI(model="m", base_url="http://127.0.0.1:9/v1", api_key="none", max_retries=0), None)
    with pytest.raises(openai.APIConnectionError):
        model.invoke(ASKED)


def test_a_consumer_that_leaves_ends_the_servers_work(server):
    """Closing the stream closes the connection."""
    server.script = lambda body: thinking(*[UNSURE] * 60, pace=0.001)
    chunks = stopping(server).stream(ASKED)
    for _ in range(5):
        next(chunks)
    chunks.close()
    server.settled()
    assert server.calls[0].gone


def test_a_cancelled_task_ends_the_servers_work(server):
    """``task.cancel()`` closes the connection of an ``ainvoke`` that is under way."""
    server.script = lambda body: thinking(*[UNSURE] * 60, pace=0.003)

    async def run():
        task = asyncio.create_task(stopping(server).ainvoke(ASKED))
        while server.made < 10:
            await asyncio.sleep(0.01)
        while not task.done():  # the client waits with Python 3.11's wait_for, which can swallow a cancellation
            task.cancel()
            await asyncio.sleep(0.02)
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)

    asyncio.run(run())
    server.settled()
    assert server.calls[0].gone


def test_bad_settings_are_named(server):
    """Each with its value and the remedy, when the model is made."""
    for given, match in (
        ({"mode": "fast"}, "mode is 'fast'"),
        ({"holdout": 2.0}, "holdout is 2.0; .* between 0 "),
        ({"holdout": "half"}, "holdout is 'half'; it must be a valid number"),
        ({"think_tags": "<a>"}, "think_tags is '<a>'; .*ThinkTags"),
        ({"segmentation": "line"}, "segmentation is 'line'; .*Segmentation"),
        ({"without_logprobs": "maybe"}, "without_logprobs is 'maybe'"),
        ({"continuation": "control"}, "control"),
        ({"continuation": "telepathy"}, "telepathy"),
        ({"k": 0}, "k is 0"),
        ({"temperature": 0.5}, "knows no temperature"),
        ({"max_steps": 0}, "max_steps is 0"),
    ):
        with pytest.raises(SettingsError, match=match):
            stopping(server, **given)
    with pytest.raises(SettingsError, match="with_early_stop"):
        EarlyStopChatModel(chat(server) | StrOutputParser(), POLICY)
    with pytest.raises(SettingsError, match="policy is a dict"):
        EarlyStopChatModel(chat(server), {"thresholds": [1]})
    with pytest.raises(PolicyMismatch, match="refine"):
        stopping(server, mode="refine")
    with pytest.raises(PolicyMismatch, match="for_model"):
        stopping(server, replace(POLICY, model="other")).invoke(ASKED)
    with pytest.raises(SettingsError, match="True or False"):
        stopping(server).invoke(ASKED, {"configurable": {"early_stop": "no"}})


def test_a_model_may_be_named(server):
    """As ``init_chat_model`` names it, with its settings."""
    model = EarlyStopChatModel("openai:scripted", POLICY, base_url=server.url, api_key="none", temperature=0.25)
    assert model.invoke(ASKED).response_metadata["early_stop_stopped"]
    assert server.calls[0].body["temperature"] == 0.25
