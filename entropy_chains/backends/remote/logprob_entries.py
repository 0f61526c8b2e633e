"""Logprob entries of every known shape, as tokens. Pure: reads plain dicts and SDK objects alike, and imports no SDK."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import repeat
from typing import Any

from entropy_chains.core.tokens import Alternative, Token

_NONE: dict[str, Any] = {}
_FLOATS = {float}
HALF = "\N{REPLACEMENT CHARACTER}"  # what half a character is decoded to
_BY_ID = "token_id:"  # vLLM's return_tokens_as_token_ids
_BY_BYTES = "bytes:"  # how OpenAI writes a token that is no text of its own
_alternative = partial(tuple.__new__, Alternative)  # a third of the price of Alternative(), and 20 are made a token


def fields(value: Any) -> dict[str, Any]:
    """A dict's or SDK object's fields by name, those that the SDK does not know included; none for anything else."""
    if isinstance(value, dict):
        return value
    extra = getattr(value, "__pydantic_extra__", None)
    attributes = getattr(value, "__dict__", _NONE)
    return {**attributes, **extra} if extra else attributes


def items(value: Any) -> Sequence[Any]:
    """A list, or nothing where there is none."""
    return value if isinstance(value, list | tuple) else ()


def tokens_of(logprobs: Any) -> list[Token]:
    """The tokens of a logprobs object in any known shape; nothing for None, an empty one, or one that cannot be read.

    Shapes: ``{"content": […]}`` (chat; DeepSeek's second list ``reasoning_content`` comes first), a flat list (Responses API,
    Ollama), ``tokens`` / ``token_logprobs`` / ``top_logprobs`` (completions); as dicts or as SDK objects. ``refusal`` lists are
    no part of the answer and are left out.

    A field that cannot be read is missing (None) and takes nothing else with it, except that one unreadable alternative makes
    all of its position's missing: part of a distribution is not a distribution. A logprob that is not a number is NaN within
    the alternatives. A character split over tokens has its text with the last of them; the others' is "".
    """
    return [*map(Characters().read, entries_of(logprobs))]


def entries_of(logprobs: Any) -> Iterable[Token]:
    """The same with the texts as they were sent, for a stream, in which a character may be split over chunks too."""
    if not logprobs:
        return ()
    if not isinstance(logprobs, list | tuple) and isinstance((lists := fields(logprobs)).get("tokens"), list):
        return _completion_entries(lists)
    return filter(None, map(_token, listed_entries(logprobs)))


def listed_entries(logprobs: Any) -> Sequence[Any]:
    """The entries of a chat's logprobs object, those of the reasoning first, or of a flat list; none where there are none."""
    if isinstance(logprobs, list | tuple):
        return logprobs
    lists = fields(logprobs)
    thinking, content = lists.get("reasoning_content"), items(lists.get("content"))
    return [*thinking, *content] if isinstance(thinking, list) else content


def _token(entry: Any) -> Token | None:
    """One entry of a chat, Responses or Ollama list; None for what is no entry."""
    values = fields(entry)
    text = values.get("token")
    if not isinstance(text, str):
        return None
    number = values.get("id")
    if text.startswith(_BY_ID) and (written := _id(text)) is not None:
        return Token("", written, None, _logprob(values.get("logprob")), _alternatives(values.get("top_logprobs")))
    return Token(
        text,
        number if type(number) is int else None,
        _bytes(values.get("bytes")),
        _logprob(values.get("logprob")),
        _alternatives(values.get("top_logprobs")),
    )


def _alternatives(top: Any) -> tuple[Alternative, ...] | None:
    """A chat entry's ``top_logprobs``; None if it is no list of alternatives."""
    if not isinstance(top, list):
        return None
    if not top:
        return ()
    try:
        first = top[0]
        # Twenty a token are read, hence no call for each: SDK objects keep what they know in __dict__, the rest elsewhere.
        if type(first) is dict:
            rows = top
        elif first.__pydantic_extra__:
            rows = [fields(row) for row in top]
        else:
            rows = [row.__dict__ for row in top]
        texts = [row["token"] for row in rows]
        values = [row["logprob"] for row in rows]
        ids = [row["id"] for row in rows] if "id" in rows[0] else None
        # The bytes tell tokens apart that are not text; elsewhere the text says the same.
        halves = [_bytes(row.get("bytes")) for row in rows] if HALF in "".join(texts) else None
    except (AttributeError, KeyError, TypeError):
        return None
    return _listed(texts, values, ids, halves)


def _completion_entries(lists: Mapping[str, Any]) -> Iterator[Token]:
    """The completions shape: parallel lists, alternatives as ``{text: logprob}``."""
    texts = lists["tokens"]
    values, tops = items(lists.get("token_logprobs")), items(lists.get("top_logprobs"))
    # Lists of different lengths do not tell which entry is whose.
    values = values if len(values) == len(texts) else [None] * len(texts)
    tops = tops if len(tops) == len(texts) else [None] * len(texts)
    for text, value, top in zip(texts, values, tops, strict=True):
        if not isinstance(text, str):
            continue
        # Objects keyed by text stay dicts in every SDK; a text that is no str is not from JSON.
        alternatives = _listed([*top], [*top.values()]) if isinstance(top, dict) and all(map(_is_text, top)) else None
        number = _id(text) if text.startswith(_BY_ID) else None
        yield Token(text if number is None else "", number, None, _logprob(value), alternatives)


def _listed(
    texts: Sequence[str], values: Sequence[Any], ids: Sequence[Any] | None = None, halves: Sequence[bytes | None] | None = None
) -> tuple[Alternative, ...]:
    if {*map(type, values)} != _FLOATS:
        values = [math.nan if (value := _logprob(v)) is None else value for v in values]
    if ids is not None:
        ids = [i if type(i) is int else None for i in ids]
    elif texts and texts[0].startswith(_BY_ID):
        ids = [_id(t) for t in texts]
        texts = [t if i is None else "" for t, i in zip(texts, ids, strict=True)]
    return tuple(map(_alternative, zip(texts, values, ids or repeat(None), halves or repeat(None), strict=False)))


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _id(text: str) -> int | None:
    digits = text[len(_BY_ID) :]
    return int(digits) if len(digits) < 10 and digits.isdecimal() else None


def _logprob(value: Any) -> float | None:
    """A number as it was sent, NaN and impossible ones too; None for what is no number."""
    if type(value) is float:
        return value
    if value is None or isinstance(value, bool | str | bytes | list | dict):
        return None
    try:
        return float(value)  # a whole number, or one of numpy's
    except (TypeError, ValueError, OverflowError):
        return None


def _bytes(value: Any) -> bytes | None:
    try:
        return bytes(value) if isinstance(value, list) else None
    except (TypeError, ValueError):
        return None


class Characters:
    """Puts characters together that are split over tokens: the last of them has the text."""

    __slots__ = ("_begun",)

    def __init__(self) -> None:
        self._begun = b""

    def read(self, token: Token) -> Token:
        """The token with the text that became complete with it. One that only the bytes could tell keeps a U+FFFD."""
        text, sent = token.text, token.bytes
        if not self._begun and HALF not in text and not text.startswith(_BY_BYTES):
            return token
        begun, self._begun = self._begun, b""
        if sent is None or (sent == text.encode("utf-8", "replace") and (HALF in text or not begun)):
            return token  # vLLM gives the bytes of the U+FFFD itself; and a text that is one ends what was begun
        whole, rest = _complete(begun + sent)
        if whole is None:
            return token
        self._begun = rest
        return Token(whole, token.id, sent, token.logprob, token.alternatives)


def _complete(data: bytes) -> tuple[str | None, bytes]:
    """The text of whole characters and the bytes of one begun; None where it is not UTF-8."""
    try:
        return data.decode(), b""
    except UnicodeDecodeError as error:
        if error.end < len(data) or error.reason != "unexpected end of data":
            return None, b""
        return data[: error.start].decode(), data[error.start :]
