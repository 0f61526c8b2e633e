"""The inner model's fields on EarlyStopChatModel: what code that knows nothing of early stopping reads and sets on a model."""

from __future__ import annotations

import asyncio
import copy
import pickle
from typing import Any

import pytest
from chats import ASKED, POLICY, chat, deepseek
from langchain.agents import create_agent
from langchain.agents.middleware import wrap_model_call
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage
from langchain_entropy_chains import EarlyStopChatModel, EarlyStopMiddleware, instrument, with_early_stop
from langchain_openai import ChatOpenAI
from loopback import Loopback

from scripts import paced

KEY = "sk-verysecret123"


@pytest.fixture
def server():
    with Loopback(paced) as running:
        yield running


class Own(BaseChatModel):
    """A user's model with fields, a property and methods of its own, which can be pickled."""

    base_url: str
    model: str = "scripted"
    temperature: float | None = 0.5
    k: int = 7
    _kept: int = 3

    @property
    def _llm_type(self) -> str:
        return "own"

    @property
    def address(self) -> str:
        return f"at {self.base_url}"

    @property
    def broken(self) -> str:
        raise AttributeError("a fault of the user's")

    def count(self) -> int:
        return 42

    def _chat(self) -> ChatOpenAI:
        settings = {"base_url": self.base_url, "api_key": KEY, "max_retries": 0}
        return ChatOpenAI(model=self.model, temperature=self.temperature, **settings)

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        return self._chat()._generate(messages, stop, run_manager, **kwargs)

    def _stream(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        yield from self._chat()._stream(messages, stop, run_manager, **kwargs)


def test_public_fields_and_properties_are_read_through(server):
    """Of any class: with the inner's value of now, and the error of a field that there is not."""
    for inner in (chat(server, temperature=0.75), deepseek(server, temperature=0.75)):
        model = EarlyStopChatModel(inner, POLICY)
        names = type(inner).model_fields.keys() - type(model).model_fields.keys()
        assert {name for name in names if getattr(model, name) is not getattr(inner, name)} <= {"model"}
        assert (model.temperature, model.model_name, model.model) == (0.75, "scripted", "scripted")
        assert hasattr(model, "top_p")
        with pytest.raises(AttributeError, match="'EarlyStopChatModel' object has no attribute 'temprature'"):
            model.temprature  # noqa: B018
        inner.temperature = 0.25
        assert model.temperature == 0.25
    own = EarlyStopChatModel(Own(base_url=server.url), POLICY)
    assert (own.address, own._llm_type, own.k) == (f"at {server.url}", "own", 20)
    with pytest.raises(AttributeError, match="a fault of the user's"):
        own.broken  # noqa: B018


def test_methods_and_private_names_are_not(server):
    """A method of the inner model would call that one, which does not stop; what is private is nobody's."""
    model = EarlyStopChatModel(Own(base_url=server.url), POLICY)
    assert not hasattr(model, "count")
    assert not hasattr(model, "_chat")
    assert not hasattr(model, "_kept")


def test_what_is_bound_is_read_first(server):
    """Calls use it; a field that is set later takes its place."""
    model = EarlyStopChatModel(chat(server, temperature=0.75).bind(temperature=0.5, seed=7), POLICY)
    assert (model.temperature, model.seed) == (0.5, 7)
    model.temperature = 0.25
    model.invoke(ASKED)
    assert {(call.body["temperature"], call.body["seed"]) for call in server.calls} == {(0.25, 7)}


CHANGES = {
    "set": lambda model: setattr(model, "temperature", 0.25),
    "copy": lambda model: model.model_copy(update={"temperature": 0.25, "max_steps": 3}),
}


@pytest.mark.parametrize("way", CHANGES)
@pytest.mark.parametrize("run", ["invoke", "ainvoke"])
def test_a_field_is_set_for_this_model_alone(server, run, way):
    """Its calls use the new value, and still stop; the user's model and other wrappers of it keep theirs."""
    inner = chat(server, temperature=0.75)
    model, other = EarlyStopChatModel(inner, POLICY), EarlyStopChatModel(inner, POLICY)
    changed = CHANGES[way](model) or model
    message = changed.invoke(ASKED) if run == "invoke" else asyncio.run(changed.ainvoke(ASKED))
    assert message.response_metadata["early_stop_stopped"]
    assert {call.body["temperature"] for call in server.calls} == {0.25}
    assert (changed.temperature, inner.temperature, other.temperature) == (0.25, 0.75, 0.75)
    assert way == "set" or (changed.max_steps, model.max_steps, model.temperature) == (3, 4, 0.75)


def test_a_field_that_there_is_not_cannot_be_set(server):
    """As of any model of pydantic."""
    model = EarlyStopChatModel(chat(server), POLICY)
    with pytest.raises(ValueError, match="no field"):
        model.temprature = 0.5


COPIES = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda model: pickle.loads(pickle.dumps(model))}


@pytest.mark.parametrize("how", COPIES)
def test_copies_have_their_fields(server, how):
    """Copied and pickled wrappers are whole, and stop."""
    model = EarlyStopChatModel(Own(base_url=server.url, temperature=0.75), POLICY)
    copied = COPIES[how](model)
    copied.temperature = 0.25
    assert copied.invoke(ASKED).response_metadata["early_stop_stopped"]
    assert ({call.body["temperature"] for call in server.calls}, model.temperature) == ({0.25}, 0.75)


def test_no_key_is_in_what_is_printed(server):
    """Nor the inner's headers."""
    model = EarlyStopChatModel(chat(server, default_headers={"X-Auth": "hidden-header"}), POLICY)
    printed = f"{model!r} {model} {model.openai_api_key} {model.model_dump()} {model.to_json()}"
    assert KEY not in printed
    assert "hidden-header" not in printed


def test_a_middleware_reads_and_changes_the_model_of_a_request(server):
    """One further in than ours: it reads the name and temperature, and asks a copy with another; each call stops."""
    seen = []

    @wrap_model_call
    def cooler(request: Any, handler: Any) -> Any:
        seen.append((request.model.temperature, request.model.model_name, request.model._llm_type))
        return handler(request.override(model=request.model.model_copy(update={"temperature": 0.25})))

    agent = create_agent(chat(server, temperature=0.75), middleware=[EarlyStopMiddleware(POLICY), cooler])
    found = agent.invoke({"messages": [HumanMessage(ASKED)]})
    assert seen == [(0.75, "scripted", "openai-chat")]
    assert found["early_stop_stopped"] == 1
    assert {call.body["temperature"] for call in server.calls} == {0.25}


def test_the_model_in_a_stopping_chain_has_its_fields(server):
    """The chain given keeps its own; an instrumented model is of its class still."""
    model = chat(server, temperature=0.75)
    chain = with_early_stop(model | (lambda message: message), POLICY)
    chain.first.temperature = 0.25
    assert chain.invoke(ASKED).response_metadata["early_stop_stopped"]
    assert ({call.body["temperature"] for call in server.calls}, model.temperature) == ({0.25}, 0.75)
    assert isinstance(instrument(model, POLICY), ChatOpenAI)
