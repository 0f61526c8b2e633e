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

from entropy_chains.core.tokens import Alternative, Token
from entropy_chains.errors import InputError

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

BLOCK = 2**18
"""Logits that one processor core works on at a time, whole rows; the copies made of them stay in its cache."""

SMALL = 2**16
"""Logits of one token of all rows up to which a CPU keeps them until a step ends; 256 tokens of them take 64 MB at most."""

GROUP = 64
"""Logits whose largest stands for all of them while the k likeliest are sought."""


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

    def figures(self) -> Any:
        """Entropy, mass, lower, upper, confidence as columns, [batch, 5]: what a batch's monitor takes."""
        columns = (self.entropy, self.mass, self.lower, self.upper, self.confidence)
        if type(self.entropy).__module__.partition(".")[0] == "torch":
            import torch

            return torch.stack(columns, dim=-1)
        import numpy as np

        return np.stack(columns, axis=-1)


def logits_entropy(logits: np.ndarray[Any, Any] | torch.Tensor, k: int | None = None) -> RowEntropies:
    """Entropy of every row of ``logits`` in bits, computed where the logits are.

    Works through the rows in blocks, so no second array of the logits' size ever exists.

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
    on_cpu = logits.device.type == "cpu"
    if on_cpu and logits.numel() <= BLOCK:  # small enough for the calls to count, and numpy's cost a third of torch's
        return RowEntropies(*(torch.from_numpy(f).float() for f in _numpy_rows(logits.detach().float().numpy(), k)))
    at_once = max(1, BLOCK // vocabulary) * torch.get_num_threads() if on_cpu else max(1, 64 * BLOCK // vocabulary)
    parts = logits.split(at_once)
    if k is None:
        figures = [_torch_exact(part, on_cpu) for part in parts]
        entropy, confidence = figures[0] if len(figures) == 1 else map(torch.cat, zip(*figures, strict=True))
        return RowEntropies(entropy, entropy, entropy, torch.ones_like(entropy), confidence)
    count = min(k, vocabulary)
    largest = _torch_largest(logits, count, on_cpu).float()
    logprobs = largest - largest[:, :1] - torch.cat([_log_partition(torch.softmax(p, -1, dtype=torch.float32)) for p in parts])
    p = logprobs.exp()
    possible = logprobs > -torch.inf
    logs = torch.where(possible | logprobs.isnan(), logprobs, 0.0)  # 0·(-inf) counts as 0
    spread = (p * logs).sum(-1) / -_LN2
    mass = p.sum(-1)
    entropy = (spread / mass + mass.log2()).clamp_min(0.0)
    mass = mass.clamp_max(1.0)
    lower = upper = entropy
    if count < vocabulary:
        rest = 1.0 - mass
        safe = rest.clamp_min(1e-30)
        upper = torch.maximum(spread + rest * ((vocabulary - count) / safe).log2(), entropy)
        least = torch.minimum(p[:, -1], safe).clamp_min(1e-30)
        lower = torch.minimum(torch.maximum(spread - rest * least.log2(), entropy), upper)
    return RowEntropies(entropy, lower, upper, mass, -logs.sum(-1) / possible.sum(-1))


def _torch_exact(part: Any, on_cpu: bool) -> tuple[Any, Any]:
    """Exact entropy in bits and confidence of some rows."""
    import torch

    shifted = part - part.amax(-1, keepdim=True).float()
    total, count = shifted.sum(-1), part.shape[-1]
    if not (on_cpu and total.isfinite().all()):  # a device is not asked, and so not waited for
        possible = shifted != -torch.inf
        shifted = shifted.where(possible, -1e4)  # 0·(-inf) counts as 0, and exp(-1e4) is 0
        total, count = shifted.where(possible, 0.0).sum(-1), possible.sum(-1)
    p = torch.softmax(shifted, -1)
    whole, log_partition = p.sum(-1), _log_partition(p)[:, 0]
    entropy = (log_partition - p.mul_(shifted).sum(-1) / whole) / _LN2
    return entropy.clamp_min(0.0).float(), (log_partition - total / count).float()


def _log_partition(p: Any) -> Any:
    """Logarithm of Σ exp(logit - largest logit) from a softmax, which torch has several times faster than exp.

    It is divided by its sum, for it adds up to 1 only roughly where very many tokens are unlikely.
    """
    return (p.sum(-1, keepdim=True) / p.amax(-1, keepdim=True)).log()


def _torch_largest(logits: Any, count: int, on_cpu: bool) -> Any:
    """The ``count`` largest logits of every row, descending. They lie in the ``count`` groups with the largest maxima."""
    import torch

    whole = logits.shape[-1] // GROUP * GROUP
    if not on_cpu or whole < 2 * count * GROUP:
        return logits.topk(count).values
    groups = logits[:, :whole].unflatten(-1, (-1, GROUP))
    chosen = groups.amax(-1).topk(count).indices[:, :, None].expand(-1, -1, GROUP)
    return torch.cat([groups.gather(1, chosen).flatten(1), logits[:, whole:]], -1).topk(count).values


def _numpy_rows(logits: Any, k: int | None) -> RowEntropies:
    """As :func:`_torch_rows`, in float64 but for the sum over the vocabulary."""
    import numpy as np

    rows, vocabulary = logits.shape
    at_once = max(1, BLOCK // vocabulary)
    blocks = [slice(start, start + at_once) for start in range(0, max(rows, 1), at_once)]
    with np.errstate(invalid="ignore", divide="ignore"):
        if k is None:
            figures = [_numpy_exact(logits[block]) for block in blocks]
            exact, confidence = figures[0] if len(figures) == 1 else map(np.concatenate, zip(*figures, strict=True))
            return RowEntropies(exact, exact, exact, np.ones_like(exact), confidence)
        count = min(k, vocabulary)
        largest = _numpy_largest(logits, count)
        top = largest[:, -1:].astype(np.result_type(logits, np.float32), copy=False)  # half precision has no fast exp
        sums = [np.add.reduce(np.exp(logits[block] - top[block]), -1) for block in blocks]
        partition = sums[0] if len(sums) == 1 else np.concatenate(sums)
        logprobs = largest - (top + np.log(partition, dtype=np.float64)[:, None])
        total, known = np.add.reduce(logprobs, -1), count
        usual = math.isfinite(np.add.reduce(total))
        if not usual:  # an impossible token, or NaN
            known = (logprobs > -np.inf).sum(-1)
            np.maximum(logprobs, -1e4, out=logprobs)  # 0·(-inf) counts as 0, and exp(-1e4) is 0
            total = np.where(logprobs > -1e4, logprobs, 0.0).sum(-1)
        p = np.exp(logprobs)
        mass = np.minimum(np.add.reduce(p, -1), 1.0)
        spread = np.add.reduce(p * logprobs, -1) / -_LN2
        entropy = np.maximum(spread / mass + np.log2(mass), 0.0)
        lower = upper = entropy
        if count < vocabulary:
            rest = 1.0 - mass
            safe = np.maximum(rest, 1e-300)
            upper = np.maximum(spread + rest * np.log2((vocabulary - count) / safe), entropy)
            least = np.maximum(np.minimum(p[:, 0], safe), 1e-300)
            lower = np.minimum(np.maximum(spread - rest * np.log2(least), entropy), upper)
        if not usual:
            entropy = np.where(np.isfinite(top[:, 0]), entropy, np.nan)
        return RowEntropies(entropy, lower, upper, mass, total / -known)


def _numpy_exact(part: Any) -> tuple[Any, Any]:
    """As :func:`_torch_exact`."""
    import numpy as np

    top = part.max(-1, keepdims=True).astype(np.result_type(part, np.float32), copy=False)  # half precision has no fast exp
    shifted = part - top
    e = np.exp(shifted)
    partition = np.add.reduce(e, -1).astype(np.float64)
    total, possible = np.add.reduce(shifted, -1).astype(np.float64), part.shape[-1]
    if not np.isfinite(total).all():
        known = shifted != -np.inf
        np.copyto(shifted, 0.0, where=~known)  # 0·(-inf) counts as 0
        total, possible = shifted.sum(-1).astype(np.float64), known.sum(-1)
    log_partition = np.log(partition)
    weighted = np.add.reduce(np.multiply(e, shifted, out=e), -1)
    exact = np.where(np.isfinite(top[:, 0]), np.maximum(log_partition - weighted / partition, 0.0) / _LN2, np.nan)
    return exact, log_partition - total / possible


def _numpy_largest(logits: Any, count: int) -> Any:
    """As :func:`_torch_largest`, but ascending; a group is every n-th logit here, which numpy is faster at."""
    import numpy as np

    rows, vocabulary = logits.shape
    whole = vocabulary // GROUP * GROUP
    found = logits
    if whole >= 2 * count * GROUP:
        groups = logits[:, :whole].reshape(rows, GROUP, -1)
        chosen = np.argpartition(groups.max(1), -count, axis=-1)[:, None, -count:]
        found = np.concatenate([np.take_along_axis(groups, chosen, 2).reshape(rows, -1), logits[:, whole:]], axis=-1)
    return np.sort(found, axis=-1)[:, -count:]
