"""Resampling by groups, seeded: for all intervals of the offline half."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from entropy_chains.errors import InputError
from entropy_chains.offline.table import Array

MAX_ROWS = 20_000
"""Rows above which the bootstrap works on a part of the groups, its spread scaled to the whole."""

CELLS = 1_000_000
"""Numbers worked on at a time: resamples of a chunk times groups."""

Interval = tuple[float, float] | None


def check_resampling(seed: int, resamples: int) -> None:
    """Raise InputError unless both can be used."""
    check_seed(seed)
    if type(resamples) is not int or resamples < 100:
        raise InputError(f"resamples is {resamples!r}; it must be a whole number of at least 100")


def check_seed(seed: int) -> None:
    """Raise InputError unless it is a whole number of at least 0."""
    if type(seed) is not int or seed < 0:
        raise InputError(f"seed is {seed!r}; it must be a whole number of at least 0")


def subsample(group: Array, groups: int, seed: int) -> tuple[Array, int]:
    """Which groups the bootstrap works on: the new code of each, -1 = left out, [groups], and how many; ``group``: of each row."""
    if len(group) <= MAX_ROWS:
        return np.arange(groups), groups
    order = np.random.default_rng([seed, 1]).permutation(groups)
    rows = np.cumsum(np.bincount(group, minlength=groups)[order])
    size = max(2, int(np.searchsorted(rows, MAX_ROWS, side="right")))
    part = np.full(groups, -1)
    part[order[:size]] = np.arange(min(size, groups))
    return part, min(size, groups)


def resampled_weights(groups: int, resamples: int, seed: int, rows: int) -> Iterator[Array]:
    """How often each group is drawn in each resample, float [chunk, groups], chunk by chunk."""
    rng = np.random.default_rng([seed, 2])
    chunk = max(1, CELLS // max(groups, rows, 1))
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        drawn = rng.integers(0, groups, (size, groups)) + groups * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * groups).reshape(size, groups).astype(float)


def percentile_interval(draws: Array, estimate: float, centre: float, scale: float) -> Interval:
    """95 % percentile interval of resampled figures; None if none is a number.

    Args:
        draws: the figure in each resample.
        estimate: of all groups.
        centre: the figure of the groups that were resampled.
        scale: square root of their share; a part of the groups varies more than the whole by 1/scale, around its own figure.
    """
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        return None
    low, high = np.percentile(draws, [2.5, 97.5])
    if scale < 1:
        low, high = estimate + scale * (low - centre), estimate + scale * (high - centre)
    return float(low), float(high)
