"""A model that thinks again where the answer is asked for: the stream is closed where that begins. The server is a fake."""

from __future__ import annotations

import asyncio
import warnings
from dataclasses import replace

import openai
import pytest
from chats import ainvoke, chat, deepseek, invoke
from langchain_entropy_chains import EarlyStopChatModel
from llama_index.llms.entropy_chains import EarlyStopLLM
from llms import ASKED as MESSAGES
from llms import inside
from loopback import SURE, Loopback, Reply, is_answer_call, line, said

from entropy_chains.backends.openai import AsyncOpenAIBackend, OpenAIBackend
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from scripts import trials

LINES = Segmentation("line", 32)


def fast(body):
    """Trials as fast as the connection is."""
    return replace(trials(body), pace=0.0)


POLICIES = {
    "trial answers": (Policy("scripted", (0.1,), signal="trial_entropy", segmentation=LINES), fast),
    "agreement": (Policy("scripted", (None,), rule="agreement", segmentation=LINES), fast),
}
AGAIN = Reply([*line(" ".join(["again"] * 300), SURE), *said("The answer is 42")], pace=0.002)
QUESTION = [[{"role": "user", "content": "What is 6*7?"}]]


def core(server, policy):
    with openai.OpenAI(base_url=server.url, api_key="none") as client:
        return OpenAIBackend(client, "scripted").generate(QUESTION, policy=policy)[0].outcome.metadata()


def acore(server, policy):
    async def run():
        async with openai.AsyncOpenAI(base_url=server.url, api_key="none") as client:
            return (await AsyncOpenAIBackend(client, "scripted").agenerate(QUESTION, policy=policy))[0].outcome.metadata()

    return asyncio.run(run())


def in_langchain(model, ask):
    return lambda server, policy: ask(EarlyStopChatModel(model(server), policy), "What is 6*7?").response_metadata


CALLS = {
    "core": core,
    "core, async": acore,
    "ChatOpenAI": in_langchain(chat, invoke),
    "ChatOpenAI, async": in_langchain(chat, ainvoke),
    "ChatDeepSeek": in_langchain(deepseek, invoke),
    "LlamaIndex": lambda server, policy: EarlyStopLLM(inside(server), policy).chat(MESSAGES).additional_kwargs,
    "LlamaIndex, async": lambda server, policy: asyncio.run(EarlyStopLLM(inside(server), policy).achat(MESSAGES)).additional_kwargs,
}


@pytest.mark.parametrize("stopped_by", POLICIES)
@pytest.mark.parametrize("call", CALLS)
def test_a_thinking_that_begins_again_is_not_paid_for(call, stopped_by):
    """By a trial, even where the client drops its text; the run goes in full, and that is said."""
    policy, script = POLICIES[stopped_by]
    with (
        Loopback(lambda body: AGAIN if is_answer_call(body) else script(body), owned_by="unknown") as server,
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always", UserWarning)
        told = CALLS[call](server, policy)
        server.settled()
        asked = [sent for sent in server.calls if is_answer_call(sent.body)]
    assert len(asked) == 1
    assert asked[0].gone
    assert asked[0].made < 100
    assert told["early_stop_stopped"] is False
    assert "think again" in told["early_stop_reason"]
    assert len([w for w in caught if "think again" in str(w.message)]) == 1
