"""LLMs that do not speak an OpenAI-compatible API: what to use in their place, and how a reply of theirs is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from entropy_chains.adapters import ChatReader, CompletionReader, Update

UNASKED = {
    "LlamaCPP": "llama-server with OpenAILike(model=…, api_base='http://localhost:8080/v1', api_key='none', is_chat_model=True)",
    "HuggingFaceLLM": "TransformersLLM(model, policy=…) of this package, which stops in place",
}
"""Classes that pass no setting on by which logprobs are asked for, so ``ask=`` is in vain; and what runs the same model."""


def instead_of(llm: Any) -> str | None:
    """What to use in the place of an LLM that cannot be asked for logprobs; None for all other classes."""
    return next((UNASKED[kind.__name__] for kind in type(llm).__mro__ if kind.__name__ in UNASKED), None)


class ForeignReader:
    """Reads the responses of an LLM of another class: chunks of an OpenAI-like API as such, all others by what they tell.

    So text without logprobs is seen as such: the run says that it cannot be stopped, and why.

    Args:
        reader: of the chunks.
    """

    def __init__(self, reader: ChatReader | CompletionReader):
        self._reader = reader

    def feed(self, response: Any) -> Update:
        """A response of the LLM inside."""
        raw = response.raw
        if _field(raw, "choices"):
            return self._reader.feed(raw)
        called = any(b.block_type == "tool_call" for b in getattr(getattr(response, "message", None), "blocks", ()))
        thinking, logprobs = response.additional_kwargs.get("thinking_delta"), _field(raw, "logprobs")
        delta = {"reasoning_content": thinking, "content": response.delta, "tool_calls": [{}] if called else None}
        choice = {
            "index": 0,
            "delta": delta,
            "text": response.delta,
            "logprobs": {"content": logprobs} if isinstance(logprobs, list) else logprobs,
            "finish_reason": _field(raw, "done_reason"),
        }
        return self._reader.feed({"choices": [choice], "usage": _field(raw, "usage"), "model": _field(raw, "model")})

    def finish(self) -> Update:
        """The stream has ended."""
        return self._reader.finish()


def _field(raw: Any, name: str) -> Any:
    return raw.get(name) if isinstance(raw, Mapping) else getattr(raw, name, None)
