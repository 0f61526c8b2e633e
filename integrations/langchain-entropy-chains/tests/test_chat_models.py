"""EarlyStopChatModel over real HTTP, against the scripted server of the tests (a fake: it thinks nothing)."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import uuid
import warnings
from dataclasses import replace

import httpx
import pytest
from langchain.agents import create_agent
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, get_usage_metadata_callback
from langchain_core.language_models import BaseChatModel, GenericFakeChatModel, SimpleChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.runnables import ConfigurableField, RunnableLambda
from langchain_core.tools import tool
from langchain_core.tracers import LangChainTracer
from langchain_deepseek import ChatDeepSeek
from langchain_entropy_chains import EarlyStopChatModel
from langchain_openai import ChatOpenAI
from loopback import SURE, UNSURE, Loopback, Reply, is_answer_call, said, sums, thinking
from pydantic import BaseModel

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import NoLogprobsError, PolicyMismatch, SettingsError
from entropy_chains.savings.holdout import is_holdout

ASKED = "What is 6*7?"
POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32), calibration={"remaining_tokens": [200, 160, 120]})
NEVER = replace(POLICY, thresholds=(None,))


def paced(body):
    """The default script at the speed of a fast server: a client on a busy machine keeps up with it."""
    return replace(sums(body), pace=0.003)


@pytest.fixture
def server():
    with Loopback(paced) as running:
        yield running


def chat(server, **settings):
    return ChatOpenAI(model="scripted", base_url=server.url, api_key="sk-verysecret123", **{"max_retries": 0, **settings})


def deepseek(server, **settings):
    return ChatDeepSeek(model="scripted", api_base=server.url, api_key="sk-verysecret123", **settings)


def stopping(server, policy=POLICY, **settings):
    return EarlyStopChatModel(chat(server), policy, **settings)


def invoke(model, *given, **kwargs):
    return model.invoke(*given, **kwargs)


def stream(model, *given, **kwargs):
    return merged(list(model.stream(*given, **kwargs)))


def batch(model, asked, config=None, **kwargs):
    return model.batch([asked], config, **kwargs)[0]


def ainvoke(model, *given, **kwargs):
    return asyncio.run(model.ainvoke(*given, **kwargs))


def astream(model, *given, **kwargs):
    async def run():
        return [c async for c in model.astream(*given, **kwargs)]

    return merged(asyncio.run(run()))


def abatch(model, asked, config=None, **kwargs):
    return asyncio.run(model.abatch([asked], config, **kwargs))[0]


def merged(chunks):
    return sum(chunks[1:], chunks[0]) if chunks[1:] else chunks[0]


WAYS = [invoke, stream, batch, ainvoke, astream, abatch]


@pytest.mark.parametrize("make", [chat, deepseek], ids=["openai", "deepseek"])
@pytest.mark.parametrize("run", WAYS)
def test_a_stop_saves_the_servers_work_and_gives_the_answer(server, run, make):
    """However it is called: fewer tokens by the server's count, the right answer, the reasoning in its field, honest usage."""
    message = run(EarlyStopChatModel(make(server), POLICY), ASKED)
    assert message.content == "The answer is 42"
    reasoned, answered = server.calls
    server.settled()
    assert reasoned.gone
    assert 120 <= reasoned.made < reasoned.planned
    assert answered.body["continue_final_message"] is True
    thought = "".join(f"step{n} " * 39 + f"step{n}\n" for n in (1, 2, 3))
    assert answered.body["messages"][-1]["content"] == f"<think>\n{thought}</think>\n\n"
    assert message.additional_kwargs["reasoning_content"] == thought
    told = {name: value for name, value in message.response_metadata.items() if name.startswith("early_stop")}
    assert told == {
        "early_stop_active": True,
        "early_stop_stopped": True,
        "early_stop_reason": "mean_entropy at or under the threshold",
        "early_stop_step": 3,
        "early_stop_entropy": pytest.approx(0.05),
        "early_stop_threshold": 0.2,
        "early_stop_tokens": 124,
        "early_stop_tokens_saved_estimate": 120,
        "early_stop_holdout": False,
        "early_stop_policy": POLICY.fingerprint,
    }
    assert (message.response_metadata["model_name"], message.response_metadata["finish_reason"]) == ("scripted", "stop")
    prompts = [len(json.dumps(c.body["messages"]).split()) for c in server.calls]
    usage = message.usage_metadata
    assert (usage["output_tokens"], usage["output_token_details"]["reasoning"]) == (124, 120)
    # The closed stream tells no prompt: that of the answer's request less the thinking. The scripted server counts words.
    assert usage["input_tokens"] == prompts[1] + max(0, prompts[1] - 120)
    assert "logprobs" not in message.response_metadata


@pytest.mark.parametrize("run", WAYS)
@pytest.mark.parametrize(
    "policy", [None, NEVER, replace(POLICY, active=False, reason="no_signal")], ids=["none", "never", "inactive"]
)
def test_without_a_stop_the_run_is_the_inners_own(server, run, policy):
    """One request, read to its end; content, tool calls, usage and metadata as the inner model gives them."""
    ours, plain = run(stopping(server, policy), ASKED), run(chat(server, stream_usage=True), ASKED)
    assert [c.gone for c in server.calls] == [False, False]
    assert ours.content == plain.content
    for name in ("input_tokens", "output_tokens", "total_tokens"):
        assert ours.usage_metadata[name] == plain.usage_metadata[name]
    assert not ours.response_metadata["early_stop_stopped"]
    assert ours.response_metadata["model_name"] == plain.response_metadata["model_name"]


def test_reasoning_inline_in_the_content_is_told_apart():
    """A server without a reasoning parser: the tags are read, and the content holds the answer alone."""
    with Loopback(field_name="") as server:
        message = stopping(server).invoke(ASKED)
        assert (message.content, message.response_metadata["early_stop_step"]) == ("The answer is 42", 3)
        assert message.additional_kwargs["reasoning_content"].strip().startswith("step1")
        assert "think>" not in message.additional_kwargs["reasoning_content"]


@pytest.mark.parametrize(
    ("owner", "way"), [("vllm", "prefill"), ("someone", "turn"), ("openai", "turn"), ("llamacpp", "turn")], ids=lambda x: x
)
@pytest.mark.parametrize("run", [invoke, ainvoke])
def test_the_server_says_how_to_get_the_answer(owner, way, run):
    """Asked once a client. llama.cpp's own way needs a template, which the scripted server has not: the next way is taken."""
    with Loopback(owned_by=owner) as server:
        model = stopping(server)
        message = run(model, ASKED)
        last = server.calls[-1].body["messages"][-1]
        assert message.content == "The answer is 42"
        assert ("final answer now" in last["content"]) == (way == "turn")


def test_a_completion_goes_on_from_the_rendered_conversation():
    """llama.cpp: the conversation is rendered by the server, and the thinking is sent behind it, to be gone on with."""

    def script(body):
        return Reply(said("forty-two")) if "prompt" in body else thinking(UNSURE, SURE, SURE)

    with Loopback(script, owned_by="llamacpp", rendered="<user>6*7<assistant>") as server:
        for run in (invoke, ainvoke):
            message = run(EarlyStopChatModel(chat(server, temperature=0.5, seed=3), POLICY), ASKED)
            assert (message.content, message.response_metadata["early_stop_stopped"]) == ("forty-two", True)
            body = server.calls[-1].body
            assert body["prompt"].startswith("<user>6*7<assistant><think>\nstep1")
            assert body["prompt"].endswith("</think>\n\n")
            assert (body["temperature"], body["seed"], body["max_tokens"]) == (0.5, 3, 4096)


# --- switches


@pytest.mark.parametrize("run", WAYS)
def test_a_call_can_be_switched_off(server, run):
    """By its config, and by the environment: full, with the figures of where it would have stopped."""
    message = run(stopping(server), ASKED, {"configurable": {"early_stop": False}})
    assert message.response_metadata["early_stop_reason"] == "stopping is switched off"
    assert (message.response_metadata["early_stop_step"], len(server.calls), server.calls[0].gone) == (3, 1, False)


def test_the_environment_switches_off(server, monkeypatch):
    """ENTROPY_CHAINS_STOP=0: no run is cut, and none is answered from the cache of those that were."""
    model = EarlyStopChatModel(chat(server), POLICY, cache=InMemoryCache())
    assert model.invoke(ASKED).response_metadata["early_stop_stopped"]
    monkeypatch.setenv("ENTROPY_CHAINS_STOP", "0")
    assert not model.invoke(ASKED).response_metadata["early_stop_stopped"]


def test_the_switch_reaches_a_model_inside_functions(server):
    """A config's switch holds for every model below it, whoever calls it."""
    model = stopping(server)
    chain = RunnableLambda(lambda asked: model.invoke(asked))
    assert chain.invoke(ASKED).response_metadata["early_stop_stopped"]
    assert not chain.invoke(ASKED, {"configurable": {"early_stop": False}}).response_metadata["early_stop_stopped"]


def test_the_policy_can_be_configured(server):
    """``configurable_fields`` sets another policy for a call; by object or by path."""
    model = stopping(server).configurable_fields(policy=ConfigurableField("policy"))
    assert model.invoke(ASKED).response_metadata["early_stop_stopped"]
    assert not model.invoke(ASKED, {"configurable": {"policy": NEVER}}).response_metadata["early_stop_stopped"]


def test_a_holdout_goes_by_the_root_run(server):
    """All calls of one root run fall on the same side, the one that the core's own assignment gives for the root's id."""
    server.script = lambda body: Reply(said("42"), pace=0.003) if is_answer_call(body) else thinking(SURE, SURE, pace=0.003)
    model = stopping(server, holdout=0.5, holdout_salt="s")

    def twice(asked):
        return [model.invoke(asked), (RunnableLambda(model.invoke) | RunnableLambda(lambda m: m)).invoke(asked)]

    sides = set()
    for n in range(12):
        root = uuid.UUID(int=n)
        told = [m.response_metadata for m in RunnableLambda(twice).invoke(ASKED, {"run_id": root})]
        held = is_holdout(str(root), share=0.5, salt="s")
        assert [t["early_stop_holdout"] for t in told] == [held, held]
        assert [t["early_stop_stopped"] for t in told] == [not held, not held]
        sides.add(held)
    assert sides == {True, False}


def test_a_model_called_alone_is_its_own_root(server):
    """The run id that traces show is the one assigned."""
    seen = []

    class Ids(BaseCallbackHandler):
        def on_chat_model_start(self, serialized, messages, *, run_id, **kwargs):
            seen.append(run_id)

    model = stopping(server, holdout=0.5)
    for _ in range(6):
        told = model.invoke(ASKED, {"callbacks": [Ids()]}).response_metadata
        assert told["early_stop_holdout"] == is_holdout(str(seen[-1]), share=0.5)


# --- what is never cut


@tool
def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


class Answer(BaseModel):
    """An answer."""

    value: int


def tooled(body):
    """Thinks, calls the tool; with its result thinks again and answers. Called again after a stop it does not think."""
    called = any(m["role"] == "tool" for m in body["messages"])
    thought = [] if is_answer_call(body) else thinking(UNSURE, SURE, SURE, SURE).tokens[:160]
    if called:
        return Reply([*thought, *said("The answer is 42")], pace=0.001)
    return Reply(thought, tools=[("multiply", {"a": 6, "b": 7})], pace=0.001)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_agent_is_stopped_before_its_tool_call_and_never_in_it(asynchronous):
    """The thinking ends early, the call comes whole, the tool is called, and the answer follows."""
    with Loopback(tooled) as server:
        agent = create_agent(stopping(server), [multiply])
        asked = {"messages": [HumanMessage(ASKED)]}
        found = asyncio.run(agent.ainvoke(asked)) if asynchronous else agent.invoke(asked)
        _, called, result, answered = found["messages"]
        assert called.tool_calls[0]["args"] == {"a": 6, "b": 7}
        assert (result.content, answered.content) == ("42", "The answer is 42")
        assert [m.response_metadata["early_stop_stopped"] for m in (called, answered)] == [True, True]
        assert [c.gone for c in server.calls] == [True, False, True, False]


def test_a_tool_call_without_a_stop_comes_through(server):
    """The inner's own tool call chunks, ids included."""
    server.script = lambda body: Reply(thinking(UNSURE).tokens[:40], tools=[("multiply", {"a": 6, "b": 7})])
    for run in (invoke, stream, ainvoke, astream):
        message = run(stopping(server).bind_tools([multiply]), ASKED)
        assert [(c["name"], c["args"], c["id"]) for c in message.tool_calls] == [("multiply", {"a": 6, "b": 7}, "call_0")]


@pytest.mark.parametrize("method", ["function_calling", "json_schema", "json_mode"])
@pytest.mark.parametrize("run", [invoke, ainvoke])
def test_structured_output_is_never_cut(server, method, run):
    """One request, run to its end, and the value parsed; the metadata and one warning say why."""
    thought = thinking(UNSURE, SURE, SURE, SURE).tokens[:160]
    if method == "function_calling":
        server.script = lambda body: Reply(thought, tools=[("Answer", {"value": 42})])
    else:
        server.script = lambda body: Reply([*thought, *said('{"value": 42}')])
    model = stopping(server).with_structured_output(Answer, method=method, include_raw=True)
    with pytest.warns(UserWarning, match="not stopped early") as caught:
        found = run(model, ASKED)
    assert sum("not stopped early" in str(w.message) for w in caught) == 1
    assert found["parsed"] == Answer(value=42)
    assert "early_stop_reason" in found["raw"].response_metadata
    assert found["raw"].response_metadata["early_stop_active"] is False
    assert [c.gone for c in server.calls] == [False]


REFUSED = {
    "n": ({"n": 2}, {}, "n is 2"),
    "disabled": ({"disable_streaming": True}, {}, "disable_streaming"),
    "guided": ({"extra_body": {"guided_regex": "[0-9]+"}}, {}, "guided_regex"),
    "forced": ({}, {"tool_choice": "required", "tools": []}, "forced"),
    "format": ({}, {"response_format": {"type": "json_object"}}, "response_format"),
}


@pytest.mark.parametrize("run", [invoke, ainvoke])
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_stopped_says_so(server, case, run):
    """The call passes through in full; the metadata says that stopping is off and why, and a warning does."""
    settings, kwargs, why = REFUSED[case]
    model = EarlyStopChatModel(chat(server, **settings), POLICY)
    with pytest.warns(UserWarning, match=why):
        message = run(model, ASKED, **kwargs)
    told = message.response_metadata
    assert (told["early_stop_active"], told["early_stop_stopped"]) == (False, False)
    assert why in told["early_stop_reason"]
    assert [c.gone for c in server.calls] == [False]


@pytest.mark.parametrize("run", WAYS)
def test_llama_cpp_is_not_asked_what_it_refuses(run):
    """It refuses a streamed call with tools that asks for logprobs: such a call runs in full, and says why."""
    with Loopback(paced, owned_by="llamacpp") as server:
        with pytest.warns(UserWarning, match="llama.cpp sends no logprobs"):
            message = run(stopping(server).bind_tools([multiply]), ASKED)
        assert [bool(call.body.get("logprobs")) for call in server.calls] == [False]
    assert message.text == "The answer is 42"
    assert "llama.cpp sends no logprobs" in message.response_metadata["early_stop_reason"]
    assert not message.response_metadata["early_stop_stopped"]


def test_the_responses_api_is_said_to_be_blind(server):
    """LangChain drops its logprobs: no request is changed, and the reason names the setting that helps."""
    model = EarlyStopChatModel(chat(server, use_responses_api=True), POLICY)
    with pytest.warns(UserWarning, match="use_responses_api=False"), pytest.raises(Exception):  # noqa: B017 (the fake has no such API)
        model.invoke(ASKED)
    assert server.calls[-1].path.endswith("/responses")
    assert "logprobs" not in json.dumps(server.calls[-1].body)


@pytest.mark.parametrize("run", [invoke, stream, ainvoke, astream])
def test_a_model_that_cannot_stream_is_asked_as_it_can(run):
    """Its reply comes through, and the metadata says why it was not stopped."""

    class Deaf(SimpleChatModel):
        def _call(self, messages, stop=None, run_manager=None, **kwargs):
            return "forty-two"

        @property
        def _llm_type(self):
            return "deaf"

    with pytest.warns(UserWarning, match="cannot stream"):
        message = run(EarlyStopChatModel(Deaf(), POLICY.for_model("Deaf")), ASKED)
    assert message.content == "forty-two"
    assert message.response_metadata["early_stop_reason"] == "Deaf cannot stream"


# --- logprobs


def blind(body):
    return thinking(None, None, None, answer="The answer is 42") if not is_answer_call(body) else Reply(said("The answer is 42"))


@pytest.mark.parametrize("run", WAYS)
def test_missing_logprobs_are_an_error_where_that_was_chosen(run):
    """It names the other two choices."""
    with Loopback(blind) as server, pytest.raises(NoLogprobsError, match="without_logprobs"):
        run(EarlyStopChatModel(deepseek(server), POLICY, without_logprobs="error"), ASKED)


def test_missing_logprobs_are_told():
    """The reply comes in full, or, with ``agreement``, is stopped when two answers in a row agree. Both warn."""
    with Loopback(blind) as server:
        with pytest.warns(UserWarning, match="no logprobs"):
            full = EarlyStopChatModel(deepseek(server), POLICY).invoke(ASKED)
        assert (full.content, full.response_metadata["early_stop_active"]) == ("The answer is 42", False)
        with pytest.warns(UserWarning, match="no logprobs"):
            agreed = EarlyStopChatModel(deepseek(server), POLICY, without_logprobs="agreement").invoke(ASKED)
        assert (agreed.content, agreed.response_metadata["early_stop_reason"]) == ("The answer is 42", "answers agree")


@pytest.mark.parametrize("make", [chat, deepseek], ids=["openai", "deepseek"])
@pytest.mark.parametrize("run", [invoke, astream])
def test_the_entropy_of_a_tried_answer_stops(server, run, make):
    """The first probe is sure enough: it was asked for with logprobs, its answer is the run's, and the stream is closed."""
    policy = replace(POLICY, signal="trial_entropy", thresholds=(9.0,))
    message = run(EarlyStopChatModel(make(server), policy), ASKED)
    server.settled()
    assert [is_answer_call(c.body) for c in server.calls] == [False, True]
    assert (server.calls[1].body["logprobs"], server.calls[1].body["top_logprobs"]) == (True, 20)
    assert server.calls[0].gone
    assert message.content == "The answer is 42"
    told = message.response_metadata
    assert (told["early_stop_step"], told["early_stop_reason"]) == (1, "trial_entropy at or under the threshold")
    assert told["early_stop_entropy"] <= 9.0
    assert "logprobs" not in told


def test_logprobs_stay_where_they_were_asked_for(server):
    """``logprobs=True`` on the model or the call keeps them in the message."""
    for message in (
        EarlyStopChatModel(chat(server, logprobs=True, top_logprobs=2), POLICY).invoke(ASKED),
        stopping(server).invoke(ASKED, logprobs=True),
        stopping(server).bind(logprobs=True).invoke(ASKED),
    ):
        assert len(message.response_metadata["logprobs"]["content"]) >= 120


def test_flat_lists_of_logprobs_are_read():
    """Ollama's shape, through a model that keeps its reasoning: the stop is the same."""

    class Flat(GenericFakeChatModel):
        def _stream(self, messages, stop=None, run_manager=None, **kwargs):
            if len(messages) > 1:
                yield ChatGenerationChunk(message=AIMessageChunk("42"))
                return
            for n, ranked in enumerate([[0.25] * 4, [0.996, 0.004], [0.996, 0.004]]):
                for w in range(40):
                    text = f"w{n}" + ("\n" if w == 39 else " ")
                    listed = [{"token": text if r == 0 else f"x{r}", "logprob": math.log(p)} for r, p in enumerate(ranked)]
                    message = AIMessageChunk("", additional_kwargs={"reasoning_content": text})
                    info = {"logprobs": [{**listed[0], "top_logprobs": listed}]}
                    yield ChatGenerationChunk(message=message, generation_info=info)

    message = EarlyStopChatModel(Flat(messages=iter([])), POLICY.for_model("Flat")).invoke(ASKED)
    assert (message.content, message.response_metadata["early_stop_step"]) == ("42", 2)
    assert "logprobs" not in message.response_metadata


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
        ({"holdout": 2.0}, "between 0"),
        ({"without_logprobs": "maybe"}, "without_logprobs is 'maybe'"),
        ({"continuation": "control"}, "control"),
        ({"continuation": "telepathy"}, "telepathy"),
        ({"k": 0}, "k is 0"),
        ({"temperature": 0.5}, "knows no temperature"),
        ({"max_steps": 0}, "max_steps is 0"),
    ):
        with pytest.raises(SettingsError if "holdout" not in given else ValueError, match=match):
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


# --- many at once


def test_two_hundred_calls_at_once_keep_their_own(server):
    """Different policies and questions on one loop: every call stops where its own policy says, and answers its own question."""

    def script(body):
        n = int(body["messages"][0]["content"])
        if is_answer_call(body):
            return Reply(said(f"answer {n}"))
        return thinking(*[UNSURE] * (n % 4), *[SURE] * (6 - n % 4), words=5, answer=f"full {n}")

    server.script = script
    inner = chat(server, http_async_client=httpx.AsyncClient(limits=httpx.Limits(max_connections=400), timeout=60))
    policies = [replace(POLICY, min_steps=m, segmentation=Segmentation("line", 5)) for m in (1, 2, 5)]
    models = [EarlyStopChatModel(inner, policy) for policy in policies]

    async def run():
        return await asyncio.gather(*(models[n % 3].ainvoke(str(n)) for n in range(200)))

    for n, message in enumerate(asyncio.run(run())):
        told = message.response_metadata
        assert message.content == f"answer {n}"
        assert told["early_stop_step"] == max(n % 4 + 1, (1, 2, 5)[n % 3])
        assert told["early_stop_policy"] == policies[n % 3].fingerprint
        assert message.usage_metadata["output_tokens"] == 5 * told["early_stop_step"] + 2


# --- the loop of several calls


@pytest.mark.parametrize("run", [invoke, stream, ainvoke, astream])
def test_the_loop_ends_when_it_is_sure(server, run):
    """Four calls are scheduled; the second is sure, so two are made, the second reading the first's answer."""

    def script(body):
        n = len(body["messages"])
        return Reply(said(f"try {n}", UNSURE if n == 1 else SURE))

    server.script = script
    policy = Policy("scripted", (0.2,), mode="refine", segmentation=Segmentation("call", 1))
    message = run(stopping(server, policy, mode="refine", max_steps=4), ASKED)
    assert message.content == "try 3"
    assert len(server.calls) == 2
    assert [m["content"] for m in server.calls[1].body["messages"][:2]] == [ASKED, "try 1"]
    told = message.response_metadata
    assert (told["early_stop_stopped"], told["early_stop_step"], told["model_name"]) == (True, 2, "scripted")
    assert message.usage_metadata["output_tokens"] == server.made
    full = run(stopping(server, policy, mode="refine"), ASKED, {"configurable": {"early_stop": False}})
    assert full.content == "try 7"


def test_nothing_is_warned_of_where_nothing_is_lost(server):
    """Without a policy, calls that could not be stopped pass through in silence."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stopping(server, None).invoke(ASKED, response_format={"type": "json_object"})


def test_the_tracer_of_langsmith_sees_no_error(server, caplog):
    """A run in a chain under LangChain's own tracer: success, with usage, and nothing logged."""
    posted = []

    class Client:
        def create_run(self, **kwargs):
            pass

        def update_run(self, run_id, **kwargs):
            posted.append(kwargs)

    tracer = LangChainTracer(client=Client())
    with caplog.at_level(logging.WARNING):
        (ChatPromptTemplate.from_template("{q}") | stopping(server)).invoke({"q": ASKED}, {"callbacks": [tracer]})
    assert [r for r in caplog.records if r.levelno >= logging.WARNING and "langchain" in r.name] == []
    assert all(not p.get("error") for p in posted)
