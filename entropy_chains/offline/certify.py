"""Settings of a stop rule walked from strict to lenient, with a guarantee (Learn then Test, fixed sequence).

The loss of a question is *lost-correct*: the full run is right and the early answer wrong. Settings are tested in an order fixed
before the data are seen, each with the exact binomial p-value of "the risk is above max_loss": it passes where no more are lost
than allowed. The walk ends at the first that fails and keeps the last that passed. The risk is then above max_loss with a chance
of at most the p-value of the number allowed, whatever the number of settings; :func:`allowances` shares a chance of delta among
several rules.

Of a run that was cut off neither the full answer nor what a rule would have done after the cut is known. A stop on it counts as
lost unless its answer is known to be right; and no rule stops after the last step that enough runs reach (:func:`last_seen_step`),
nor after one that was not recorded (:func:`last_recorded_step`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import stats

from entropy_chains.core.rules import MISSING, Readings, Rule
from entropy_chains.core.signals import MassFloor
from entropy_chains.offline.diagnose import rows_by_step
from entropy_chains.offline.table import Array, Table


class Curve(NamedTuple):
    """What a rule does at each of its settings, from the strictest to the most lenient.

    Attributes:
        settings: thresholds in bits, or steps.
        losses: lost among the tested runs, those not known to keep the right answer included; n: how many runs were tested.
        saved: fraction of all runs' tokens saved, probes paid.
    """

    settings: Array
    losses: Array
    n: int
    saved: Array


def last_recorded_step(table: Table) -> int | None:
    """The last step at which a stop may be allowed where only so many steps of a run were recorded; None: no limit."""
    return None if table.max_steps is None else min(table.max_steps, table.longest)


def last_seen_step(table: Table, tested: Array, allowed: int) -> int | None:
    """The last step at which a stop may be allowed; None, no limit, where all steps of all runs are recorded.

    Steps after a cut are not recorded, but a longer run has them, and could be stopped there. Each tested run that was cut off
    before this step counts as lost, unless it was stopped. They may be half of the losses ``allowed``, rounded up: a number that
    is known before any outcome is read.
    """
    recorded = last_recorded_step(table)
    if not table.cut.any():
        return recorded
    unseen = (max(allowed, 0) + 1) // 2
    seen = np.sort((np.diff(table.offsets) - 1)[table.cut & tested])
    last = int(seen[unseen]) if unseen < len(seen) else table.longest
    return last if recorded is None else min(last, recorded)


def readings(table: Table, rule: Rule, floor: MassFloor) -> Readings:
    """What a rule reads after each recorded step, as :meth:`Rule.reading` reads it live."""
    low = table.mass < floor.step  # a missing mass is not a low one
    read = {s.name: np.where(low, MISSING, table.values(s.name)) for s in rule.signals}
    value = read.get(rule.signal, np.broadcast_to(MISSING, len(low)))
    return Readings(table.step, value, table.same_as_previous, {name: read[name] for name in rule.also_reads if name in read})


def curve(
    table: Table,
    rule: Rule,
    tested: Array,
    *,
    floor: MassFloor | None = None,
    scales: Array | None = None,
    last_step: int | None = None,
    scope: str = "call",
) -> Curve:
    """Losses and savings of a rule at all settings of its parameter at once.

    At a setting, a run stops at its first row whose own first setting (:meth:`Rule.first_settings`) is no more lenient. As settings
    get more lenient, that row moves from one strict prefix minimum of the run's first settings to an earlier one: each such record
    owns the settings from its own up to the record before it. So its loss and its cost are added over that range in one pass.

    Args:
        table: recorded runs.
        rule: its signal and its first step; its parameter is what is walked.
        tested: the runs whose losses count, bool [runs]; savings are over all.
        floor: least mass; None: the default.
        scales: threshold at each step relative to the grid's, the last repeated, NaN = never stop there; None: 1.
        last_step: last step at which a stop is allowed; None: the longest run's. A run cut off earlier and not stopped counts as
            lost. A rule that nothing keeps from stopping later (:attr:`Rule.limited`) is walked from this step on, but may stop
            after later ones, too: there every run that was cut off and not stopped counts as lost.
        scope: of the policy, ``call`` or ``agent``.
    """
    last_step = table.longest if last_step is None else last_step
    read = readings(table, rule, floor or MassFloor())
    sees_answers = rule.sees_answers(table.mode or "thinking", scope)
    allowed = table.stops_allowed(sees_answers) & ((table.step <= last_step) | (not rule.limited))
    stop_cost, full_cost = table.costs(rule.reads_answers)
    settings = rule.settings(last_step, table.k, table.vocab_size)
    size = len(settings)
    if scales is None:
        cell = np.where(allowed, rule.first_settings(read, settings), size)
    else:
        cell = np.full(len(allowed), size)
        for step, at in rows_by_step(table.step, allowed):
            if not np.isnan(factor := scales[min(step, len(scales)) - 1]):
                cell[at] = rule.first_settings(read.take(at), settings * factor)
    offset = table.run.astype(np.int64) * (size + 1)  # makes every run's numbers lower than the run's before
    lowest = np.minimum.accumulate(cell - offset)
    before = np.concatenate([[size], lowest[:-1] + offset[1:]])
    before[table.offsets[:-1]] = size
    rows = np.flatnonzero(cell < before)
    first, end = cell[rows], before[rows]

    def added(amount: Array) -> Array:
        begun, ended = (np.bincount(at, amount, minlength=size)[:size] for at in (first, end))
        summed: Array = np.cumsum(begun - ended)
        return summed

    unseen = tested & table.cut & ((np.diff(table.offsets) - 1 < last_step) | (not rule.limited))
    lost = (table.lost[rows] & tested[table.run[rows]]).astype(float) - unseen[table.run[rows]]
    losses = np.rint(unseen.sum() + added(lost)).astype(np.int64)
    tokens = max(1, int(table.tokens.sum()))
    saved = (added((full_cost[table.run[rows]] - stop_cost[rows]).astype(float)) + tokens - full_cost.sum()) / tokens
    return Curve(settings, losses, int(tested.sum()), saved)


def last_passing(losses: Array, allowed: int) -> int | None:
    """The fixed-sequence walk: index of the last setting before the first with more losses than allowed; None: the first fails."""
    failed = losses > allowed
    index = int(np.argmax(failed)) if failed.any() else len(failed)
    return index - 1 if index else None


def tail(losses: int, n: int, max_loss: float) -> float:
    """The p-value P(Bin(n, max_loss) <= losses); 0 for -1 losses."""
    return float(stats.binom.cdf(losses, n, max_loss))


def allowances(n: int, max_loss: float, delta: float, rules: int = 1) -> list[int]:
    """How many of ``n`` questions each of several rules may lose; -1: the rule is not tried.

    The test is coarse: a rule that may lose one question less than would exceed its share of delta leaves much of it unused. So
    each rule gets the number that an equal share allows, and then, in their order and round by round, one more as long as the
    tails P(Bin(n, max_loss) <= number) add up to at most delta. By the union bound all of them keep to max_loss with a chance of
    at least 1 - delta. The numbers depend on the arguments alone, so they are fixed before any outcome is read.
    """
    equal = int(np.searchsorted(stats.binom.cdf(np.arange(n + 1), n, max_loss), delta / rules, side="right")) - 1
    allowed, more = [equal] * rules, True
    while more:
        more = False
        for i in range(rules):
            raised = [*allowed[:i], allowed[i] + 1, *allowed[i + 1 :]]
            if raised[i] <= n and sum(tail(k, n, max_loss) for k in raised) <= delta:
                allowed, more = raised, True
    return allowed


def examples_needed(max_loss: float, delta: float, rules: int = 1) -> int:
    """Questions with which :func:`allowances` lets each of so many rules be tried, if none of them is lost."""
    return math.ceil(math.log(delta / rules) / math.log1p(-max_loss))


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
