"""Logprobs in two lists, as DeepSeek sends them."""

from __future__ import annotations

import asyncio
import warnings

from langchain_entropy_chains import EarlyStopChatModel
from langchain_openai import ChatOpenAI

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))
ASKED = "What is 6*7?"


def chat(server, **settings):
    return ChatOpenAI(model="scripted", base_url=server.url, api_key="none", max_retries=0, **settings)


def test_logprobs_of_the_reasoning_in_a_list_of_their_own(server):
    """DeepSeek's shape: the class drops the text, and the entries of ``logprobs.reasoning_content`` tell it."""
    server.split = True
    model = EarlyStopChatModel(chat(server), POLICY)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        messages = [model.invoke(ASKED), asyncio.run(model.ainvoke(ASKED))]
    for message in messages:
        assert message.response_metadata["early_stop_stopped"], message.response_metadata["early_stop_reason"]
        assert message.additional_kwargs["reasoning_content"].startswith("step1 step1")
        assert message.content == "The answer is 42"
