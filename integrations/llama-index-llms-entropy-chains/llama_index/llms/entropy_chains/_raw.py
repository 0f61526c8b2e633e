"""``raw`` of a call that was not streamed: what the LLM's own class has there, made of what came in streams."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ThinkingBlock

from entropy_chains.adapters import REASONING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llama_index.core.base.llms.types import ChatResponse
    from llama_index.llms.entropy_chains._runs import Run

COPIED = ("id", "created", "model", "system_fingerprint", "service_tier")
"""What a chunk has of the whole reply."""

TOKENS = ("prompt_tokens", "completion_tokens", "total_tokens")


def reasoning_field(chunk: Any) -> str | None:
    """The name of the field in which a chunk has its reasoning, if it has some."""
    for choice in getattr(chunk, "choices", None) or ():
        return next((name for name in REASONING if getattr(getattr(choice, "delta", None), name, None)), None)
    return None


def with_whole_raw(response: ChatResponse, run: Run) -> ChatResponse:
    """The last response of a run with ``raw`` as of a call that does not stream.

    ``ChatCompletion`` or ``Completion`` in the place of a chunk, a ``Response`` in that of the event that ends it; what else an
    LLM gives stays as it is.

    Args:
        response: it holds the whole message and the tokens of all requests.
        run: what came besides.
    """
    raw, kind = response.raw, type(response.raw).__name__  # the SDK's class; a server may name the object otherwise
    if kind == "ChatCompletionChunk":
        from openai.types.chat import ChatCompletion

        whole: Any = _made(ChatCompletion, "chat.completion", response, {"message": _message(response, run)})
    elif kind == "Completion":
        from openai.types import Completion

        whole = _made(Completion, "text_completion", response, {"text": response.message.content or ""})
    else:
        whole = getattr(raw, "response", None) if str(getattr(raw, "type", "")).startswith("response.") else None
    return response if whole is None else response.model_copy(update={"raw": whole})


def _made(kind: Any, name: str, response: ChatResponse, text: Mapping[str, Any]) -> Any:
    """A reply of one choice, made as the SDK makes it of JSON."""
    table = response.additional_kwargs
    choice = {"index": 0, "finish_reason": table.get("finish_reason"), "logprobs": None, **text}
    usage = {field: table[field] for field in TOKENS} if all(field in table for field in TOKENS) else None
    copied = {field: value for field in COPIED if (value := getattr(response.raw, field, None)) is not None}
    return kind.construct(**copied, object=name, choices=[choice], usage=usage)


def _message(response: ChatResponse, run: Run) -> dict[str, Any]:
    """The message, as the server would have sent it."""
    message = response.message
    reasoning = "".join(block.content or "" for block in message.blocks if isinstance(block, ThinkingBlock))
    fields: dict[str, Any] = {"role": "assistant", "content": message.content, "refusal": run.refusal or None}
    fields |= {run.reasoning_field: reasoning} if reasoning and run.reasoning_field else {}
    if calls := message.additional_kwargs.get("tool_calls"):
        fields |= {"content": message.content or None, "tool_calls": [_tool_call(call) for call in calls]}
    return fields


def _tool_call(delta: Any) -> dict[str, Any]:
    """A tool call put together from a stream, without its place in that."""
    return {"type": "function", **delta.model_dump(exclude={"index"}, exclude_none=True)}
