"""What a model and the settings of a call say of themselves: its name, and why nothing may be stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel

from entropy_chains.errors import SettingsError

FORMATS = ("response_format", "format", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs",
           "json_schema", "grammar")  # fmt: skip
"""Settings that force the form of the reply, on whatever server."""


SECRET = ("api_key", "openai_api_key", "headers", "default_headers", "extra_headers", "extra_query", "default_query")
"""Settings that may hold a key: never told to callbacks."""


def without_headers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a call as traces may have them."""
    return {name: value for name, value in params.items() if name not in SECRET}


def model_name(chat: BaseChatModel, kwargs: Mapping[str, Any] = {}) -> str:
    """What a model calls itself; of one that has no name its class."""
    names = (kwargs.get("model"), getattr(chat, "model_name", None), getattr(chat, "model", None), getattr(chat, "model_id", None))
    return next((name for name in names if isinstance(name, str) and name), type(chat).__name__)


def can_stream(chat: BaseChatModel) -> bool:
    """Whether the model has a stream of its own."""
    kind = type(chat)
    return kind._stream is not BaseChatModel._stream or kind._astream is not BaseChatModel._astream


def refusal(chat: BaseChatModel, kwargs: Mapping[str, Any], mode: str = "thinking") -> str | None:
    """Why nothing may be stopped in this call; None where it may."""
    given = {**getattr(chat, "_default_params", {}), **getattr(chat, "model_kwargs", {}), **kwargs}
    given |= given.get("extra_body") or {}
    if (given.get("n") or getattr(chat, "n", None) or 1) > 1:
        return f"n is {given.get('n') or getattr(chat, 'n', None)}: only one stream can be followed"
    responses = getattr(chat, "_use_responses_api", None)
    if responses is not None and responses({**getattr(chat, "_default_params", {}), **kwargs}):
        return "LangChain passes on no logprobs of the Responses API: set use_responses_api=False"
    if chat.disable_streaming is True or (chat.disable_streaming and given.get("tools")):
        return f"the model has disable_streaming={chat.disable_streaming!r}"
    if not can_stream(chat):
        return f"{type(chat).__name__} cannot stream"
    forced = [name for name in FORMATS if given.get(name)]
    if forced:
        return f"the form of the reply is given ({forced[0]}): structured output is never cut"
    if given.get("tool_choice") not in (None, False, "auto", "none"):
        return "a tool call is forced: it is never cut"
    if mode == "refine" and given.get("tools"):
        return "tools are bound: a loop of several calls would call them more than once"
    return None


def checked_ways(continuation: str | Sequence[str]) -> None:
    """Raises SettingsError for a way to the answer that cannot be had through LangChain."""
    if "control" in ([continuation] if isinstance(continuation, str) else continuation):
        raise SettingsError("continuation is 'control', which LangChain cannot pass on: use auto, prefill, completion or turn")


def number(chat: BaseChatModel, name: str) -> Any:
    """A setting of the model that is a number; None where it has none."""
    value = getattr(chat, name, None)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
