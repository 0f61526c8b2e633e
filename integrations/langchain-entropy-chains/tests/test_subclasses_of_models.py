"""A user's own subclass of ``ChatOpenAI`` is treated as what it is made of."""

from __future__ import annotations

import asyncio

import pytest
from chats import ASKED
from langchain_deepseek import ChatDeepSeek
from langchain_entropy_chains import EarlyStopChatModel
from langchain_entropy_chains._model_info import drops_reasoning
from langchain_openai import AzureChatOpenAI, ChatOpenAI
from loopback import Loopback

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from scripts import paced

BY_STEPS = Policy("scripted", (None,), rule="fixed-step", min_steps=2, segmentation=Segmentation("line", 32))
"""Reads no entropy: a request asks for logprobs only where the thinking can be read from nothing else."""


class Mine(ChatOpenAI):
    """A class of the user's."""


@pytest.mark.parametrize("kind", [ChatOpenAI, Mine])
@pytest.mark.parametrize("run", ["invoke", "ainvoke"])
def test_its_thinking_is_read_from_logprobs(kind, run):
    """Also by a rule that needs none of them: it stops, instead of running in full without a word."""
    with Loopback(paced) as server:
        model = EarlyStopChatModel(kind(model="scripted", base_url=server.url, api_key="none", max_retries=0), BY_STEPS)
        told = (model.invoke(ASKED) if run == "invoke" else asyncio.run(model.ainvoke(ASKED))).response_metadata
    assert (told["early_stop_stopped"], told["early_stop_step"]) == (True, 2)


class Thoughtful(ChatDeepSeek):
    """One of a class that passes the thinking on."""


def test_which_classes_drop_the_thinking():
    """By the code that reads their chunks."""
    given = {"model": "m", "api_key": "none"}
    azure = AzureChatOpenAI(azure_endpoint="http://127.0.0.1:9", api_version="1", azure_deployment="d", api_key="none")
    assert [drops_reasoning(chat) for chat in (ChatOpenAI(**given), Mine(**given), azure)] == [True] * 3
    assert [drops_reasoning(kind(**given)) for kind in (ChatDeepSeek, Thoughtful)] == [False] * 2
