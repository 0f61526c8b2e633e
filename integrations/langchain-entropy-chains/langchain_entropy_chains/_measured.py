"""One model run as a callback sees it: LangChain's chunks and messages, followed by the core's :class:`Dialogue`.

So what a callback measures is what the backends measure on the same tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, LLMResult
from langchain_core.outputs import Generation as Reply
from rich.table import Table

from entropy_chains.adapters import FLAT, OLLAMA, Close, Dialogue, Update, held_back, tokens_of
from entropy_chains.backends import Generation
from entropy_chains.errors import NoLogprobsError
from langchain_entropy_chains._chunks import ChunkReader, as_chunk, reasoning_and_content
from langchain_entropy_chains._traced import CACHED

SWITCH_ON = "switch them on in the model (logprobs=True, top_logprobs=20) and use chat completions"
NO_LOGPROBS = f"no logprobs arrived: {SWITCH_ON}, or {OLLAMA.can.since} or later"
RECORD = "early_stop_record"
"""Metadata field with the run's steps, as JSON."""

WOULD_SAVE = "early_stop_tokens_would_save"
"""Metadata field of a run that was only watched: reasoning tokens after the step at which it would have been stopped."""


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """What was measured of one model run.

    Attributes:
        run_id, root: LangChain's ids of the run and of the outermost run above it.
        model: its name, where LangChain knows it.
        measured: entropies were seen.
        metadata: the contract's table (``early_stop_…``), ready for a message, a run or a span.
        entropies: of each finished step, bits; None where too few of its tokens had logprobs.
        would_save: tokens that a stop would have saved in a run that was only watched; None where it would not have been stopped.
    """

    run_id: str
    root: str
    model: str | None
    measured: bool
    metadata: Mapping[str, Any]
    entropies: tuple[float | None, ...] = ()
    would_save: int | None = None

    @property
    def stopped(self) -> bool:
        """It was stopped."""
        return bool(self.metadata.get("early_stop_stopped"))

    @property
    def tokens(self) -> int:
        """Tokens computed; 0 where nobody counted them."""
        return int(self.metadata.get("early_stop_tokens") or 0)

    @property
    def reason(self) -> str:
        """Why it stopped, or why not."""
        return str(self.metadata.get("early_stop_reason", ""))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        identity = {"run_id": self.run_id, "root": self.root, "model": self.model, "measured": self.measured}
        return {**identity, "entropies": list(self.entropies), "would_save": self.would_save, **self.metadata}


@dataclass(frozen=True, slots=True)
class Summary:
    """What a handler saw. ``print`` gives a sentence, ``rich.print`` a table.

    Attributes:
        rows: the latest runs.
        runs, measured, stopped, would_stop: counts of all runs.
        tokens: computed in all runs.
        would_save: tokens that stopping would have saved in the runs that were only watched.
    """

    rows: tuple[MeasuredRun, ...]
    runs: int = 0
    measured: int = 0
    stopped: int = 0
    would_stop: int = 0
    tokens: int = 0
    would_save: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        totals = {n: getattr(self, n) for n in ("runs", "measured", "stopped", "would_stop", "tokens", "would_save")}
        return {**totals, "rows": [r.to_dict() for r in self.rows]}

    def __str__(self) -> str:
        return (
            f"{self.runs} runs, {self.measured} measured, {self.tokens} tokens: {self.stopped} stopped, "
            f"{self.would_stop} would have been, saving about {self.would_save} tokens"
        )

    def __rich__(self) -> Table:
        table = Table("run", "model", "tokens", "stop after step", "would save", "why", caption=str(self))
        for row in self.rows:
            step, saved = row.metadata.get("early_stop_step"), row.would_save
            cells = "" if step is None else f"{step}", "" if saved is None else f"{saved}"
            table.add_row(row.run_id[-8:], row.model or "", str(row.tokens), *cells, row.reason)
        return table


class Measurement:
    """Follows one run.

    Args:
        dialogue: what judges the tokens.
        run_id, root, model: as in :class:`MeasuredRun`.
        why: why it is not judged or not stopped, if that is known beforehand.
        stop: the request's stop strings, if any.
    """

    def __init__(self, dialogue: Dialogue, *, run_id: str, root: str, model: str | None, why: str | None = None, stop: Any = None):
        self.dialogue, self.run_id, self.root, self.model, self.why = dialogue, run_id, root, model, why
        self.fault: str | None = None  # nothing more is measured
        self._reader = ChunkReader(held=held_back(stop))
        self._streamed = self._sighted = self._cached = self._closed = False
        self._wrapper_table: dict[str, Any] | None = None  # of a wrapper below that measured the run itself
        dialogue.start()

    # --- what comes

    def chunk(self, text: Any, chunk: Reply | None) -> None:
        """A piece of a stream. A legacy model gives no chat chunk, or none at all."""
        self._streamed = True
        if isinstance(chunk, ChatGenerationChunk):
            self._feed(chunk)
        else:
            self._feed(_text_chunk(text if isinstance(text, str) else "", chunk.generation_info if chunk else None))

    def end(self, response: LLMResult) -> None:
        """The run has ended."""
        replies = response.generations[0] if response.generations else []
        if len(replies) != 1:
            self.fault = f"{len(replies)} choices in one run; only one can be followed: set n to 1"
            return
        message = getattr(replies[0], "message", None)
        metadata = dict(getattr(message, "response_metadata", None) or {})
        self._cached = not self._streamed and was_cached(getattr(message, "usage_metadata", None) or {})
        if "early_stop_reason" in metadata and not self._cached:
            self._wrapper_table = {name: value for name, value in metadata.items() if name.startswith(FLAT)}
        elif not self._cached:
            if not self._streamed:
                self._whole(replies[0], message)
            self._take(self._reader.finish())
            self.dialogue.check_measured()

    def _whole(self, reply: Reply, message: BaseMessage | None) -> None:
        """A finished message, as the stream that it would have been."""
        whole = as_chunk(message) if message is not None else _text_chunk(reply.text, None)
        info = {**whole.message.response_metadata, **(reply.generation_info or {})}
        reasoning, content = reasoning_and_content(whole.message)
        logprobs = info.pop("logprobs", None)
        entries = logprobs if isinstance(logprobs, list) else (logprobs or {}).get("content")
        if isinstance(entries, list) and not reasoning:
            dropped_count = _entries_before(entries, content)
            for entry in entries[:dropped_count]:
                self._feed(_text_chunk("", {"logprobs": [entry]}))
            logprobs = entries[dropped_count:]
        blanks: dict[str, Any] = {"response_metadata": {}, "tool_calls": [], "tool_call_chunks": []}
        content_only = whole.message.model_copy(update=blanks)
        self._feed(ChatGenerationChunk(message=content_only, generation_info={**info, "logprobs": logprobs}))
        if isinstance(message, AIMessage) and message.tool_calls:  # after what was thought before it
            self._take(Update(tool_call=True))

    def _feed(self, chunk: ChatGenerationChunk) -> None:
        self._take(self._reader.feed(chunk))

    def _take(self, update: Update) -> None:
        if self.fault is not None:
            return
        if not self._sighted:
            self._sighted = any(p.token.alternatives for p in update.pieces)
        try:
            events = self.dialogue.feed(update)
            self._closed = self._closed or Close() in events
        except NoLogprobsError:
            self.fault = NO_LOGPROBS

    # --- what it was

    @property
    def closing(self) -> bool:
        """Stop the stream now."""
        return self._closed and self.fault is None

    def result(self, *, why: str | None = None, record: Mapping[str, Any] | None = None) -> tuple[MeasuredRun, Generation]:
        """What was measured, and the run as the core has it.

        Args:
            why: replaces the reason.
            record: what a trace says besides the steps; None leaves the record out.
        """
        run = self.dialogue.result()
        judged = self._sighted or run.outcome.step is not None  # a rule that reads no entropy needs no logprobs
        fault = self.fault or (None if judged else NO_LOGPROBS)
        reason = why or (CACHED if self._cached else fault or self.why or run.outcome.reason)
        tokens = 0 if self._cached else run.tokens
        if fault and self._reader.usage:
            tokens = self._reader.tokens
        measured = fault is None and not self._cached
        outcome = replace(run.outcome, reason=reason, tokens=tokens, active=run.outcome.active and fault is None)
        if not measured:
            outcome = replace(outcome, step=None, entropy=None, threshold=None)
        metadata = outcome.metadata()
        would_save = None
        if measured and outcome.step is not None and not outcome.stopped:
            would_save = metadata[WOULD_SAVE] = max(0, run.reasoning_tokens - run.steps[outcome.step - 1].end)
        if measured and record is not None:
            metadata[RECORD] = _recorded(run, record)
        if self._wrapper_table is not None:
            metadata, measured = self._wrapper_table, True
            would_save = metadata.get(WOULD_SAVE)
        entropies = tuple(s.record.entropy for s in run.steps) if measured else ()
        return MeasuredRun(self.run_id, self.root, self.model, measured, metadata, entropies, would_save), run


def was_cached(usage: Mapping[str, Any]) -> bool:
    """LangChain marks an answer from its cache by a cost of 0."""
    return usage.get("total_cost") == 0


def _recorded(run: Generation, details: Mapping[str, Any]) -> str:
    """The steps as compact lists; numbers only, no text."""
    steps = [s.record for s in run.steps]
    lists = {
        "entropy": [None if r.entropy is None else round(r.entropy, 5) for r in steps],
        "tokens": [r.tokens for r in steps],
        "mass": [None if r.mass is None else round(r.mass, 4) for r in steps],
        "sum_entropy": [round(r.signals["sum_entropy"], 3) if r.signals else None for r in steps],
    }
    return json.dumps({**details, **lists, "rest": run.rest_tokens}, separators=(",", ":"))


def _text_chunk(text: str, info: dict[str, Any] | None) -> ChatGenerationChunk:
    return ChatGenerationChunk(message=AIMessageChunk(content=text), generation_info=info)


def _entries_before(entries: Sequence[Any], content: str) -> int:
    """How many entries come before the content's first: tokens whose text the client dropped."""
    texts = [t.text for t in tokens_of(list(entries))]
    if len(texts) != len(entries):
        return 0
    at = "".join(texts).rfind(content.strip()) if content.strip() else sum(map(len, texts))
    count = length = 0
    while count < len(texts) and length + len(texts[count]) <= at:
        length += len(texts[count])
        count += 1
    return count
