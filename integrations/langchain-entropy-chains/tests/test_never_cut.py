"""What EarlyStopChatModel never cuts, and what it says of it, over real HTTP."""

from __future__ import annotations

import asyncio
import json

import pytest
from chats import ASKED, POLICY, WAYS, ainvoke, astream, chat, invoke, stopping, stream
from langchain.agents import create_agent
from langchain_core.language_models import SimpleChatModel
from langchain_core.messages import HumanMessage
from langchain_entropy_chains import EarlyStopChatModel
from langchain_tools import Answer, multiply
from loopback import SURE, UNSURE, Loopback, Reply, is_answer_call, said, thinking

from scripts import paced

# --- what is never cut


def tooled(body):
    """Thinks, calls the tool; with its result thinks again and answers. Called again after a stop it does not think."""
    called = any(m["role"] == "tool" for m in body["messages"])
    thought = [] if is_answer_call(body) else thinking(UNSURE, SURE, SURE, SURE).tokens[:160]
    if called:
        return Reply([*thought, *said("The answer is 42")], pace=0.001)
    return Reply(thought, tools=[("multiply", {"a": 6, "b": 7})], pace=0.001)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_agent_is_stopped_before_its_tool_call_and_never_in_it(asynchronous):
    """The thinking ends early, the call comes whole, the tool is called, and the answer follows."""
    with Loopback(tooled) as server:
        agent = create_agent(stopping(server), [multiply])
        asked = {"messages": [HumanMessage(ASKED)]}
        found = asyncio.run(agent.ainvoke(asked)) if asynchronous else agent.invoke(asked)
        _, called, result, answered = found["messages"]
        assert called.tool_calls[0]["args"] == {"a": 6, "b": 7}
        assert (result.content, answered.content) == ("42", "The answer is 42")
        assert [m.response_metadata["early_stop_stopped"] for m in (called, answered)] == [True, True]
        assert [c.gone for c in server.calls] == [True, False, True, False]


def test_a_tool_call_without_a_stop_comes_through(server):
    """The inner's own tool call chunks, ids included."""
    server.script = lambda body: Reply(thinking(UNSURE).tokens[:40], tools=[("multiply", {"a": 6, "b": 7})])
    for run in (invoke, stream, ainvoke, astream):
        message = run(stopping(server).bind_tools([multiply]), ASKED)
        assert [(c["name"], c["args"], c["id"]) for c in message.tool_calls] == [("multiply", {"a": 6, "b": 7}, "call_0")]


@pytest.mark.parametrize("method", ["function_calling", "json_schema", "json_mode"])
@pytest.mark.parametrize("run", [invoke, ainvoke])
def test_structured_output_is_never_cut(server, method, run):
    """One request, run to its end, and the value parsed; the metadata and one warning say why."""
    thought = thinking(UNSURE, SURE, SURE, SURE).tokens[:160]
    if method == "function_calling":
        server.script = lambda body: Reply(thought, tools=[("Answer", {"value": 42})])
    else:
        server.script = lambda body: Reply([*thought, *said('{"value": 42}')])
    model = stopping(server).with_structured_output(Answer, method=method, include_raw=True)
    with pytest.warns(UserWarning, match="not stopped early") as caught:
        found = run(model, ASKED)
    assert sum("not stopped early" in str(w.message) for w in caught) == 1
    assert found["parsed"] == Answer(value=42)
    assert "early_stop_reason" in found["raw"].response_metadata
    assert found["raw"].response_metadata["early_stop_active"] is False
    assert [c.gone for c in server.calls] == [False]


REFUSED = {
    "n": ({"n": 2}, {}, "n is 2"),
    "disabled": ({"disable_streaming": True}, {}, "disable_streaming"),
    "guided": ({"extra_body": {"guided_regex": "[0-9]+"}}, {}, "guided_regex"),
    "forced": ({}, {"tool_choice": "required", "tools": []}, "forced"),
    "format": ({}, {"response_format": {"type": "json_object"}}, "response_format"),
}


@pytest.mark.parametrize("run", [invoke, ainvoke])
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_stopped_says_so(server, case, run):
    """The call passes through in full; the metadata says that stopping is off and why, and a warning does."""
    settings, kwargs, why = REFUSED[case]
    model = EarlyStopChatModel(chat(server, **settings), POLICY)
    with pytest.warns(UserWarning, match=why):
        message = run(model, ASKED, **kwargs)
    told = message.response_metadata
    assert (told["early_stop_active"], told["early_stop_stopped"]) == (False, False)
    assert why in told["early_stop_reason"]
    assert [c.gone for c in server.calls] == [False]


@pytest.mark.parametrize("run", WAYS)
def test_llama_cpp_is_not_asked_what_it_refuses(run):
    """It refuses a streamed call with tools that asks for logprobs: such a call runs in full, and says why."""
    with Loopback(paced, owned_by="llamacpp") as server:
        with pytest.warns(UserWarning, match="llama.cpp sends no logprobs"):
            message = run(stopping(server).bind_tools([multiply]), ASKED)
        assert [bool(call.body.get("logprobs")) for call in server.calls] == [False]
    assert message.text == "The answer is 42"
    assert "llama.cpp sends no logprobs" in message.response_metadata["early_stop_reason"]
    assert not message.response_metadata["early_stop_stopped"]


def test_the_responses_api_is_said_to_be_blind(server):
    """LangChain drops its logprobs: no request is changed, and the reason names the setting that helps."""
    model = EarlyStopChatModel(chat(server, use_responses_api=True), POLICY)
    with pytest.warns(UserWarning, match="use_responses_api=False"):
        message = stream(model, ASKED)
    assert message.text == "The answer is 42"
    assert message.response_metadata["early_stop_stopped"] is False
    assert server.calls[-1].path.endswith("/responses")
    assert "logprobs" not in json.dumps(server.calls[-1].body)


@pytest.mark.parametrize("run", [invoke, stream, ainvoke, astream])
def test_a_model_that_cannot_stream_is_asked_as_it_can(run):
    """Its reply comes through, and the metadata says why it was not stopped."""

    class Deaf(SimpleChatModel):
        def _call(self, messages, stop=None, run_manager=None, **kwargs):
            return "forty-two"

        @property
        def _llm_type(self):
            return "deaf"

    with pytest.warns(UserWarning, match="cannot stream"):
        message = run(EarlyStopChatModel(Deaf(), POLICY.for_model("Deaf")), ASKED)
    assert message.content == "forty-two"
    assert message.response_metadata["early_stop_reason"] == "Deaf cannot stream"
