"""Engines, chat engines, agents and workflows with the one added line, against the scripted server of the tests (a fake)."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import re
from typing import Annotated, Any, NamedTuple

import pytest
from llama_index.core import Document, MockEmbedding, Settings, SummaryIndex, VectorStoreIndex
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine, SimpleChatEngine
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RouterQueryEngine
from llama_index.core.selectors import LLMSingleSelector
from llama_index.core.tools import FunctionTool, QueryEngineTool
from llama_index.core.workflow import StartEvent, StopEvent, Workflow, step
from llama_index.core.workflow.resource import Resource
from llama_index.llms.entropy_chains import EarlyStopLLM, attach, detach
from llama_index.llms.openai_like import OpenAILike
from loopback import SURE, UNSURE, Loopback, Reply, is_answer_call, said, sums, thinking

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import NoLogprobsError, SettingsError

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))
ANSWER = "The answer is 42"
QUESTION = "What is 6*7?"


@pytest.fixture
def server():
    with Loopback() as running:
        yield running


def inside(server: Loopback) -> OpenAILike:
    return OpenAILike(
        model="scripted",
        api_base=server.url,
        api_key="none",
        is_chat_model=True,
        is_function_calling_model=True,
        context_window=8000,
    )


@pytest.fixture
def index():
    documents = [Document(text="Six times seven is 42.") for _ in range(2)]
    return VectorStoreIndex.from_documents(documents, embed_model=MockEmbedding(embed_dim=4))


def all_stopped(server: Loopback) -> bool:
    """Every reasoning request was closed by the client before its end, and followed by one for its answer."""
    server.settled()
    answered = [c for c in server.calls if is_answer_call(c.body)]
    reasoned = [c for c in server.calls if not is_answer_call(c.body)]
    closed = all(c.gone and c.made < c.planned for c in reasoned)
    return closed and len(reasoned) == len(answered) > 0


MODES = ["compact", "refine", "tree_summarize", "simple_summarize", "accumulate"]


@pytest.mark.parametrize("asynchronously", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_a_query_engine_stops_and_answers(server, index, mode, asynchronously):
    """The one added line, for every way to make an answer: each call is ended early, by the server's count."""
    engine = attach(index.as_query_engine(llm=inside(server), response_mode=mode), POLICY)
    response = asyncio.run(engine.aquery(QUESTION)) if asynchronously else engine.query(QUESTION)
    assert ANSWER in str(response)
    assert "step1" not in str(response)
    assert all_stopped(server)


@pytest.mark.parametrize("asynchronously", [False, True])
def test_a_streaming_query_engine_stops_and_answers(index, asynchronously):
    """The answer comes in parts, the thinking not at all."""
    answer = "The answer is 42 because six times seven is that"

    def script(body: dict[str, Any]) -> Reply:
        return Reply(said(answer)) if is_answer_call(body) else sums(body)

    async def run(engine: Any) -> list[str]:
        return [t async for t in (await engine.aquery(QUESTION)).response_gen if t]

    with Loopback(script) as server:
        engine = attach(index.as_query_engine(llm=inside(server), streaming=True, use_async=asynchronously), POLICY)
        tokens = asyncio.run(run(engine)) if asynchronously else [t for t in engine.query(QUESTION).response_gen if t]
        assert all_stopped(server)
    assert "".join(tokens) == answer
    assert len(tokens) > 3


def chat_engine(kind: str, index: VectorStoreIndex, llm: Any) -> Any:
    if kind == "simple":
        return SimpleChatEngine.from_defaults(llm=llm)
    cls = {"context": ContextChatEngine, "condense_plus_context": CondensePlusContextChatEngine}[kind]
    return cls.from_defaults(retriever=index.as_retriever(), llm=llm)


@pytest.mark.parametrize("kind", ["simple", "context", "condense_plus_context"])
@pytest.mark.parametrize("method", ["chat", "stream_chat", "achat", "astream_chat"])
def test_a_chat_engine_stops_and_answers(server, index, kind, method):
    """Two turns each, so that a history is condensed too; what is remembered is the answer."""
    engine = attach(chat_engine(kind, index, inside(server)), POLICY)

    async def turns() -> list[str]:
        texts = []
        for _ in range(2):
            made = await getattr(engine, method)(QUESTION) if method[0] == "a" else getattr(engine, method)(QUESTION)
            if method == "stream_chat":
                texts.append("".join(made.response_gen))
            elif method == "astream_chat":
                texts.append("".join([t async for t in made.async_response_gen()]))
            else:
                texts.append(str(made))
        return texts

    assert asyncio.run(turns()) == [ANSWER] * 2
    assert all_stopped(server)
    assert [m.content for m in engine.chat_history if m.role.value == "assistant"] == [ANSWER] * 2


# --- agents


def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


def function_script(body: dict[str, Any]) -> Reply:
    """Thinks, then calls the tool; with its result thinks again, then answers. After a stop no thinking."""
    if any(m["role"] == "tool" for m in body["messages"]):
        return sums(body)
    call = [("multiply", {"a": 6, "b": 7})]
    if is_answer_call(body):
        return Reply(tools=call)
    return Reply(thinking(UNSURE, UNSURE, SURE, SURE, SURE).tokens[:-1], tools=call, pace=0.0005)


def react_script(body: dict[str, Any]) -> Reply:
    """The same in ReAct's text."""
    text = 'Thought: I need a tool.\nAction: multiply\nAction Input: {"a": 6, "b": 7}'
    if any("Observation" in str(m["content"]) and m["role"] == "user" for m in body["messages"]):
        text = f"Thought: I can answer without using any more tools.\nAnswer: {ANSWER}"
    if is_answer_call(body):
        return Reply(said(text))
    return thinking(UNSURE, UNSURE, SURE, SURE, SURE, answer=text, pace=0.0005)


AGENTS = {
    "FunctionAgent": (FunctionAgent, function_script, {}),
    "FunctionAgent, not streamed": (FunctionAgent, function_script, {"streaming": False}),
    "ReActAgent": (ReActAgent, react_script, {}),
    "ReActAgent, not streamed": (ReActAgent, react_script, {"streaming": False}),
    "AgentWorkflow": (None, function_script, {}),
}


@pytest.mark.parametrize("kind", AGENTS)
def test_an_agent_calls_its_tool_and_answers(kind):
    """The thinking before the tool's call and before the answer is ended early; the call is made, once, with whole arguments."""
    cls, script, settings = AGENTS[kind]
    called = []

    def multiply(a: int, b: int) -> int:
        """Multiply two numbers."""
        called.append((a, b))
        return a * b

    async def run(llm: Any) -> str:
        agent = (cls or FunctionAgent)(name="calculator", description="It multiplies.", tools=[multiply], llm=llm, **settings)
        target = agent if cls else AgentWorkflow(agents=[agent])
        return str(await attach(target, POLICY).run(QUESTION))

    with Loopback(script) as server:
        assert asyncio.run(run(inside(server))) == ANSWER
        assert all_stopped(server)
        assert len(server.calls) == 4
    assert called == [(6, 7)]


# --- attach itself


class Own(Workflow):
    """A user's workflow that holds an LLM."""

    def __init__(self, llm: Any) -> None:
        super().__init__()
        self.llm = llm

    @step
    async def ask(self, event: StartEvent) -> StopEvent:
        """One call."""
        return StopEvent(result=str(await self.llm.acomplete(QUESTION)))


def test_a_users_workflow_stops_and_answers(server):
    """An attribute of a class made from LlamaIndex's is found."""
    made = attach(Own(inside(server)), POLICY)
    assert asyncio.run(_run(made)) == ANSWER
    assert all_stopped(server)


async def _run(workflow: Workflow) -> str:
    return await workflow.run()


def router(llm: Any, index: VectorStoreIndex) -> RouterQueryEngine:
    tools = [QueryEngineTool.from_defaults(index.as_query_engine(llm=llm), description=d) for d in ("sums", "others")]
    return RouterQueryEngine(LLMSingleSelector.from_defaults(llm=llm), tools, llm=llm)


def test_every_llm_is_swapped_shared_and_said(server, index, caplog):
    """A router's five places hold one wrapper around the one LLM; the log names number and places; detach undoes it."""
    llm = inside(server)
    engine = router(llm, index)
    with caplog.at_level(logging.INFO):
        assert attach(engine, POLICY) is engine
    assert "5 LLM(s)" in caplog.text
    assert "RouterQueryEngine._selector._llm" in caplog.text
    wrapper = engine._selector._llm
    assert isinstance(wrapper, EarlyStopLLM)
    assert wrapper is engine._query_engines[1]._response_synthesizer._llm
    detach(engine)
    assert engine._selector._llm is engine._query_engines[1]._response_synthesizer._llm is llm


@pytest.mark.parametrize("exclude", [LLMSingleSelector, "_selector", ["other", LLMSingleSelector]])
def test_what_is_excluded_stays(server, index, exclude):
    """By type or by the attribute's name."""
    llm = inside(server)
    engine = attach(router(llm, index), POLICY, exclude=exclude)
    assert engine._selector._llm is llm
    assert isinstance(engine._summarizer._llm, EarlyStopLLM)


def test_settings_are_a_target_too(server):
    """``attach(Settings, …)`` swaps the global LLM, and ``detach`` gives it back."""
    llm = Settings.llm = inside(server)
    try:
        attach(Settings, POLICY)
        assert isinstance(Settings.llm, EarlyStopLLM)
        detach(Settings)
        assert Settings.llm is llm
    finally:
        Settings._llm = None


def test_no_llm_is_an_error_with_the_remedy(index):
    """A retriever has none."""
    with pytest.raises(SettingsError, match=r"VectorIndexRetriever.*EarlyStopLLM"):
        attach(index.as_retriever(), POLICY)


OTHER = Policy("scripted", (0.1,), segmentation=Segmentation("line", 32))


def llm_of(engine: Any) -> Any:
    return engine._response_synthesizer._llm


def test_attaching_again_replaces(server, index):
    """A notebook's cell run again, then with another policy and settings: the new ones hold; a wrapper is never wrapped."""
    llm = inside(server)
    engine = index.as_query_engine(llm=llm)
    for policy, settings in ((POLICY, {"holdout": 0.5}), (POLICY, {}), (OTHER, {"max_steps": 3})):
        assert attach(engine, policy, **settings) is engine
        made = llm_of(engine)
        assert made.llm is llm
        assert (made.policy, made.settings, made.holdout) == (policy, settings, settings.get("holdout", 0))
    detach(engine)
    assert llm_of(engine) is llm


def test_a_wrapper_of_the_users_own_keeps_its_settings(server, index):
    """It gets the policy; ``detach`` gives it back as it was."""
    own = EarlyStopLLM(inside(server), POLICY, max_steps=7, early_stop=False)
    engine = attach(index.as_query_engine(llm=own), OTHER, early_stop=True)
    made = llm_of(engine)
    assert (made.llm, made.policy, made.max_steps, made.early_stop) == (own.llm, OTHER, 7, True)
    assert (own.policy, own.early_stop) == (POLICY, False)
    detach(engine)
    assert llm_of(engine) is own


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


def test_one_that_cannot_be_stopped_leaves_all_as_they_were(server, index):
    """Nothing is swapped when one of the LLMs gives no logprobs; the error names its class."""
    llm = inside(server)
    engine = router(llm, index)
    engine._selector._llm = MockLLM()
    with pytest.raises(NoLogprobsError, match="MockLLM"):
        attach(engine, POLICY, without_logprobs="error")
    assert engine._query_engines[0]._response_synthesizer._llm is llm
    attach(engine, POLICY, exclude=LLMSingleSelector)


def test_what_an_index_stores_is_not_walked(server):
    """A store may be large, and holds no LLM that an engine calls: one hidden there is not found, so it is no error."""
    index = SummaryIndex.from_documents([Document(text="x")])
    index.docstore._kvstore._collections_mappings["hidden"] = {"1": {"llm": MockLLM()}}
    assert attach(index.as_query_engine(llm=inside(server)), POLICY)
