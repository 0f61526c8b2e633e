"""The pieces of a script: texts with entropies, made into tokens whose alternatives have exactly these entropies."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache

from entropy_chains.core.tokens import Alternative, Token
from entropy_chains.errors import InputError

Piece = str | tuple[str, float | Sequence[float] | None] | Token
"""One token: its text (entropy 0), or its text with an entropy in bits, with the logprobs of its top-k (natural logarithms,
the chosen token first), or with None for missing logprobs; or a ready :class:`Token`."""

ALTERNATIVES = 20
"""Alternatives of a token that is given by its entropy."""

LARGEST_ENTROPY = math.log2(ALTERNATIVES)
"""Bits: the largest entropy that so many alternatives can have."""


def words(answer: str | Sequence[Piece]) -> Sequence[Piece]:
    """Pieces as they are; of a text its words, each sure."""
    return re.findall(r"\s*\S+\s*$|\s*\S+", answer) if isinstance(answer, str) else answer


def token_of(piece: Piece) -> Token:
    """The token of a piece. Raises InputError for an entropy that no list of alternatives has."""
    if isinstance(piece, Token):
        return piece
    text, figures = (piece, 0.0) if isinstance(piece, str) else piece
    if figures is None:
        return Token(text)
    logprobs = _logprobs(float(figures)) if isinstance(figures, int | float) else tuple(map(float, figures))
    others = (Alternative(f"{text}~{n}", logprob) for n, logprob in enumerate(logprobs[1:], 1))
    return Token(text, logprob=logprobs[0], alternatives=(Alternative(text, logprobs[0]), *others))


@lru_cache(maxsize=4096)
def _logprobs(entropy: float) -> tuple[float, ...]:
    """Logprobs of :data:`ALTERNATIVES` alternatives with this entropy in bits: a likeliest one, and the rest alike."""
    if not 0.0 <= entropy <= LARGEST_ENTROPY:
        raise InputError(
            f"an entropy of {entropy} bits is impossible for {ALTERNATIVES} alternatives; 0 to {LARGEST_ENTROPY:.4f} is possible"
        )
    if entropy == 0.0:
        return (0.0,)
    low, high = 0.0, 1.0 - 1.0 / ALTERNATIVES  # the rest's share; the entropy grows with it
    for _ in range(100):
        rest = (low + high) / 2
        low, high = (rest, high) if _spread(rest) < entropy else (low, rest)
    each = high / (ALTERNATIVES - 1)
    return (math.log1p(-high), *([math.log(each)] * (ALTERNATIVES - 1)))


def _spread(rest: float) -> float:
    """Entropy in bits of a likeliest alternative and :data:`ALTERNATIVES` - 1 others that share ``rest`` evenly."""
    if rest <= 0.0:
        return 0.0
    return -((1 - rest) * math.log2(1 - rest) + rest * math.log2(rest / (ALTERNATIVES - 1)))
