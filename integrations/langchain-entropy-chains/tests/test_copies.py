"""Copies of an instrumented model, and other instances of its class: each calls with its own settings, address and key."""

from __future__ import annotations

import copy
import pickle
from typing import Any, ClassVar

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import ConfigurableField
from langchain_deepseek import ChatDeepSeek
from langchain_entropy_chains import EarlyStopChatModel, instrument, uninstrument, with_early_stop
from langchain_openai import ChatOpenAI
from langchain_tools import Answer
from loopback import Loopback, Reply
from pydantic import PrivateAttr

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import SettingsError
from scripts import quick

ASKED = "What is 6*7?"
POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))
KEY = "sk-of-the-first"
WARM = {"configurable": {"warm": 0.75}}


@pytest.fixture
def server():
    with Loopback(quick) as running:
        yield running


@pytest.fixture
def other():
    with Loopback(quick) as running:
        yield running


def chat(server, key=KEY, kind=ChatOpenAI, **settings):
    return kind(**{"model": "scripted", "base_url": server.url, "api_key": key, "max_retries": 0, **settings})


class Thin(BaseChatModel):
    """A model that holds nothing open, so that it can be copied deeply and pickled."""

    model: str = "scripted"
    base_url: str
    key: str = KEY
    temperature: float | None = None

    @property
    def _llm_type(self):
        return "thin"

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        return self._chat()._generate(messages, stop, run_manager, **kwargs)

    def _stream(self, messages, stop=None, run_manager=None, **kwargs):
        yield from self._chat()._stream(messages, stop, run_manager, **kwargs)

    def _chat(self):
        return ChatOpenAI(model=self.model, base_url=self.base_url, api_key=self.key, temperature=self.temperature, max_retries=0)


class Narrow(Thin):
    """A model that is made from what it names, and nothing else."""

    def __init__(self, base_url: str, temperature: float | None = None, **known: Any):
        assert known.keys() <= BaseChatModel.model_fields.keys() | {"model", "key"}
        super().__init__(base_url=base_url, temperature=temperature, **known)


def told(server, since=0):
    """Temperature, model and key of every request."""
    return {
        (call.body.get("temperature"), call.body["model"], call.headers["Authorization"].removeprefix("Bearer "))
        for call in server.calls[since:]
    }


def warmed(model):
    return model.configurable_fields(temperature=ConfigurableField("warm"))


COPIES = {
    "model_copy": lambda m: m.model_copy(update={"temperature": 0.75}),
    "model_copy, deep": lambda m: m.model_copy(update={"temperature": 0.75}, deep=True),
    "copy": lambda m: warm_now(copy.copy(m)),
    "deepcopy": lambda m: warm_now(copy.deepcopy(m)),
    "pickle": lambda m: warm_now(pickle.loads(pickle.dumps(m))),
    "fields": lambda m: warmed(m).with_config(WARM),
    "fields of a copy": lambda m: warmed(m.model_copy()).with_config(WARM),
    "alternatives": lambda m: m.configurable_alternatives(
        ConfigurableField("which"), warm=m.model_copy(update={"temperature": 0.75})
    ).with_config(configurable={"which": "warm"}),
    "bind": lambda m: m.bind(temperature=0.75),
    "config": lambda m: warm_now(m.model_copy()).with_config(tags=["t"]),
}


def warm_now(model):
    model.temperature = 0.75
    return model


@pytest.mark.parametrize(("kind", "how"), [*((Thin, how) for how in COPIES), (Narrow, "fields"), (Narrow, "pickle")])
def test_a_copy_stops_with_settings_of_its_own(server, kind, how):
    """And the model that it was made of keeps its own."""
    model = instrument(kind(base_url=server.url), POLICY)
    copied = COPIES[how](model)
    assert copied.invoke(ASKED).response_metadata["early_stop_stopped"]
    assert told(server) == {(0.75, "scripted", KEY)}
    since = len(server.calls)
    assert model.invoke(ASKED).response_metadata["early_stop_stopped"]
    assert told(server, since) == {(None, "scripted", KEY)}


def test_what_was_built_before_stops_with_settings_of_its_own(server):
    """Configurable fields and bindings of the model, made before it was instrumented."""
    model = chat(server)
    runnables = [warmed(model).with_config(WARM), model.bind(temperature=0.75)]
    instrument(model, POLICY)
    for runnable in runnables:
        server.calls.clear()
        assert runnable.invoke(ASKED).response_metadata["early_stop_stopped"]
        assert told(server) == {(0.75, "scripted", KEY)}


def test_a_copy_for_another_server_asks_that_one_with_its_key(server, other):
    """Nothing is sent to the first model's server, and its key to nobody else."""
    copied = instrument(Thin(base_url=server.url), POLICY).model_copy(update={"base_url": other.url, "key": "sk-of-the-second"})
    assert copied.invoke(ASKED).response_metadata["early_stop_stopped"]
    assert (server.calls, told(other)) == ([], {(None, "scripted", "sk-of-the-second")})


@pytest.mark.parametrize("kind", [ChatOpenAI, ChatDeepSeek])
def test_another_instance_of_the_class_is_not_instrumented(server, other, kind):
    """It is of the model's own class, and asks its own server with its own key, in full."""
    model = instrument(chat(server, kind=kind), POLICY)
    made = type(model)(model="scripted", base_url=other.url, api_key="sk-of-the-second", max_retries=0)
    assert type(made) is kind
    assert "early_stop_stopped" not in made.invoke(ASKED).response_metadata
    assert (server.calls, told(other)) == ([], {(None, "scripted", "sk-of-the-second")})
    assert type(type(model).model_construct(model_name="scripted")) is kind


def test_two_instrumented_models_of_one_class_keep_their_own(server, other):
    """Policy, address and key."""
    strict = Policy("scripted", (0.0,), segmentation=POLICY.segmentation)
    one, two = instrument(chat(server), POLICY), instrument(chat(other, "sk-of-the-second"), strict)
    assert one.invoke(ASKED).response_metadata["early_stop_stopped"]
    assert not two.invoke(ASKED).response_metadata["early_stop_stopped"]
    assert (told(server), told(other)) == ({(None, "scripted", KEY)}, {(None, "scripted", "sk-of-the-second")})
    uninstrument(one)
    assert "early_stop_active" in two.invoke(ASKED).response_metadata


def test_no_class_holds_anything_of_an_instance(server):
    """Whatever was instrumented or wrapped: no model, client or key stands on a class, and no policy but as what was told."""
    model, wrapped = instrument(chat(server), POLICY), EarlyStopChatModel(chat(server), POLICY)
    model.invoke(ASKED)
    wrapped.invoke(ASKED)
    with_early_stop(chat(server) | (lambda message: message), POLICY).invoke(ASKED)
    for kind in {*type(model).__mro__, *type(wrapped).__mro__}:
        for name, value in vars(kind).items():
            assert not isinstance(value, BaseChatModel | Policy), (kind, name)
            assert KEY not in repr(value), (kind, name)
        for name, field in getattr(kind, "model_fields", {}).items():
            assert not isinstance(field.default, BaseChatModel | Policy), (kind, name)


def test_what_is_told_of_the_model_is_as_before(server):
    """Representation and settings do not hold what instrument() adds."""
    model = chat(server)
    before = repr(model), model.model_dump().keys()
    instrument(model, POLICY)
    assert (repr(model), model.model_dump().keys()) == before
    uninstrument(model)
    assert (repr(model), model.model_dump().keys(), vars(model).keys()) == (*before, vars(chat(server)).keys())


def test_a_copy_of_another_model_runs_in_full(server):
    """The policy is not for it, and nobody said it was: no error in an app that worked, a reason and a warning."""
    model = instrument(chat(server), POLICY)
    renamed = model.model_copy(update={"model_name": "another", "temperature": 0.75})
    for runnable in (renamed, model.bind(model="another", temperature=0.75)):
        server.calls.clear()
        with pytest.warns(UserWarning, match="another one, 'another'"):
            message = runnable.invoke(ASKED)
        assert told(server) == {(0.75, "another", KEY)}
        assert (message.content, message.response_metadata["early_stop_active"]) == ("42", False)
        assert "another" in message.response_metadata["early_stop_reason"]
    known = uninstrument(model) and instrument(model, POLICY.for_model("another"))
    assert known.model_copy(update={"model_name": "another"}).invoke(ASKED).response_metadata["early_stop_stopped"]


def test_tools_and_structured_output_are_the_copys_own(server):
    """What the model's class makes copies of for them is a copy like any other."""
    model = instrument(chat(server, kind=ChatDeepSeek, temperature=0.75), POLICY)
    bound = model.bind_tools([Answer], strict=True)
    assert bound.invoke(ASKED).response_metadata["early_stop_stopped"]
    assert told(server) == {(0.75, "scripted", KEY)}
    server.script = lambda body: Reply(tools=[("Answer", {"value": 42})])
    with pytest.warns(UserWarning, match="not stopped early"):
        assert model.with_structured_output(Answer).invoke(ASKED) == Answer(value=42)


def test_a_copy_can_be_taken_back_and_instrumented_again(server):
    """By itself: the model that it was made of stays as it is."""
    model = instrument(chat(server), POLICY)
    copied = model.model_copy()
    with pytest.raises(SettingsError, match="already"):
        instrument(copied, POLICY)
    assert type(uninstrument(copied)) is ChatOpenAI
    assert model.invoke(ASKED).response_metadata["early_stop_stopped"]
    assert "early_stop_stopped" not in copied.invoke(ASKED).response_metadata
    assert instrument(copied, POLICY).invoke(ASKED).response_metadata["early_stop_stopped"]


def test_a_model_made_of_an_instrumented_ones_fields_is_like_any_other(server, other):
    """``ChatOpenAI(**vars(model))`` with another address and key: nothing that instrument() adds is among the fields."""
    model = instrument(chat(server), POLICY)
    clients = dict.fromkeys(("client", "async_client", "root_client", "root_async_client"))
    made = ChatOpenAI(**{**vars(model), **clients, "openai_api_base": other.url, "openai_api_key": "sk-of-the-second"})
    assert type(made) is ChatOpenAI
    assert made.invoke(ASKED).content == "42"
    assert (server.calls, told(other)) == ([], {(None, "scripted", "sk-of-the-second")})


class Named(Thin):
    """A model with fields of its own of names that early stopping might use as well."""

    early_stopping: bool = True
    holdout: str = "own"
    _early_stop: int = PrivateAttr(default=1)
    _holdout: int = PrivateAttr(default=2)
    _switched: int = PrivateAttr(default=3)

    def _chat(self):
        assert (self.early_stopping, self.holdout, self._early_stop, self._holdout, self._switched) == (True, "own", 1, 2, 3)
        return super()._chat()


@pytest.mark.parametrize("how", COPIES)
def test_fields_of_the_model_keep_their_values(server, how):
    """Whatever they are called; also after :func:`uninstrument`."""
    model = instrument(Named(base_url=server.url), POLICY)
    assert COPIES[how](model).invoke(ASKED).response_metadata["early_stop_stopped"]
    assert (model.early_stopping, model._holdout) == (True, 2)
    assert type(uninstrument(model)) is Named
    assert model.invoke(ASKED).content == "42"


class Tagged(Thin):
    """A class whose subclasses need a keyword, and are listed."""

    listed: ClassVar[list[str]] = []

    def __init_subclass__(cls, *, tag: str, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if cls.__name__ in cls.listed:
            raise RuntimeError(f"{cls.__name__} is listed twice")
        cls.listed.append(cls.__name__)


class Member(Tagged, tag="a"):
    """One of them."""


@pytest.mark.parametrize("kind", [Tagged, Member])
def test_a_class_with_rules_for_its_subclasses_is_told_of_none(server, kind):
    """The class of an instrumented model is none of the user's: no keyword is asked for, no list is added to."""
    for _ in range(2):
        assert instrument(kind(base_url=server.url), POLICY).invoke(ASKED).response_metadata["early_stop_stopped"]
    assert Tagged.listed == ["Member"]


class Sealing(type(BaseChatModel)):
    """A metaclass that allows no subclasses of what it made."""

    def __new__(cls, name: str, bases: tuple[type, ...], *args: Any, **kwargs: Any):
        if any(isinstance(base, cls) for base in bases):
            raise RuntimeError(f"{name} is sealed")
        return super().__new__(cls, name, bases, *args, **kwargs)


class Sealed(Thin, metaclass=Sealing):
    """A class that cannot have subclasses."""


def test_a_class_that_allows_no_subclass_is_refused(server):
    """With what to use instead; the model stays as it was."""
    model = Sealed(base_url=server.url)
    with pytest.raises(SettingsError, match=r"Sealed allows no subclass \(RuntimeError: .*\): use with_early_stop"):
        instrument(model, POLICY)
    assert type(model) is Sealed
    assert with_early_stop(model, POLICY).invoke(ASKED).response_metadata["early_stop_stopped"]
