"""From the chunks of OpenAI-compatible APIs to tokens. Pure: no I/O, no SDK; chunks are SDK objects or plain dicts.

One reader follows one stream: :class:`ChatReader` for chat completions, :class:`CompletionReader` for raw completions,
:class:`ResponsesReader` for the Responses API. :func:`read_message` reads a finished response of any of the three. A chunk is no
token: entries are counted, not chunks; which entry is which text's is settled in :mod:`.alignment`. Chunks that say nothing
(keep-alives, ``[DONE]``, roles, what is malformed) give an empty :class:`Update`; what is missing stays missing, and is never 0.

Every ``feed`` raises SettingsError for text of a second choice (``n`` > 1 is not one stream of tokens) and BackendError for an
error in the stream, with the server's message.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from entropy_chains.backends.remote.alignment import Alignment, Part, Piece
from entropy_chains.backends.remote.echo import BegunTurn, Echo
from entropy_chains.backends.remote.logprob_entries import entries_of, fields, items, tokens_of
from entropy_chains.core.phases import Phase
from entropy_chains.errors import BackendError, SettingsError, quoted
from entropy_chains.validation import is_count

__all__ = [
    "NOTHING",
    "REASONING",
    "ChatReader",
    "CompletionReader",
    "Piece",
    "ResponsesReader",
    "Update",
    "Usage",
    "read_message",
    "tokens_of",
]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the server counts them; None where it does not tell. ``reasoning_tokens`` are among the completion's."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None


def held_back(stop: Any) -> int:
    """Most characters of its text that a server holds back where a request has these stop strings."""
    strings = [stop] if isinstance(stop, str) else items(stop)
    return max([len(text) - 1 for text in strings if isinstance(text, str) and text], default=0)


@dataclass(frozen=True, slots=True)
class Update:
    """What one chunk says.

    Attributes:
        pieces: tokens, in order.
        finish_reason: as the server names it; of the Responses API ``stop``, ``length`` or what else it gives as the reason.
        usage: on the chunk that has it.
        tool_call: a tool call has begun with this chunk: nothing may be cut any more.
        refusal: text of a refusal.
        id: the completion's id.
        model: the model's name as the server gives it.
        raw: what it was read from, where an adapter passes that on.
        unread: text has come that could not be read.
        unfinished: the stream ended in order, and never said why the reply ended.
        whole: it is the whole reply, which did not come as a stream.
    """

    pieces: tuple[Piece, ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None
    tool_call: bool = False
    refusal: str = ""
    id: str | None = None
    model: str | None = None
    raw: Any = None
    unread: bool = False
    unfinished: bool = False
    whole: bool = False


REASONING = ("reasoning_content", "reasoning")
"""Names of the field that holds the reasoning. A server in transition sends the same text under both, so the first one counts."""

DETAILS = "reasoning_details"
"""OpenRouter's list of blocks, where the reasoning may stand alone."""


def reasoning_in(message: Mapping[str, Any]) -> str:
    """The reasoning in the fields of a message or a delta."""
    for name in REASONING:
        if text := _text(message.get(name)):
            return text
    blocks = map(fields, items(message.get(DETAILS)))
    return "".join([_text(block.get("text")) or _text(block.get("summary")) for block in blocks])


NOTHING = Update()
"""A chunk that says nothing."""


class _Reader:
    """What the three have in common: text and entries go in, pieces come out.

    Args:
        held: as in :class:`.alignment.Alignment`.
        turn: the assistant's turn that the server was to go on from: what it sends back of it is left out.

    Attributes:
        begun: a chunk has come.
        finished: one with a finish reason has come; without it a stream broke off.
        stray: what came in the place of a chunk and may be an error, where no finish reason comes any more.
    """

    __slots__ = ("_alignment", "_echo", "_reasoned", "begun", "finished", "stray")

    def __init__(self, held: int = 0, turn: BegunTurn | None = None) -> None:
        self._alignment = Alignment(held)
        self._echo = Echo(turn) if turn else None
        self._reasoned = False  # reasoning was seen in a field of its own
        self.begun = self.finished = False
        self.stray: BackendError | None = None

    def feed(self, chunk: Any) -> Update:
        raise NotImplementedError

    def finish(self) -> Update:
        """The stream has ended: text that might have been sent back of the request, and pieces that waited for late logprobs."""
        kept = self._alignment.add(self._echo.rest(), ()) if self._echo else []
        pieces = [*kept, *self._alignment.finish()]
        return Update(tuple(pieces)) if pieces else NOTHING

    def _parts(self, reasoning: str, content: Any) -> list[Part]:
        """The texts of a chunk that are not empty, with their phases."""
        parts: list[Part] = []
        if reasoning:
            self._reasoned = True
            parts.append((Phase.THINKING, reasoning))
        if content and isinstance(content, str):
            parts.append((Phase.ANSWER if self._reasoned else None, content))
        elif content:
            for block in map(fields, items(content)):  # Mistral's lists of blocks
                if text := _joined(block.get("thinking")):
                    parts += self._parts(text, None)
                elif text := _text(block.get("text")):
                    parts += self._parts("", text)
        return parts


class _ChoiceReader(_Reader):
    """Streams whose chunks have choices."""

    __slots__ = ()

    def feed(self, chunk: Any) -> Update:
        event = fields(chunk)
        choice = self._choice(event.get("choices"))
        if error := _error_of_choice(event, choice):
            raise error
        usage = _usage(event["usage"]) if event.get("usage") else None
        if choice is None:
            self.stray = self.stray or stray_in(event)
            if not (usage or event.get("id")):
                return NOTHING
            return Update(usage=usage, id=_text(event.get("id")) or None, model=_text(event.get("model")) or None)
        message = fields(choice.get("delta") or choice.get("message"))
        logprobs, finish = choice.get("logprobs"), _text(choice.get("finish_reason")) or None
        called = bool(message.get("tool_calls") or message.get("function_call"))
        self.begun, self.finished = True, self.finished or finish is not None
        parts = self._texts(choice, message)
        if self._echo is not None:
            parts = [*self._echo.take(parts), *(self._echo.rest() if finish or called else ())]
        return Update(
            tuple(self._alignment.add(parts, entries_of(logprobs) if logprobs else ())),
            finish,
            usage,
            called,
            _text(message.get("refusal")),
            _text(event.get("id")) or None,
            _text(event.get("model")) or None,
        )

    def _choice(self, choices: Any) -> dict[str, Any] | None:
        """The fields of choice 0, if the chunk has it."""
        first = None
        for choice in map(fields, items(choices)):
            index = choice.get("index")
            if type(index) is int and index > 0:
                if self._texts(choice, fields(choice.get("delta") or choice.get("message"))):
                    raise SettingsError(f"choice {index} of one request has text; only one stream can be followed: set n to 1")
            elif choice and first is None:
                first = choice
        return first

    def _texts(self, choice: dict[str, Any], message: dict[str, Any]) -> list[Part]:
        raise NotImplementedError


class ChatReader(_ChoiceReader):
    """Reads a stream of chat completion chunks."""

    __slots__ = ()

    def _texts(self, choice: dict[str, Any], message: dict[str, Any]) -> list[Part]:
        return self._parts(reasoning_in(message), message.get("content"))


class CompletionReader(_ChoiceReader):
    """Reads a stream of raw completion chunks; llama.cpp's have logprobs in the shape of chat, which are read as well."""

    __slots__ = ()

    def _texts(self, choice: dict[str, Any], message: dict[str, Any]) -> list[Part]:
        return self._parts("", _text(choice.get("text")))


class ResponsesReader(_Reader):
    """Reads a stream of Responses API events. Summaries of reasoning are text without logprobs."""

    __slots__ = ()

    def feed(self, chunk: Any) -> Update:
        event = fields(chunk)
        kind = _text(event.get("type"))
        self.begun = self.begun or kind.startswith("response.")
        if kind == "response.output_text.delta":
            return self._update("", _text(event.get("delta")), event.get("logprobs"))
        if kind.startswith("response.reasoning") and kind.endswith(".delta"):
            return self._update(_text(event.get("delta")), "", event.get("logprobs"))
        if kind == "response.refusal.delta":
            return Update(refusal=_text(event.get("delta")))
        if kind == "error" or event.get("error"):
            raise _error(event.get("error") or event)
        if "_call" in kind or "_call" in _text(fields(event.get("item")).get("type")):
            return Update(tool_call=True)
        response = fields(event.get("response"))
        if response:
            if kind == "response.failed" or response.get("error"):
                raise _error(response.get("error") or {"message": "the response failed"})
            update = _ending(response)
            self.finished = self.finished or update.finish_reason is not None
            return update
        return NOTHING

    def _update(self, reasoning: str, content: str, logprobs: Any) -> Update:
        pieces = self._alignment.add(self._parts(reasoning, content), entries_of(logprobs) if logprobs else ())
        return Update(tuple(pieces)) if pieces else NOTHING


def read_message(response: Any) -> Update:
    """A finished response (chat, raw completion or Responses API) as one :class:`Update` with all its pieces.

    Raises:
        SettingsError: more than one choice.
        BackendError: the response is an error.
    """
    message = fields(response)
    if isinstance(message.get("output"), list):
        return _responses_message(message)
    choices = items(message.get("choices"))
    raw = bool(choices) and isinstance(fields(choices[0]).get("text"), str)
    reader = CompletionReader() if raw else ChatReader()
    update = reader.feed(response)
    pieces = (*update.pieces, *reader.finish().pieces)
    return Update(pieces, update.finish_reason, update.usage, update.tool_call, update.refusal, update.id, update.model)


def _responses_message(response: dict[str, Any]) -> Update:
    if response.get("error") or response.get("status") == "failed":
        raise _error(response.get("error") or {"message": "the response failed"})
    reader, pieces, refusal, called = ResponsesReader(), list[Piece](), "", False
    for item in map(fields, response["output"]):
        called = called or "_call" in _text(item.get("type"))
        for part in map(fields, (*items(item.get("summary")), *items(item.get("content")))):
            kind = "reasoning" if item.get("type") == "reasoning" else "output_text"
            pieces += reader.feed({"type": f"response.{kind}.delta", "delta": part.get("text"), **_logprobs(part)}).pieces
            refusal += _text(part.get("refusal"))
    pieces += reader.finish().pieces
    end = _ending(response)
    return Update(tuple(pieces), end.finish_reason, end.usage, called, refusal, end.id, end.model)


def _logprobs(part: dict[str, Any]) -> dict[str, Any]:
    return {"logprobs": part.get("logprobs")}


def _ending(response: dict[str, Any]) -> Update:
    """Id, model, usage and finish reason of a Responses object."""
    status = response.get("status")
    reason = _text(fields(response.get("incomplete_details")).get("reason")) or _text(status)
    reason = {"completed": "stop", "max_output_tokens": "length"}.get(reason, reason)
    return Update(
        finish_reason=reason if status in ("completed", "incomplete", "cancelled") else None,
        usage=_usage(response["usage"]) if response.get("usage") else None,
        id=_text(response.get("id")) or None,
        model=_text(response.get("model")) or None,
    )


def _usage(value: Any) -> Usage | None:
    """Counts under the names of either API."""
    usage = fields(value)
    details = fields(usage.get("completion_tokens_details") or usage.get("output_tokens_details"))
    counts = (
        _count(usage.get("prompt_tokens", usage.get("input_tokens"))),
        _count(usage.get("completion_tokens", usage.get("output_tokens"))),
        _count(details.get("reasoning_tokens")),
    )
    return None if counts == (None, None, None) else Usage(*counts)


def _count(value: Any) -> int | None:
    return value if is_count(value) else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _joined(value: Any) -> str:
    """A text, or the texts of a list of blocks."""
    return value if isinstance(value, str) else "".join([_text(fields(block).get("text")) for block in items(value)])


def chunk_of_whole(body: Any) -> dict[str, Any] | None:
    """A finished chat or raw completion as the one chunk of a stream; None for what is neither."""
    content = fields(body)
    choices = [fields(choice) for choice in items(content.get("choices"))]
    if content.get("error") or not any("message" in choice or "text" in choice for choice in choices):
        return None
    if not any("message" in choice for choice in choices):
        return content
    deltas = [{**choice, "delta": _as_delta(fields(choice.pop("message", None)))} for choice in choices]
    return {**content, "object": "chat.completion.chunk", "choices": deltas}


def _as_delta(message: dict[str, Any]) -> dict[str, Any]:
    """A message as a delta: its tool calls are numbered."""
    calls = [{"index": n, **fields(call)} for n, call in enumerate(items(message.get("tool_calls")))]
    return {**message, **({"tool_calls": calls} if calls else {})}


def error_in(chunk: Any) -> BackendError | None:
    """The error that a chunk of a stream with choices is; None for any other one."""
    event = fields(chunk)
    return _error_of_choice(event, next(map(fields, items(event.get("choices"))), None))


def _error_of_choice(event: dict[str, Any], choice: dict[str, Any] | None) -> BackendError | None:
    if event.get("error"):
        return _error(event["error"])
    if choice is None:
        return _error(event) if event.get("object") == "error" else None
    if choice.get("error") or choice.get("finish_reason") == "error":
        return _error(choice.get("error") or {"message": "no reason but finish_reason 'error'"})
    return None


def stray_in(chunk: Any) -> BackendError | None:
    """What a chunk without a choice says that may be an error; None where it says nothing of the kind."""
    event = fields(chunk)
    if next(iter(items(event.get("choices"))), None) is not None:
        return None
    is_error = any(map(event.get, ("message", "detail", "msg", "errors"))) or "error" in (event.get("type"), event.get("object"))
    return _error(event) if is_error else None


def error_of(body: Any) -> BackendError | None:
    """The error that a JSON object with status 200 is, in the place of a stream; None where it says nothing of the kind."""
    content = fields(body)
    if not (content.get("error") or content.get("message") or content.get("detail") or content.get("msg")):
        return None
    return _error(content.get("error") or content, "in the place of a stream")


def _error(value: Any, where: str = "in the stream") -> BackendError:
    """The server's message, wherever it stands."""
    error = fields(value)
    texts = (error.get("message"), fields(error.get("error")).get("message"), error.get("detail"), error.get("msg"))
    message = next(filter(None, map(_text, (value, *texts))), "no message")
    code = error.get("code") or error.get("type")
    named = f" ({code})" if isinstance(code, str | int) and code != "error" else ""
    return BackendError(f"the server sent an error {where}: {quoted(message)}{named}")
