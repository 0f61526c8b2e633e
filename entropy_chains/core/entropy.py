"""Shannon entropy of one position, from a truncated top-k list or from full logits. All entropies are in bits.

Symbols, as in "Think Just Enough" (arXiv 2510.08146) and its truncation analysis: the k reported probabilities
p_1..p_k with mass M = Σ p_i and rest m = 1 - M over a vocabulary of V tokens, S = -Σ p_i log2 p_i.

* renormalised (the paper's): H_r = S/M + log2 M, between 0 and log2 k; H_r ≤ H, the true entropy
* lower bound: L = S + m·log2(1/min(m, p_k)) ≥ H_r, for the rest has no token above p_k
* upper bound: U = S + m·log2((V-k)/m), the rest spread evenly
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from operator import mul
from typing import NamedTuple

from entropy_chains.core.tokens import Alternative, Token
from entropy_chains.errors import InputError

LARGEST_VOCABULARY = 2**18
"""Stands in for V in the upper bound where the vocabulary's size is not known; larger means a larger, safer bound."""

IMPOSSIBLE = -9990.0
"""Logprobs below it mean "too unlikely to report" (-9999.0, -3.4e38, -inf depending on the server): probability 0."""

MASS_TOLERANCE = 0.01
"""A mass up to 1 + this is rounding and is clipped; more is not a probability distribution."""

LN2 = math.log(2.0)
"""Nats of a bit."""


AMISS = 0.01
"""Nats by which a sampled token may be likelier than the least likely one listed, though it is not listed itself: rounding.

Beyond that the list contradicts itself: it is no top-k of this position. Engines that make several tokens at a time are known to
send the first one's list with all of them, which would make the others look as sure as the first.
"""


class EntropyBounds(NamedTuple):
    """What one position's alternatives say about its entropy.

    Attributes:
        entropy: renormalised entropy of the entries in bits, 0 to log2 k; higher = less certain.
        lower: no more than the true entropy, bits.
        upper: no less than the true entropy, bits.
        mass: probability the entries hold together, 0 to 1.
        k: entries used (the effective k).
        confidence: -(1/k)·Σ ln p_j in nats (DeepConf, arXiv 2508.15260); higher = more certain.
    """

    entropy: float
    lower: float
    upper: float
    mass: float
    k: int
    confidence: float


def token_entropy(
    alternatives: Token | Iterable[Alternative | float] | None, *, k: int | None = None, vocab_size: int | None = None
) -> EntropyBounds | None:
    """Entropy of one position from its top-k alternatives.

    Args:
        alternatives: a :class:`Token`, or its alternatives, or their logprobs (natural logarithms) alone.
        k: how many alternatives were asked for; more entries are cut to the k likeliest. None: use what is there.
        vocab_size: V for the upper bound; None takes 2^18, larger than known vocabularies.

    Returns:
        The entropy with its bounds, or None where the position has no usable logprobs: none sent, a NaN, all impossible, numbers
        that are not probabilities, or the list of another token (see :data:`AMISS`). None is never to be read as 0.

    Raises:
        InputError: ``k`` or ``vocab_size`` below 1.
    """
    if k is not None and k < 1:
        raise InputError(f"k is {k}; it must be at least 1, or None for all entries sent")
    if vocab_size is not None and vocab_size < 1:
        raise InputError(f"vocab_size is {vocab_size}; it must be at least 1, or None where it is not known")
    if isinstance(alternatives, Token):
        if _is_anothers(alternatives):
            return None
        logprobs = _distinct(alternatives.alternatives or (), alternatives, k)
    else:
        entries = list(alternatives or ())
        plain = [e for e in entries if not isinstance(e, tuple)]
        logprobs = plain if len(plain) == len(entries) else _distinct([e for e in entries if isinstance(e, tuple)], None, k)
    if math.isnan(sum(logprobs)):  # what else the list says cannot be trusted either; asked before anything is sorted or cut
        return None
    if k is not None and len(logprobs) > k:
        logprobs = sorted(logprobs, reverse=True)[:k]
    return _bounds(logprobs, LARGEST_VOCABULARY if vocab_size is None else vocab_size)


def _is_anothers(sampled: Token) -> bool:
    """Whether the list of a token contradicts itself: a likely token was sampled, and it is not among the likeliest."""
    logprob = sampled.logprob
    if logprob is None or not sampled.alternatives:
        return False
    least = math.inf
    for e in sampled.alternatives:
        same = e.id == sampled.id if None not in (e.id, sampled.id) else e.text == sampled.text
        if same or e.logprob == logprob or (sampled.bytes is not None and e.bytes == sampled.bytes):
            return False  # nearly always the first
        if IMPOSSIBLE < e.logprob < least:
            least = e.logprob
    return logprob > least + AMISS


def _distinct(entries: Sequence[Alternative], sampled: Token | None, k: int | None) -> list[float]:
    """Logprobs of the true top-k: duplicates once, and without a sampled token that an engine put in from below.

    Engines list the sampled token even when it is not among the k likeliest: as entry k+1, or first, in the place of the
    k-th. A sampled entry that is the strictly least likely one is therefore dropped unless the list itself shows that it
    belongs: it stands last among at most k, or, where k is not known, the list holds all the probability there is. What is
    left is a true top-(k-1) at least, for which H_r ≤ H holds.
    """
    logprobs = [e.logprob for e in entries]
    ids = {e.id for e in entries}
    # A duplicate has the same id, or, without ids, the same text and logprob: different logprobs alone show that there is none.
    repeated = len(ids) < len(entries) if None not in ids else len(ids) > 1 or len(set(logprobs)) < len(entries)
    if repeated:
        unique: dict[object, Alternative] = {}
        for e in entries:
            unique.setdefault(e.id if e.id is not None else (e.bytes or e.text, e.logprob), e)
        entries = list(unique.values())
        logprobs = [e.logprob for e in entries]
    if sampled is None or len(logprobs) < 2:
        return logprobs
    lowest = min(logprobs)
    at = logprobs.index(lowest) if lowest == lowest else 0
    least = entries[at]
    same = least.id == sampled.id if None not in (least.id, sampled.id) else least.text == sampled.text
    if not same or lowest != lowest or logprobs.count(lowest) > 1:
        return logprobs
    if at == len(logprobs) - 1 and (len(logprobs) <= k if k is not None else sum(map(_probability, logprobs)) > 0.999):
        return logprobs
    del logprobs[at]
    return logprobs


def _probability(logprob: float) -> float:
    return math.exp(min(logprob, 1.0)) if logprob > IMPOSSIBLE else 0.0


def _bounds(logprobs: Iterable[float], vocab_size: int) -> EntropyBounds | None:
    likely = [x for x in logprobs if x > IMPOSSIBLE]
    if not likely or max(likely) > MASS_TOLERANCE:  # above 0 there are no logarithms of probabilities (and exp overflows)
        return None
    probabilities = list(map(math.exp, likely))
    least = min(probabilities)
    if least == 0.0:
        likely = [x for x, p in zip(likely, probabilities, strict=True) if p]
        probabilities = [p for p in probabilities if p]
        least = min(probabilities, default=0.0)
    mass, count = sum(probabilities), len(likely)
    if not count or mass > 1.0 + MASS_TOLERANCE:
        return None
    spread = -sum(map(mul, probabilities, likely)) / LN2
    renormalised = max(0.0, spread / mass + math.log2(mass))
    rest, others = 1.0 - mass, vocab_size - count
    confidence = -sum(likely) / count
    if rest <= 0.0 or others <= 0:
        return EntropyBounds(renormalised, renormalised, renormalised, min(mass, 1.0), count, confidence)
    upper = spread + rest * math.log2(others / rest)
    # A list that is not a true top-k (or a vocabulary given too small) can push L above U or U below H_r.
    upper = max(upper, renormalised)
    lower = min(max(spread - rest * math.log2(min(rest, least)), renormalised), upper)
    return EntropyBounds(renormalised, lower, upper, mass, count, confidence)
