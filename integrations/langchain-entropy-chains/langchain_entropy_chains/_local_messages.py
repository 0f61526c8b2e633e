"""LangChain messages to what a chat template reads, and a local model's tool calls back."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolCallChunk, convert_to_openai_messages
from langchain_core.messages.tool import tool_call_chunk

from entropy_chains import SettingsError
from entropy_chains.adapters import ToolCall
from entropy_chains.backends import Message

_NOT_SENT = ("reasoning", "thinking", "redacted_thinking", "tool_use", "tool_call", "invalid_tool_call", "function_call")
"""Content blocks that are not text and need not be: the calls stand in ``tool_calls``."""


def conversation(messages: Sequence[BaseMessage]) -> list[Message]:
    """Messages as chat templates of Hugging Face read them: text as a string, arguments of calls as an object.

    Raises:
        SettingsError: a message holds an image or the like.
    """
    turns = []
    for message in messages:
        for turn in convert_to_openai_messages([message]):
            turn["content"] = _text_of_content(turn.get("content"))
            for call in turn.get("tool_calls", ()):
                call["function"]["arguments"] = json.loads(call["function"]["arguments"] or "{}")
            reasoning = message.additional_kwargs.get("reasoning_content") if isinstance(message, AIMessage) else None
            turns.append({**turn, "reasoning_content": reasoning} if reasoning else turn)
    return turns


def _text_of_content(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for block in content:
        kind = "text" if isinstance(block, str) else block.get("type")
        if kind == "text":
            texts.append(block if isinstance(block, str) else block["text"])
        elif kind not in _NOT_SENT:
            raise SettingsError(f"a message holds a block of type {kind!r}; a local text model takes text only")
    return "\n".join(texts)


def tool_calls(calls: Sequence[ToolCall]) -> list[ToolCallChunk]:
    """A model's calls, each whole, with an id.

    What is no call by its form keeps its text, as a JSON string: LangChain mends broken objects, and would call them.
    """
    return [_tool_call_chunk(call, n) for n, call in enumerate(calls)]


def _tool_call_chunk(call: ToolCall, index: int) -> ToolCallChunk:
    name, args = None, json.dumps(call.arguments)
    with suppress(ValueError):
        if call.name and isinstance(json.loads(call.arguments or "{}"), dict):
            name, args = call.name, call.arguments or "{}"
    return tool_call_chunk(name=name, args=args, id=f"call_{uuid.uuid4().hex[:24]}", index=index)
