"""What stands on the root of a LangSmith trace and on its model runs, and what LangSmith's own tracer carries."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import langsmith
import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.caches import InMemoryCache
from langchain_core.language_models import BaseChatModel
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tracers import LangChainTracer
from langchain_core.tracers.context import tracing_v2_enabled
from langchain_entropy_chains import EarlyStopChatModel, EarlyStopMiddleware, EarlyStopTracer, instrument, with_early_stop
from langchain_openai import ChatOpenAI
from langchain_tools import weather
from langgraph.graph import END, START, MessagesState, StateGraph
from loopback import SURE, UNSURE, Loopback, Reply, is_answer_call, said, sums, thinking

from entropy_chains import Policy
from entropy_chains.core.steps import Segmentation

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32), calibration={"remaining_tokens": [200, 160, 120]})
ASKED = {"messages": [("user", "weather in Paris?")]}
TOTALS = ("early_stop_runs", "early_stop_stopped_runs", "early_stop_tokens", "early_stop_tokens_saved_estimate")


def agentic(body):
    """Thinks, calls the tool once, thinks, answers."""
    thought = [] if is_answer_call(body) else thinking(UNSURE, SURE, SURE, SURE).tokens[:160]
    if body.get("tools") and not any(message["role"] == "tool" for message in body["messages"]):
        return Reply(thought, tools=[("weather", {"place": "Paris"})], pace=0.001)
    return Reply([*thought, *said("The answer is sunny")], pace=0.001)


@pytest.fixture
def server():
    with Loopback(agentic) as running:
        yield running


def chat(server, **settings):
    return ChatOpenAI(model="scripted", base_url=server.url, api_key="none", max_retries=0, **settings)


def agent(server, *before):
    return create_agent(chat(server), [weather], middleware=[*before, EarlyStopMiddleware(POLICY)])


def below_another(server):
    class Passing(AgentMiddleware):
        def wrap_model_call(self, request, handler):
            return handler(request)

        async def awrap_model_call(self, request, handler):
            return await handler(request)

    return agent(server, Passing())


def as_a_node(server):
    graph = StateGraph(MessagesState).add_node("agent", agent(server))
    return graph.add_edge(START, "agent").add_edge("agent", END).compile()


def nodes(server):
    model = with_early_stop(chat(server), POLICY)

    def think(state):
        return {"messages": [model.invoke(state["messages"])]}

    graph = StateGraph(MessagesState).add_node("one", think).add_node("two", think)
    return graph.add_edge(START, "one").add_edge("one", "two").add_edge("two", END).compile()


def found_on(run):
    return {name: value for name, value in run["extra"]["metadata"].items() if name.startswith("early_stop_")}


def holders(receiver):
    """The runs that have totals."""
    return [run for run in receiver.runs.values() if "early_stop_runs" in found_on(run)]


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream"])
@pytest.mark.parametrize("make", [agent, below_another, as_a_node, nodes])
def test_the_root_has_everything_and_nothing_else_has_totals(server, receiver, make, way):
    """Agents, middleware inside middleware, subgraphs, plain graphs: totals, tag, policy, holdout, share, feedback, once each."""
    tracer = EarlyStopTracer(client=receiver.client(), project_name="p", feedback=True)
    graph, config = make(server), {"callbacks": [tracer]}
    if way == "ainvoke":
        asyncio.run(graph.ainvoke(ASKED, config))
    else:
        _ = graph.invoke(ASKED, config) if way == "invoke" else list(graph.stream(ASKED, config, stream_mode="messages"))
    tracer.wait_for_futures()
    tracer.client.flush()
    (root,) = receiver.roots()
    totals, each = found_on(root), [found_on(run) for run in receiver.llm()]
    assert holders(receiver) == [root]
    assert "early-stopped" in root["tags"]
    assert totals["early_stop_tokens"] == sum(run["early_stop_tokens"] for run in each)
    assert 0 <= server.settled() - totals["early_stop_tokens"] < 20  # what was on its way when a stream was closed
    saved = sum(run["early_stop_tokens_saved_estimate"] for run in each)
    assert (totals["early_stop_runs"], totals["early_stop_stopped_runs"]) == (2, 2)
    assert (totals["early_stop_tokens_saved_estimate"], saved > 0) == (saved, True)
    assert totals["early_stop_tokens_saved_share"] == pytest.approx(saved / (saved + totals["early_stop_tokens"]), abs=1e-4)
    assert (totals["early_stop_policy"], totals["early_stop_holdout"]) == (POLICY.fingerprint, False)
    scores = {(f["key"], f["run_id"]): f["score"] for f in receiver.feedback}
    assert scores == {("early_stop_tokens_saved", root["id"]): saved, ("early_stop_stopped", root["id"]): 2}
    assert len(receiver.feedback) == 2


def test_several_chains_below_a_traceable_function_are_one_root(server, receiver):
    """LangSmith's own run is the root: the totals of all of them stand there alone, and its feedback is set anew, not added."""
    client = receiver.client()
    tracer = EarlyStopTracer(client=client, project_name="p", feedback=True)
    chain = ChatPromptTemplate.from_template("{x}") | EarlyStopChatModel(chat(server), POLICY)

    @langsmith.traceable(client=client, project_name="p", enabled=True)
    def outer():
        return len([chain.invoke({"x": "q"}, {"callbacks": [tracer]}) for _ in range(2)])

    with langsmith.tracing_context(enabled=True, client=client, project_name="p"):
        outer()
    tracer.wait_for_futures()
    client.flush()
    (root,) = receiver.roots()
    assert (root["name"], holders(receiver)) == ("outer", [root])
    each = [found_on(run) for run in receiver.llm()]
    assert found_on(root)["early_stop_tokens"] == sum(run["early_stop_tokens"] for run in each)
    assert found_on(root)["early_stop_runs"] == 2
    scores = {(f["key"], f["run_id"]): f["score"] for f in receiver.feedback}
    saved = found_on(root)["early_stop_tokens_saved_estimate"]
    assert scores == {("early_stop_tokens_saved", root["id"]): saved, ("early_stop_stopped", root["id"]): 2}
    assert len(receiver.feedback) == 2


def test_each_row_of_the_chart_recipe_can_be_drawn(server, receiver):
    """Root runs have each metric's score or tokens, and each group's metadata: by policy and by holdout."""
    tracer = EarlyStopTracer(client=receiver.client(), project_name="p", feedback=True)
    for holdout in (0.0, 1.0):
        graph = create_agent(chat(server), [weather], middleware=[EarlyStopMiddleware(POLICY, holdout=holdout)])
        graph.invoke(ASKED, {"callbacks": [tracer]})
    tracer.wait_for_futures()
    tracer.client.flush()
    roots = {found_on(root)["early_stop_holdout"]: root for root in receiver.roots()}
    scores = {(f["key"], f["run_id"]): f["score"] for f in receiver.feedback}
    tokens = dict.fromkeys((True, False), 0)
    for run in receiver.llm():
        tokens[found_on(run)["early_stop_holdout"]] += run["extra"]["metadata"]["usage_metadata"]["output_tokens"]
    assert {found_on(root)["early_stop_policy"] for root in roots.values()} == {POLICY.fingerprint}
    saved = {held: scores["early_stop_tokens_saved", root["id"]] for held, root in roots.items()}
    stops = {held: scores["early_stop_stopped", root["id"]] for held, root in roots.items()}
    assert (saved[True], saved[False] > 0, stops) == (0, True, {True: 0, False: 2})
    assert tokens[False] < tokens[True] == found_on(roots[True])["early_stop_tokens"]


# --- LangSmith's own tracer


def drained(stream):
    async def run():
        return [each async for each in stream]

    return asyncio.run(run())


RUNS = {
    "invoke": lambda m, c: m.invoke("q", c),
    "stream": lambda m, c: list(m.stream("q", c)),
    "batch": lambda m, c: m.batch(["q"], c),
    "ainvoke": lambda m, c: asyncio.run(m.ainvoke("q", c)),
    "astream": lambda m, c: drained(m.astream("q", c)),
    "messages": lambda m, c: list(create_agent(m).stream(ASKED, c, stream_mode="messages")),
    "chain": lambda m, c: list((ChatPromptTemplate.from_template("{x}") | m).stream({"x": "q"}, c)),
}


@pytest.mark.parametrize("way", RUNS)
@pytest.mark.parametrize("make", [lambda m: EarlyStopChatModel(m, POLICY), lambda m: instrument(m, POLICY)], ids=["wrap", "inst"])
def test_langsmiths_own_tracer_carries_the_model_run(server, receiver, make, way):
    """Without a tracer of ours: the table as metadata of the model run, the tag, and the package among the versions."""
    client = receiver.client()
    RUNS[way](make(chat(server)), {"callbacks": [LangChainTracer(client=client, project_name="p")]})
    client.flush()
    (run,) = receiver.llm()
    metadata = run["extra"]["metadata"]
    assert found_on(run)["early_stop_stopped"] is True
    assert 0 <= server.settled() - found_on(run)["early_stop_tokens"] < 20
    assert "early-stopped" in run["tags"]
    own = {"langchain-openai"} if hasattr(BaseChatModel, "_add_version") else set()  # older ones tell no versions
    assert metadata["lc_versions"].keys() >= {"langchain-entropy-chains", *own}


@pytest.mark.parametrize("way", ["invoke", "stream", "astream"])
def test_a_tracer_of_the_environment_carries_it_too(server, receiver, way):
    """As LANGSMITH_TRACING=true does it: nothing stands in the config."""
    client = receiver.client()
    with tracing_v2_enabled(project_name="p", client=client):
        RUNS[way](EarlyStopChatModel(chat(server), POLICY), None)
    client.flush()
    (run,) = receiver.llm()
    assert found_on(run)["early_stop_stopped"] is True


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_cached_reply_is_neither_computed_nor_saved(server, receiver, asynchronous):
    """The same text again: no tokens, no stop, no saving, on the message, the run and the root, also without a usage."""
    server.script = lambda body: replace(sums(body), pace=0.001)
    tracer = EarlyStopTracer(client=receiver.client(), project_name="p")
    model = EarlyStopChatModel(chat(server, cache=InMemoryCache(), stream_usage=False), POLICY)
    run = (lambda c: asyncio.run(model.ainvoke("q", c))) if asynchronous else (lambda c: model.invoke("q", c))
    first = run({})
    made = len(server.calls)
    again = run({"callbacks": [tracer]})
    tracer.client.flush()
    assert (len(server.calls), again.content) == (made, first.content)
    assert first.response_metadata["early_stop_stopped"]
    (only,) = receiver.roots()
    for told in (again.response_metadata, found_on(only)):
        assert told["early_stop_reason"] == "answered from the cache"
        assert (told["early_stop_stopped"], told["early_stop_tokens"]) == (False, 0)
        assert "early_stop_tokens_saved_estimate" not in told
    assert not holders(receiver)
