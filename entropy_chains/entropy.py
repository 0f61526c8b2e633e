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
from typing import TYPE_CHECKING, Any, NamedTuple

from entropy_chains.errors import InputError
from entropy_chains.tokens import Alternative, Token

if TYPE_CHECKING:
    import numpy as np
    import torch

LARGEST_VOCABULARY = 2**18
"""Stands in for V in the upper bound where the vocabulary's size is not known; larger means a larger, safer bound."""

IMPOSSIBLE = -9990.0
"""Logprobs below it mean "too unlikely to report" (-9999.0, -3.4e38, -inf depending on the server): probability 0."""

MASS_TOLERANCE = 0.01
"""A mass up to 1 + this is rounding and is clipped; more is not a probability distribution."""

_LN2 = math.log(2.0)

CHUNK = 4096
"""Vocabulary columns worked on at a time; a chunk of 32 rows stays in a processor's cache."""


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
        The entropy with its bounds, or None where the position has no usable logprobs (none sent, a NaN, all impossible, or
        numbers that are not probabilities). None is never to be read as 0.

    Raises:
        InputError: ``k`` or ``vocab_size`` below 1.
    """
    if k is not None and k < 1:
        raise InputError(f"k is {k}; it must be at least 1, or None for all entries sent")
    if vocab_size is not None and vocab_size < 1:
        raise InputError(f"vocab_size is {vocab_size}; it must be at least 1, or None where it is not known")
    if isinstance(alternatives, Token):
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


def _distinct(entries: Sequence[Alternative], sampled: Token | None, k: int | None) -> list[float]:
    """Logprobs of the true top-k: duplicates once, and without a sampled token that an engine put in from below.

    Engines list the sampled token even when it is not among the k likeliest: as entry k+1, or first, in the place of the
    k-th. A sampled entry that is the strictly least likely one is therefore dropped unless the list itself shows that it
    belongs: it stands last among at most k, or, where k is not known, the list holds all the probability there is. What is
    left is a true top-(k-1) at least, for which H_r ≤ H holds.
    """
    logprobs = [e.logprob for e in entries]
    ids = {e.id for e in entries}
    if None in ids or len(ids) < len(entries):  # equal logprobs alone are no duplicate, so this is rarely the case with ids
        unique: dict[object, Alternative] = {}
        for e in entries:
            unique.setdefault(e.id if e.id is not None else (e.bytes or e.text, e.logprob), e)
        if len(unique) < len(entries):
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
    spread = -sum(map(mul, probabilities, likely)) / _LN2
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


class RowEntropies(NamedTuple):
    """:class:`EntropyBounds` of a batch: arrays or tensors of shape [batch], on the logits' device."""

    entropy: Any
    lower: Any
    upper: Any
    mass: Any
    confidence: Any


def logits_entropy(logits: np.ndarray[Any, Any] | torch.Tensor, k: int | None = None) -> RowEntropies:
    """Entropy of every row of ``logits`` in bits, computed where the logits are.

    The exact entropy streams over the vocabulary in chunks, so no second array of the logits' size ever exists.

    Args:
        logits: unnormalised logits [batch, vocabulary], numpy or torch, any float type; -inf means impossible.
        k: None for the exact entropy over the whole vocabulary (then lower = upper = entropy and mass = 1), else the renormalised
            entropy of the k likeliest, as an API with ``top_logprobs=k`` would give it. Confidence is over the k entries, or
            over the whole vocabulary; impossible ones are left out of it.

    Returns:
        Arrays of shape [batch], float32 (torch) or float64 (numpy); a row with a NaN gives NaN, which means missing.

    Raises:
        InputError: wrong shape, or ``k`` below 1.
    """
    if logits.ndim != 2 or logits.shape[-1] < 1:
        raise InputError(f"logits have shape {tuple(logits.shape)}; [batch, vocabulary] is needed")
    if k is not None and k < 1:
        raise InputError(f"k is {k}; it must be at least 1, or None for the whole vocabulary")
    if type(logits).__module__.partition(".")[0] == "torch":
        return _torch_rows(logits, k)
    return _numpy_rows(logits, k)


def _torch_rows(logits: Any, k: int | None) -> RowEntropies:
    import torch

    vocabulary = logits.shape[-1]
    top = logits.amax(-1, keepdim=True).float()
    partition = torch.zeros_like(top)
    weighted = torch.zeros_like(top)
    total, possible = torch.zeros_like(top), torch.zeros_like(top)
    for start in range(0, vocabulary, CHUNK):
        shifted = logits[:, start : start + CHUNK].float() - top
        e = shifted.exp()
        partition += e.sum(-1, keepdim=True)
        if k is None:
            finite = shifted > -torch.inf
            total += torch.where(finite, shifted, 0.0).sum(-1, keepdim=True)
            possible += finite.sum(-1, keepdim=True)
            # e·shifted in place; 0·(-inf) is NaN where a logit is impossible, and counts as 0
            weighted += torch.nan_to_num_(e.mul_(shifted), nan=0.0).sum(-1, keepdim=True)
    log_partition = partition.log()
    if k is None:
        entropy = ((log_partition - weighted / partition) / math.log(2.0)).clamp_min(0.0)[:, 0]
        entropy = torch.where(torch.isfinite(top[:, 0]), entropy, torch.nan)
        confidence = (log_partition - total / possible)[:, 0]
        return RowEntropies(entropy, entropy, entropy, torch.ones_like(entropy), confidence)
    count = min(k, vocabulary)
    logprobs = logits.topk(count, dim=-1).values.float() - top - log_partition
    p = logprobs.exp()
    mass = p.sum(-1).clamp_max(1.0)
    spread = -torch.nan_to_num(p * logprobs, nan=0.0).sum(-1) / math.log(2.0)
    rest = (1.0 - mass).clamp_min(0.0)
    entropy = (spread / mass + mass.log2()).clamp_min(0.0)
    safe = rest.clamp_min(1e-30)
    if count < vocabulary:
        upper = torch.maximum(spread + rest * ((vocabulary - count) / safe).log2(), entropy)
        least = torch.minimum(p[:, -1], safe).clamp_min(1e-30)
        lower = torch.minimum(torch.maximum(spread - rest * least.log2(), entropy), upper)
    else:
        lower = upper = entropy
    entropy = torch.where(torch.isfinite(top[:, 0]), entropy, torch.nan)
    finite = logprobs > -torch.inf
    confidence = -torch.where(finite, logprobs, 0.0).sum(-1) / finite.sum(-1)
    return RowEntropies(entropy, lower, upper, mass, confidence)


def _numpy_rows(logits: Any, k: int | None) -> RowEntropies:
    import numpy as np

    vocabulary = logits.shape[-1]
    top = logits.max(-1, keepdims=True).astype(np.float64)
    partition, weighted, total, possible = (np.zeros_like(top) for _ in range(4))
    with np.errstate(invalid="ignore", divide="ignore"):
        for start in range(0, vocabulary, CHUNK):
            shifted = logits[:, start : start + CHUNK] - top
            e = np.exp(shifted)
            partition += e.sum(-1, keepdims=True)
            if k is None:
                total += np.where(shifted > -np.inf, shifted, 0.0).sum(-1, keepdims=True)
                possible += (shifted > -np.inf).sum(-1, keepdims=True)
                weighted += np.where(e > 0, e * shifted, 0.0).sum(-1, keepdims=True)
        log_partition = np.log(partition)
        finite = np.isfinite(top[:, 0])
        if k is None:
            exact = np.maximum(log_partition - weighted / partition, 0.0)[:, 0] / math.log(2.0)
            exact = np.where(finite, exact, np.nan)
            return RowEntropies(exact, exact, exact, np.ones_like(exact), (log_partition - total / possible)[:, 0])
        count = min(k, vocabulary)
        largest = logits[:, :0]
        for start in range(0, vocabulary, CHUNK):
            candidates = np.concatenate([largest, logits[:, start : start + CHUNK]], axis=-1)
            largest = np.sort(candidates, axis=-1)[:, ::-1][:, :count]
        logprobs = largest.astype(np.float64) - top - log_partition
        p = np.exp(logprobs)
        mass = np.minimum(p.sum(-1), 1.0)
        spread = -np.where(p > 0, p * logprobs, 0.0).sum(-1) / math.log(2.0)
        rest = 1.0 - mass
        entropy = np.maximum(spread / mass + np.log2(mass), 0.0)
        lower = upper = entropy
        if count < vocabulary:
            safe = np.maximum(rest, 1e-300)
            upper = np.maximum(spread + rest * np.log2((vocabulary - count) / safe), entropy)
            least = np.maximum(np.minimum(p[:, -1], safe), 1e-300)
            lower = np.minimum(np.maximum(spread - rest * np.log2(least), entropy), upper)
        known = logprobs > -np.inf
        confidence = -np.where(known, logprobs, 0.0).sum(-1) / known.sum(-1)
        return RowEntropies(np.where(finite, entropy, np.nan), lower, upper, mass, confidence)
