"""EarlyStopMiddleware in create_agent, against a scripted server that speaks real HTTP, and on the bundled model."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, HumanInTheLoopMiddleware, ModelRetryMiddleware
from langchain.agents.structured_output import ToolStrategy
from langchain_core.messages import AIMessage, ToolMessage
from langchain_entropy_chains import ChatTransformers, EarlyStopChatModel, EarlyStopMiddleware
from langchain_openai import ChatOpenAI
from langchain_tools import multiply
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from loopback import SURE, UNSURE, Loopback, Reply, is_answer_call, line, said, thinking
from pydantic import BaseModel

from entropy_chains import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.demo import MODEL_FOLDER, MODEL_NAME

SURELY = Policy("m", thresholds=(0.5,), segmentation=Segmentation("line", 32))
FOR_AGENTS = replace(SURELY, scope="agent")
THOUGHT = line("I know it. ", SURE)


CALL = [("multiply", {"a": 34, "b": 7})]


def agent_script(rounds: int = 1, entropy: float = SURE):
    """A model that thinks, calls the tool ``rounds`` times where it may, then answers; after a stop it does the same at once."""

    def script(body):
        results = sum(m["role"] == "tool" for m in body["messages"])
        calls = CALL if results < rounds and body.get("tool_choice") != "none" and body.get("tools") else []
        long = thinking(entropy, entropy, entropy, answer="" if calls else "238").tokens
        return Reply((() if calls else said("238")) if is_answer_call(body) else long, tools=calls, pace=0.002)

    return script


def model(server, **settings):
    return ChatOpenAI(base_url=server.url, api_key="none", model="m", **settings)


ASKED = {"messages": [{"role": "user", "content": "34*7=?"}]}
MODES = ["invoke", "ainvoke", "values", "updates", "messages", "custom", "a:updates", "a:messages"]


def final(agent, mode, asked=ASKED, config=None):
    """The agent's last state, by any way of running it."""
    config = config or {"configurable": {"thread_id": "1"}}

    async def drained():
        return [c async for c in agent.astream(asked, config, stream_mode=mode[2:])]

    if mode == "invoke":
        return agent.invoke(asked, config)
    if mode == "ainvoke":
        return asyncio.run(agent.ainvoke(asked, config))
    _ = asyncio.run(drained()) if mode.startswith("a:") else list(agent.stream(asked, config, stream_mode=mode))
    return agent.get_state(config).values


@pytest.mark.parametrize("mode", MODES)
def test_thinking_is_stopped_inside_every_call(mode):
    """Sync, async and every stream mode: both calls are cut short on the server, the tool runs, and the totals add up."""
    with Loopback(script=agent_script()) as server:
        agent = create_agent(model(server), [multiply], middleware=[EarlyStopMiddleware(SURELY)], checkpointer=InMemorySaver())
        state = final(agent, mode)
        server.settled()
        cut = [c for c in server.calls if c.planned > 60]
    assert [type(m).__name__ for m in state["messages"]] == ["HumanMessage", "AIMessage", "ToolMessage", "AIMessage"]
    assert (state["messages"][2].content, state["messages"][3].content) == ("238", "238")
    assert (state["early_stop_calls"], state["early_stop_stopped"]) == (2, 2)
    told = [m.response_metadata["early_stop_tokens"] for m in state["messages"] if isinstance(m, AIMessage)]
    assert state["early_stop_tokens"] == sum(told)
    assert len(cut) == 2
    assert all(c.made < c.planned for c in cut)


def test_a_policy_for_calls_never_ends_the_loop():
    """Sure in every call, and still all three tool calls are made: only thinking is cut."""
    with Loopback(script=agent_script(rounds=3)) as server:
        agent = create_agent(model(server), [multiply], middleware=[EarlyStopMiddleware(SURELY)])
        state = agent.invoke(ASKED)
    assert sum(isinstance(m, ToolMessage) for m in state["messages"]) == 3
    assert state["early_stop_stopped"] == 4


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_policy_for_agents_ends_the_loop(asynchronous):
    """After the first sure call the next may call no tool: one tool call, each answered, and the answer is there."""
    with Loopback(script=agent_script(rounds=3)) as server:
        agent = create_agent(model(server), [multiply], middleware=[EarlyStopMiddleware(FOR_AGENTS)])
        state = asyncio.run(agent.ainvoke(ASKED)) if asynchronous else agent.invoke(ASKED)
        choices = [c.body.get("tool_choice") for c in server.calls]
    calls = [c["id"] for m in state["messages"] if isinstance(m, AIMessage) for c in m.tool_calls]
    assert calls == [m.tool_call_id for m in state["messages"] if isinstance(m, ToolMessage)]
    assert len(calls) == 1
    assert state["messages"][-1].content == "238"
    assert choices[0] is None
    assert choices[-1] == "none"


def test_an_unsure_agent_goes_on():
    """Nothing is stopped and no call is forbidden where entropy stays high, whatever the policy's scope."""
    with Loopback(script=agent_script(rounds=2, entropy=UNSURE)) as server:
        agent = create_agent(model(server), [multiply], middleware=[EarlyStopMiddleware(FOR_AGENTS)])
        state = agent.invoke(ASKED)
    assert sum(isinstance(m, ToolMessage) for m in state["messages"]) == 2
    assert (state["early_stop_calls"], state["early_stop_stopped"]) == (3, 0)


def test_a_new_turn_begins_unsure():
    """What was sure in the turn before does not forbid tools in the next one; totals go on over the thread."""
    with Loopback(script=agent_script(rounds=99)) as server:
        agent = create_agent(model(server), [multiply], middleware=[EarlyStopMiddleware(FOR_AGENTS)], checkpointer=InMemorySaver())
        config = {"configurable": {"thread_id": "1"}}
        first = agent.invoke(ASKED, config)
        second = agent.invoke(ASKED, config)
    tools = [sum(isinstance(m, ToolMessage) for m in s["messages"]) for s in (first, second)]
    assert tools == [1, 2]
    assert (first["early_stop_calls"], second["early_stop_calls"]) == (2, 4)


def test_a_structured_response_is_not_given_up():
    """With a response format tools stay allowed, since the response is one."""

    class Product(BaseModel):
        value: int

    def script(body):
        done = any(m["role"] == "tool" for m in body["messages"])
        calls = [("Product", {"value": 238})] if done else CALL
        return Reply(() if is_answer_call(body) else [*THOUGHT, *THOUGHT], tools=calls)

    with Loopback(script=script) as server:
        middleware = [EarlyStopMiddleware(FOR_AGENTS)]
        agent = create_agent(model(server), [multiply], middleware=middleware, response_format=ToolStrategy(Product))
        with pytest.warns(UserWarning, match="not stopped"):
            assert agent.invoke(ASKED)["structured_response"] == Product(value=238)


class Forced(AgentMiddleware):
    """Demands a tool call until the tool was called twice."""

    def wrap_model_call(self, request, handler):
        called = sum(isinstance(m, ToolMessage) for m in request.messages)
        return handler(request.override(tool_choice="multiply" if called < 2 else None))


def test_a_demanded_tool_call_is_not_forbidden():
    """Sure, and still told to call: the loop ends only once the model is free to answer."""

    def script(body):
        results = sum(m["role"] == "tool" for m in body["messages"])
        calls = CALL if body.get("tool_choice") != "none" else []
        return Reply(
            said("238") if is_answer_call(body) else thinking(SURE, SURE, answer="238").tokens, tools=calls * (results < 9)
        )

    sure = AIMessage("", tool_calls=[{"name": "multiply", "args": {"a": 1, "b": 2}, "id": "0"}])
    sure.response_metadata["early_stop_stopped"] = True
    with Loopback(script=script) as server:
        agent = create_agent(model(server), [multiply], middleware=[Forced(), EarlyStopMiddleware(FOR_AGENTS)])
        with pytest.warns(UserWarning, match="a tool call is forced"):
            state = agent.invoke({"messages": [*ASKED["messages"], sure, ToolMessage("2", tool_call_id="0")]})
        choices = [c.body.get("tool_choice") for c in server.calls]
    assert choices[0]["function"]["name"] == "multiply"
    assert set(choices[1:]) == {"none"}
    assert state["messages"][-1].content == "238"


def test_an_interrupted_agent_is_resumed():
    """A human approves the tool call in a later run from the checkpoint: nothing is lost, and the totals hold both runs."""
    with Loopback(script=agent_script()) as server:
        middleware = [EarlyStopMiddleware(SURELY), HumanInTheLoopMiddleware(interrupt_on={"multiply": True})]
        agent = create_agent(model(server), [multiply], middleware=middleware, checkpointer=InMemorySaver())
        config = {"configurable": {"thread_id": "1"}}
        assert "__interrupt__" in agent.invoke(ASKED, config)
        state = agent.invoke(Command(resume={"decisions": [{"type": "approve"}]}), config)
    assert state["messages"][-1].content == "238"
    assert (state["early_stop_calls"], state["early_stop_stopped"]) == (2, 2)


def test_an_interrupt_inside_a_call_passes_through():
    """An interrupt raised below the middleware reaches the graph, sync and async."""
    from langgraph.types import interrupt

    class Asks(AgentMiddleware):
        def wrap_model_call(self, request, handler):
            interrupt("may I?")
            return handler(request)

    with Loopback(script=agent_script(rounds=0)) as server:
        agent = create_agent(model(server), middleware=[EarlyStopMiddleware(SURELY), Asks()], checkpointer=InMemorySaver())
        config = {"configurable": {"thread_id": "1"}}
        assert agent.invoke(ASKED, config)["__interrupt__"][0].value == "may I?"
        assert agent.invoke(Command(resume="yes"), config)["messages"][-1].content == "238"


def test_a_retry_beside_it_repeats_nothing():
    """A stop is no error: the retrying middleware sees one good call."""
    with Loopback(script=agent_script(rounds=0)) as server:
        middleware = [ModelRetryMiddleware(max_retries=3), EarlyStopMiddleware(SURELY)]
        state = create_agent(model(server), middleware=middleware).invoke(ASKED)
    assert state["early_stop_calls"] == 1


@pytest.mark.parametrize("mode", ["custom", "a:custom"])
def test_each_call_is_told_in_the_custom_stream(mode):
    """One event a call, with the contract's table."""
    with Loopback(script=agent_script()) as server:
        agent = create_agent(model(server), [multiply], middleware=[EarlyStopMiddleware(SURELY)])

        async def drained():
            return [e async for e in agent.astream(ASKED, stream_mode="custom")]

        events = asyncio.run(drained()) if mode.startswith("a:") else list(agent.stream(ASKED, stream_mode="custom"))
    assert [e["early_stop"]["early_stop_stopped"] for e in events] == [True, True]
    assert {"early_stop_reason", "early_stop_tokens", "early_stop_step"} <= set(events[0]["early_stop"])


def test_the_users_model_is_left_as_it_was():
    """Neither the object nor what an agent without the middleware does with it."""
    with Loopback(script=agent_script(rounds=0)) as server:
        plain = model(server)
        before = plain.model_dump()
        create_agent(plain, middleware=[EarlyStopMiddleware(SURELY)]).invoke(ASKED)
        assert plain.model_dump() == before
        assert "early_stop_stopped" not in create_agent(plain).invoke(ASKED)["messages"][-1].response_metadata


def test_one_policy_for_a_model_that_stops_by_itself(tmp_path):
    """A wrapper or a local model is not wrapped again: it gets the middleware's policy, by its file's path as well."""
    SURELY.save(tmp_path / "policy.json")
    with Loopback(script=agent_script(rounds=0)) as server:
        wrapped = EarlyStopChatModel(model(server), replace(SURELY, thresholds=(0.0,)))
        state = create_agent(wrapped, middleware=[EarlyStopMiddleware(tmp_path / "policy.json")]).invoke(ASKED)
        assert state["early_stop_stopped"] == 1


@pytest.mark.parametrize("mode", ["invoke", "ainvoke", "updates", "a:messages"])
def test_an_agent_on_a_local_model(mode):
    """The bundled model in an agent: stopped in place, the answer right, the totals in the state."""
    from entropy_chains.backends.transformers import TransformersBackend  # torch: not where the oldest LangChain is tested

    backend = TransformersBackend.from_pretrained(MODEL_FOLDER, name=MODEL_NAME)
    policy = Policy(MODEL_NAME, thresholds=(0.2,), segmentation=backend.segmentation, template=backend.template)
    llm = ChatTransformers(backend=backend, temperature=0, max_tokens=600)
    agent = create_agent(llm, middleware=[EarlyStopMiddleware(policy)], checkpointer=InMemorySaver())
    state = final(agent, mode)
    assert state["messages"][-1].content == "238"
    assert state["early_stop_stopped"] == 1
    assert llm.policy is None
