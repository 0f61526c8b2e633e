"""Agents that end their loop when sure, over real HTTP, against the scripted server of the tests."""

from __future__ import annotations

import asyncio
import json

import pytest
from llama_index.core.agent.workflow import AgentOutput, AgentWorkflow, FunctionAgent
from llama_index.core.workflow import Context
from llama_index.llms.entropy_chains.agents import EarlyStopFunctionAgent, EarlyStopReActAgent, StepEntropyEvent
from llama_index.llms.openai_like import OpenAILike
from loopback import SURE, UNSURE, Loopback, Reply, line, said

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import PolicyMismatch, SettingsError

POLICY = Policy(
    "scripted",
    (0.2,),
    mode="refine",
    scope="agent",
    segmentation=Segmentation("call", 1),
    calibration={"remaining_tokens": [90, 60, 30]},
)
WANTED = 6
"""Searches that the scripted model makes if it may, before it answers by itself."""


def search(query: str) -> str:
    """Look something up."""
    return f"found {query}"


def function_script(sure_from=2, refuses=False, empty=False):
    """A model that calls a tool until it has made its searches, sure from the given step on; without tools it answers."""

    def script(body):
        results = sum(m["role"] == "tool" for m in body["messages"])
        if not body.get("tools"):
            if refuses and results < 4:
                return Reply(line("again", SURE, reasoning=False), tools=[("search", {"query": "once more"})])
            return Reply([] if empty else said(f"answer after {results}"))
        if results >= WANTED:
            return Reply(said(f"answer after {results}"))
        entropy = SURE if results + 1 >= sure_from else UNSURE
        return Reply(line("I look it up now", entropy, reasoning=False), tools=[("search", {"query": str(results)})])

    return script


def react_script(body):
    """The same in ReAct's words; without tools in the prompt it answers."""
    text = json.dumps(body["messages"])
    results = text.count("Observation: found")
    if "Look something up" not in text or results >= WANTED:
        return Reply(said(f"Thought: I can answer.\nAnswer: answer after {results}"))
    entropy = SURE if results >= 1 else UNSURE
    call = f'Thought: I look it up.\nAction: search\nAction Input: {{"query": "{results}"}}'
    return Reply(said(call, entropy))


def llm_at(server, **settings):
    given = {"logprobs": True, "top_logprobs": 20, "is_chat_model": True, "is_function_calling_model": True} | settings
    return OpenAILike(model="scripted", api_base=server.url, api_key="none", **given)


def agent_at(server, cls=EarlyStopFunctionAgent, policy=POLICY, **settings):
    logprobs = settings.pop("llm", {})
    return cls(name="asker", tools=[search], llm=llm_at(server, **logprobs), policy=policy, **settings)


async def run(agent, question="What is it?", **settings):
    handler = agent.run(question, **settings)
    events = [event async for event in handler.stream_events()]
    return await handler, events


def workflow(agent):
    return AgentWorkflow(agents=[agent], root_agent=agent.name)


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("around", [lambda agent: agent, workflow], ids=["agent", "workflow"])
async def test_a_sure_step_is_followed_by_one_without_tools(around, streaming):
    """Three calls instead of seven, an answer with the results in view, the table on the output."""
    with Loopback(function_script()) as server:
        output, events = await run(around(agent_at(server, streaming=streaming)))
    assert output.response.content == "answer after 2"
    assert [bool(c.body.get("tools")) for c in server.calls] == [True, True, False]
    told = output.early_stop
    assert (told["early_stop_stopped"], told["early_stop_step"], told["early_stop_active"]) == (True, 2, True)
    assert (told["early_stop_tokens_saved_estimate"], told["early_stop_policy"]) == (60, POLICY.fingerprint)
    assert told["early_stop_tokens"] == server.made
    steps = [e for e in events if isinstance(e, StepEntropyEvent)]
    assert [(e.step, round(e.entropy, 2), e.threshold, e.sure) for e in steps] == [
        (1, UNSURE, 0.2, False),
        (2, SURE, 0.2, True),
        (3, SURE, 0.2, False),
    ]
    assert output.model_dump()["_data"]["early_stop"] == told  # where events keep further fields


async def test_react_agents_answer_when_sure():
    """The step without tools shows the model none; its answer ends the loop."""
    with Loopback(react_script) as server:
        output, _ = await run(agent_at(server, EarlyStopReActAgent))
    assert "answer after 2" in output.response.content
    assert len(server.calls) == 3
    assert output.early_stop["early_stop_stopped"] is True


@pytest.mark.parametrize(
    ("settings", "environment", "why"),
    [
        ({"policy": None}, "1", "no policy: measuring only"),
        ({"early_stop": False}, "1", "stopping is switched off"),
        ({}, "0", "stopping is switched off"),
        ({"policy": Policy("scripted", (0.2,))}, "1", "scope 'call'"),
        ({"policy": Policy("scripted", (0.2,), scope="call", segmentation=Segmentation("call", 1))}, "1", "scope 'call'"),
        ({"policy": Policy("scripted", (0.01,), scope="agent", segmentation=Segmentation("call", 1))}, "1", "ended by itself"),
        ({"llm": {"logprobs": None}}, "1", "without logprobs"),
    ],
)
async def test_otherwise_the_loop_runs_in_full(settings, environment, why, monkeypatch):
    """No policy, one for calls, switched off, never sure, no logprobs: every search is made, and why is said."""
    monkeypatch.setenv("ENTROPY_CHAINS_STOP", environment)
    with Loopback(function_script()) as server:
        output, _ = await run(agent_at(server, **settings))
    assert output.response.content == f"answer after {WANTED}"
    assert all(c.body.get("tools") for c in server.calls)
    assert why in output.early_stop["early_stop_reason"]
    assert output.early_stop["early_stop_stopped"] is False


async def test_a_watched_run_says_where_it_would_have_ended():
    """Switched off, the table still names the step."""
    with Loopback(function_script(sure_from=3)) as server:
        output, _ = await run(agent_at(server, early_stop=False))
    assert output.early_stop["early_stop_step"] == 3


@pytest.mark.parametrize(
    ("script", "calls"), [(function_script(refuses=True), WANTED + 2), (function_script(empty=True), WANTED + 2)]
)
async def test_a_step_without_tools_that_gives_no_answer_is_taken_again_with_them(script, calls):
    """A tool called all the same, or nothing said: the step is undone, the run goes on in full, and the reason says so."""
    with Loopback(script) as server:
        output, _ = await run(agent_at(server))
    assert output.response.content == f"answer after {WANTED}"
    assert len(server.calls) == calls
    assert sum(not c.body.get("tools") for c in server.calls) == 1
    final = server.calls[-1].body["messages"]
    assert [m["role"] for m in final if m["role"] != "user"] == ["assistant", "tool"] * WANTED  # nothing is left of the undone step
    assert output.early_stop["early_stop_stopped"] is False
    assert output.early_stop["early_stop_reason"].startswith("the step without tools gave no answer")
    assert output.early_stop["early_stop_tokens"] == server.made


async def test_a_context_used_again_begins_a_new_run():
    """The second run of one context is judged by its own steps, and the memory is whole."""
    with Loopback(function_script()) as server:
        agent = agent_at(server)
        ctx = Context(agent)
        first, _ = await run(agent, ctx=ctx)
        calls = len(server.calls)
        second, _ = await run(agent, "And now?", ctx=ctx)
    assert first.early_stop["early_stop_step"] == 2
    assert server.calls[calls].body.get("tools")  # its first step has tools again
    assert second.early_stop["early_stop_step"] == 2
    json.dumps(ctx.to_dict())  # what is kept of it can be stored


async def test_runs_at_once_do_not_mix():
    """One agent, eight runs at a time: the same three calls each."""
    with Loopback(function_script()) as server:
        agent = agent_at(server)
        made = await asyncio.gather(*(run(agent, f"question {n}") for n in range(8)))
    assert [output.early_stop["early_stop_step"] for output, _ in made] == [2] * 8
    assert len(server.calls) == 24


async def test_being_sure_of_a_handoff_ends_nothing():
    """A sure step that passes the run on is no sure answer: when it comes back, tools are offered."""

    def script(body):
        names = {t["function"]["name"] for t in body.get("tools") or ()}
        passed = sum(m["role"] == "tool" for m in body["messages"])
        if "search" in names and not passed:
            return Reply(line("not mine", SURE, reasoning=False), tools=[("handoff", {"to_agent": "other", "reason": "r"})])
        return Reply(said("done"))

    with Loopback(script) as server:
        other = FunctionAgent(name="other", description="o", llm=llm_at(server), tools=[])
        asker = agent_at(server, description="a", can_handoff_to=["other"])
        handler = AgentWorkflow(agents=[asker, other], root_agent="asker").run("hello")
        outputs = [e async for e in handler.stream_events() if isinstance(e, AgentOutput)]
        await handler
    assert outputs[0].early_stop["early_stop_stopped"] is False
    assert "early_stop_step" not in outputs[0].early_stop


@pytest.mark.parametrize(
    ("policy", "error", "text"),
    [
        (Policy("else", (0.2,), scope="agent", segmentation=Segmentation("call", 1)), PolicyMismatch, "for_model"),
        (Policy("scripted", (0.2,), scope="agent"), SettingsError, "use 'call'"),
    ],
)
def test_a_policy_for_something_else_is_refused(policy, error, text):
    """When the agent is made, with the remedy."""
    with Loopback() as server, pytest.raises(ValueError, match=text) as raised:
        agent_at(server, policy=policy)
    assert isinstance(raised.value, error)


async def test_fewer_alternatives_than_the_policys_are_a_mismatch():
    """A threshold belongs to its k."""
    with Loopback(function_script()) as server, pytest.raises(PolicyMismatch, match="k 20"):
        await run(agent_at(server, llm={"top_logprobs": 2}))


@pytest.mark.parametrize(
    "given", [{"response_format": {"type": "json_object"}}, {"extra_body": {"guided_json": {"type": "object"}}}]
)
async def test_a_loop_whose_replies_have_a_form_is_never_ended(given):
    """An LLM that is made to reply in a form does what it did before: every search is made, and the outcome says why."""
    with Loopback(function_script()) as server:
        output, _ = await run(agent_at(server, llm={"additional_kwargs": given}))
    assert output.response.content == f"answer after {WANTED}"
    assert output.early_stop["early_stop_stopped"] is False
    assert "never cut" in output.early_stop["early_stop_reason"]
