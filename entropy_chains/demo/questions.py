"""The bundled reasoner's question sets: products of two whole numbers, drawn from a fixed mix of difficulties.

Questions are plain dictionaries in the form that ``entropy-chains record`` reads: ``id``, ``question`` and ``gold``.
"""

from __future__ import annotations

import random
from typing import TypedDict

LEVELS = [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3), (4, 2), (4, 3), (4, 4)]
"""Digits of the two factors, from easy to hard."""

MIX = [1, 1, 2, 2, 4, 5, 5, 5, 4]
"""How often each level is drawn, in training and in the demo alike."""


class Question(TypedDict):
    """One line of a question file."""

    id: str
    question: str
    gold: str


def draw_factors(rng: random.Random) -> tuple[int, int]:
    """Draw the two factors of one question; the longer one comes first in half of the draws."""
    digits = rng.choices(LEVELS, MIX)[0]
    a, b = (rng.randrange(10 ** (n - 1) if n > 1 else 2, 10**n) for n in digits)
    return (a, b) if rng.random() < 0.5 else (b, a)


def draw_questions(count: int, seed: int) -> list[Question]:
    """Draw ``count`` different questions; the same seed gives the same questions in the same order."""
    rng = random.Random(seed)
    factors: dict[tuple[int, int], None] = {}
    while len(factors) < count:
        factors.setdefault(draw_factors(rng))
    return [Question(id=f"{a}x{b}", question=f"{a}*{b}=?", gold=str(a * b)) for a, b in factors]
