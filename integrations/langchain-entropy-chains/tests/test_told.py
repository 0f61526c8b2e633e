"""What callbacks, tracers, caches and event streams read of an EarlyStopChatModel."""

from __future__ import annotations

import asyncio
import json

import pytest
from chats import ASKED, NEVER, POLICY, WAYS, chat, invoke, stopping, stream
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, get_usage_metadata_callback
from langchain_core.language_models import BaseChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_entropy_chains import EarlyStopChatModel

# --- what others read


def test_usage_callbacks_count_what_was_computed(server):
    """``get_usage_metadata_callback`` names the model and counts stopped runs once."""
    with get_usage_metadata_callback() as told:
        stopping(server).invoke(ASKED)
        asyncio.run(stopping(server).ainvoke(ASKED))
    assert told.usage_metadata["scripted"]["output_tokens"] == 248


class Runs(BaseCallbackHandler):
    """What a tracer would send."""

    def __init__(self):
        self.begun, self.ended, self.failed, self.tokens = [], [], [], 0

    def on_chat_model_start(self, serialized, messages, *, invocation_params, metadata=None, tags=None, **kwargs):
        self.begun.append((json.dumps(serialized, default=str), invocation_params, metadata, tags))

    def on_llm_new_token(self, token, **kwargs):
        self.tokens += 1

    def on_llm_end(self, response, **kwargs):
        self.ended.append(response.model_dump_json())

    def on_llm_error(self, error, **kwargs):
        self.failed.append(error)


@pytest.mark.parametrize("run", WAYS)
def test_one_call_is_one_successful_run(server, run):
    """No error, no second run; provider and model name as without the wrapper; flat parameters that name the policy; no key."""
    seen = Runs()
    inner = chat(server, tags=["mine"], metadata={"a": 1}, default_headers={"X-Auth": "hidden-header"})
    run(EarlyStopChatModel(inner, POLICY), ASKED, {"callbacks": [seen]})
    assert (len(seen.begun), len(seen.ended), seen.failed) == (1, 1, [])
    serialized, params, metadata, tags = seen.begun[0]
    assert (metadata["ls_provider"], metadata["ls_model_name"], metadata["a"], tags) == ("openai", "scripted", 1, ["mine"])
    assert params["early_stop_policy"] == POLICY.fingerprint
    everything = serialized + str(params) + str(metadata) + seen.ended[0] + repr(EarlyStopChatModel(inner, POLICY))
    assert "verysecret" not in everything
    assert "hidden-header" not in everything


def test_a_trace_is_a_tenth_of_one_with_logprobs(server):
    """What a run posts with logprobs left in is ten times as much, or more."""
    seen = Runs()
    chat(server).invoke(ASKED, {"callbacks": [seen]}, logprobs=True, top_logprobs=20)
    stopping(server, None).invoke(ASKED, {"callbacks": [seen]})
    assert len(seen.ended[0]) >= 10 * len(seen.ended[1])


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.filterwarnings("ignore:astream_events version='v1'")
def test_events_are_streamed(server, version):
    """``astream_events``: tokens of thinking and answer, one end, no more."""
    chain = ChatPromptTemplate.from_template("{q}") | stopping(server) | StrOutputParser()

    async def run():
        return [e async for e in chain.astream_events({"q": ASKED}, version=version)]

    events = asyncio.run(run())
    ends = [e for e in events if e["event"] == "on_chat_model_end"]
    assert len(ends) == 1
    text = "".join(e["data"]["chunk"].text for e in events if e["event"] == "on_chat_model_stream")
    assert text == "The answer is 42"
    assert len([e for e in events if e["event"] == "on_chat_model_stream"]) > 120


@pytest.mark.skipif(not hasattr(BaseChatModel, "stream_events"), reason="langchain-core before 1.4 has no version 3")
@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
def test_the_protocol_of_blocks_is_streamed(server):
    """v3: reasoning and text as blocks, the metadata on the message, usage once; the switch holds here too."""
    told = stopping(server).stream_events(ASKED, version="v3")
    assert "".join(told.text) == "The answer is 42"
    message = told.output
    assert [b["type"] for b in message.content] == ["reasoning", "text"]
    assert message.response_metadata["early_stop_step"] == 3
    assert message.usage_metadata["output_tokens"] == 124
    full = stopping(server).stream_events(ASKED, {"configurable": {"early_stop": False}}, version="v3").output
    assert not full.response_metadata["early_stop_stopped"]

    async def run():
        return await (await stopping(server).astream_events(ASKED, version="v3")).output

    assert asyncio.run(run()).response_metadata["early_stop_stopped"]


def test_version_1_content_has_both_blocks(server):
    """``output_version="v1"`` of the inner holds: standard blocks; the reasoning is among them where a stream is read."""
    inner = chat(server, output_version="v1")
    for run, kinds in ((invoke, ["text"]), (stream, ["reasoning", "text"])):  # ChatOpenAI's own reading knows no reasoning
        message = run(EarlyStopChatModel(inner, POLICY), ASKED)
        assert [b["type"] for b in message.content] == kinds
        assert message.text == "The answer is 42"


def test_caches_tell_policies_apart(server):
    """A reply of one policy is never another's; the same call is answered from the cache."""
    inner = chat(server, cache=InMemoryCache())
    first = EarlyStopChatModel(inner, POLICY)
    first.invoke(ASKED)
    before = len(server.calls)
    again = first.invoke(ASKED).response_metadata
    assert (again["early_stop_stopped"], again["early_stop_reason"]) == (False, "answered from the cache")
    assert len(server.calls) == before
    assert not EarlyStopChatModel(inner, NEVER).invoke(ASKED).response_metadata["early_stop_stopped"]
    assert not first.invoke(ASKED, {"configurable": {"early_stop": False}}).response_metadata["early_stop_stopped"]


def test_what_the_inner_was_given_holds(server):
    """Rate limiter, callbacks, name and profile are the inner's; so are settings and config that were bound to it."""
    limiter = InMemoryRateLimiter(requests_per_second=1000)
    seen = Runs()
    model = EarlyStopChatModel(chat(server, rate_limiter=limiter, callbacks=[seen], name="mine"), POLICY)
    assert (model.rate_limiter, model.callbacks, model.name) == (limiter, [seen], "mine")
    bound = chat(server).bind(temperature=0.7).bind(seed=5).with_config(tags=["t"], callbacks=[seen])
    EarlyStopChatModel(bound, POLICY).invoke(ASKED)
    assert [(c.body["temperature"], c.body["seed"]) for c in server.calls] == [(0.7, 5)] * 2
    assert seen.begun[-1][3] == ["t"]


def test_limits_and_stop_texts_reach_both_requests(server):
    """The answer gets what the thinking left of the limit; stop texts hold for both; the user's extra_body is kept."""
    inner = chat(server, max_tokens=500, extra_body={"top_k": 7})
    EarlyStopChatModel(inner, POLICY).invoke(ASKED, stop=["END"])
    first, second = (c.body for c in server.calls)
    assert (first["max_completion_tokens"], second["max_completion_tokens"]) == (500, 380)
    assert first["stop"] == second["stop"] == ["END"]
    assert first["top_k"] == second["top_k"] == 7
    assert (first["top_logprobs"], second.get("top_logprobs")) == (20, None)
