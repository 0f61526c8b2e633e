"""One call of a wrapped model: what was asked, and how its run is told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langchain_core.outputs import ChatResult

from entropy_chains import Monitor, Policy
from entropy_chains.adapters import RefineRun, Show
from entropy_chains.backends import Generation
from langchain_entropy_chains._chunks import as_chunk, usage_of
from langchain_entropy_chains._inner import InnerModel

if TYPE_CHECKING:
    from langchain_core.outputs import ChatGenerationChunk

UNCLOSED = "the thinking was never closed, so the content is the whole text"


@dataclass(frozen=True)
class Call:
    """One call.

    Attributes:
        inner: the inner model with the call's settings.
        kwargs: these settings, for a call that is passed through.
        terms: whether to stop, and what a mismatch is.
        holdout: it is left to the holdout.
        refused: why nothing may be stopped, or None.
        policy: when to stop; None only measures.
    """

    inner: InnerModel
    kwargs: dict[str, Any]
    terms: dict[str, Any]
    holdout: bool
    refused: str | None
    policy: Policy | None

    def chunks(self, event: Show) -> list[ChatGenerationChunk]:
        chunk = self.inner.writer.chunk(event)
        return [] if chunk is None else [chunk]

    def end(self, metadata: dict[str, Any], usage: Any = None, content: str = "") -> ChatGenerationChunk:
        return self.inner.writer.last(metadata, usage, content)

    def finished(self, run: Generation) -> ChatGenerationChunk:
        usage = usage_of(self.inner.readers, run.tokens, run.reasoning_tokens)
        finish = {"finish_reason": run.finish_told} if run.finish_told else {}
        metadata = {"model_name": self.inner.model, **finish, **self.inner.writer.once, **run.outcome.metadata()}
        content = "" if run.answer or self.inner.writer.answered else self.inner.unclosed
        if content:
            metadata["early_stop_reason"] = f"{metadata['early_stop_reason']}; {UNCLOSED}"
        return self.end(metadata, usage, content)

    def refined(self, run: RefineRun) -> ChatGenerationChunk:
        reasoning = sum(call.reasoning_tokens for call in run.calls[:-1])
        usage = usage_of(self.inner.readers, run.outcome.tokens, reasoning)
        metadata = {"model_name": self.inner.model, **self.inner.writer.once, **run.outcome.metadata()}
        return self.end(metadata, usage, run.answer or "")

    def passed(self, result: ChatResult) -> ChatResult:
        """A result that was passed through, with its metadata."""
        for generation in result.generations:
            message = generation.message
            metadata = self.passed_metadata(getattr(message, "usage_metadata", None))
            message.response_metadata = {**message.response_metadata, **metadata}
        return result

    def passed_metadata(self, usage: Any) -> dict[str, Any]:
        """The metadata of a call that is passed through; of its tokens nothing where its ``usage`` is not known."""
        tokens = usage["output_tokens"] if usage else None
        metadata = Monitor(self.policy, stop=False).finish(self.refused, tokens=tokens).metadata()
        return metadata if usage else {name: value for name, value in metadata.items() if name != "early_stop_tokens"}


def result_as_stream(result: ChatResult) -> Iterator[ChatGenerationChunk]:
    """A result as a stream."""
    generation = result.generations[0]
    yield as_chunk(generation.message, generation.generation_info)


def with_token_usage(result: ChatResult) -> ChatResult:
    """A result put together from a stream, with what LangChain's models tell of whole replies only."""
    message = result.generations[0].message
    usage = getattr(message, "usage_metadata", None)
    if not usage:
        return result
    token_usage = {"prompt_tokens": usage["input_tokens"], "completion_tokens": usage["output_tokens"]}
    token_usage["total_tokens"] = usage["total_tokens"]
    message.response_metadata.setdefault("token_usage", token_usage)
    model_name = {"model_name": name} if (name := message.response_metadata.get("model_name")) else {}
    return ChatResult(generations=result.generations, llm_output={"token_usage": token_usage, **model_name})
