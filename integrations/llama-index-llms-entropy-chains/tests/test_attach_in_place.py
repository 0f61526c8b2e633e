"""What ``attach`` replaces in place, what it leaves alone, and what it says of that. The server is scripted (a fake)."""

from __future__ import annotations

import functools
import logging
from collections import ChainMap, UserDict
from dataclasses import dataclass
from http.cookiejar import CookieJar
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
from llama_index.core import SummaryIndex
from llama_index.core.schema import TextNode
from llama_index.core.selectors import LLMSingleSelector
from llama_index.core.tools import FunctionTool
from llama_index.llms.entropy_chains import EarlyStopLLM, attach, detach
from llama_index.llms.openai_like import OpenAILike

from entropy_chains import Policy, Segmentation
from entropy_chains.errors import SettingsError

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))


@pytest.fixture
def llm() -> OpenAILike:
    """One that is never called."""
    return OpenAILike(model="scripted", api_base="http://127.0.0.1:9/v1", api_key="none", is_chat_model=True)


def engine_of(llm: Any) -> Any:
    return SummaryIndex([TextNode(text="x")]).as_query_engine(llm=llm)


@dataclass
class Box:
    """A user's object."""

    held: Any


def test_a_tuple_that_two_objects_hold_is_replaced_in_both(llm):
    """And given back in both."""
    both = (llm, "text")
    boxes = [Box(both), Box(both), Box((both, 1))]
    attach(boxes, POLICY)
    assert all(isinstance(held[0], EarlyStopLLM) for held in (boxes[0].held, boxes[1].held, boxes[2].held[0]))
    assert both[0] is llm
    detach(boxes)
    assert [boxes[0].held, boxes[1].held, boxes[2].held[0]] == [both] * 3


PLAIN = {
    "a namespace": (lambda llm: SimpleNamespace(llm=llm), lambda held: held.llm),
    "a UserDict": (lambda llm: UserDict(llm=llm), lambda held: held["llm"]),
    "a ChainMap": (lambda llm: ChainMap({}, {"llm": llm}), lambda held: held["llm"]),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_pythons_own_holders_are_looked_into(llm, kind):
    """As a user's own objects are."""
    make, found = PLAIN[kind]
    held = attach(make(llm), POLICY)
    assert found(held).llm is llm
    detach(held)
    assert found(held) is llm


def test_an_engine_behind_a_mapping_that_only_reads_is_found(llm):
    """It is not the mapping that is changed."""
    engine = engine_of(llm)
    attach(MappingProxyType({"engine": engine}), POLICY)
    assert isinstance(engine._response_synthesizer._llm, EarlyStopLLM)


def others(llm: Any) -> Any:
    """An object of a class that is not the app's, with an LLM in it."""
    made = CookieJar()
    made.llm = llm  # type: ignore[attr-defined]
    return made


def closing_over(llm: Any) -> Any:
    def ask(question: str) -> str:
        """Ask."""
        return str(llm.complete(question))

    return FunctionTool.from_defaults(ask)


def closing_over_a_tuple(llm: Any) -> Any:
    held = (llm,)
    return FunctionTool.from_defaults(lambda question: str(held[0].complete(question)), name="a", description="a")


def with_a_default(llm: Any) -> Any:
    def ask(question: str, model: Any = llm) -> str:
        """Ask."""
        return str(model.complete(question))

    return FunctionTool.from_defaults(lambda question: ask(question), name="a", description="a")


def decorated(llm: Any) -> Any:
    def judged(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(question: str) -> str:
            return f"{function(question)} {llm.model}"

        return wrapper

    return FunctionTool.from_defaults(judged(lambda question: question), name="b", description="b")


def fixed(*args: Any, **kwargs: Any) -> Any:
    made = functools.partial(lambda model, question: model.model, *args, **kwargs)
    return FunctionTool.from_defaults(made, name="c", description="c")


NAMED = {
    "a mapping that only reads": (lambda llm: Box(MappingProxyType({"llm": llm})), r"held\['llm'\] .*only reads"),
    "another package's object": (lambda llm: Box(others(llm)), r"held\.llm .*a CookieJar of http\.cookiejar"),
    "a variable around a function": (closing_over, r":llm .*a variable of the function .*ask"),
    "a tuple in one": (closing_over_a_tuple, "in a tuple"),
    "a decorator's variable": (decorated, r":llm .*a variable of the function .*wrapper"),
    "a default": (with_a_default, "a default of the function .*ask"),
    "a partial": (fixed, "fixed in a partial"),
    "a partial's setting": (lambda llm: fixed(model=llm), r"\(model\) .*fixed in a partial"),
}


@pytest.mark.parametrize("kind", NAMED)
def test_what_others_may_use_as_well_is_left_and_named(llm, caplog, kind):
    """With its place and the remedy, at WARNING; where there is nothing else, as an error. The LLM there stays the plain one."""
    make, told = NAMED[kind]
    part = make(llm)
    with pytest.raises(SettingsError, match=told):
        attach([part], POLICY)
    with caplog.at_level(logging.WARNING):
        attach([part, Box(llm)], POLICY)
    assert len(caplog.records) == 1
    assert "EarlyStopLLM(llm=…, policy=…)" in caplog.text
    with pytest.raises(SettingsError, match=told):  # nothing of it was changed
        attach([part], POLICY)


def test_functions_that_share_a_variable_keep_it(llm):
    """A function that the app does not give to ``attach`` may use the model as what it is."""
    engine = engine_of(llm)

    def ask(question: str) -> str:
        """Ask."""
        return f"{engine.query(question)} {llm.model}"

    def other() -> Any:
        return llm

    attach([FunctionTool.from_defaults(ask)], POLICY)
    assert other() is llm
    assert isinstance(engine._response_synthesizer._llm, EarlyStopLLM)  # an object is changed in place, as everywhere


@pytest.mark.parametrize("exclude", ["_selektor", LLMSingleSelector, ["held", "_selektor"]])
def test_an_exclusion_that_matches_nothing_is_said(llm, caplog, exclude):
    """By its name, with the places that there are: a misspelt one would have let a judge be stopped."""
    with caplog.at_level(logging.WARNING):
        attach([engine_of(llm), Box(llm)], POLICY, exclude=exclude)
    name = "LLMSingleSelector" if isinstance(exclude, type) else "_selektor"
    assert f"exclude matches nothing with {name};" in caplog.text
    assert "_response_synthesizer._llm" in caplog.text


def test_an_exclusion_that_matches_is_not(llm, caplog):
    """Nor one of a key, or of a class above."""
    with caplog.at_level(logging.WARNING):
        attach({"a": engine_of(llm), "b": Box(llm)}, POLICY, exclude=["b"])
        attach([engine_of(llm), Box(llm)], POLICY, exclude=Box)
    assert caplog.text == ""


def test_an_exclusion_of_an_object_is_an_error(llm):
    """It would match nothing."""
    with pytest.raises(SettingsError, match="types of objects and names of attributes"):
        attach([engine_of(llm)], POLICY, exclude=[llm])
