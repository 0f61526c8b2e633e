"""Tokens for a monitor, and policies over lines of any length."""

from __future__ import annotations

from entropy_chains.core.entropy import EntropyBounds
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.core.tokens import Token

LINES = Segmentation("line", 1)


def bounds(entropy, mass=1.0, lower=None, upper=None, confidence=2.0):
    """Figures of one token."""
    return EntropyBounds(entropy, entropy if lower is None else lower, entropy if upper is None else upper, mass, 20, confidence)


def policy(threshold, rule="entropy", min_steps=1, **fields):
    """A policy over lines of any length."""
    return Policy("m", (threshold,), rule, min_steps, **{"segmentation": LINES, **fields})


def feed(monitor, *tokens):
    """Feed (text, entropy) pairs, a text alone having entropy 0; returns the decisions."""
    found = []
    for t in tokens:
        text, value = (t, 0.0) if isinstance(t, str) else t
        found.append(monitor.feed(Token(text), bounds(value)))
    return found
