"""Replies whose form is given, and tool calls, come out whole. The server is scripted (a fake: it thinks nothing)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from llama_index.core.prompts import PromptTemplate
from llms import ASKED, TOOL, Product, ask_all, stopped, wrapped
from loopback import SURE, UNSURE, Loopback, Reply, is_answer_call, said, thinking

STRUCTURED = {
    "response_format": {"response_format": {"type": "json_object"}},
    "extra_body": {"extra_body": {"structured_outputs": {"regex": "a+"}}},
    "forced tool": {"tools": [TOOL], "tool_choice": "required"},
}


@pytest.mark.parametrize("where", ["call", "llm"])
@pytest.mark.parametrize("form", STRUCTURED)
def test_structured_output_is_never_cut(server, form, where):
    """Wherever it is asked for, per call or on the inner LLM, the reply is one whole request."""
    given = STRUCTURED[form]
    if where == "llm" and form == "forced tool":
        pytest.skip("tools come with a call")
    llm = wrapped(server, inner={"additional_kwargs": given} if where == "llm" else {})
    told = llm.chat(ASKED, **(given if where == "call" else {})).additional_kwargs
    assert [c.gone for c in server.calls] == [False]
    assert "never cut" in told["early_stop_reason"]


@pytest.mark.parametrize("asynchronously", [False, True])
def test_structured_predict_is_the_inner_llms(asynchronously):
    """A demanded tool call is made by one request without logprobs, as without the wrapper."""
    with Loopback(lambda body: Reply(said(""), tools=[("Product", {"value": 42})])) as server:
        llm, asked = wrapped(server), (Product, PromptTemplate("6*7?"))
        made = asyncio.run(llm.astructured_predict(*asked)) if asynchronously else llm.structured_predict(*asked)
        (call,) = server.calls
    assert made == Product(value=42)
    assert not call.body.get("logprobs")
    assert llm.as_structured_llm(Product).llm is llm


def with_tool(body: dict[str, Any]) -> Reply:
    """Thinks, sure from the third line on, then calls; after a stop it calls at once."""
    if is_answer_call(body):
        return Reply(tools=[("multiply", {"a": 6})])
    return Reply(thinking(UNSURE, UNSURE, SURE, SURE, SURE, answer="x").tokens[:-1], tools=[("multiply", {"a": 6})], pace=0.0005)


@pytest.mark.parametrize("owner", ["vllm", "unknown"])
@pytest.mark.parametrize("method", ["chat", "astream_chat"])
def test_a_tool_call_after_a_stop_passes_through(method, owner):
    """The thinking before it is cut, the call is whole, and a server without prefill is not told to give up the call."""
    with Loopback(with_tool, owned_by=owner) as server:
        llm = wrapped(server)
        response = ask_all(llm, method, tools=[TOOL])[-1]
        assert stopped(server)
        if owner == "unknown":
            assert "call a tool" in server.calls[1].body["messages"][-1]["content"]
        assert server.calls[1].body["tools"] == [TOOL]
    (call,) = llm.get_tool_calls_from_response(response)
    assert (call.tool_name, call.tool_kwargs) == ("multiply", {"a": 6})


@pytest.mark.parametrize("method", ["chat", "astream_chat"])
def test_llama_cpp_refuses_logprobs_with_tools_so_the_call_is_whole(method):
    """Its 400 would break an agent that worked before: no logprobs are asked for, the call runs in full, and says why."""

    def script(body: dict[str, Any]) -> Reply:
        if body.get("tools") and body.get("logprobs"):
            return Reply(status=400, message="logprobs is not supported with tools + stream")
        return with_tool(body)

    with Loopback(script, owned_by="llamacpp") as server:
        llm = wrapped(server)
        with pytest.warns(UserWarning, match="no logprobs on reasoning tokens"):
            response = ask_all(llm, method, tools=[TOOL])[-1]
        assert [(c.gone, "top_logprobs" in c.body) for c in server.calls] == [(False, False)]
    assert [c.tool_name for c in llm.get_tool_calls_from_response(response)] == ["multiply"]
    told = response.additional_kwargs
    assert (told["early_stop_active"], told["early_stop_stopped"]) == (False, False)
    assert told["early_stop_reason"].startswith("llama.cpp sends no logprobs on a streamed call with tools")


def test_text_before_a_tool_call_after_a_stop_is_kept():
    """Both are in the last response, also where the text is settled only at the stream's end."""

    def script(body: dict[str, Any]) -> Reply:
        return Reply(said("I call"), tools=[("multiply", {"a": 6})]) if is_answer_call(body) else with_tool(body)

    with Loopback(script) as server:
        llm = wrapped(server)
        response = llm.chat(ASKED, tools=[TOOL])
    assert response.message.content == "I call"
    assert [c.tool_name for c in llm.get_tool_calls_from_response(response)] == ["multiply"]


def test_nothing_is_cut_once_a_tool_call_has_begun():
    """A call that comes without any answer is handed on as it is, and the reason says so."""

    def script(body: dict[str, Any]) -> Reply:
        return Reply(thinking(UNSURE).tokens[:-1], tools=[("multiply", {"a": 6})])

    with Loopback(script) as server:
        response = wrapped(server).chat(ASKED, tools=[TOOL])
        assert len(server.calls) == 1
    assert response.additional_kwargs["early_stop_reason"] == "a tool call has begun"
    assert response.message.additional_kwargs["tool_calls"]
