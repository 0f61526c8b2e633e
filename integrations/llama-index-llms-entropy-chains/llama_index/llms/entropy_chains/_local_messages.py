"""LlamaIndex's messages to what a chat template reads, and a local model's tool calls back."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock, ThinkingBlock, ToolCallBlock
from llama_index.core.llms.llm import ToolSelection

from entropy_chains.adapters import ToolCall
from entropy_chains.backends import Message
from entropy_chains.errors import SettingsError


def conversation(messages: Sequence[ChatMessage]) -> list[Message]:
    """Messages as chat templates read them; earlier thinking goes along, and the template decides what it is worth.

    Raises:
        SettingsError: a message holds an image or the like.
    """
    made = []
    for message in messages:
        sent: dict[str, Any] = {"role": message.role.value, "content": ""}
        for block in message.blocks:
            if isinstance(block, TextBlock):
                sent["content"] += block.text
            elif isinstance(block, ThinkingBlock):
                sent["reasoning_content"] = block.content or ""
            elif isinstance(block, ToolCallBlock):
                sent.setdefault("tool_calls", []).append(_sent(block))
            else:
                raise SettingsError(f"a message holds a {type(block).__name__}; a local text model takes text only")
        if message.role is MessageRole.TOOL and (call := message.additional_kwargs.get("tool_call_id")):
            sent["tool_call_id"] = call
        made.append(sent)
    return made


def _sent(call: ToolCallBlock) -> dict[str, Any]:
    function = {"name": call.tool_name, "arguments": selection(call).tool_kwargs}
    return {"id": call.tool_call_id, "type": "function", "function": function}


def read_calls(calls: Sequence[ToolCall]) -> tuple[list[ToolCallBlock], str]:
    """A model's calls as blocks, each with an id, and the text of those that are no calls by their form: nothing gets lost."""
    blocks, texts = [], []
    for call in calls:
        arguments = _arguments(call.arguments)
        if call.name and arguments is not None:
            made = ToolCallBlock(tool_call_id=f"call_{uuid.uuid4().hex[:24]}", tool_name=call.name, tool_kwargs=arguments)
            blocks.append(made)
        else:
            texts.append(call.arguments)
    return blocks, "\n".join(texts)


def selection(call: ToolCallBlock) -> ToolSelection:
    """A call as agents read it."""
    arguments = call.tool_kwargs if isinstance(call.tool_kwargs, dict) else _arguments(call.tool_kwargs)
    return ToolSelection(tool_id=call.tool_call_id or "", tool_name=call.tool_name, tool_kwargs=arguments or {})


def _arguments(text: str) -> dict[str, Any] | None:
    """The arguments of a call; None where they are no JSON object."""
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
