"""Settings of a stop rule walked from strict to lenient, with a guarantee (Learn then Test, fixed sequence).

The loss of a question is *lost-correct*: the full run is right and the early answer wrong. Settings are tested in an order fixed
before the data are seen, each with the exact binomial p-value of "the risk is above max_loss"; the walk ends at the first that
fails and keeps the last that passed. P(risk <= max_loss) >= 1 - level then, whatever the number of settings.

Of a run that was cut off neither the full answer nor what a rule would have done after the cut is known. A stop on it counts as
lost unless its answer is known to be right; and no rule stops after the last step that enough runs reach (:func:`last_seen_step`),
nor after one that was not recorded (:func:`last_recorded_step`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from entropy_chains.core.policy import AGREEING, MEANS, PROBE_SIGNALS, MassFloor
from entropy_chains.core.rules import threshold_at
from entropy_chains.offline.diagnose import rows_by_step
from entropy_chains.offline.table import Array, Table

SMALLEST = -14
"""The grid's first threshold above 0 is 2^-14 bits: models with very low entropies are resolved too."""
PER_OCTAVE = 16
LARGEST_SUM = 14
"""Grid of sums and unknown signals ends at 2^14 bits."""
DEFAULT_BITS = 18.0
"""Largest entropy, bits, of a full vocabulary whose size is not recorded."""
GRID = "0 and 2^-14 to the signal's maximum, 16 an octave"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A rule and the signal it reads, one parameter free: its threshold in bits, or the step of ``fixed-step``."""

    rule: str
    signal: str

    @property
    def reads_probes(self) -> bool:
        """Whether it pays for a probe after every step."""
        return self.rule == "entropy+agreement" or (self.rule != "fixed-step" and self.signal in PROBE_SIGNALS)


class Curve(NamedTuple):
    """What a candidate does at each of its settings, from never stopping to the most lenient.

    Attributes:
        settings: thresholds in bits, or steps.
        losses: lost among the tested runs, those not known to keep the right answer included; n: how many runs were tested.
        saved: fraction of all runs' tokens saved, probes paid.
    """

    settings: Array
    losses: Array
    n: int
    saved: Array


def threshold_grid(signal: str, k: int | None, vocab_size: int | None = None) -> Array:
    """Thresholds in bits, ascending: 0, then 16 an octave from 2^-14 up to log2 k (a sum or an unknown signal: 2^14)."""
    largest = 2.0**LARGEST_SUM
    if signal in MEANS:
        largest = math.log2(k) if k else math.log2(vocab_size) if vocab_size else DEFAULT_BITS
    if largest <= 0:
        return np.zeros(1)
    exponents = SMALLEST + np.arange(math.floor((math.log2(largest) - SMALLEST) * PER_OCTAVE) + 1) / PER_OCTAVE
    return np.unique(np.concatenate([[0.0], 2.0**exponents, [largest]]))


def last_recorded_step(table: Table) -> int | None:
    """The last step at which a stop may be allowed where only so many steps of a run were recorded; None: no limit."""
    return None if table.max_steps is None else min(table.max_steps, table.longest)


def last_seen_step(table: Table, tested: Array, max_loss: float, level: float) -> int | None:
    """The last step at which a stop may be allowed; None, no limit, where all steps of all runs are recorded.

    Steps after a cut are not recorded, but a longer run has them, and could be stopped there. Each tested run that was cut off
    before this step counts as lost, unless it was stopped. They may be half of the losses that the exact test allows, rounded up:
    a number that is known before any outcome is read.
    """
    recorded = last_recorded_step(table)
    if not table.cut.any():
        return recorded
    n = int(tested.sum())
    unseen = ((last_passing(np.arange(n + 1), n, max_loss, level) or 0) + 1) // 2
    seen = np.sort((np.diff(table.offsets) - 1)[table.cut & tested])
    last = int(seen[unseen]) if unseen < len(seen) else table.longest
    return last if recorded is None else min(last, recorded)


def within(thresholds: tuple[float | None, ...], last_step: int | None) -> tuple[float | None, ...]:
    """The same thresholds, with no stop after a step; None: no limit."""
    if last_step is None:
        return thresholds
    return (*(threshold_at(thresholds, step) for step in range(1, last_step + 1)), None)


def eligible_rows(table: Table, values: Array, rule: str, min_steps: int, floor: MassFloor) -> Array:
    """Rows after which the rule may stop, whatever its threshold, bool [rows]; the last recorded step is never an early stop."""
    allowed: Array = ~table.is_last & (table.step >= min_steps)
    if rule not in ("fixed-step", "agreement"):
        allowed &= ~np.isnan(values) & ~(table.mass < floor.step)  # a missing mass is not a low one
    return allowed & table.same_as_previous if rule in AGREEING else allowed


def curve(
    table: Table,
    candidate: Candidate,
    tested: Array,
    *,
    min_steps: int = 1,
    floor: MassFloor | None = None,
    scales: Array | None = None,
    last_step: int | None = None,
) -> Curve:
    """Losses and savings of a candidate at all its settings at once.

    A run stops at the first eligible step whose value is at or under the threshold. As thresholds rise, that step moves from one
    strict prefix minimum of the run's values to an earlier one: each such record owns the thresholds from its own value up to the
    record before it. Adding its loss and its cost over that range takes one pass over the rows, not one a threshold.

    Args:
        table: recorded runs.
        candidate: rule and signal.
        tested: the runs whose losses count, bool [runs]; savings are over all.
        min_steps: first step at which a stop is allowed.
        floor: least mass; None: the default.
        scales: threshold at each step relative to the grid's, the last repeated, NaN = never stop there; None: 1.
        last_step: last step at which a stop is allowed; None: no limit. A run cut off earlier and not stopped counts as lost.
    """
    values = table.values(candidate.signal)
    last_step = table.longest if last_step is None else last_step
    allowed = eligible_rows(table, values, candidate.rule, min_steps, floor or MassFloor()) & (table.step <= last_step)
    stop_cost, full_cost = table.costs(candidate.reads_probes)
    if candidate.rule == "fixed-step":
        settings = np.arange(last_step, min_steps - 1, -1)
        size = int(table.step.max()) + 1
        rows, first, end = np.flatnonzero(allowed), table.step[allowed], None
    else:
        settings = threshold_grid(candidate.signal, table.k, table.vocab_size)
        size = len(settings)
        cell = np.full(len(values), size)
        for step, at in rows_by_step(table.step, allowed) if scales is not None else [(1, np.flatnonzero(allowed))]:
            factor = 1.0 if scales is None else scales[min(step, len(scales)) - 1]
            if not np.isnan(factor):
                cell[at] = np.searchsorted(settings * factor, values[at])
        offset = table.run.astype(np.int64) * (size + 1)  # makes every run's numbers lower than the run's before
        lowest = np.minimum.accumulate(cell - offset)
        before = np.concatenate([[size], lowest[:-1] + offset[1:]])
        before[table.offsets[:-1]] = size
        rows = np.flatnonzero(cell < before)
        first, end = cell[rows], before[rows]

    def added(amount: Array) -> Array:
        total = np.bincount(first, amount, minlength=size)[:size]
        if end is None:
            return total[settings]
        summed: Array = np.cumsum(total - np.bincount(end, amount, minlength=size)[:size])
        return summed

    unseen = tested & table.cut & (np.diff(table.offsets) - 1 < last_step)
    lost = (table.lost[rows] & tested[table.run[rows]]).astype(float) - unseen[table.run[rows]]
    losses = np.rint(unseen.sum() + added(lost)).astype(np.int64)
    tokens = max(1, int(table.tokens.sum()))
    saved = (added((full_cost[table.run[rows]] - stop_cost[rows]).astype(float)) + tokens - full_cost.sum()) / tokens
    return Curve(settings, losses, int(tested.sum()), saved)


def last_passing(losses: Array, n: int, max_loss: float, level: float) -> int | None:
    """The fixed-sequence walk: index of the last setting before the first whose p-value P(Bin(n, max_loss) <= losses) > level."""
    failed = stats.binom.cdf(losses, n, max_loss) > level
    index = int(np.argmax(failed)) if failed.any() else len(failed)
    return index - 1 if index else None


def examples_needed(max_loss: float, level: float) -> int:
    """Questions that certify ``max_loss`` at this level if none of them is lost."""
    return math.ceil(math.log(level) / math.log1p(-max_loss))


def upper_bound(losses: int, n: int, level: float) -> float:
    """Exact one-sided upper bound of the risk (Clopper-Pearson), missed with a chance of at most ``level``."""
    return 1.0 if losses >= n else float(stats.beta.ppf(1.0 - level, losses + 1, n - losses))


def one_run_a_group(table: Table, seed: int) -> Array:
    """A drawn run of each group, bool [runs]: runs of one question are not independent, and the exact test needs them so."""
    keys = np.random.default_rng([seed, 3]).random(table.runs)
    order = np.lexsort((keys, table.group))
    drawn = np.zeros(table.runs, bool)
    drawn[order[np.flatnonzero(np.diff(table.group[order], prepend=-1))]] = True
    return drawn
