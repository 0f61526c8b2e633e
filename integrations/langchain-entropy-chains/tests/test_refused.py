"""Servers that refuse logprobs, met through every way of adding early stopping to an app: the app goes on working."""

from __future__ import annotations

import asyncio
import warnings

import pytest
from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from langchain_deepseek import ChatDeepSeek
from langchain_entropy_chains import EarlyStopChatModel, EarlyStopMiddleware, EntropyCallbackHandler, instrument, with_early_stop
from langchain_openai import ChatOpenAI
from loopback import REFUSALS, Loopback, Reply, asks_logprobs, refusing

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import NoLogprobsError
from scripts import quick

ASKED = "What is 6*7?"
POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))
FIXED = Policy("scripted", (None,), rule="fixed-step", min_steps=2, segmentation=POLICY.segmentation)
LOOP = Policy("scripted", (0.2,), mode="refine", segmentation=Segmentation("call", 1))
AGREEING = Policy("scripted", (None,), rule="agreement", mode="refine", segmentation=LOOP.segmentation)


def refused_by(refused=REFUSALS["not allowed"]):
    return Loopback(refusing(refused, quick), owned_by="unknown")


def chat(server, kind=ChatOpenAI, **settings):
    return kind(**{"model": "scripted", "base_url": server.url, "api_key": "none", "max_retries": 0, **settings})


def invoke(model, config=None):
    return model.invoke(ASKED, config)


def ainvoke(model, config=None):
    return asyncio.run(model.ainvoke(ASKED, config))


def stream(model, config=None):
    chunks = list(model.stream(ASKED, config))
    return sum(chunks[1:], chunks[0])


def astream(model, config=None):
    async def run():
        return [chunk async for chunk in model.astream(ASKED, config)]

    chunks = asyncio.run(run())
    return sum(chunks[1:], chunks[0])


RUNS = [invoke, ainvoke, stream, astream]
WAYS = pytest.mark.parametrize("run", RUNS)


def in_an_agent(model, policy, **settings):
    """The agent as a model: its last message."""
    agent = create_agent(model, [], middleware=[EarlyStopMiddleware(policy, **settings)])

    def answer(asked):
        return agent.invoke({"messages": [("user", asked)]})["messages"][-1]

    async def answered(asked):
        return (await agent.ainvoke({"messages": [("user", asked)]}))["messages"][-1]

    return RunnableLambda(answer, answered)


class NoSuchSetting(ChatOpenAI):
    """A client that does not know the setting: it raises before anything is sent."""

    def _stream(self, *args, **kwargs):
        if "logprobs" in kwargs:
            raise TypeError("Messages.create() got an unexpected keyword argument 'logprobs'")
        yield from super()._stream(*args, **kwargs)


class Thin(BaseChatModel):
    """A model that shows no client."""

    chat: ChatOpenAI
    model: str = "scripted"

    @property
    def _llm_type(self):
        return "thin"

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        return self.chat._generate(messages, stop, run_manager, **kwargs)

    def _stream(self, messages, stop=None, run_manager=None, **kwargs):
        yield from self.chat._stream(messages, stop, run_manager, **kwargs)


ADDED = {
    "EarlyStopChatModel": EarlyStopChatModel,
    "with_early_stop": with_early_stop,
    "in a chain": lambda m, p, **s: with_early_stop(ChatPromptTemplate.from_template("{q}") | m, p, **s).with_config(run_name="c"),
    "instrument": instrument,
    "middleware": in_an_agent,
}


@pytest.mark.parametrize(("how", "run"), [*((how, invoke) for how in ADDED), *(("EarlyStopChatModel", run) for run in RUNS[1:])])
def test_the_added_line_never_breaks_the_app(how, run):
    """The plain reply, twice; only the first one is asked for twice; one warning; not active, with the reason."""
    with refused_by() as server:
        added = ADDED[how](chat(server), POLICY)
        with pytest.warns(UserWarning, match="refuses logprobs") as caught:
            messages = [run(added), run(added)]
    assert [asks_logprobs(call.body) for call in server.calls] == [True, False, False]
    assert len([w for w in caught if "refuses" in str(w.message)]) == 1
    for message in messages:
        metadata = message.response_metadata
        assert (message.content, metadata["early_stop_active"], metadata["early_stop_stopped"]) == ("42", False, False)
        assert "You are not allowed to request logprobs" in metadata["early_stop_reason"]


@pytest.mark.parametrize("refused", REFUSALS.values(), ids=REFUSALS)
@pytest.mark.parametrize("run", [invoke, astream])
def test_in_whatever_way_it_is_refused(refused, run):
    """A status, or an error in the stream of a 200."""
    with refused_by(refused) as server, pytest.warns(UserWarning, match="refuses logprobs"):
        assert run(EarlyStopChatModel(chat(server), POLICY)).content == "42"
    assert len(server.calls) == 2


@pytest.mark.parametrize("how", ADDED)
def test_error_says_what_helps(how):
    """Chosen by name, it is raised before anything is paid for; the provider's error is its cause."""
    with refused_by() as server, pytest.raises(NoLogprobsError, match=r"not allowed.*without_logprobs") as caught:
        ADDED[how](chat(server), POLICY, without_logprobs="error").invoke(ASKED)
    assert (len(server.calls), server.made, type(caught.value.__cause__).__name__.endswith("Error")) == (1, 0, True)


@pytest.mark.parametrize("off", ["environment", "config", "policy=None", "not active"])
@pytest.mark.parametrize("mode", ["thinking", "refine"])
def test_off_means_off(monkeypatch, off, mode):
    """Though ``error`` was chosen for missing logprobs: nothing needs them."""
    policy = {"thinking": POLICY, "refine": LOOP}[mode]
    if off == "environment":
        monkeypatch.setenv("ENTROPY_CHAINS_STOP", "0")
    if off == "not active":
        policy = Policy("scripted", (0.2,), active=False, reason="no_signal", mode=mode, segmentation=policy.segmentation)
    with refused_by() as server:
        model = EarlyStopChatModel(
            chat(server), None if off == "policy=None" else policy, without_logprobs="error", mode=mode, max_steps=2
        )
        config = {"configurable": {"early_stop": False}} if off == "config" else None
        with pytest.warns(UserWarning, match="refuses logprobs"):
            message = model.invoke(ASKED, config)
    assert (message.content, message.response_metadata["early_stop_active"]) == ("42", False)


@WAYS
def test_agreement_stops(run):
    """Two answers in a row agree; no request but the first asks for logprobs."""
    with refused_by() as server, pytest.warns(UserWarning, match="agree"):
        message = run(EarlyStopChatModel(chat(server, ChatDeepSeek), POLICY, without_logprobs="agreement"))
    assert [asks_logprobs(call.body) for call in server.calls] == [True, False, False, False]
    assert (message.content, message.response_metadata["early_stop_reason"]) == ("42", "answers agree")


def test_agreement_ends_the_loop():
    """In ``refine``, too: the second call agrees with the first."""
    with refused_by() as server:
        model = EarlyStopChatModel(chat(server), LOOP, mode="refine", max_steps=4, without_logprobs="agreement")
        with pytest.warns(UserWarning, match="refuses logprobs"):
            message = model.invoke(ASKED)
    assert (message.content, message.response_metadata["early_stop_reason"], len(server.calls)) == ("42", "answers agree", 3)


def test_the_loop_in_full():
    """All calls are made; the table says that nothing could be stopped, and why."""
    with refused_by() as server, pytest.warns(UserWarning, match="refuses logprobs"):
        message = EarlyStopChatModel(chat(server), LOOP, mode="refine", max_steps=2).invoke(ASKED)
    assert (message.content, message.response_metadata["early_stop_active"], len(server.calls)) == ("42", False, 3)
    assert "no logprobs" in message.response_metadata["early_stop_reason"]


@pytest.mark.parametrize("chosen", ["error", "full"])
def test_a_rule_that_reads_no_entropy_needs_none(chosen):
    """A fixed step, and agreement in the loop: they stop, and nothing is said of logprobs."""
    with warnings.catch_warnings(), refused_by() as server:
        warnings.simplefilter("error")
        fixed = EarlyStopChatModel(chat(server, ChatDeepSeek), FIXED, without_logprobs=chosen).invoke(ASKED)
        agreed = EarlyStopChatModel(chat(server), AGREEING, mode="refine", without_logprobs=chosen).invoke(ASKED)
    assert fixed.response_metadata["early_stop_reason"] == "step 2 is the fixed step"
    assert agreed.response_metadata["early_stop_reason"] == "answers agree"


def test_a_callback_judges_a_rule_that_reads_no_entropy():
    """It asks for nothing itself; a fixed step is told without logprobs."""
    handler = EntropyCallbackHandler(FIXED)
    with refused_by() as server:
        chat(server, ChatDeepSeek, streaming=True).invoke(ASKED, {"callbacks": [handler]})
    (row,) = handler.runs
    assert (row.measured, row.metadata["early_stop_step"], row.would_save is not None) == (True, 2, True)


def test_a_callback_without_logprobs_is_not_active():
    """A policy that reads entropy can stop nothing there: the table says so."""
    handler = EntropyCallbackHandler(POLICY, stop=True)
    with refused_by() as server:
        message = chat(server).invoke(ASKED, {"callbacks": [handler]})
    assert message.response_metadata["early_stop_active"] is False


@pytest.mark.parametrize("added", [EarlyStopChatModel, instrument])
@pytest.mark.parametrize("make", [lambda s: chat(s, NoSuchSetting), lambda s: Thin(chat=chat(s))], ids=["client", "no client"])
def test_models_of_any_class(make, added):
    """One whose client does not know the setting, and one that shows no client: remembered for as long as the model lives."""
    with refused_by() as server:
        model = added(make(server), POLICY)
        with pytest.warns(UserWarning, match="refuses logprobs"):
            messages = [model.invoke(ASKED), model.invoke(ASKED)]
    assert [message.content for message in messages] == ["42", "42"]
    assert sum(asks_logprobs(call.body) for call in server.calls) <= 1


def test_an_error_about_something_else_is_the_providers_own():
    """It mentions logprobs, the request without them fails as well: the inner model's error comes as without the wrapper."""
    with Loopback(lambda body: Reply(status=400, message="no such model; logprobs ignored")) as server:
        with pytest.raises(Exception, match="no such model") as plain:
            chat(server).invoke(ASKED)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(type(plain.value), match="no such model"):
                EarlyStopChatModel(chat(server), POLICY).invoke(ASKED)


def test_a_refusal_with_tools_is_not_one_without():
    """Some servers refuse logprobs of calls with tools only: the others go on being stopped."""
    plain = refusing(script=quick)
    with Loopback(lambda body: plain(body) if body.get("tools") else quick(body)) as server:
        model = EarlyStopChatModel(chat(server), POLICY)
        tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
        with pytest.warns(UserWarning, match="refuses logprobs"):
            assert model.bind_tools([tool]).invoke(ASKED).content == "42"
        assert model.invoke(ASKED).response_metadata["early_stop_stopped"]
