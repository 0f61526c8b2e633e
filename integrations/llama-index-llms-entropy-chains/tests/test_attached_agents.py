"""Agents and workflows with the one added line, against the scripted server of the tests (a fake: it thinks nothing)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from attached import Own, all_stopped
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.llms.entropy_chains import attach
from llms import ANSWER, POLICY, QUESTION, inside
from loopback import SURE, UNSURE, Loopback, Reply, is_answer_call, said, sums, thinking

if TYPE_CHECKING:
    from llama_index.core.workflow import Workflow


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


def test_a_users_workflow_stops_and_answers(server):
    """An attribute of a class made from LlamaIndex's is found."""
    made = attach(Own(inside(server)), POLICY)
    assert asyncio.run(_run(made)) == ANSWER
    assert all_stopped(server)


async def _run(workflow: Workflow) -> str:
    return await workflow.run()
