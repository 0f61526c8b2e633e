"""What ``with_early_stop`` and ``instrument`` reach besides plain shapes: functions, message history, models made by the config."""

from __future__ import annotations

import asyncio
import sys
import warnings
from collections import defaultdict
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import pytest
from langchain.agents import create_agent
from langchain.chat_models import init_chat_model
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.language_models import BaseChatModel
from langchain_core.load import dumps, loads
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableGenerator, RunnableLambda, RunnablePassthrough, RunnableSerializable
from langchain_core.runnables.history import RunnableWithMessageHistory
from langchain_entropy_chains import ChatTransformers, EarlyStopChatModel, instrument, uninstrument, with_early_stop
from langchain_openai import ChatOpenAI
from loopback import Loopback, sums

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import SettingsError

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))
PROMPT = ChatPromptTemplate.from_template("{q}")
GLOBAL = None
"""A model that a function below uses by its global name."""


@pytest.fixture
def server():
    with Loopback(lambda body: replace(sums(body), pace=0.001)) as running:
        yield running


def chat(server, **settings):
    return ChatOpenAI(model="scripted", base_url=server.url, api_key="none", max_retries=0, **settings)


def configurable(server):
    settings = {"base_url": server.url, "api_key": "none", "max_retries": 0}
    return init_chat_model("openai:scripted", configurable_fields=("temperature",), **settings)


def stopped(message):
    return message.response_metadata.get("early_stop_stopped")


def closure(model):
    return RunnableLambda(lambda asked: model.invoke(asked))


def asynchronous(model):
    async def ask(asked):
        return await model.ainvoke(asked)

    return RunnableLambda(lambda asked: model.invoke(asked), ask)


def nested(model):
    chain = RunnableLambda(lambda asked: asked) | model

    def inner(asked):
        return chain.invoke(asked)

    return RunnableLambda(lambda asked: inner(asked))


def defaults(model):
    return RunnableLambda(lambda asked, *, model=model: model.invoke(asked))


def fixed(model):
    return RunnableLambda(partial(lambda held, asked: held.invoke(asked), model))


def method(model):
    return RunnableLambda(model.invoke)


def generated(model):
    def ask(parts):
        for each in parts:
            yield model.invoke(each)

    return RunnableGenerator(ask)


def recursive(model):
    def solve(asked, tries=0):
        found = model.invoke(asked)
        return found if found.content or tries > 2 else solve(asked, tries + 1)

    return RunnableLambda(lambda asked: solve(asked))


def counting(model):
    def ask(asked):
        ask.calls += 1
        return model.invoke(asked)

    ask.calls = 0
    return RunnableLambda(ask)


def rebound(model):
    def ask(asked):
        nonlocal model
        model = model.model_copy(update={"temperature": 0.9})
        return model.invoke(asked)

    return RunnableLambda(ask)


def as_it_is(model):
    return RunnableLambda(lambda asked: model.invoke(asked) if model.temperature is None else None)


def passing(model):
    told = []
    return RunnablePassthrough(lambda asked: told.append(model.invoke(asked))) | RunnableLambda(lambda _: told.pop())


class Plain(Runnable):
    """A runnable that is no model of pydantic."""

    def __init__(self, model):
        self.model = model

    def invoke(self, asked, config=None, **kwargs):
        return self.model.invoke(asked)


def test_a_method_of_a_model_is_that_of_the_stopping_one(server):
    """``RunnableLambda(model.invoke)``: swapped, without a warning; the chain given is as it was."""
    chain = method(chat(server))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copy = with_early_stop(chain, POLICY)
    assert stopped(copy.invoke("q"))
    assert stopped(chain.invoke("q")) is None


USERS = [closure, asynchronous, nested, defaults, fixed, generated, recursive, counting, rebound, as_it_is, passing, Plain]


@pytest.mark.parametrize("make", USERS)
def test_a_function_of_the_user_s_is_left_as_it_is_and_named(server, make):
    """Whatever it does with its model works as without the added line; what is passed over is said, also if all else stops."""
    alone = make(chat(server))
    expected = alone.invoke("q")
    chain = {"seen": chat(server), "hidden": alone} | RunnableLambda(lambda found: found)
    with pytest.warns(UserWarning, match=r"passes over chat models in .*instrument\(model, policy\)"):
        found = with_early_stop(chain, POLICY).invoke("q")
    assert (stopped(found["seen"]), stopped(found["hidden"])) == (True, None)
    assert found["hidden"].content == expected.content


def test_a_function_is_named_though_its_model_stands_elsewhere_as_well(server):
    """Only the other place stops."""
    model = chat(server)
    with pytest.warns(UserWarning, match="passes over chat models in the function"):
        with_early_stop(closure(model) | model, POLICY)


class Named(NamedTuple):
    """A tuple with names."""

    model: Any
    count: int


class Holding(RunnableSerializable):
    """A runnable of the user's with a container."""

    held: Any

    def invoke(self, asked, config=None, **kwargs):
        return (self.held["a"] if isinstance(self.held, dict) else self.held[0]).invoke(asked)


def test_containers_stay_of_their_kind(server):
    """Named tuples and dicts with a default, with the models in them swapped."""
    copy = with_early_stop(Holding(held=Named(chat(server), 1)), POLICY)
    assert (type(copy.held), copy.held.count, stopped(copy.invoke("q"))) == (Named, 1, True)
    copy = with_early_stop(Holding(held=defaultdict(list, a=chat(server))), POLICY)
    assert stopped(copy.invoke("q"))
    assert copy.held["b"] == []


class Holder:
    """An application's object with a model."""

    def __init__(self, model):
        self.model = model

    def ask(self, asked):
        return self.model.invoke(asked)

    def __call__(self, asked):
        return self.ask(asked)


def by_global_name(asked):
    return GLOBAL.invoke(asked)


def test_functions_whose_model_is_out_of_reach_are_named(server, monkeypatch):
    """A global, an object's attribute, a dict: passed over, and said, with the function's name; a function without one is not."""
    monkeypatch.setattr(sys.modules[__name__], "GLOBAL", chat(server))
    holder, kept = Holder(chat(server)), {"a": chat(server)}
    functions = {by_global_name: "by_global_name", holder.ask: "Holder.ask", lambda asked: kept["a"].invoke(asked): "<lambda>"}
    for function, name in functions.items():
        chain = {"seen": chat(server), "hidden": RunnableLambda(function)} | RunnableLambda(lambda found: found)
        with pytest.warns(UserWarning, match="passes over chat models in .*" + name) as told:
            found = with_early_stop(chain, POLICY).invoke("q")
        assert "instrument(model, policy)" in str(told[0].message)
        assert (stopped(found["seen"]), stopped(found["hidden"])) == (True, None)
    with pytest.raises(SettingsError, match=r"instrument\(model, policy\)"):
        with_early_stop(RunnableLambda(holder.ask), POLICY)
    graph = create_agent(chat(server), [], name="helper")
    with pytest.warns(UserWarning, match="the graph 'helper'"):
        with_early_stop({"seen": chat(server), "agent": graph} | RunnableLambda(lambda found: found), POLICY)


@pytest.mark.filterwarnings("ignore:RunnableWithMessageHistory")
def test_a_chain_with_history_stops_and_keeps_its_history(server):
    """The chain inside is reached, sync and async, and every message lands in the history as before."""
    kept = InMemoryChatMessageHistory()
    chain = with_early_stop(RunnableWithMessageHistory(PROMPT | chat(server), lambda name: kept, input_messages_key="q"), POLICY)
    session = {"configurable": {"session_id": "1"}}
    assert stopped(chain.invoke({"q": "a"}, session))
    assert stopped(asyncio.run(chain.ainvoke({"q": "b"}, session)))
    assert [m.content for m in kept.messages] == ["a", "The answer is 42", "b", "The answer is 42"]


WAYS = {
    "with_early_stop": lambda s: with_early_stop(configurable(s), POLICY),
    "wrapper": lambda s: EarlyStopChatModel(configurable(s), POLICY),
    "instrument": lambda s: instrument(configurable(s), POLICY),
    "bound": lambda s: EarlyStopChatModel(configurable(s).bind(max_tokens=900), POLICY),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_model_made_by_the_config_stops_and_keeps_its_fields(server, way):
    """``init_chat_model(configurable_fields=…)``: every way of calling stops, with the temperature of the call's config."""
    model = WAYS[way](server)
    warm = {"configurable": {"temperature": 0.75}}

    async def drained():
        return [chunk async for chunk in model.astream("q", warm)]

    runs = [lambda: model.invoke("q", warm), lambda: sum_of(list(model.stream("q", warm))), lambda: sum_of(asyncio.run(drained()))]
    runs += [lambda: asyncio.run(model.ainvoke("q", warm)), lambda: model.bind_tools([Holder.ask]).invoke("q", warm)]
    runs += [lambda: model.with_config(tags=["t"]).invoke("q", warm), lambda: model.batch(["q"], warm)[0]]
    for run in runs:
        server.calls.clear()
        found = run()
        assert (stopped(found), found.content) == (True, "The answer is 42")
        assert server.calls[0].body["temperature"] == 0.75
    if way == "instrument":
        assert stopped(uninstrument(model).invoke("q")) is None


def sum_of(chunks):
    return sum(chunks[1:], chunks[0])


def test_a_model_made_by_the_config_alone_is_refused_by_the_wrapper(server):
    """Without a model of its own there is nothing to look at yet: the error says what waits for the call, and that does."""
    model = init_chat_model(configurable_fields=("model", "model_provider", "base_url", "api_key"))
    with pytest.raises(SettingsError, match="with_early_stop"):
        EarlyStopChatModel(model, POLICY)
    chosen = {"model": "scripted", "model_provider": "openai", "base_url": server.url, "api_key": "none"}
    assert stopped(with_early_stop(model, POLICY).invoke("q", {"configurable": chosen}))


def test_a_model_that_stops_by_itself_is_refused_at_once(server):
    """A wrapper around a local model, or around a wrapper, would stop twice: an error at construction says what to do."""
    for model in (ChatTransformers(backend=object()), EarlyStopChatModel(chat(server), POLICY), instrument(chat(server), POLICY)):
        with pytest.raises(SettingsError, match="stops by itself"):
            EarlyStopChatModel(model, POLICY)


def test_what_is_serialised_refuses_to_come_back(server):
    """Loaded, an instrumented model would be the plain one and stop nothing; its headers are not in what is written."""
    for chain in (
        PROMPT | instrument(chat(server, default_headers={"X-Auth": "hidden-header"}), POLICY),
        with_early_stop(PROMPT | chat(server, default_headers={"X-Auth": "hidden-header"}), POLICY),
    ):
        told = dumps(chain)
        assert "hidden-header" not in told
        with pytest.raises(NotImplementedError):
            loads(told, allowed_objects="all")


class Whole(BaseChatModel):
    """A model with ``_generate`` alone."""

    @property
    def _llm_type(self):
        return "whole"

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        return ChatResult(generations=[ChatGeneration(message=AIMessage("generated"))])


class Streams(Whole):
    """One with ``_generate`` and ``_stream``."""

    def _stream(self, messages, stop=None, run_manager=None, **kwargs):
        yield ChatGenerationChunk(message=AIMessageChunk("streamed"))


class StreamsAsync(Whole):
    """One with ``_generate`` and ``_astream``."""

    async def _astream(self, messages, stop=None, run_manager=None, **kwargs):
        yield ChatGenerationChunk(message=AIMessageChunk("streamed"))


class OnlyAsync(StreamsAsync):
    """One without any synchronous call."""

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        raise NotImplementedError


def outcome(run):
    try:
        return run()
    except Exception as error:  # noqa: BLE001 (whatever it is, it is the same with the plain model)
        return type(error)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [Whole, Streams, StreamsAsync, OnlyAsync])
def test_a_model_with_some_of_the_methods_works_as_it_did(kind):
    """Text or error of every call as of the plain model (a model that streams is streamed, so that it can be stopped)."""
    plain, wrapped = kind(), EarlyStopChatModel(kind(), Policy(kind.__name__, (0.2,)))

    async def drained(model):
        return "".join([chunk.text async for chunk in model.astream("q")])

    for way in ("invoke", "stream", "ainvoke", "astream"):
        texts = []
        for model in (plain, wrapped):
            runs = {
                "invoke": lambda model=model: model.invoke("q").text,
                "stream": lambda model=model: "".join(chunk.text for chunk in model.stream("q")),
                "ainvoke": lambda model=model: asyncio.run(model.ainvoke("q")).text,
                "astream": lambda model=model: asyncio.run(drained(model)),
            }
            texts.append(outcome(runs[way]))
        assert texts[0] == texts[1] or (texts[0] in ("generated", NotImplementedError) and texts[1] == "streamed"), (way, texts)
