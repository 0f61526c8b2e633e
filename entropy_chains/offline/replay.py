"""What a policy would have done on recorded runs: the same decisions as live, the same costs, paired with the full runs.

Changes are fractions of all runs, negative = worse; savings are ratios of sums. Intervals are 95 %, paired, over groups: of savings
by bootstrap, of the accuracy change as in :mod:`entropy_chains.intervals`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from entropy_chains.core.policy import Policy
from entropy_chains.errors import InputError
from entropy_chains.intervals import RESAMPLES, paired_change
from entropy_chains.offline.bootstrap import Interval, check_resampling, percentile_interval, resampled_weights, subsample
from entropy_chains.offline.certify import readings
from entropy_chains.offline.diagnose import listed
from entropy_chains.offline.published import first_stops, oracle_stops, stop_rows, tokens_spent
from entropy_chains.offline.table import Array, Table, Traces, as_table
from entropy_chains.options import OnMismatch


@dataclass(frozen=True, slots=True, eq=False)
class ReplayResult:
    """A policy on recorded runs.

    Attributes:
        questions: trace lines; groups: distinct questions.
        cut: lines of runs that were cut off, whose full answers nobody knows; judged: the others.
        accuracy_full, accuracy: share of right answers among the judged, in full and with the policy; None with ``agreement``
            labels, or where none is judged.
        accuracy_change: accuracy - accuracy_full, with its interval; negative = worse. The interval is never a single point, but
            for a policy that is not active: that changes nothing, for certain.
        lost_correct, gained_correct: judged lines that the policy turned from right to wrong, and the other way.
        lost_cut: cut lines that the policy stopped with an answer that is not known to be right.
        tokens_full, tokens: computed in full, and with the policy, probes paid.
        tokens_saved: 1 - tokens / tokens_full, with its interval; negative where probes cost more than stopping saves.
        seconds_full, seconds: wall time of the steps; None where a step's is not recorded.
        oracle_tokens_saved: stopping where the full run's answer is first given
            (:func:`entropy_chains.offline.published.oracle_stops`).
        stopped_early: fraction of lines; stops_at_step: how many stopped after step i + 1.
        stop_step: of each run, 0 = run in full; run_tokens: spent by each; run_correct: its answer is right; run_lost: it
            is one of ``lost_correct`` or ``lost_cut``. Arrays, [runs].
    """

    questions: int
    groups: int
    judged: int
    cut: int
    accuracy_full: float | None
    accuracy: float | None
    accuracy_change: float | None
    accuracy_change_interval: Interval
    lost_correct: int
    gained_correct: int
    lost_cut: int
    tokens_full: int
    tokens: int
    tokens_saved: float
    tokens_saved_interval: Interval
    seconds_full: float | None
    seconds: float | None
    oracle_tokens_saved: float
    stopped_early: float
    stops_at_step: tuple[int, ...]
    stop_step: Array = field(repr=False)
    run_tokens: Array = field(repr=False)
    run_correct: Array = field(repr=False)
    run_lost: Array = field(repr=False)

    @property
    def risk(self) -> float:
        """Share of lines that lost their answer, or may have; with ``agreement`` labels the disagreement."""
        return (self.lost_correct + self.lost_cut) / self.questions

    def to_dict(self) -> dict[str, Any]:
        """The object of ``replay --json``: without the arrays over runs."""
        written: dict[str, Any] = listed({f.name: getattr(self, f.name) for f in fields(self) if f.repr})
        return written


def decisions(table: Table, policy: Policy) -> Array:
    """The step after which the policy stops each run, 0 = it runs in full; int32 [runs].

    The rule is the object that decides live, asked of all rows at once.
    """
    if not policy.active:
        return np.zeros(table.runs, np.int32)
    rule = policy.stop_rule
    allowed = table.stops_allowed(rule.sees_answers(policy.mode, policy.scope))
    return first_stops(table, allowed & rule.stops_rows(readings(table, rule, policy.mass_floor)))


def replay(
    traces: Traces, policy: Policy, *, seed: int = 0, resamples: int = RESAMPLES, on_mismatch: OnMismatch = "error"
) -> ReplayResult:
    """What a policy would have done on recorded runs.

    Args:
        traces: a table, a file, several, or traces in memory.
        policy: when to stop; one that is not active runs everything in full.
        seed: of the bootstrap.
        resamples: of the bootstrap.
        on_mismatch: ``error`` or ``warn`` where the traces are of another model or other settings than the policy.

    Raises:
        InputError: bad traces or numbers.
        PolicyMismatch: the policy is for something else.
    """
    check_resampling(seed, resamples)
    table = as_table(traces)
    table.check(policy, on_mismatch)
    stops = decisions(table, policy)
    result = judge(table, stops, policy.active and policy.stop_rule.reads_answers, seed=seed, resamples=resamples)
    if policy.active or result.accuracy_change_interval is None:
        return result
    return replace(result, accuracy_change_interval=(0.0, 0.0))


def judge(table: Table, stops: Array, every_probe: bool, *, seed: int = 0, resamples: int = RESAMPLES) -> ReplayResult:
    """Accuracy and cost of stopping each run after the given step, 0 = in full.

    Args:
        table: recorded runs.
        stops: a step of each run, not its last, or 0; [runs].
        every_probe: the rule pays for a probe after every step, as in :meth:`Table.costs`.
        seed: of the bootstrap.
        resamples: of the bootstrap.
    """
    row, tokens = stop_rows(table, stops), tokens_spent(table, stops, every_probe)
    upto = np.cumsum(table.seconds)
    seconds = upto - (upto - table.seconds)[table.offsets[:-1]][table.run]
    spent = None if np.isnan(table.seconds).any() else (float(seconds[table.last].sum()), float(seconds[row].sum()))
    return _compared(table, stops, tokens, table.correct[row] == 1, spent, seed, resamples)


def judge_live(
    table: Table, stops: Array, tokens: Array, right: Array, *, seed: int = 0, resamples: int = RESAMPLES
) -> ReplayResult:
    """Live stopped runs against recorded full runs of the same questions, in the same order.

    Args:
        table: the full runs.
        stops: the step after which each live run stopped, 0 = it ran in full; [runs].
        tokens: what each live run computed; [runs].
        right: each live run's answer is right; [runs].
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        InputError: the arrays are not one value a run.
    """
    for name, values in (("stops", stops), ("tokens", tokens), ("right", right)):
        if values.shape != (table.runs,):
            raise InputError(f"{name} has shape {values.shape}; one value for each of the {table.runs} runs is needed")
    return _compared(table, stops, tokens, right.astype(bool), None, seed, resamples)


def _compared(
    table: Table, stops: Array, tokens: Array, right: Array, seconds: tuple[float, float] | None, seed: int, resamples: int
) -> ReplayResult:
    """The figures of runs that stopped, computed and answered so; ``seconds``: in full, and spent, where they are known."""
    full_tokens = np.add.reduceat(table.tokens, table.offsets[:-1])
    full_right, whole = table.full_right, ~table.cut
    change = np.where(whole, right.astype(float) - full_right, 0.0)
    saved_interval = _saved_interval(table, tokens, full_tokens, seed, resamples)
    lost = ~right & np.where(whole, full_right, stops > 0)
    gold, judged = table.labels == "gold" and bool(whole.any()), int(whole.sum())
    return ReplayResult(
        questions=table.runs,
        groups=table.groups,
        judged=judged,
        cut=table.runs - judged,
        accuracy_full=table.accuracy_full,
        accuracy=float(right[whole].mean()) if gold else None,
        accuracy_change=float(change[whole].mean()) if gold else None,
        accuracy_change_interval=_change_interval(table, change) if gold else None,
        lost_correct=int((lost & whole).sum()),
        gained_correct=int((right & ~full_right & whole).sum()),
        lost_cut=int((lost & ~whole).sum()),
        tokens_full=int(full_tokens.sum()),
        tokens=int(tokens.sum()),
        tokens_saved=_saved(tokens, full_tokens),
        tokens_saved_interval=saved_interval,
        seconds_full=seconds[0] if seconds else None,
        seconds=seconds[1] if seconds else None,
        oracle_tokens_saved=_saved(tokens_spent(table, oracle_stops(table), every_probe=False), full_tokens),
        stopped_early=float((stops > 0).mean()),
        stops_at_step=tuple(np.bincount(stops, minlength=int(table.step.max()) + 1)[1:].tolist()),
        stop_step=stops,
        run_tokens=tokens,
        run_correct=right,
        run_lost=lost,
    )


def _saved(tokens: Array, full: Array) -> float:
    return 1.0 - float(tokens.sum()) / float(full.sum()) if full.sum() > 0 else 0.0


def _by_group(table: Table, *columns: Array) -> list[Array]:
    """Sums of values of runs, [groups] each."""
    return [np.bincount(table.group, column, minlength=table.groups) for column in columns]


def _change_interval(table: Table, change: Array) -> Interval:
    """Of the mean change of the runs that were not cut off; ``change``: of each run, 0 where it was, [runs]."""
    return paired_change(*_by_group(table, change, ~table.cut))


def _saved_interval(table: Table, tokens: Array, full: Array, seed: int, resamples: int) -> Interval:
    """Of the share of tokens saved; None with a single group: nothing varies between resamples of it."""
    if table.groups < 2:
        return None
    part, size = subsample(table.group, table.groups, seed)
    by_group = np.stack(_by_group(table, tokens, full), axis=1)
    total, mine = by_group.sum(0), by_group[np.argsort(part)[-size:]]
    drawn = np.concatenate([w @ mine for w in resampled_weights(size, resamples, seed, size)])
    centre = mine.sum(0)
    if not total[1] or not centre[1]:
        return None
    with np.errstate(invalid="ignore", divide="ignore"):
        saved = 1.0 - drawn[:, 0] / drawn[:, 1]
    return percentile_interval(saved, 1.0 - total[0] / total[1], 1.0 - centre[0] / centre[1], math.sqrt(size / table.groups))
