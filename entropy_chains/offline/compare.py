"""Every rule side by side: fitted on one part of the runs and judged on the other, on the same runs and at the same costs.

Changes are fractions, negative = worse; savings are ratios of sums; intervals are those of a replay, and take the fitted parameters
as given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from entropy_chains.errors import InputError
from entropy_chains.intervals import RESAMPLES
from entropy_chains.offline.bootstrap import Interval, check_resampling
from entropy_chains.offline.calibrate import calibrate
from entropy_chains.offline.certify import upper_bound
from entropy_chains.offline.contenders import HINDSIGHT, Contender, Decided, Terms, contenders
from entropy_chains.offline.diagnose import listed
from entropy_chains.offline.hold_out import parts
from entropy_chains.offline.published import stop_rows
from entropy_chains.offline.replay import ReplayResult, judge_live
from entropy_chains.offline.table import Array, Table, Traces, as_table
from entropy_chains.options import OnMismatch


@dataclass(frozen=True, slots=True)
class ComparedRule:
    """One rule, judged on runs that it was not fitted on.

    Attributes:
        rule: its name.
        method: how its parameter was set: ``certified`` (walked by the certificate), ``published``, ``none`` or ``hindsight``.
        fitted: the parameter came from the fitting part.
        applicable: the traces hold what it reads; where not, the figures are None and ``reason`` says what is missing.
        reason: why it stops or does not, as in a policy; several where the folds differ.
        parameters: its parameter in each fold, None = never stopped there.
        accuracy_change: with its interval; None with ``agreement`` labels.
        tokens_saved: with its interval; probes paid.
        lost_correct, gained_correct: judged lines turned from right to wrong, and the other way.
        lost_cut: lines of runs that were cut off, stopped with an answer that is not known to be right.
        lost_share: lines lost in either way over all lines; within_max_loss: it is at most the ``max_loss`` asked for.
        lost_bound: exact upper bound (95 %) of the share of questions with a lost line.
        oracle_fraction: tokens saved over what the oracle saves, None where that is nothing; above 1 only with other answers.
        pareto: no other rule saves as much and changes accuracy for the better; the oracle is left out.
    """

    rule: str
    method: str
    fitted: bool
    applicable: bool = True
    reason: str = ""
    parameters: tuple[float | None, ...] = ()
    accuracy_change: float | None = None
    accuracy_change_interval: Interval = None
    tokens_saved: float | None = None
    tokens_saved_interval: Interval = None
    lost_correct: int | None = None
    gained_correct: int | None = None
    lost_cut: int | None = None
    lost_share: float | None = None
    lost_bound: float | None = None
    within_max_loss: bool | None = None
    oracle_fraction: float | None = None
    pareto: bool = False

    @property
    def change(self) -> float:
        """Accuracy change; with ``agreement`` labels the share of runs that end with another answer, negative."""
        return -(self.lost_share or 0.0) if self.accuracy_change is None else self.accuracy_change


@dataclass(frozen=True, slots=True)
class Comparison:
    """Rules on the same runs: those within ``max_loss`` first, then by tokens saved; those that cannot be judged last.

    Attributes:
        questions, groups: of the runs judged on; labels: ``gold`` or ``agreement``.
        cut: lines of them whose run was cut off; judged: the others.
        max_loss, confidence: of the certificates.
        folds: parts, each judged with rules fitted on the others; None after :func:`transfer`.
        oracle_tokens_saved: by stopping at the first step with the full run's answer.
        rules: one entry a rule and method.
    """

    questions: int
    groups: int
    labels: str
    judged: int
    cut: int
    max_loss: float
    confidence: float
    folds: int | None
    oracle_tokens_saved: float
    rules: tuple[ComparedRule, ...]

    def to_dict(self) -> dict[str, Any]:
        """The object of ``compare --json``."""
        written: dict[str, Any] = listed(asdict(self))
        return written


class Split(NamedTuple):
    """Runs to fit on, runs to judge on, and which of all judged runs these are, bool [runs]."""

    fit: Table
    judged: Table
    runs: Array


def compare(
    traces: Traces,
    *,
    folds: int = 5,
    max_loss: float = 0.05,
    confidence: float = 0.9,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Fit every rule on a part of the questions, judge it on the rest, and in turn on every part.

    Args:
        traces: a table, a file, several, or traces in memory.
        folds: parts that the questions are drawn into; runs of one question stay together.
        max_loss: largest risk that a certified rule may have.
        confidence: that the risk is no larger; each rule is walked by itself, so this holds for a rule, not for the table's best.
        seed: of every draw.
        resamples: of the bootstrap.

    Raises:
        InputError: bad traces or a bad argument.
    """
    check_resampling(seed, resamples)
    table = as_table(traces)
    if table.groups < 2:
        raise InputError("the traces hold one question; a comparison needs at least two: some to fit on, others to judge on")
    if type(folds) is not int or not 2 <= folds <= table.groups:
        remedy = f"it must be a whole number from 2 to the number of questions, {table.groups}"
        raise InputError(f"folds is {folds!r}; {remedy}")
    part = parts(table, folds, seed)
    splits = [Split(table.subset(part != fold), table.subset(part == fold), part == fold) for fold in range(folds)]
    return _comparison(splits, table, Terms(max_loss, confidence, seed), folds, resamples)


def transfer(
    fit_on: Traces,
    judge_on: Traces,
    *,
    max_loss: float = 0.05,
    confidence: float = 0.9,
    seed: int = 0,
    resamples: int = RESAMPLES,
    on_mismatch: OnMismatch = "error",
) -> Comparison:
    """Fit every rule on some runs and judge it on others, say of another dataset, for which no certificate speaks.

    Args:
        fit_on: runs that parameters come from.
        judge_on: runs that the rules are judged on.
        max_loss: largest risk that a certified rule may have on runs like those fitted on.
        confidence: that it is no larger.
        seed: of every draw.
        resamples: of the bootstrap.
        on_mismatch: ``error`` or ``warn`` where the runs are of another model or other settings.

    Raises:
        InputError: bad traces or a bad argument.
        PolicyMismatch: the runs are of another model or other settings.
    """
    check_resampling(seed, resamples)
    fit, judged = as_table(fit_on), as_table(judge_on)
    if fit.labels != judged.labels:
        raise InputError(f"the runs to fit on have {fit.labels} labels, those to judge on {judged.labels} labels; use one kind")
    terms = Terms(max_loss, confidence, seed)
    judged.check(calibrate(fit, rule="fixed-step", **terms._asdict()), on_mismatch)
    splits = [Split(fit, judged, np.ones(judged.runs, bool))]
    return _comparison(splits, judged, terms, None, resamples)


def _comparison(splits: Sequence[Split], judged: Table, terms: Terms, folds: int | None, resamples: int) -> Comparison:
    oracle, rules = 0.0, []
    for contender in contenders(judged):
        missing = next(filter(None, map(contender.missing, (judged, *(s.fit for s in splits)))), None)
        if missing:
            rules.append(ComparedRule(*contender[:3], applicable=False, reason=missing))
            continue
        decided = [contender.decide(s.fit, s.judged, terms) for s in splits]
        stops, spent = np.zeros(judged.runs, np.int32), np.zeros(judged.runs, np.int64)
        for split, choice in zip(splits, decided, strict=True):
            stops[split.runs], spent[split.runs] = choice.stops, choice.spent
        right = judged.correct[stop_rows(judged, stops)] == 1
        result = judge_live(judged, stops, spent, right, seed=terms.seed, resamples=resamples)
        oracle = result.oracle_tokens_saved
        rules.append(_rule(contender, decided, result, judged, terms.max_loss))
    on_front = [r.method != HINDSIGHT and r.applicable and not any(_better(o, r) for o in rules) for r in rules]
    rules = [replace(r, pareto=front) for r, front in zip(rules, on_front, strict=True)]
    rules.sort(key=lambda r: (not r.applicable, not r.within_max_loss, -(r.tokens_saved or 0.0)))
    return Comparison(
        questions=judged.runs,
        groups=judged.groups,
        labels=judged.labels,
        judged=int((~judged.cut).sum()),
        cut=int(judged.cut.sum()),
        max_loss=terms.max_loss,
        confidence=terms.confidence,
        folds=folds,
        oracle_tokens_saved=oracle,
        rules=tuple(rules),
    )


def _rule(contender: Contender, decided: Sequence[Decided], result: ReplayResult, judged: Table, max_loss: float) -> ComparedRule:
    bound = upper_bound(len(np.unique(judged.group[result.run_lost])), judged.groups, 0.05) if result.stopped_early else 0.0
    change = result.accuracy_change_interval
    if change is not None and not result.stopped_early and all(d.parameter is None for d in decided):
        change = 0.0, 0.0  # what never stops changes nothing, for certain
    return ComparedRule(
        *contender[:3],
        reason=", ".join(dict.fromkeys(d.reason for d in decided)),
        parameters=tuple(d.parameter for d in decided),
        accuracy_change=result.accuracy_change,
        accuracy_change_interval=change,
        tokens_saved=result.tokens_saved,
        tokens_saved_interval=result.tokens_saved_interval,
        lost_correct=result.lost_correct,
        gained_correct=result.gained_correct,
        lost_cut=result.lost_cut,
        lost_share=result.risk,
        lost_bound=bound,
        within_max_loss=result.risk <= max_loss,
        oracle_fraction=result.tokens_saved / result.oracle_tokens_saved if result.oracle_tokens_saved > 0 else None,
    )


def _better(one: ComparedRule, other: ComparedRule) -> bool:
    """Whether ``one`` saves as much and costs no more right answers than ``other``, and is better in one of the two."""
    if one.method == HINDSIGHT or not one.applicable:
        return False
    a, b = ((r.tokens_saved or 0.0, r.change) for r in (one, other))
    return a != b and a[0] >= b[0] and a[1] >= b[1]
