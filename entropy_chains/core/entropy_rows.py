"""Shannon entropy of many positions at once, from their logits: numpy or torch, where the logits are. In bits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from entropy_chains.core.entropy import LN2
from entropy_chains.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import torch


BLOCK = 2**18
"""Logits that one processor core works on at a time, whole rows; the copies made of them stay in its cache."""

SMALL = 2**16
"""Logits of one token of all rows up to which a CPU keeps them until a step ends; 256 tokens of them take 64 MB at most."""

GROUP = 64
"""Logits whose largest stands for all of them while the k likeliest are sought."""


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
    spread = (p * logs).sum(-1) / -LN2
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
    entropy = (log_partition - p.mul_(shifted).sum(-1) / whole) / LN2
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
        total, possible = np.add.reduce(logprobs, -1), count
        usual = math.isfinite(np.add.reduce(total))
        if not usual:  # an impossible token, or NaN
            possible = (logprobs > -np.inf).sum(-1)
            np.maximum(logprobs, -1e4, out=logprobs)  # 0·(-inf) counts as 0, and exp(-1e4) is 0
            total = np.where(logprobs > -1e4, logprobs, 0.0).sum(-1)
        p = np.exp(logprobs)
        mass = np.minimum(np.add.reduce(p, -1), 1.0)
        spread = np.add.reduce(p * logprobs, -1) / -LN2
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
        return RowEntropies(entropy, lower, upper, mass, total / -possible)


def _numpy_exact(part: Any) -> tuple[Any, Any]:
    """As :func:`_torch_exact`."""
    import numpy as np

    top = part.max(-1, keepdims=True).astype(np.result_type(part, np.float32), copy=False)  # half precision has no fast exp
    shifted = part - top
    e = np.exp(shifted)
    partition = np.add.reduce(e, -1).astype(np.float64)
    total, possible = np.add.reduce(shifted, -1).astype(np.float64), part.shape[-1]
    if not np.isfinite(total).all():
        finite = shifted != -np.inf
        np.copyto(shifted, 0.0, where=~finite)  # 0·(-inf) counts as 0
        total, possible = shifted.sum(-1).astype(np.float64), finite.sum(-1)
    log_partition = np.log(partition)
    weighted = np.add.reduce(np.multiply(e, shifted, out=e), -1)
    exact = np.where(np.isfinite(top[:, 0]), np.maximum(log_partition - weighted / partition, 0.0) / LN2, np.nan)
    return exact, log_partition - total / possible


def _numpy_largest(logits: Any, count: int) -> Any:
    """As :func:`_torch_largest`, but ascending; a group is every n-th logit here, which numpy is faster at."""
    import numpy as np

    rows, vocabulary = logits.shape
    whole = vocabulary // GROUP * GROUP
    candidates = logits
    if whole >= 2 * count * GROUP:
        groups = logits[:, :whole].reshape(rows, GROUP, -1)
        chosen = np.argpartition(groups.max(1), -count, axis=-1)[:, None, -count:]
        candidates = np.concatenate([np.take_along_axis(groups, chosen, 2).reshape(rows, -1), logits[:, whole:]], axis=-1)
    return np.sort(candidates, axis=-1)[:, -count:]
