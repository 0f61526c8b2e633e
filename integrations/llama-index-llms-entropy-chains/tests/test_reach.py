"""Where ``attach`` finds an LLM, and what it says of those that it cannot reach."""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
from typing import Annotated, Any, NamedTuple

import pytest
from attached import Own, llm_of
from llama_index.core import Document, MockEmbedding, Settings, SummaryIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import MockLLM
from llama_index.core.tools import FunctionTool
from llama_index.core.workflow import StartEvent, StopEvent, Workflow, step
from llama_index.core.workflow.resource import Resource
from llama_index.llms.entropy_chains import EarlyStopLLM, attach, detach
from llms import POLICY, QUESTION, inside

from entropy_chains.errors import SettingsError


@dataclasses.dataclass
class Box:
    """A user's class."""

    held: Any


class Slotted:
    """A user's class without a ``__dict__``."""

    __slots__ = ("held",)

    def __init__(self, held: Any) -> None:
        self.held = held


class OfClass:
    """A user's class that holds an engine for all of its objects."""

    held: Any = None


class Answers(NamedTuple):
    """A user's record."""

    first: Any
    second: Any


def of_class(engine: Any) -> Any:
    return type("OfClass", (OfClass,), {"held": engine, "__module__": __name__})()


def closed_over(engine: Any) -> Any:
    def ask(question: str) -> str:
        """Ask the engine."""
        return str(engine.query(question))

    return FunctionTool.from_defaults(ask)


HOLDERS = {
    "a list": lambda engine: [engine],
    "a tuple": lambda engine: (engine,),
    "a set": lambda engine: {engine},
    "a mapping": lambda engine: {"a": {"b": engine}},
    "a user's object": Box,
    "a user's object in an object in a tuple": lambda engine: Box((Box(engine),)),
    "a slot": Slotted,
    "a class's attribute": of_class,
    "a workflow's helper": lambda engine: _with_part(Own(None), engine),
    "a tool's function": closed_over,
    "a bound method": lambda engine: FunctionTool.from_defaults(engine.query, name="q", description="d"),
    "a partial": lambda engine: functools.partial(print, engine),
    "an agent's tool": lambda engine: FunctionAgent(tools=[closed_over(engine)], llm=llm_of(engine)),
}


def _with_part(flow: Any, engine: Any) -> Any:
    flow.part = Box(engine)
    return flow


@pytest.mark.parametrize("kind", HOLDERS)
def test_an_engine_is_found_wherever_it_stands(server, index, kind):
    """In containers, the user's own objects, what a workflow holds, and what a tool's function uses; detach finds it too."""
    llm = inside(server)
    engine = index.as_query_engine(llm=llm)
    made = HOLDERS[kind](engine)
    attach(made, POLICY)
    assert isinstance(llm_of(engine), EarlyStopLLM)
    detach(made)
    assert llm_of(engine) is llm


LLMS = {
    "a tuple in an object": (lambda llm: Box((1, llm)), lambda box: box.held[1]),
    "a named tuple in a list": (lambda llm: [Answers(llm, 2)], lambda held: held[0].first),
    "a slot": (Slotted, lambda box: box.held),
}


@pytest.mark.parametrize("kind", LLMS)
def test_an_llm_in_a_tuple_or_slot_is_swapped(server, kind):
    """The tuple that holds it is replaced where it stands; its kind stays."""
    make, found = LLMS[kind]
    llm = inside(server)
    made = attach(make(llm), POLICY)
    assert found(made).llm is llm
    detach(made)
    assert found(made) is llm
    assert repr(type(made)) == repr(type(make(llm)))


GLOBAL: Any = None


def uses_a_global(question: str) -> str:
    """Ask a model of the module's own."""
    return str(GLOBAL.complete(question))


def uses_settings(question: str) -> str:
    """Ask the global model."""
    return str(Settings.llm.complete(question))


def get_llm() -> Any:
    """A resource."""


class Flow(Workflow):
    """A workflow whose model is a resource."""

    @step
    async def ask(self, event: StartEvent, llm: Annotated[Any, Resource(get_llm)]) -> StopEvent:
        """One call."""
        return StopEvent(result=str(await llm.acomplete(QUESTION)))


class FlowOfOther(Workflow):
    """One with resources that are no model."""

    @step
    async def ask(
        self, event: StartEvent, n: Annotated[int, Resource(get_llm)], m: Annotated[MockEmbedding, Resource(get_llm)]
    ) -> StopEvent:
        """No call."""
        return StopEvent()


OUT_OF_REACH = {
    "a name of the module": (lambda llm: FunctionTool.from_defaults(uses_a_global), "GLOBAL .*a name of the module"),
    "Settings": (lambda llm: FunctionTool.from_defaults(uses_settings), r"attach\(Settings"),
    "a resource": (lambda llm: Flow(), "ask:llm .*the resource get_llm"),
    "a tuple": (lambda llm: (llm,), "give a list"),
    "the LLM's method": (lambda llm: FunctionTool.from_defaults(llm.complete, name="c", description="d"), "a method of the LLM"),
}


@pytest.mark.parametrize("kind", OUT_OF_REACH)
def test_what_cannot_be_reached_is_said_with_the_remedy(server, index, caplog, monkeypatch, kind):
    """At WARNING beside what was attached; where nothing was, in the error."""
    make, told = OUT_OF_REACH[kind]
    monkeypatch.setitem(globals(), "GLOBAL", inside(server))
    part = make(inside(server))
    with pytest.raises(SettingsError, match=told):
        attach(part, POLICY)
    with caplog.at_level(logging.WARNING):
        attach([index.as_query_engine(llm=inside(server)), Box(part) if kind != "a tuple" else {"x": frozenset(["y"])}], POLICY)
    assert bool(re.search(told, caplog.text)) == (kind != "a tuple")


def test_nothing_is_said_of_what_is_no_model_or_stops_already(server, index, caplog, monkeypatch):
    """Resources of other types, a wrapped model of the module's, what was excluded: no word."""
    monkeypatch.setitem(globals(), "GLOBAL", EarlyStopLLM(inside(server), POLICY))
    tool = FunctionTool.from_defaults(uses_a_global)
    flow = Flow()
    with caplog.at_level(logging.WARNING):
        attach([index.as_query_engine(llm=inside(server)), tool, FlowOfOther(), flow], POLICY, exclude="llm")
    assert caplog.text == ""


def test_what_an_index_stores_is_not_walked(server):
    """A store may be large, and holds no LLM that an engine calls: one hidden there is not found, so it is no error."""
    index = SummaryIndex.from_documents([Document(text="x")])
    index.docstore._kvstore._collections_mappings["hidden"] = {"1": {"llm": MockLLM()}}
    assert attach(index.as_query_engine(llm=inside(server)), POLICY)
