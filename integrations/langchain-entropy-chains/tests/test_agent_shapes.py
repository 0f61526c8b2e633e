"""EarlyStopMiddleware beside other middlewares and with every kind of model: it stops, or says that it cannot; no agent breaks."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import warnings
from dataclasses import replace
from uuid import UUID

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
    ModelCallLimitMiddleware,
    ModelFallbackMiddleware,
    SummarizationMiddleware,
    ToolCallLimitMiddleware,
    wrap_model_call,
)
from langchain.chat_models import init_chat_model
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from langchain_entropy_chains import EarlyStopChatModel, EarlyStopMiddleware, EarlyStopTracer, instrument
from langchain_openai import ChatOpenAI
from langchain_tools import weather
from langgraph.graph import END, START, MessagesState, StateGraph
from langsmith_receiver import Receiver
from loopback import Loopback, Reply, said, sums

from entropy_chains import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import EntropyChainsError, PolicyMismatch

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))
ASKED = {"messages": [("user", "q")]}


def chat(server, **settings):
    given = {"model": "scripted", "base_url": server.url, "api_key": "none", "max_retries": 0} | settings
    return ChatOpenAI(**given)


def dead(server, **settings):
    return chat(server, base_url="http://127.0.0.1:9/v1", **settings)


@pytest.fixture
def server():
    with Loopback(lambda body: replace(sums(body), pace=0.001)) as running:
        yield running


MODELS = {
    "fallbacks": lambda s: dead(s).with_fallbacks([chat(s)]),
    "retry": lambda s: chat(s).with_retry(),
    "bound": lambda s: chat(s).bind(temperature=0.3),
    "config": lambda s: chat(s).with_config(tags=["t"]),
    "configurable": lambda s: init_chat_model(
        "openai:scripted", configurable_fields=("temperature",), base_url=s.url, api_key="none"
    ),
    "wrapped": lambda s: EarlyStopChatModel(chat(s), POLICY),
    "instrumented": lambda s: instrument(chat(s), POLICY),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_of_any_kind_stops_in_an_agent(server, kind):
    """What an agent takes as its model without the middleware it takes with it, and the call is stopped and counted."""
    plain = create_agent(MODELS[kind](server)).invoke(ASKED)["messages"][-1].content
    agent = create_agent(MODELS[kind](server), middleware=[EarlyStopMiddleware(POLICY)])
    for state in (agent.invoke(ASKED), asyncio.run(agent.ainvoke(ASKED))):
        assert state["messages"][-1].content == plain == "The answer is 42"
        assert (state["early_stop_calls"], state["early_stop_stopped"]) == (1, 1)


def test_what_holds_no_chat_model_is_passed_with_a_word(server):
    """A function in a model's place works as before; a warning says that nothing is stopped."""

    class Odd(RunnableLambda):
        profile = None

    def answer(messages):
        return AIMessage("by hand")

    with pytest.warns(UserWarning, match="no chat model is in reach in this Odd"):
        state = create_agent(Odd(answer), middleware=[EarlyStopMiddleware(POLICY)]).invoke(ASKED)
    assert (state["messages"][-1].content, state["early_stop_calls"]) == ("by hand", 0)


def early():
    return EarlyStopMiddleware(POLICY)


def selecting(model):
    @wrap_model_call
    def select(request, handler):
        return handler(request.override(model=model))

    return select


BESIDE = {
    "selection": lambda s: (dead(s), selecting(chat(s))),
    "fallback": lambda s: (dead(s), ModelFallbackMiddleware(chat(s))),
    "summarisation": lambda s: (chat(s), SummarizationMiddleware(chat(s), trigger=("messages", 2), keep=("messages", 1))),
    "model limit": lambda s: (chat(s), ModelCallLimitMiddleware(run_limit=3)),
    "tool limit": lambda s: (chat(s), ToolCallLimitMiddleware(run_limit=3)),
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("beside", BESIDE)
def test_any_place_in_the_list(server, beside, first):
    """Before or after a middleware that sets the model, or does other things: one call, stopped and counted, without a warning."""
    model, other = BESIDE[beside](server)
    agent = create_agent(model, middleware=[early(), other] if first else [other, early()])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        state = agent.invoke({"messages": [("user", "q"), ("ai", "a"), ("user", "q")]})
    assert (state["messages"][-1].content, state["early_stop_calls"], state["early_stop_stopped"]) == ("The answer is 42", 1, 1)


@pytest.mark.parametrize("first", [True, False])
def test_a_model_that_the_policy_is_not_for_runs_in_full(server, first):
    """A fallback of another name answers as before: no error in an agent that worked, a reason and a warning."""
    other = ModelFallbackMiddleware(chat(server, model="another"))
    agent = create_agent(dead(server), middleware=[early(), other] if first else [other, early()])
    with pytest.warns(UserWarning, match="this is another one, 'another'"):
        state = agent.invoke(ASKED)
    assert (state["messages"][-1].content, state["early_stop_stopped"]) == ("The answer is 42", 0)


def test_one_that_answers_itself_is_said(server):
    """A middleware further in that asks a model of its own: nothing was stopped, and a warning says why."""

    class Own(AgentMiddleware):
        def wrap_model_call(self, request, handler):
            return chat(server).invoke(request.messages)

    with pytest.warns(UserWarning, match="another middleware answered, or asked another model"):
        state = create_agent(chat(server), middleware=[early(), Own()]).invoke(ASKED)
    assert state["messages"][-1].content == "The answer is 42"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"colour": "red"}, "colour"),
        ({"on_mismatch": "never"}, "on_mismatch"),
        ({"holdout": 3.0}, "holdout is 3.0"),
        ({"k": 0}, "k is 0"),
        ({"early_stop": False}, "early_stop"),
        ({"temperature": 0.1}, "temperature"),
    ],
)
def test_settings_are_checked_when_it_is_built(settings, message):
    """A wrong name or value is an error before any agent runs."""
    with pytest.raises(EntropyChainsError, match=message):
        EarlyStopMiddleware(POLICY, **settings)
    with pytest.raises(PolicyMismatch, match="refine"):
        EarlyStopMiddleware(replace(POLICY, mode="refine"))


# --- the holdout


def calls_tools(body):
    """Three tool calls, then the answer."""
    if sum(m["role"] == "tool" for m in body["messages"]) < 3:
        return Reply(said("let me look"), tools=[("weather", {"place": "Paris"})])
    return Reply(said("The answer is sunny"))


def drawn(state):
    return {m.response_metadata["early_stop_holdout"] for m in state["messages"] if m.type == "ai"}


def held_by(root):
    """Whether an agent run under this root run would be held out, at half."""
    from entropy_chains import is_holdout

    return is_holdout(str(root), share=0.5)


@pytest.mark.parametrize("traced", [False, True])
def test_an_agent_run_is_drawn_as_a_whole(traced):
    """By its root run, also where LangSmith puts runs of its own around the middleware."""
    with Loopback(calls_tools) as server, Receiver() as receiver:
        agent = create_agent(chat(server), [weather], middleware=[EarlyStopMiddleware(POLICY, holdout=0.5)])
        for number in range(1, 9):
            root = UUID(int=number)
            callbacks = [EarlyStopTracer(client=receiver.client(), project_name="p")] if traced else []
            found = drawn(agent.invoke(ASKED, {"run_id": root, "callbacks": callbacks}))
            assert found == {held_by(root)}, number


INSIDE = """
import sys
from uuid import UUID
sys.path[:0] = {path!r}
from langchain.agents import create_agent
from langchain_core.runnables import RunnableLambda
from langchain_entropy_chains import with_early_stop
from langchain_openai import ChatOpenAI
from entropy_chains import Policy
from loopback import Loopback, sums

def ask(text):
    model = ChatOpenAI(model="scripted", base_url=server.url, api_key="none")
    return with_early_stop(model, Policy("scripted", (0.2,)), holdout=0.5).invoke(text)

with Loopback(sums) as server:
    chain = {{str(n): RunnableLambda(lambda x: x) | ask for n in range(6)}} | RunnableLambda(lambda found: found)
    found = chain.invoke("q", {{"run_id": UUID(int=1)}})
    print({{m.response_metadata["early_stop_holdout"] for m in found.values()}})
"""


def test_the_first_run_of_a_process_is_drawn_as_a_whole():
    """Also where the model is made inside that run."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", INSIDE.format(path=sys.path)], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == str({held_by(UUID(int=1))}), done.stderr[-500:]


def test_a_run_below_a_retriever_belongs_to_the_root(server):
    """A retriever that asks a model itself: that call is drawn with all others."""
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever

    model = EarlyStopChatModel(chat(server), POLICY, holdout=0.5)

    class Asks(BaseRetriever):
        def _get_relevant_documents(self, query, *, run_manager):
            found = model.invoke(query, {"callbacks": run_manager.get_child()})
            return [Document(str(found.response_metadata["early_stop_holdout"]))]

    for number in range(1, 5):
        root = UUID(int=number)
        chain = RunnableLambda(lambda text: text) | {"a": Asks(), "b": model}
        found = chain.invoke("q", {"run_id": root})
        held = (found["a"][0].page_content, str(found["b"].response_metadata["early_stop_holdout"]))
        assert held == (str(held_by(root)),) * 2


def test_a_subgraph_belongs_to_the_root():
    """An agent as a node of a graph: all calls are drawn by the graph's run."""
    with Loopback(calls_tools) as server:
        agent = create_agent(chat(server), [weather], middleware=[EarlyStopMiddleware(POLICY, holdout=0.5)])
        graph = StateGraph(MessagesState).add_node("agent", agent).add_edge(START, "agent").add_edge("agent", END).compile()
        for number in range(1, 5):
            root = UUID(int=number)
            assert drawn(graph.invoke(ASKED, {"run_id": root})) == {held_by(root)}
