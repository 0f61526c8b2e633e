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
from chats import ASKED, NEVER, POLICY, WAYS, ainvoke, astream, blind, chat, deepseek, invoke, stopping, stream
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableLambda
from langchain_core.tracers import LangChainTracer
from langchain_entropy_chains import EarlyStopChatModel
from loopback import SURE, UNSURE, Loopback, Reply, is_answer_call, said, thinking

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import NoLogprobsError
from entropy_chains.savings.holdout import is_holdout


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
