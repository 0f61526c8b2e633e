"""What tests of a dialogue are made of: tokens with a given entropy, updates, a policy that stops at 0.5 bits."""

from __future__ import annotations

import math

from entropy_chains.backends.remote.readers import Piece, Update
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Phase, Segmentation
from entropy_chains.core.tokens import Alternative, Token

ASKED = [{"role": "user", "content": "2+2?"}]
LINES = Segmentation("line", 1)
THINK, ANSWER = Phase.THINKING, Phase.ANSWER


def policy(threshold=0.5, **fields):
    return Policy("m", (threshold,), segmentation=LINES, **fields)


def piece(text, phase=THINK, entropy=0.0, k=20, shown=None):
    """A token with this entropy in bits at most 1 (two likely alternatives, the rest nearly impossible); None: no logprobs."""
    if entropy is None:
        return Piece(Token(text), phase, text)
    low, high = 0.0, 0.5
    for _ in range(60):
        p = (low + high) / 2
        h = -p * math.log2(p) - (1 - p) * math.log2(1 - p)
        low, high = (p, high) if h < entropy else (low, p)
    logprobs = [math.log1p(-high), math.log(high) if high > 1e-9 else -40.0, *[-60.0] * (k - 2)]
    alternatives = tuple(Alternative(f"{text}{n}", x, n) for n, x in enumerate(logprobs))
    return Piece(Token(text, 0, None, logprobs[0], alternatives), phase, text if shown is None else shown)


def updates(*pieces, usage=None, finish="stop"):
    return [*(Update((p,)) for p in pieces), Update(finish_reason=finish, usage=usage)]


SURE = [piece("2+2=", entropy=0.1), piece("4\n", entropy=0.1)]
UNSURE = [piece("hm ", entropy=0.9), piece("what\n", entropy=0.9)]
FOUR = [piece("4", ANSWER)]
