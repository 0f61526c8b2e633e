"""Functions under ``@chain`` and what they call: left as they are, and named, however deep the model lies."""

from __future__ import annotations

import asyncio
import time
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
from chats import POLICY, chat
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnablePassthrough, chain
from langchain_core.runnables.history import RunnableWithMessageHistory
from langchain_entropy_chains import instrument, with_early_stop
from langchain_openai import ChatOpenAI
from loopback import Loopback

PROMPT = ChatPromptTemplate.from_template("{q}")


@pytest.fixture
def server():
    with Loopback() as running:
        yield running


def plain(model):
    """A function under ``@chain`` that calls a model, or any other runnable."""

    @chain
    def ask(q):
        return model.invoke(q)

    return ask


def asynchronous(model):
    @chain
    async def ask(q):
        return await model.ainvoke(q)

    return ask


def generating(model):
    @chain
    def ask(q):
        yield from model.stream(q)

    return ask


def recursive(model):
    @chain
    def ask(q):
        return model.invoke(q) if q.endswith("!") else ask.invoke(q + "!")

    return ask


def returning(model):
    @chain
    def ask(q):
        return RunnableLambda(lambda _: {"q": q}) | PROMPT | model

    return ask


def nested(model):
    """Six functions under ``@chain``, each calling the next."""
    made = plain(model)
    for _ in range(5):
        made = plain(made)
    return made


def holding(model):
    """A function that calls a chain of several parts."""
    parts = {"x": {"y": PROMPT | (lambda asked: asked) | model} | RunnableLambda(lambda found: found["y"])}
    return plain(RunnablePassthrough.assign(**parts).with_retry() | (lambda found: found["x"])).with_config(tags=["t"])


def of_a_table(model):
    helpers = {"ask": [lambda q: model.invoke(q)]}

    @chain
    def ask(q):
        return helpers["ask"][0](q)

    return ask


def of_an_object(model):
    app = SimpleNamespace(services={"llm": SimpleNamespace(models=[model])})

    @chain
    def ask(q):
        return app.services["llm"].models[0].invoke(q)

    return ask


USERS = [plain, asynchronous, generating, recursive, returning, nested, holding, of_a_table, of_an_object]


def asked(found, use):
    given = {"q": "q"} if use is holding else "q"
    return asyncio.run(found.ainvoke(given)) if use is asynchronous else found.invoke(given)


@pytest.mark.parametrize("use", USERS)
def test_a_function_under_chain_is_named(server, use):
    """It runs as before, in full; the warning names it and says what reaches its model, and that does."""
    model = chat(server)
    with pytest.warns(UserWarning, match=r"passes over chat models in the function '.*ask'.*instrument\(model, policy\)"):
        copied = with_early_stop({"seen": chat(server), "hidden": use(model)} | RunnableLambda(lambda found: found), POLICY)
    found = asked(copied, use) if use is not holding else {"hidden": asked(copied.steps[0].steps__["hidden"], use)}
    assert found["hidden"].response_metadata.get("early_stop_stopped") is None
    instrument(model, POLICY)
    assert asked(use(model), use).response_metadata["early_stop_stopped"]


def test_a_function_whose_model_stops_already_is_not_named(server):
    """Its model was instrumented before."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with_early_stop(chat(server) | nested(instrument(chat(server), POLICY)), POLICY)


@pytest.mark.filterwarnings("ignore:RunnableWithMessageHistory")
@pytest.mark.filterwarnings("ignore:The class")
def test_functions_of_langchains_own_are_not_named(server):
    """Methods by which a chain keeps its history hold the chain, and ask no model."""
    kept = InMemoryChatMessageHistory()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="early stopping")
        copied = with_early_stop(
            RunnableWithMessageHistory(PROMPT | chat(server), lambda name: kept, input_messages_key="q"), POLICY
        )
    assert copied.invoke({"q": "q"}, {"configurable": {"session_id": "1"}}).response_metadata["early_stop_stopped"]


def test_a_function_that_makes_its_model_is_named(server):
    """By the class that it names; there is no model yet that could be changed, so another remedy is told."""

    @chain
    def ask(q: str) -> Any:
        return ChatOpenAI(model="scripted", base_url=server.url, api_key="none").invoke(q)

    with pytest.warns(UserWarning, match=r"may be made in the function '.*ask': .*EarlyStopChatModel\(model, policy\)"):
        with_early_stop(chat(server) | ask, POLICY)


def test_looking_into_large_objects_takes_no_time(server):
    """A function that holds a million things is looked at as quickly as any."""
    many, model = [{"n": n} for n in range(1_000_000)], chat(server)
    function = RunnableLambda(lambda q: model.invoke(q + str(len(many))))
    started = time.monotonic()
    with pytest.warns(UserWarning, match="passes over chat models"):
        with_early_stop(model | function, POLICY)
    assert time.monotonic() - started < 2
