"""A tool call of which an engine sends several parts in one chunk comes whole, though LlamaIndex reads one part of a chunk."""

from __future__ import annotations

import json

import pytest
from hostile import Hostile, begin, end
from llama_index.core.tools import FunctionTool
from llms import ask_all, wrapped
from wire import HEAD

PARTS = [{"name": "multiply", "arguments": ""}, {"arguments": '{"a": 34,'}, {"arguments": ' "b": 7}'}]


def multiply(a: int, b: int) -> int:
    """Multiply."""
    return a * b


def bundled(request):
    """All parts in one chunk, as vLLM sends them where it is ahead of its client."""
    calls = [{"index": 0, "function": part} for part in PARTS]
    calls[0] |= {"id": "c1", "type": "function"}
    choice = {"index": 0, "delta": {"tool_calls": calls}, "finish_reason": None}
    data = json.dumps({**HEAD, "choices": [choice]})
    return [*begin(), f"data: {data}\n\n".encode(), *end(1, reason="tool_calls")]


@pytest.mark.parametrize("method", ["chat", "astream_chat"])
def test_the_call_is_whole(method):
    """Its arguments are all that was sent."""
    with Hostile(bundled) as server:
        llm = wrapped(server)
        tools = [FunctionTool.from_defaults(multiply).metadata.to_openai_tool()]
        last = ask_all(llm, method, tools=tools)[-1]
    (call,) = llm.get_tool_calls_from_response(last)
    assert (call.tool_name, call.tool_kwargs) == ("multiply", {"a": 34, "b": 7})
