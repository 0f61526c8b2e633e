"""One generated token with what the model said about its alternatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Alternative(NamedTuple):
    """One entry of a position's top-k list; ``logprob`` in nats."""

    text: str
    logprob: float
    id: int | None = None
    bytes: bytes | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token.

    Attributes:
        text: its text; may be empty (special tokens, parts of a character).
        id: its id in the vocabulary, or None where the API does not tell.
        bytes: its UTF-8 bytes, or None.
        logprob: natural logarithm of its probability, or None where it is missing (missing is never 0).
        alternatives: the position's top-k list as the engine sent it, or None where it is missing.
    """

    text: str
    id: int | None = None
    bytes: bytes | None = None
    logprob: float | None = None
    alternatives: tuple[Alternative, ...] | None = None
