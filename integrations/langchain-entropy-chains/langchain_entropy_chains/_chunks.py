"""Between LangChain's chunks and what a dialogue reads and shows. Pure: no I/O.

:class:`ChunkReader` reads the chunks of one request of an inner model; :class:`ChunkWriter` makes those that the
user gets of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import Any, cast

from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata, add_usage
from langchain_core.outputs import ChatGenerationChunk, ChatResult

from entropy_chains import Token
from entropy_chains.adapters import (
    REASONING,
    BegunTurn,
    Characters,
    ChatReader,
    Phase,
    Piece,
    Show,
    TokenCount,
    Transfer,
    Update,
    ended,
    entries_of,
    fields,
    is_special,
    listed_entries,
    reasoning_in,
)

EVERY_CHUNK = ("model_provider", "output_version")
"""Metadata that LangChain reads on every chunk. All else is said once, on the last one: merged, it would be added up or lost."""


DROPPED = (Piece(Token(""), Phase.THINKING, ""),)
"""A chunk without anything, before the answer: a token of the thinking, of which the inner drops text and logprobs alike."""

UNTOLD = (Piece(Token(""), None, ""),)
"""The same after a begun turn, which some servers send back: it may be a token of that."""

LATE = 4
"""Most chunks by which logprobs may come after the tokens that they are of."""


class ChunkReader:
    """Reads the chunks of one request.

    Some models (``ChatOpenAI``) drop the text of the reasoning and keep its logprobs: the text is then put together from those.
    A server may also just hold a text back, while it may become a stop string: then it still comes.

    Args:
        held: most characters that the server holds back.
        strict: a stream without a finish reason broke off, unless it ended in order.
        turn: as in :class:`entropy_chains.adapters.ChatReader`.

    Attributes:
        transfer: the stream's bytes, where they are listened to.
        usage: tokens as the inner counted them, or None.
        content: as the inner gives it, with the thinking and its tags where they stand there; called: a tool call came.
    """

    def __init__(self, *, held: int = 0, strict: bool = False, turn: BegunTurn | None = None):
        self._reader, self._characters, self._strict = ChatReader(held, turn), Characters(), strict
        self.transfer = Transfer()
        self._has_text = False  # the inner has passed on a text of its own
        self._held, self._waiting = held, list[Any]()  # entries of which nobody knows whether their text comes
        self._sighted = self._begun = False  # logprobs came; anything came
        self._dropped = DROPPED if turn is None else UNTOLD
        self._unmeasured = 0  # chunks more than entries, of a thinking whose text the inner drops
        self.usage: UsageMetadata | None = None
        self.content, self.called = "", False
        self._count = TokenCount()

    def feed(self, chunk: ChatGenerationChunk) -> Update:
        """What a chunk says; it is the update's ``raw``."""
        message = chunk.message
        info = {**(chunk.generation_info or {}), **message.response_metadata}
        logprobs, finish = info.get("logprobs"), info.get("finish_reason") or info.get("done_reason")
        reasoning, content = reasoning_and_content(message)
        called = calls_tool(message)
        self.content, self.called = self.content + content, self.called or called
        self._has_text = self._has_text or bool(reasoning or content)
        self._sighted = self._sighted or bool(logprobs)
        if self._waiting or (logprobs and not (self._has_text or called or finish)):
            reasoning, logprobs = self._dropped_reasoning(reasoning, content, logprobs, over=bool(called or finish))
        delta: dict[str, Any] = {
            "content": content,
            "reasoning_content": reasoning,
            "tool_calls": [{}] if called else None,
            "refusal": message.additional_kwargs.get("refusal"),
        }
        event: dict[str, Any] = {"choices": [{"delta": delta, "logprobs": logprobs, "finish_reason": finish}]}
        if usage := getattr(message, "usage_metadata", None):
            self.usage = _larger_counts(self.usage, usage)
            event["usage"] = self.usage
        update = replace(self._reader.feed(event), raw=chunk, whole=self.transfer.whole)
        if self._begun and not (self._has_text or finish or called or usage or _has_content(message)):
            token = bool(message.response_metadata)  # what the SDK adds to a stream that it parses has none
            self._unmeasured += token - len(_entries(info.get("logprobs")))
            if not self._sighted:
                update = replace(update, pieces=self._dropped)
            elif self._unmeasured > LATE:  # each was a token, and some were of no entry
                update, self._unmeasured = replace(update, pieces=(*self._dropped, *update.pieces)), self._unmeasured - 1
        self._begun = True
        self._count.take(update)
        return update

    def whole(self, result: ChatResult) -> Update:
        """A reply that did not come as a stream."""
        generation = result.generations[0]
        chunk = as_chunk(generation.message)
        chunk.generation_info = generation.generation_info
        update = self.feed(chunk)
        return replace(update, pieces=(*update.pieces, *self.finish().pieces), whole=True)

    @property
    def pieces(self) -> int:
        """Tokens that came."""
        return self._count.pieces

    @property
    def tokens(self) -> int:
        """Tokens as the inner counted them, where that may be true of what came."""
        return self._count.tokens

    def finish(self) -> Update:
        """What is left when the stream is over. Raises BackendError where it broke off."""
        waiting, self._waiting = self._waiting, []
        if waiting:
            delta = {"reasoning_content": _text_of_entries(waiting, self._characters)}
            first = self._reader.feed({"choices": [{"delta": delta, "logprobs": waiting}]}).pieces
        rest = ended(self._reader, self.transfer) if self._strict else self._reader.finish()
        return replace(rest, pieces=(*first, *rest.pieces)) if waiting else rest

    def _dropped_reasoning(self, reasoning: str, content: str, logprobs: Any, *, over: bool) -> tuple[str, Any]:
        """The reasoning that the inner dropped, and the entries that are read now. ``over``: nothing more is held back."""
        new_entries = _entries(logprobs)
        entries, before = [*self._waiting, *new_entries], len(self._waiting)
        # Tags stand in the text, or the server takes them out.
        visible = [entry for entry in entries if not is_special(str(fields(entry).get("token") or ""))]
        shown, text = reasoning + content, _text_of_entries(visible, Characters())
        late = any(t.startswith(shown) or shown.startswith(t) for t in (text, _text_of_entries(entries, Characters())))
        if self._has_text and before and late:  # it was held back
            self._waiting = []
            return reasoning, entries
        if not self._has_text and not over and self._held and len(text) <= self._held:
            self._waiting = entries
            return "", None
        self._waiting, self._held = [], 0
        dropped_entries = entries if not (self._has_text or over) else entries[:before]
        return _text_of_entries(dropped_entries, self._characters) + reasoning, entries


def _entries(logprobs: Any) -> list[Any]:
    return [*listed_entries(logprobs)] if logprobs else []


def _with_alternatives(logprobs: Any, number: int | None) -> Any:
    """Logprobs as they were sent, with so many alternatives of a token at most: a policy may need more than the user asked for."""
    if isinstance(logprobs, list):
        return [_with_alternatives(each, number) for each in logprobs]
    if not isinstance(logprobs, dict):
        return logprobs
    return {
        n: v[:number] if n == "top_logprobs" and isinstance(v, list) else _with_alternatives(v, number) for n, v in logprobs.items()
    }


def _text_of_entries(entries: Sequence[Any], characters: Characters) -> str:
    bare = [{name: fields(entry).get(name) for name in ("token", "bytes")} for entry in entries]  # alternatives cost time
    text = "".join([characters.read(token).text for token in entries_of(bare)])
    return text.replace("\N{REPLACEMENT CHARACTER}", "")  # half a character is no text, and of no phase


def _has_content(message: BaseMessage) -> bool:
    """Whether a chunk holds anything."""
    return bool(message.content or message.additional_kwargs)


def reasoning_and_content(message: BaseMessage) -> tuple[str, str]:
    """A message's reasoning and its content."""
    reasoning = reasoning_in(message.additional_kwargs)
    if isinstance(message.content, str):
        return reasoning, message.content
    blocks = [block for block in message.content if isinstance(block, dict)]
    thinking = "".join([str(b.get("reasoning") or b.get("thinking") or "") for b in blocks])
    return reasoning or thinking, "".join([str(b.get("text") or "") for b in blocks])


def calls_tool(message: BaseMessage) -> bool:
    """Whether a tool call has begun with this chunk."""
    names = ("tool_calls", "function_call")
    return bool(getattr(message, "tool_call_chunks", None)) or any(message.additional_kwargs.get(name) for name in names)


def _larger_counts(earlier: Any, later: Any) -> Any:
    """The larger of every count of two chunks: servers tell the whole so far with every chunk, or each count once."""
    if not isinstance(later, dict):
        return max(earlier or 0, later or 0)
    return {**(earlier or {}), **{name: _larger_counts((earlier or {}).get(name), count) for name, count in later.items()}}


def usage_of(readers: Sequence[ChunkReader], tokens: int, reasoning: int) -> UsageMetadata | None:
    """All requests of a run together, or None where no prompt was counted.

    Args:
        readers: one a request, in order.
        tokens: completion tokens computed.
        reasoning: those of them before the answer.
    """
    usages = [reader.usage for reader in readers if reader.usage]
    if not usages:
        return None
    total = reduce(add_usage, usages)
    # A stream that was closed tells nothing: its prompt is that of the answer's request without the thinking in it.
    unseen = sum(max(0, usages[0]["input_tokens"] - reader.pieces) for reader in readers if not reader.usage)
    prompt = total["input_tokens"] + unseen
    usage: dict[str, Any] = {**total, "input_tokens": prompt, "output_tokens": tokens, "total_tokens": prompt + tokens}
    details = dict(total.get("output_token_details") or {})
    if reasoning and (len(readers) > 1 or "reasoning" not in details):
        usage["output_token_details"] = {**details, "reasoning": reasoning}
    return cast("UsageMetadata", usage)


class ChunkWriter:
    """The user's chunks of one run: the inner's own, with the text that the dialogue shows; the reasoning in its own field.

    Args:
        alternatives: those of a token that the user asked for; None leaves out all logprobs, some KB a token.

    Attributes:
        once: metadata that is said once; generation_info: what of it the inner says beside the message.
        answered: content was shown.
    """

    def __init__(self, *, alternatives: int | None = None):
        self._alternatives = alternatives
        self.once: dict[str, Any] = {}
        self.generation_info: dict[str, Any] = {}
        self.answered = False

    def chunk(self, event: Show) -> ChatGenerationChunk | None:
        """The chunk to pass on; None where there is nothing to show."""
        reasoning = "".join([c.text for c in event.chunks if c.phase is Phase.THINKING])
        content = "".join([c.text for c in event.chunks if c.phase is not Phase.THINKING])
        self.answered = self.answered or bool(content.strip())
        reasoning_field = {REASONING[0]: reasoning} if reasoning else {}
        raw = event.update.raw
        if raw is None:
            if not (content or reasoning):
                return None
            return ChatGenerationChunk(message=AIMessageChunk(content=content, additional_kwargs=reasoning_field))
        message = raw.message
        info = {**(raw.generation_info or {}), **message.response_metadata}
        logprobs = info.pop("logprobs", None)
        every = {name: info.pop(name) for name in EVERY_CHUNK if name in info}
        plain = isinstance(message.content, str) or not message.content
        if plain:
            every.pop("output_version", None)  # the content is not of that version yet: LangChain makes it so
        if reasoning and not content:
            every.pop("model_provider", None)  # the provider's own reading of a chunk may know no reasoning in this field
        self.once |= info
        self.generation_info |= {name: info[name] for name in raw.generation_info or {} if name in info}
        changes: dict[str, Any] = {
            "content": content if plain else message.content,
            "additional_kwargs": {**{n: v for n, v in message.additional_kwargs.items() if n not in REASONING}, **reasoning_field},
            "response_metadata": every,
            "usage_metadata": None,
            "chunk_position": None,
        }
        asked = logprobs and self._alternatives is not None
        generation_info = {"logprobs": _with_alternatives(logprobs, self._alternatives)} if asked else None
        return ChatGenerationChunk(message=message.model_copy(update=changes), generation_info=generation_info)

    def last(self, metadata: dict[str, Any], usage: UsageMetadata | None, content: str = "") -> ChatGenerationChunk:
        """The last chunk: what is said once."""
        message = AIMessageChunk(content=content, response_metadata=metadata, usage_metadata=usage, chunk_position="last")
        return ChatGenerationChunk(message=message, generation_info=self.generation_info or None)


def as_chunk(message: BaseMessage, generation_info: dict[str, Any] | None = None) -> ChatGenerationChunk:
    """A whole message as a stream's only chunk."""
    names = set(AIMessageChunk.model_fields) - {"type", "tool_call_chunks", "chunk_position"}
    values = {name: value for name, value in message if name in names}
    return ChatGenerationChunk(message=AIMessageChunk(**values), generation_info=generation_info)
