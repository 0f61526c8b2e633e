"""Calls that come at once on a fresh model ask the server who it is only once, over real HTTP (a scripted server)."""

from __future__ import annotations

import asyncio

import pytest
from langchain_deepseek import ChatDeepSeek
from langchain_entropy_chains import EarlyStopChatModel, instrument
from langchain_openai import ChatOpenAI
from loopback import Loopback

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from scripts import quick

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))
QUESTIONS = ["What is 6*7?"] * 8
MODELS = {
    "ChatOpenAI": lambda url: ChatOpenAI(model="scripted", base_url=url, api_key="none"),
    "ChatDeepSeek": lambda url: ChatDeepSeek(model="scripted", api_base=url, api_key="none"),
}
WAYS = {
    "threads": lambda model: model.batch(QUESTIONS, {"max_concurrency": len(QUESTIONS)}),
    "asyncio": lambda model: asyncio.run(model.abatch(QUESTIONS)),
}


@pytest.fixture
def server():
    """A server that takes a while to say who it is."""
    with Loopback(quick) as running:
        running.slow = 0.1
        yield running


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("chat", MODELS)
@pytest.mark.parametrize("around", [EarlyStopChatModel, instrument])
def test_the_first_wave_asks_once(server, around, chat, way):
    """All of them are stopped, by what the one request told; later calls, sync and async, ask no more."""
    model = around(MODELS[chat](server.url), POLICY)
    messages = WAYS[way](model)
    assert {(m.content, m.response_metadata["early_stop_stopped"]) for m in messages} == {("42", True)}
    model.invoke("What is 6*7?")
    asyncio.run(model.ainvoke("What is 6*7?"))
    assert server.listed == 1
