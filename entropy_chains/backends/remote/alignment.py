"""Which logprob entry belongs to which text, when a server cuts the two differently. Pure.

A server sends texts and entries; nothing says which entry is which text's but the texts themselves. Two readings exist:

* **own**: the entries of a chunk are its text, token by token. Special tokens (``</think>``, the end of the stream), blanks
  that the server strips and halves of characters have no text; a token known by its id only has what the others leave.
* **ordered**: all texts and all entries are the same string, cut differently: entries late, or all on a first chunk.

Both hold for most chunks. Where they differ, a text without entries or entries without a text wait for the next chunks: a text
``MOST_CHUNKS`` chunks or ``WINDOW`` characters, entries as long as vLLM holds their text back while it may become a stop string,
``HELD`` characters at least. An entropy is never given to a text on a guess:

* one reading fails: the other is right. Texts that waited go on without logprobs; entries that waited had no text
* both hold and differ, as where a text repeats itself: the next chunks tell, within ``HELD`` characters
* both fail, or both hold for too long: text without logprobs, entries dropped
* nothing came in time: text without logprobs, and entries that come without text later are dropped; or entries without text
  (a client that drops reasoning texts, say), which then go on at once

After an end to the ordered reading that nothing explains, only the own one counts, and only after ``PROOF`` different chunks
that agree: a list one position late agrees wherever the same text is repeated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from entropy_chains.backends.remote.logprob_entries import HALF, Characters
from entropy_chains.core.phases import Phase
from entropy_chains.core.tokens import Token

WINDOW = 64
"""Most characters of text that wait for late logprobs."""
MOST_CHUNKS = 4
"""Most chunks that a text waits for logprobs, and fewest that entries wait for a text."""
HELD = 256
"""Characters of entries that wait for their text, besides those that stop strings hold back; most of texts that are in doubt."""
PROOF = 8
"""Different chunks that must agree before the own reading alone is believed."""
MOST_ENTRIES = 1024
"""Most entries that wait for their texts; a whole step's may come with its first token."""
TOKEN, LONG_TEXT = 3, 16
"""Characters of a token, fewer than most have; and of a text that is surely several."""

Part = tuple[Phase | None, str]
"""A piece of text as it came, and its phase."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One token, or text whose token is not known.

    Attributes:
        token: the token; ``logprob`` and ``alternatives`` None = the server sent text without logprobs (more than one token,
            perhaps). Its text is what a monitor is fed: for a token without visible text the entry's own.
        phase: THINKING: from a reasoning field; ANSWER: content after reasoning was seen in a field of its own; None: the text's
            own tags tell. A token without visible text has None. So a closing tag that only the entries hold is read by the
            monitor itself, once, as the end of the thinking it stands in; and half a character changes no phase.
        text: what becomes visible with it; "" for special tokens (``</think>``, the end of the stream) and halves of characters.
    """

    token: Token
    phase: Phase | None
    text: str


class Alignment:
    """One stream's texts and entries, in order. See the module.

    Args:
        held: most characters of its text that the server holds back, as the request's stop strings have it.
    """

    __slots__ = (
        "_agreed", "_characters", "_chunks", "_doubt", "_held", "_late", "_lost", "_parts", "_seen", "_textless", "_tokens",
    )  # fmt: skip

    def __init__(self, held: int = 0) -> None:
        self._held = held + HELD
        self._characters = Characters()
        self._parts: list[Part] = []  # texts that wait for entries
        self._tokens: list[Token] = []  # entries that wait for texts
        self._textless = True  # these came in chunks without any text
        self._chunks = 0  # how many chunks they have waited
        self._doubt = False  # both readings hold for them, and differ
        self._late = False  # texts and entries were seen to match in order where the own reading failed
        self._lost = ""  # "text" or "tokens": the order is lost, and what was handed on in vain
        self._seen = False  # the stream has had entries
        self._agreed: set[str] = set()  # different texts of chunks whose own entries agreed

    def add(self, parts: list[Part], entries: Iterable[Token]) -> list[Piece]:
        """Take a chunk's texts (none of them empty) and entries; returns what is settled. The joined text is never changed."""
        tokens = [*map(self._characters.read, entries)]
        if len(parts) == len(tokens) == 1 and not (self._parts or self._tokens or self._lost):  # nearly every chunk of a stream
            (phase, text), token = parts[0], tokens[0]
            if text == token.text:
                self._agree(parts)
                return [Piece(token, phase, text)]
        return [*self._settle(parts, tokens)] if parts or tokens else []

    def finish(self) -> list[Piece]:
        """The stream has ended: what still waits."""
        return [*self._give_up()]

    def _settle(self, parts: list[Part], tokens: list[Token]) -> Iterator[Piece]:
        self._seen = self._seen or bool(tokens or self._agreed)
        waited = bool(self._parts or self._tokens)
        ids = any(map(_unknown, tokens))  # they have no text by which an order could be seen
        ordered = None if self._lost or ids else _in_order([*self._parts, *parts], [*self._tokens, *tokens])
        own_reading = _walk(parts, tokens) if parts and tokens and (waited or not ordered) else None
        if (waited or len(tokens) > 1) and not (ordered or own_reading or self._lost or ids):
            ordered = _in_order([*self._parts, *parts], [*self._tokens, *tokens], untold=True)
        if self._doubt and not ordered:
            yield from self._refuse()
            yield from self._settle(parts, tokens)
        elif ordered and waited and not self._late and (own_reading or (self._doubt and not (parts and tokens))):
            self._parts, self._tokens, self._doubt = [*self._parts, *parts], [*self._tokens, *tokens], True
            if _length(self._parts) > HELD:
                yield from self._refuse()
        elif ordered:
            self._late, self._doubt = self._late or bool(waited and parts and tokens), False
            yield from self._wait(*ordered, textless=not parts)
        elif own_reading and not ordered and not (ids and self._parts):
            yield from self._give_up(contradicted=True)
            yield from own_reading if self._trusted(parts, ids) else self._bare(parts, len(tokens))
        elif self._lost or (ids and not waited):
            yield from self._bare(parts, len(tokens))
            if parts and tokens:
                self._agreed.clear()
            elif self._lost != "text":
                yield from map(_silent, tokens)
        elif not tokens:  # a text that contradicts the entries that waited
            yield from self._give_up(contradicted=True)
            yield from self._wait([], parts, [], textless=False)
        else:  # no reading holds
            yield from self._give_up(contradicted=True)
            yield from self._bare(parts, len(tokens))
            if waited or len(self._agreed) < PROOF:  # else so many agreed that only this one is wrong
                self._lose("text")

    def _wait(self, pieces: list[Piece], parts: list[Part], tokens: list[Token], *, textless: bool) -> Iterator[Piece]:
        """Hand on what was matched; the rest waits, or is given up."""
        yield from pieces
        self._textless = textless and (self._textless or not self._tokens)
        self._parts, self._tokens = parts, tokens
        self._chunks = 0 if not (parts or tokens) else 1 if pieces else self._chunks + 1
        held = tokens and sum([len(token.text) for token in tokens]) <= self._held  # a text that waits is the first one's beginning
        if (self._chunks >= MOST_CHUNKS and not held) or _length(parts) > WINDOW or len(tokens) > max(MOST_ENTRIES, self._held):
            yield from self._give_up()
            self._lose("text" if parts or not self._textless else "tokens")

    def _refuse(self) -> Iterator[Piece]:
        """Nobody can tell which entries belong to the texts that wait."""
        self._doubt = False
        yield from self._give_up(contradicted=True)
        self._lose("text")

    def _give_up(self, *, contradicted: bool = False) -> Iterator[Piece]:
        """What waits goes on: texts without logprobs, entries that never had a text, special tokens. Other entries are dropped."""
        parts, tokens = self._parts, self._tokens
        self._parts, self._tokens, self._chunks = [], [], 0
        yield from self._bare(parts)
        keeps_all = self._textless and not contradicted and not parts
        yield from [_silent(token) for token in tokens if keeps_all or is_special(token.text)]

    def _bare(self, parts: list[Part], entries: int = 0) -> Iterator[Piece]:
        """Text without logprobs, in no fewer pieces than it has tokens, or a few chunks of it would hide among many with.

        ``entries`` came with it and could not be matched. Where there never were any, a short text is one token.
        """
        for phase, text in parts:
            size = (TOKEN if text.isascii() else 1) if self._seen or len(text) > LONG_TEXT else LONG_TEXT
            size = min(size, max(1, len(text) // (entries or 1)))
            for at in range(0, len(text), size):
                yield Piece(Token(text[at : at + size]), phase, text[at : at + size])

    def _agree(self, parts: list[Part]) -> None:
        if len(self._agreed) < PROOF:
            self._agreed.add("".join([text for _, text in parts]))

    def _trusted(self, parts: list[Part], ids: bool) -> bool:
        """Whether it is enough that the chunk's own entries agree with it."""
        if not ids:
            self._agree(parts)
        if self._lost and len(self._agreed) < PROOF:
            return False
        self._lost = ""
        return True

    def _lose(self, what: str) -> None:
        self._lost = what
        self._agreed.clear()


def _in_order(
    parts: list[Part], tokens: list[Token], *, untold: bool = False
) -> tuple[list[Piece], list[Part], list[Token]] | None:
    """The ordered reading: what is matched, and the texts and entries left; None where the two disagree.

    ``untold``: a tag among the entries may be one that the server leaves out of the text.
    """
    pieces: list[Piece] = []
    merged: list[Part] = []
    for phase, text in parts:  # a token may be cut over chunks, but not over phases
        if merged and merged[-1][0] is phase:
            text = merged.pop()[1] + text
        merged.append((phase, text))
    part = at = matched = 0
    for n, token in enumerate(tokens):
        if part < len(merged) and at == len(merged[part][1]):
            part, at = part + 1, 0
        if not token.text:
            pieces.append(_silent(token))
            continue
        if part == len(merged):
            return pieces, [], tokens[n:]
        phase, part_text = merged[part]
        if part_text.startswith(token.text, at):
            at += len(token.text)
            matched += len(token.text)
            pieces.append(Piece(token, phase, token.text))
        elif part == len(merged) - 1 and token.text.startswith(part_text[at:]):
            return pieces, _after(parts, matched), tokens[n:]
        elif untold and is_special(token.text):
            pieces.append(_silent(token))
        else:
            return None
    return pieces, _after(parts, matched), []


def _length(parts: Sequence[Part]) -> int:
    return sum([len(text) for _, text in parts])


def _after(parts: list[Part], count: int) -> list[Part]:
    """What is left without the first ``count`` characters."""
    left: list[Part] = []
    for phase, text in parts:
        if count < len(text):
            left.append((phase, text[count:]))
        count = max(0, count - len(text))
    return left


def _walk(parts: Sequence[Part], tokens: Sequence[Token]) -> list[Piece] | None:
    """The own reading: every token with its text within these parts, or None where the entries are not these texts."""
    pieces: list[Piece] = []
    part = at = 0
    for n, token in enumerate(tokens):
        if part < len(parts) and at == len(parts[part][1]) and part + 1 < len(parts):
            part, at = part + 1, 0
        phase, part_text = parts[part]
        if _unknown(token):
            text = _left(part_text, at, tokens, n)
        elif part_text.startswith(token.text, at):
            text = token.text
        else:
            text = token.text.strip()  # servers strip the blanks around a part
            within = at > 0 and at + len(text) < len(part_text)
            if not text or not part_text.startswith(text, at) or within:
                if text and not is_special(token.text):
                    return None
                text = ""
        at += len(text)
        piece_token = replace(token, text=text) if text and _unknown(token) else token
        pieces.append(Piece(piece_token, phase, text) if text else _silent(token))
    return pieces if part == len(parts) - 1 and at == len(parts[part][1]) else None


def _left(part_text: str, at: int, tokens: Sequence[Token], n: int) -> str:
    """The text of a token that is known by its id or as half a character only: the last in a row has what the row leaves."""
    if n + 1 < len(tokens) and _unknown(tokens[n + 1]):
        return ""
    following = next((t.text for t in tokens[n + 1 :] if t.text), "")
    end = part_text.find(following, at) if following else len(part_text)
    text = part_text[at:end] if end >= 0 else ""
    return text if tokens[n].text == "" or not text.isascii() or text == tokens[n].text else ""


def _unknown(token: Token) -> bool:
    """Its text is not known: only an id, or half a character."""
    return HALF in token.text or (not token.text and token.id is not None and token.bytes is None)


def is_special(text: str) -> bool:
    """Looks like a special token: ``<…>``, ``[/THINK]``."""
    text = text.strip()
    return len(text) > 2 and (text[0] + text[-1] in ("<>", "[]"))


def _silent(token: Token) -> Piece:
    """A token without visible text."""
    return Piece(replace(token, text="") if HALF in token.text else token, None, "")
