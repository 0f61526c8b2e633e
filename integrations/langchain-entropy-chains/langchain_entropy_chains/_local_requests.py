"""One call of ``ChatTransformers``: what is asked of the backend, and how its run is told in LangChain's messages."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from entropy_chains import ThinkTags
from entropy_chains.adapters import TOOL_CALL, Shown, calls_in, text_before
from entropy_chains.backends import Backend, Chunk, Generation, Message
from langchain_entropy_chains._local_messages import tool_calls

if TYPE_CHECKING:
    from langchain_core.messages import ToolCallChunk


@dataclass(frozen=True)
class LocalRequest:
    """One call: what is asked of the backend, and how its run is told.

    Attributes:
        uncut: why nothing may be cut; None where something may.
    """

    backend: Backend
    messages: list[Message]
    settings: dict[str, Any]
    endings: tuple[str, ...]
    tags: ThinkTags | None
    holdout: bool
    has_tools: bool
    uncut: str | None

    def generate(
        self, rows: Sequence[list[Message]], holdout: Sequence[bool], cancelled: threading.Event | None
    ) -> list[Generation]:
        backend = self.backend.worker(cancelled) if cancelled else self.backend
        return backend.generate(rows, holdout=holdout, **self.settings)

    def stream(self) -> Any:
        return self.backend.stream(self.messages, holdout=self.holdout, **self.settings)

    def reply_text(self) -> Shown:
        endings = (*self.endings, TOOL_CALL) if self.has_tools else self.endings
        return Shown(self.tags, endings)

    def chunks(self, chunk: Chunk, reply_text: Shown) -> Iterator[ChatGenerationChunk]:
        """What a reader sees of a chunk; the last one carries usage, metadata and tool calls."""
        run = chunk.final
        reasoning, answer = reply_text.take(chunk) if run is None else reply_text.finish(run)
        if reasoning:
            yield ChatGenerationChunk(message=AIMessageChunk(content="", additional_kwargs={"reasoning_content": reasoning}))
        if answer:
            yield ChatGenerationChunk(message=AIMessageChunk(content=answer))
        if run is not None:
            last = AIMessageChunk(content="", tool_call_chunks=self._calls(run), chunk_position="last", **self._figures(run))
            yield ChatGenerationChunk(message=last)

    def result(self, run: Generation) -> ChatResult:
        reply_text = self.reply_text()
        reasoning = reply_text.reasoning(run)
        reasoning_field = {"additional_kwargs": {"reasoning_content": reasoning}} if reasoning else {}
        parsed = AIMessageChunk(content="", tool_call_chunks=self._calls(run), chunk_position="last")  # read as in a stream
        message = AIMessage(
            reply_text.answer(run),
            tool_calls=parsed.tool_calls,
            invalid_tool_calls=parsed.invalid_tool_calls,
            **reasoning_field,
            **self._figures(run),
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _calls(self, run: Generation) -> list[ToolCallChunk]:
        """The calls that the backend read, or those of an answer that still holds their text."""
        text = text_before(run.answer or "", self.endings) if self.has_tools else ""
        return tool_calls(run.tool_calls or calls_in(text))

    def _figures(self, run: Generation) -> dict[str, Any]:
        outcome = replace(run.outcome, active=False, reason=self.uncut) if self.uncut else run.outcome
        return {
            "usage_metadata": {
                "input_tokens": run.prompt_tokens,
                "output_tokens": run.tokens,
                "total_tokens": run.prompt_tokens + run.tokens,
                "output_token_details": {"reasoning": run.reasoning_tokens},
            },
            "response_metadata": {
                "model_name": self.backend.model,
                "model_provider": "transformers",
                "finish_reason": run.finish_reason,
                **outcome.metadata(),
            },
        }


class BatchRuns:
    """The prompts of one batch: the first that asks for its run has all of them run. ``holdout``: which are left to it."""

    def __init__(self, conversations: list[list[Message]], holdout: list[bool]):
        self._waiting: list[Any] = list(zip(conversations, holdout, strict=True))
        self._runs: list[Generation] | None = None
        self._error: BaseException | None = None
        self._lock = threading.Lock()

    def take(self, request: LocalRequest, cancelled: threading.Event | None) -> Generation:
        """The run of this request; of equal ones each is taken once."""
        with self._lock:
            if self._error is not None:
                raise self._error
            if self._runs is None:
                try:
                    conversations, holdout = zip(*self._waiting, strict=True)
                    self._runs = request.generate(conversations, holdout, cancelled)
                except BaseException as error:
                    self._error = error
                    raise
            prompt = (request.messages, request.holdout)
            if prompt not in self._waiting:  # LangChain changed the messages on the way
                return request.generate([request.messages], [request.holdout], cancelled)[0]
            n = self._waiting.index(prompt)
            self._waiting[n] = None
            return self._runs[n]
