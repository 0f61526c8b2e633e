"""Is there a signal? Does a higher entropy go with a wrong answer, step by step, and how surely.

Direction: positive = wrong, and higher entropy = less certain, so an AUROC above 0.5 is a signal that stopping can use, one
below is inverted. Pairs are compared within a step only: entropy falls from step to step whatever the accuracy does, and a
pooled AUROC mistakes that for a signal. Intervals are 95 % percentile bootstrap over groups, for the steps of one run, and the
runs of one question, are not independent (DeLong's formula would take them so). The AUROC that the verdict rests on is over steps
after which a run could be stopped: never over last ones, whose answers are no early ones, nor, in the refine loop, over those that
are seen to have no answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from entropy_chains.offline.bootstrap import Interval, check_resampling, percentile_interval, resampled_weights, subsample
from entropy_chains.offline.no_thinking import MOST_MISSING
from entropy_chains.offline.table import Array, Table, Traces, as_table

SENTENCES = {
    "signal": "Wrong answers have the higher entropy: a stop rule has something to read.",
    "no_signal": "The entropies of right and wrong answers cannot be told apart: entropy is no reason to stop this model.",
    "inverted_signal": "Wrong answers have the lower entropy: stopping where entropy is low would stop on wrong answers.",
    "too_few_examples": "Too few right or too few wrong answers to tell: record more questions, or harder or easier ones.",
}

NOT_RECORDED = (
    "No entropy is recorded: the server gave no logprobs, or they were not asked for. Rules that read entropy cannot stop here; "
    "record again with logprobs (`entropy-chains doctor` tells whether the server gives them)."
)
"""What is said instead where the signal is missing after every step."""

ONE_STEP = (
    "No run has a step before its last, so there is nothing to stop after: record shorter steps (--min-tokens, --boundary), or, in "
    "refine mode, more calls (--steps)."
)
"""What is said instead where every run is a single step."""

NO_ANSWERS = (
    "the model thought again when it was asked for them, or gave none that can be read. Record again with --continuation prefill "
    "or completion (`entropy-chains doctor` tells which the server has), or ask for a form that can be read (--system); look at "
    "the answers in the traces."
)
"""What is said where most early answers are missing, after that they are."""

FEWEST = 10
"""Questions with a wrong early answer below which nothing is said of a signal; with a right full answer, nothing is fitted."""

AUROC_RESAMPLES = 1000
"""Resamples of the bootstrap of an AUROC."""

Auroc = tuple[float | None, Interval]
"""Estimate and interval; both None where there are no pairs."""


@dataclass(frozen=True, slots=True)
class StepDiagnosis:
    """One step's figures; None where only one class occurs.

    Attributes:
        n: runs that recorded this step.
        accuracy: share of right answers (with ``agreement`` labels: of answers equal to the full run's).
        auroc, auroc_interval, cohens_d: as in :class:`Diagnosis`, of this step.
    """

    step: int
    n: int
    accuracy: float
    auroc: float | None
    auroc_interval: Interval
    cohens_d: float | None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Whether a signal tells wrong answers from right ones.

    Attributes:
        questions: trace lines; groups: distinct questions; labels: ``gold`` or ``agreement``.
        cut: lines of runs that were cut off; judged: the others.
        accuracy_full: share of right full runs among the judged; None with ``agreement`` labels, or where none is judged.
        recorded: share of the steps before the last that have the signal; answers_missing: share of them without an answer;
            longest: such steps of the run with the most.
        signal: the lower bound of ``auroc`` is above 0.5.
        verdict: ``signal``, ``no_signal``, ``inverted_signal`` or ``too_few_examples``: fewer than :data:`FEWEST` questions have a
            wrong early answer, or right or wrong ones are lacking.
        auroc: chance that of a wrong and a right early answer of the same step the wrong one has the higher entropy; ties count
            half.
        auroc_pooled: the same over pairs of any steps, shown only because others report it.
        auroc_lost: positive = what a stop here loses: the full run is right, or was cut off, and this step wrong; last steps left
            out.
        cohens_d: (mean of wrong - mean of right) / pooled standard deviation at step 1; above 0 = useful.
    """

    questions: int
    groups: int
    labels: str
    judged: int
    cut: int
    accuracy_full: float | None
    recorded: float
    answers_missing: float
    longest: int
    signal: bool
    verdict: str
    auroc: float | None
    auroc_interval: Interval
    auroc_pooled: float | None
    auroc_lost: float | None
    cohens_d: float | None
    steps: tuple[StepDiagnosis, ...]

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        return sentence(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The object of ``diagnose --json``."""
        written: dict[str, Any] = listed(asdict(self))
        return written


def diagnose(traces: Traces, *, signal: str | None = None, seed: int = 0, resamples: int = AUROC_RESAMPLES) -> Diagnosis:
    """Whether a signal tells wrong answers from right ones, per step and over all steps.

    Args:
        traces: a table, a file, several, or traces in memory.
        signal: its name; None: what ``entropy`` holds.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        InputError: bad traces, an unrecorded signal, one of which higher means surer, or a bad number.
    """
    check_resampling(seed, resamples)
    table = as_table(traces)
    values = table.values(signal)
    judged = judged_rows(table)
    measured = judged & ~np.isnan(values)
    wrong = table.correct == 0
    early = table.stops_allowed(table.mode == "refine")
    by_step = {stratum.step: stratum for stratum in signal_strata(table, values, np.ones_like(early))}
    early_strata = [_shared(stratum, by_step) for stratum in signal_strata(table, values, early)]
    (estimate, interval), *of_steps = auroc_intervals(
        [early_strata, *([stratum] for stratum in by_step.values())], table.groups, seed, resamples
    )
    per_step = dict(zip(by_step, of_steps, strict=True))
    lost = stratify(values, table.lost, table.step, table.group[table.run], ~table.is_last & ~np.isnan(values))
    pooled = stratify(values, wrong, np.zeros_like(table.step), table.group[table.run], measured)
    steps = []
    for step, rows in rows_by_step(table.step, judged):
        auroc, bounds = per_step.get(step, (None, None))
        d = separation(values[rows], wrong[rows]).cohens_d
        steps.append(StepDiagnosis(step, len(rows), float(table.correct[rows].mean()), auroc, bounds, d))
    cut = int(table.cut.sum())
    return Diagnosis(
        questions=table.runs,
        groups=table.groups,
        labels=table.labels,
        judged=table.runs - cut,
        cut=cut,
        accuracy_full=table.accuracy_full,
        recorded=recorded_share(table, values),
        answers_missing=missing_share(table),
        longest=table.longest,
        signal=interval is not None and interval[0] > 0.5,
        verdict=verdict_of(interval, questions_with(table, early & judged & wrong)),
        auroc=estimate,
        auroc_interval=interval,
        auroc_pooled=_auroc(pooled, table.groups),
        auroc_lost=_auroc(lost, table.groups),
        cohens_d=next((s.cohens_d for s in steps if s.step == 1), None),
        steps=tuple(steps),
    )


def sentence(figures: Mapping[str, Any]) -> str:
    """The verdict of a diagnosis in words; ``figures``: as :meth:`Diagnosis.to_dict` gives it."""
    if figures.get("longest") == 0:
        return ONE_STEP
    if figures.get("recorded") == 0:
        return NOT_RECORDED
    if figures["verdict"] == "too_few_examples" and (figures.get("answers_missing") or 0) >= MOST_MISSING:
        return f"Most early answers are missing, so there is nothing to tell: {NO_ANSWERS}"
    return SENTENCES[figures["verdict"]]


def signal_strata(table: Table, values: Array, rows: Array) -> list[Stratum]:
    """The values over these of the judged rows, by step; positive = wrong."""
    rows = rows & judged_rows(table) & ~np.isnan(values)
    return stratify(values, table.correct == 0, table.step, table.group[table.run], rows)


def verdict_of(interval: Interval, wrong: int = FEWEST) -> str:
    """What an AUROC's interval says; ``wrong``: of how many questions the wrong answers are."""
    if interval is None or wrong < FEWEST:
        return "too_few_examples"
    return "signal" if interval[0] > 0.5 else "inverted_signal" if interval[1] < 0.5 else "no_signal"


def questions_with(table: Table, rows: Array) -> int:
    """How many questions own one of the rows; ``rows``: bool [rows]."""
    return len(np.unique(table.group[table.run[rows]]))


def recorded_share(table: Table, values: Array) -> float:
    """Share of the steps before the last whose value is not missing; 1 where there are none."""
    early = ~table.is_last
    return float((~np.isnan(values[early])).mean()) if early.any() else 1.0


def missing_share(table: Table) -> float:
    """Share of the steps before the last that have no answer; 0 where there are none."""
    early = ~table.is_last
    return float((~table.answered[early]).mean()) if early.any() else 0.0


def judged_rows(table: Table) -> Array:
    """Rows that diagnosis looks at, bool [rows]: those whose answer is known to be right or wrong.

    With ``agreement`` labels the last row always agrees and is left out. Of a run that was cut off the last row is no answer; with
    ``agreement`` labels there is nothing to compare its other rows with either.
    """
    cut = table.cut[table.run]
    labelled: Array = ~(cut & table.is_last) if table.labels == "gold" else ~(cut | table.is_last)
    return labelled


def rows_by_step(step: Array, chosen: Array) -> Iterator[tuple[int, Array]]:
    """Each step that occurs among the chosen rows, with those rows."""
    rows = np.flatnonzero(chosen)
    rows = rows[np.argsort(step[rows], kind="stable")]
    starts = np.flatnonzero(np.diff(step[rows], prepend=-1))
    for start, end in pairwise([*starts.tolist(), len(rows)]):
        yield int(step[rows[start]]), rows[start:end]


class Separation(NamedTuple):
    """How far apart right and wrong answers' values are: means and standard deviations (ddof 1), bits; None below two of either."""

    mu_correct: float | None
    sigma_correct: float | None
    mu_wrong: float | None
    sigma_wrong: float | None
    cohens_d: float | None
    right: int
    wrong: int


def separation(values: Array, wrong: Array) -> Separation:
    """Means, standard deviations and Cohen's d = (mean wrong - mean right) / pooled SD of one step's values; NaN left out."""
    present = ~np.isnan(values)
    right, bad = values[present & ~wrong], values[present & wrong]
    if len(right) < 2 or len(bad) < 2:
        return Separation(None, None, None, None, None, len(right), len(bad))
    mu_c, sigma_c, mu_w, sigma_w = (float(x) for x in (right.mean(), right.std(ddof=1), bad.mean(), bad.std(ddof=1)))
    pooled = math.sqrt(((len(right) - 1) * sigma_c**2 + (len(bad) - 1) * sigma_w**2) / (len(right) + len(bad) - 2))
    return Separation(mu_c, sigma_c, mu_w, sigma_w, (mu_w - mu_c) / pooled if pooled > 0 else None, len(right), len(bad))


# --- AUROC, weighted: a resample of groups is a weight on each row


class Stratum(NamedTuple):
    """One step's rows, ascending by value: their groups, which are positive (float 0 or 1), and where blocks of ties start."""

    step: int
    group: Array
    positive: Array
    blocks: Array


def stratify(values: Array, positive: Array, step: Array, group: Array, chosen: Array) -> list[Stratum]:
    """The chosen rows by step; steps with one class only have no pairs and are left out."""
    strata = []
    for number, rows in rows_by_step(step, chosen):
        rows = rows[np.argsort(values[rows], kind="stable")]
        marks = positive[rows].astype(float)
        if 0 < marks.sum() < len(marks):
            strata.append(Stratum(number, group[rows], marks, np.flatnonzero(np.diff(values[rows], prepend=-np.inf))))
    return strata


def pair_counts(stratum: Stratum, weights: Array) -> tuple[Array, Array]:
    """Weighted pairs (positive, negative) with the positive higher, ties half, and all pairs; weights [resamples, groups]."""
    if not len(stratum.group):
        return np.zeros(len(weights)), np.zeros(len(weights))
    weight = weights[:, stratum.group]
    positive = weight * stratum.positive
    negative = weight - positive
    if len(stratum.blocks) < len(stratum.group):
        positive = np.add.reduceat(positive, stratum.blocks, axis=1)
        negative = np.add.reduceat(negative, stratum.blocks, axis=1)
    below = np.cumsum(negative, axis=1)
    pairs = positive.sum(1) * below[:, -1]
    below -= negative / 2
    return np.einsum("ij,ij->i", positive, below), pairs


def _auroc(strata: list[Stratum], groups: int) -> float | None:
    wins, pairs = _summed(strata, np.ones((1, groups)))
    return float(wins.sum() / pairs.sum()) if pairs.sum() > 0 else None


def _summed(strata: list[Stratum], weights: Array) -> tuple[Array, Array]:
    """Pair counts of each stratum, [strata, resamples]."""
    counts = [pair_counts(s, weights) for s in strata]
    shape = (len(strata), len(weights))
    return np.array([c[0] for c in counts]).reshape(shape), np.array([c[1] for c in counts]).reshape(shape)


def auroc_intervals(parts: list[list[Stratum]], groups: int, seed: int, resamples: int = AUROC_RESAMPLES) -> list[Auroc]:
    """Stratified AUROC of each part with its interval, all from the same resamples; a stratum may stand in several parts.

    An interval is None where fewer than two groups have positives or fewer than two have negatives: nothing varies then.
    """
    strata = list({id(s): s for part in parts for s in part}.values())  # each is counted once
    places = {id(s): place for place, s in enumerate(strata)}
    if not strata:
        return [(None, None)] * len(parts)
    wins, pairs = (x[:, 0] for x in _summed(strata, np.ones((1, groups))))
    widest = {s.step: s for s in sorted(strata, key=lambda s: len(s.group))}  # every row once
    codes, size = subsample(np.concatenate([s.group for s in widest.values()]), groups, seed)
    small = [_restrict(s, codes) for s in strata]
    all_wins, all_pairs = (x[:, 0] for x in _summed(small, np.ones((1, size))))
    drawn = [_summed(small, w) for w in resampled_weights(size, resamples, seed, sum(len(s.group) for s in small))]
    draws, weights = (np.concatenate([d[i] for d in drawn], axis=1) for i in (0, 1))
    scale = math.sqrt(size / groups)

    def figures(which: list[int]) -> Auroc:
        if not which:
            return None, None
        estimate = float(wins[which].sum() / pairs[which].sum())
        marks = np.concatenate([strata[i].positive for i in which]) > 0
        owners = np.concatenate([strata[i].group for i in which])
        if min(len(np.unique(owners[marks])), len(np.unique(owners[~marks]))) < 2:
            return estimate, None
        with np.errstate(invalid="ignore"):
            share = draws[which].sum(0) / weights[which].sum(0)
            centre = all_wins[which].sum() / all_pairs[which].sum()
        bounds = percentile_interval(share, estimate, centre, scale)
        return estimate, bounds and (max(0.0, bounds[0]), min(1.0, bounds[1]))

    return [figures([places[id(s)] for s in part]) for part in parts]


def _shared(stratum: Stratum, by_step: dict[int, Stratum]) -> Stratum:
    """The step's stratum of all rows where the given one, of some of them, has as many."""
    whole = by_step[stratum.step]
    return whole if len(whole.group) == len(stratum.group) else stratum


def _restrict(stratum: Stratum, part: Array) -> Stratum:
    """The stratum's rows of the groups that ``part`` (new code of each group, -1 = left out) keeps."""
    code = part[stratum.group]
    inside = code >= 0
    if inside.all():
        return stratum._replace(group=code)
    block = np.zeros(len(code), np.int64)
    block[stratum.blocks] = 1
    block = np.cumsum(block)[inside]
    return stratum._replace(group=code[inside], positive=stratum.positive[inside], blocks=np.flatnonzero(np.diff(block, prepend=0)))


def listed(value: Any) -> Any:
    """The same with lists for tuples, as JSON has it."""
    if isinstance(value, dict):
        return {k: listed(v) for k, v in value.items()}
    return [listed(v) for v in value] if isinstance(value, list | tuple) else value
