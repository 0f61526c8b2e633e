"""The holdout: runs that run in full on purpose, and what stopping saved against them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from entropy_chains.errors import InputError
from entropy_chains.intervals import RESAMPLES, difference
from entropy_chains.savings.figures import Figure
from entropy_chains.savings.runs import Run, by_root

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.float64]]

LARGEST_BOOTSTRAP = 20_000
"""Groups above this number are summed in random blocks of equal size first, which leaves the interval's width as it is."""

LEAST_RUNS = 30
"""Fewest runs on either side for an interval; a bootstrap over fewer says little."""


def is_holdout(root_run: str, *, share: float, salt: str = "") -> bool:
    """Whether a root run is left to run in full, so that what stopping saves can be measured.

    The same in every process and on every machine: SHA-256 of (salt, root run) below ``share``. Assign by the *root* run, never
    by the call: calls of one run share their prompts and their fate.

    Args:
        root_run: name of the outermost run, for example a LangChain root run id.
        share: expected part of the runs held out, 0 (none) to 1 (all).
        salt: another salt draws another holdout.

    Raises:
        InputError: ``share`` is not between 0 and 1.
    """
    if isinstance(share, bool) or not 0.0 <= share <= 1.0:
        raise InputError(f"share is {share!r}; it must be between 0 (no holdout) and 1 (all runs)")
    digest = hashlib.sha256(json.dumps([salt, root_run]).encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53 < share  # 53 bits: an exact float below 1


@dataclass(frozen=True, slots=True)
class HoldoutSaving:
    """What the holdout says stopping saves. Intervals are 95 %, over root runs; None below 30 a side. Those of tokens by bootstrap.

    Attributes:
        runs_holdout, runs_stopping: root runs on each side.
        tokens_holdout, tokens_stopping: mean tokens a root run, counted.
        saved: intention to treat, a fraction: all runs assigned to stopping, stopped or not, against the holdout; measured.
        saved_shadow: on the holdout's own runs, what the policy would have cost on them: paired, so tighter; estimated, for
            what would have followed a stop was not run.
        accuracy_holdout, accuracy_stopping: mean over root runs with a label.
        accuracy_change: their difference, negative = worse.
        reason: what is missing for a saving, or None.
    """

    runs_holdout: int
    runs_stopping: int
    tokens_holdout: Figure | None = None
    tokens_stopping: Figure | None = None
    saved: Figure | None = None
    saved_interval: tuple[float, float] | None = None
    saved_shadow: Figure | None = None
    saved_shadow_interval: tuple[float, float] | None = None
    accuracy_holdout: float | None = None
    accuracy_stopping: float | None = None
    accuracy_change: float | None = None
    accuracy_change_interval: tuple[float, float] | None = None
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def holdout_saving(runs: Iterable[Run], *, seed: int = 0) -> HoldoutSaving:
    """Compare the runs assigned to stopping with the holdout.

    Raises:
        InputError: calls of one root run stand on both sides; the assignment must go by the root run.
    """
    import numpy as np

    roots = by_root(runs)
    sides: dict[bool, list[list[Run]]] = {True: [], False: []}
    for root, calls in roots.items():
        if len({c.holdout for c in calls}) > 1:
            raise InputError(f"run {root!r} has calls in the holdout and outside it; assign by the root run (is_holdout)")
        sides[calls[0].holdout].append(calls)
    held, treated = (np.array([sum(c.tokens for c in calls) for calls in sides[s]], dtype=np.float64) for s in (True, False))
    fields: dict[str, Any] = {"runs_holdout": held.size, "runs_stopping": treated.size}
    rng = np.random.default_rng(seed)
    for name, tokens in (("tokens_holdout", held), ("tokens_stopping", treated)):
        if tokens.size:
            fields[name] = Figure(float(tokens.mean()), "tokens", "counted", "mean completion tokens a root run")
    shadow = [(sum(c.shadow_tokens or 0 for c in calls), sum(c.tokens for c in calls)) for calls in sides[True]
              if all(c.shadow_tokens is not None for c in calls)]  # fmt: skip
    if shadow and sum(whole for _, whole in shadow):
        pairs = np.array(shadow, dtype=np.float64)
        how = "1 - what the policy would have cost / what it cost, on the holdout's full runs"
        fields["saved_shadow"] = Figure(float(1.0 - pairs[:, 0].sum() / pairs[:, 1].sum()), "fraction", "estimated", how)
        if len(pairs) >= LEAST_RUNS:
            fields["saved_shadow_interval"] = _interval(1.0 - _ratios(m := _resampled(pairs, rng), m[:, 1]))
    if not held.size or not treated.size or not held.sum():
        fields["reason"] = f"{held.size} runs in the holdout and {treated.size} outside it: both sides need runs with tokens"
        return HoldoutSaving(**fields)
    how = "1 - mean tokens of all runs assigned to stopping / mean tokens of the holdout"
    fields["saved"] = Figure(float(1.0 - treated.mean() / held.mean()), "fraction", "measured", how)
    if min(held.size, treated.size) >= LEAST_RUNS:
        resampled = _resampled(treated[:, None], rng), _resampled(held[:, None], rng)
        fields["saved_interval"] = _interval(1.0 - _ratios(resampled[0], resampled[1][:, 0]))
    else:
        fields["reason"] = f"an interval needs {LEAST_RUNS} runs on each side; there are {held.size} and {treated.size}"
    labels = [np.array([r for calls in sides[s] if (r := _right(calls)) is not None], dtype=np.float64) for s in (True, False)]
    if all(side.size for side in labels):
        fields["accuracy_holdout"], fields["accuracy_stopping"] = (float(side.mean()) for side in labels)
        fields["accuracy_change"] = fields["accuracy_stopping"] - fields["accuracy_holdout"]
        if min(side.size for side in labels) >= LEAST_RUNS:
            fields["accuracy_change_interval"] = difference(*labels)
    return HoldoutSaving(**fields)


def _right(calls: Sequence[Run]) -> float | None:
    labels = [c.correct for c in calls if c.correct is not None]
    return sum(labels) / len(labels) if labels else None


def _ratios(means: Array, below: Array) -> Array:
    import numpy as np

    return np.divide(means[:, 0], below, out=np.ones_like(below), where=below > 0)


def _resampled(rows: Array, rng: np.random.Generator) -> Array:
    """Column means of bootstrap resamples of ``rows`` [n, columns]: [RESAMPLES, columns]."""
    import numpy as np

    n = len(rows)
    if n > LARGEST_BOOTSTRAP:
        size = -(-n // LARGEST_BOOTSTRAP)
        rows = rng.permutation(rows)[: n - n % size].reshape(-1, size, rows.shape[1]).mean(1)
        n = len(rows)
    return np.stack([rows[rng.integers(n, size=n)].mean(0) for _ in range(RESAMPLES)])


def _interval(values: Array) -> tuple[float, float]:
    import numpy as np

    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
