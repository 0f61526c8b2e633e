"""Thinking again of which ``ChatOpenAI`` drops the text, after a stop that a new turn asks the answer of."""

from __future__ import annotations

import asyncio
import warnings

import pytest
from langchain_entropy_chains import EarlyStopChatModel
from langchain_openai import ChatOpenAI
from loopback import SURE, Loopback, Reply, is_answer_call, line, said, sums

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))
ASKED = "What is 6*7?"


def chat(server, **settings):
    return ChatOpenAI(model="scripted", base_url=server.url, api_key="none", max_retries=0, **settings)


def rethinking(words):
    """A script of a model that thinks so many words before the answer after a stop as well."""
    again = Reply([*line(" ".join(["again"] * words), SURE), *said("The answer is 42")])
    return lambda body: again if is_answer_call(body) else sums(body)


@pytest.mark.parametrize(
    "policy", [POLICY, Policy("scripted", (0.2,), rule="entropy+agreement", segmentation=Segmentation("line", 32))]
)
def test_thinking_again_is_seen_though_the_class_drops_it(policy):
    """Its text is dropped, and the answer's request asks no logprobs: it is thrown away, run in full, and remembered."""
    with Loopback(rethinking(60), owned_by="library") as server, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        model = EarlyStopChatModel(chat(server), policy)
        tables = [model.invoke(ASKED).response_metadata, asyncio.run(model.ainvoke(ASKED)).response_metadata]
        server.settled()
        again = [call for call in server.calls if is_answer_call(call.body)]
    assert [table["early_stop_stopped"] for table in tables] == [False, False]
    assert tables[1]["early_stop_active"] is False
    assert "think again" in tables[1]["early_stop_reason"]
    assert len(again) == 1
    assert len([w for w in caught if "think again" in str(w.message) and w.category is UserWarning]) == 1


def test_a_few_dropped_tokens_before_the_answer_are_no_thinking():
    """What a close leaves behind: the answer stays one."""
    with Loopback(rethinking(5), owned_by="library") as server:
        message = EarlyStopChatModel(chat(server), POLICY).invoke(ASKED)
    assert (message.content, message.response_metadata["early_stop_stopped"]) == ("The answer is 42", True)
