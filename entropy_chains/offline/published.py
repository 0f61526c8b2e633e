"""Published stop rules over recorded runs, to compare with. Each reads one value a step and has one free parameter.

A rule stops a run at the first step whose value reaches its parameter; the last recorded step is never an early stop. Probes are
paid: leaving them out is the common cheat. Where a publication says something that traces do not hold, the docstring says what
is done instead ("our reading"). Parameters are walked in an order fixed before the data are seen, the strictest first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from entropy_chains.offline.certify import allowances, last_passing, one_run_a_group
from entropy_chains.offline.diagnose import rows_by_step
from entropy_chains.offline.table import Array, Table

RECORDED = 0.9
"""Share of the steps before the last that must have a signal; below it the rule that reads it is not compared."""


def lacking(table: Table, name: str, values: Array | None) -> str | None:
    """Why a rule that reads ``values`` [rows] cannot be judged on the table; None where it can."""
    early = ~table.is_last
    steps, present = int(early.sum()), 0 if values is None else int((~np.isnan(values[early])).sum())
    if present >= RECORDED * steps and values is not None:
        return None
    return f"{name!r} is recorded for {present} of {steps} steps" if present else f"the traces do not record {name!r}"


def tokens_so_far(table: Table) -> Array:
    """Tokens of a run up to and including each step, without probes, int64 [rows]."""
    total = np.cumsum(table.tokens)
    so_far: Array = total - (total - table.tokens)[table.offsets[:-1]][table.run]
    return so_far


def first_stops(table: Table, reached: Array) -> Array:
    """The first step of each run where ``reached`` [rows] is true, 0 = none, int32 [runs]; the last step is never one."""
    rows = np.flatnonzero(reached & ~table.is_last)
    first = np.flatnonzero(np.diff(table.run[rows], prepend=-1))
    stops = np.zeros(table.runs, np.int32)
    stops[table.run[rows[first]]] = table.step[rows[first]]
    return stops


def oracle_stops(table: Table) -> Array:
    """Where knowing the answers beforehand would stop each run, 0 = nowhere, int32 [runs].

    At the cheapest step with the full run's answer, or, of a run that was cut off, with one that is known to be right; nowhere
    where that costs more than the full run. So no rule that gives such answers alone saves more.
    """
    cost, full_cost = table.costs(every_probe=False)
    acceptable = table.same_as_last | (table.cut[table.run] & (table.correct == 1))
    rows = np.flatnonzero(acceptable & ~table.is_last & (cost <= full_cost[table.run]))
    rows = rows[np.lexsort((cost[rows], table.run[rows]))]  # of equally cheap ones the first
    best = rows[np.flatnonzero(np.diff(table.run[rows], prepend=-1))]
    stops = np.zeros(table.runs, np.int32)
    stops[table.run[best]] = table.step[best]
    return stops


def stop_rows(table: Table, stops: Array) -> Array:
    """The row whose answer each run gives, [runs]."""
    rows: Array = np.where(stops > 0, table.offsets[:-1] + stops - 1, table.last)
    return rows


def tokens_spent(table: Table, stops: Array, every_probe: bool) -> Array:
    """Tokens each run costs when stopped so, [runs]; ``every_probe`` as in :meth:`Table.costs`."""
    stop_cost, full_cost = table.costs(every_probe)
    spent: Array = np.where(stops > 0, stop_cost[stop_rows(table, stops)], full_cost)
    return spent


@dataclass(frozen=True, slots=True)
class Baseline:
    """A published rule.

    Attributes:
        name: of the rule.
        signal: the recorded signal it reads, or None: answers or token counts, which every trace holds.
        reads_probes: it pays for a probe after every step.
        at_least: it stops where the value is at or above its parameter; else at or under.
    """

    name: ClassVar[str]
    signal: ClassVar[str | None] = None
    reads_probes: ClassVar[bool] = False
    at_least: ClassVar[bool] = True

    def missing(self, table: Table) -> str | None:
        """Why it cannot be judged on the table; None where it can."""
        return lacking(table, self.signal, table.signals.get(self.signal)) if self.signal else None

    def values(self, table: Table) -> Array:
        """What it reads after each step, float64 [rows]; NaN = no reason to stop."""
        return table.signals[self.signal or ""]

    def settings(self) -> Array:
        """Its parameter's values from the strictest to the most lenient."""
        raise NotImplementedError

    def published(self, table: Table) -> float | None:
        """The parameter as published, set on a fitting part where the publication does so; None where it names none."""
        return None

    def reached(self, values: Array, parameter: float) -> Array:
        """Whether a value reaches the parameter, bool [rows]."""
        reached: Array = values >= parameter if self.at_least else values <= parameter
        return reached

    def stops(self, table: Table, parameter: float | None) -> Array:
        """The step after which each run stops, 0 = in full, int32 [runs]; parameter None: never."""
        if parameter is None:
            return np.zeros(table.runs, np.int32)
        return first_stops(table, self.reached(self.values(table), parameter))

    def spent(self, table: Table, stops: Array, parameter: float | None) -> Array:
        """Tokens each run costs, [runs]; a rule that never stops does not probe either."""
        return tokens_spent(table, stops, self.reads_probes and parameter is not None)


@dataclass(frozen=True, slots=True)
class TokenBudget(Baseline):
    """Stop at the first step at which B tokens have been computed: the baseline that must be beaten. No B is published."""

    name: ClassVar[str] = "token-budget"

    def values(self, table: Table) -> Array:
        return tokens_so_far(table).astype(float)

    def settings(self) -> Array:
        return np.unique(np.floor(2.0 ** np.arange(0, 20 + 1 / 16, 1 / 16)))[::-1]  # a million tokens down to one, 16 an octave


@dataclass(frozen=True, slots=True)
class ThinkingBudget(Baseline):
    """Engines' hard limit: thinking is closed after exactly B tokens (``thinking_token_budget``, ``--reasoning-budget``).

    Our reading: a cut inside step i + 1 gives the answer recorded after step i, and costs B tokens and that answer. Inside the
    first step it gives the first step's, for nothing earlier is recorded, and costs that whole step. The last step holds the
    answer and is not cut. No B is published.
    """

    name: ClassVar[str] = "thinking-budget"

    def missing(self, table: Table) -> str | None:
        return "there is no thinking to cut in refine mode" if table.mode == "refine" else None

    def values(self, table: Table) -> Array:
        so_far, last = tokens_so_far(table), table.is_last
        to_next = np.append(np.where(last, np.nan, so_far)[1:], np.nan)  # the end of the step that a cut would fall into
        first = np.where(table.step == 1, so_far, np.nan)
        longest: Array = np.fmax(to_next, first) - 1  # a step that ends exactly at B is not cut
        return longest

    def settings(self) -> Array:
        return TokenBudget().settings()

    def spent(self, table: Table, stops: Array, parameter: float | None) -> Array:
        spent = tokens_spent(table, stops, every_probe=False)
        cut = np.maximum(int(parameter or 0) - tokens_so_far(table)[stop_rows(table, stops)], 0)
        return np.where(stops > 0, spent + cut, spent)


@dataclass(frozen=True, slots=True)
class DeepConf(Baseline):
    """DeepConf (arXiv 2508.15260, section 3): group confidence, the mean of C = -(1/k) Σ log p_j (nats, higher = surer).

    Published for *many* runs of one question: a run whose confidence falls under the 90th percentile of warm-up runs' lowest
    group confidences (top η = 10 %) is dropped from the vote. Our reading for one run: the step is the group, and a run is
    answered at the first step whose confidence reaches that percentile, of the lowest step confidences of the fitting part.
    """

    name: ClassVar[str] = "deepconf"
    signal: ClassVar[str | None] = "deepconf"
    top: float = 0.1

    def settings(self) -> Array:
        return np.arange(2500, -1, -1) / 50.0  # models differ in the first decimals only

    def published(self, table: Table) -> float | None:
        values = np.where(table.is_last | np.isnan(self.values(table)), np.inf, self.values(table))
        lowest = np.minimum.reduceat(values, table.offsets[:-1])
        lowest = lowest[np.isfinite(lowest)]
        return float(np.quantile(lowest, 1.0 - self.top)) if len(lowest) else None


@dataclass(frozen=True, slots=True)
class TrialConfidence(Baseline):
    """DEER (arXiv 2504.15895, section 3): force a trial answer, stop where its mean token probability is above λ = 0.95.

    Our reading: the trial answer is the recorded probe, and every recorded step is tried, not only where the text turns ("Wait").
    """

    name: ClassVar[str] = "trial-confidence"
    signal: ClassVar[str | None] = "trial_confidence"
    reads_probes: ClassVar[bool] = True
    threshold: float = 0.95

    def settings(self) -> Array:
        return 1.0 - np.concatenate([[0.0], 2.0 ** np.arange(-14, 1 / 16, 1 / 16)])  # dense where models are sure

    def published(self, table: Table) -> float | None:
        return self.threshold


@dataclass(frozen=True, slots=True)
class EntropyAfterThink(Baseline):
    """EAT (arXiv 2509.26522, section 4): stop where the entropy after the closing tag has settled.

    Exponentially weighted, in nats: M_n = (1-α)·M_(n-1) + α·E_n, V_n = (1-α)·V_(n-1) + α·(E_n - M_n)², from M_1 = E_1 and V_1 = 0;
    stop where V_n ≤ δ, α = 0.2. The paper varies δ and names none as its default. Our reading: δ = 10^-4 nats² and no stop before
    the fourth value, as in a public reimplementation; V starts at 0 and says nothing earlier. A missing value is passed over.
    """

    name: ClassVar[str] = "eat"
    signal: ClassVar[str | None] = "eat"
    reads_probes: ClassVar[bool] = True
    at_least: ClassVar[bool] = False
    weight: float = 0.2
    variance: float = 1e-4
    first: int = 4

    def values(self, table: Table) -> Array:
        nats = table.signals["eat"] * math.log(2.0)
        mean, spread, seen = np.zeros(table.runs), np.zeros(table.runs), np.zeros(table.runs, np.int64)
        spreads = np.full(len(nats), np.nan)
        for _, rows in rows_by_step(table.step, ~np.isnan(nats)):
            run = table.run[rows]
            share = np.where(seen[run] == 0, 1.0, self.weight)
            mean[run] += share * (nats[rows] - mean[run])
            spread[run] = (1 - self.weight) * spread[run] + self.weight * (nats[rows] - mean[run]) ** 2
            seen[run] += 1
            spreads[rows] = np.where(seen[run] >= self.first, spread[run], np.nan)
        return spreads

    def settings(self) -> Array:
        return np.concatenate([[0.0], 2.0 ** np.arange(-40, 8 + 1 / 8, 1 / 8)])

    def published(self, table: Table) -> float | None:
        return self.variance


@dataclass(frozen=True, slots=True)
class AnswerConsistency(Baseline):
    """Dynasor-CoT (arXiv 2412.20993): stop after w equal answers in a row; w = 3, the middle of its client's five levels.

    Our reading: one answer a recorded step, not one every 64 tokens; the check for words of hesitation in the answer is left out,
    for traces hold the extracted answer. A missing answer equals nothing.
    """

    name: ClassVar[str] = "answer-consistency"
    reads_probes: ClassVar[bool] = True
    answers: int = 3

    def values(self, table: Table) -> Array:
        at = np.arange(len(table.step))
        since = np.maximum.accumulate(np.where(table.same_as_previous, 0, at))  # a run's first step equals no step before
        equal: Array = at - since + 1.0
        return equal

    def settings(self) -> Array:
        return np.arange(64.0, 1.0, -1.0)

    def published(self, table: Table) -> float | None:
        return float(self.answers)


BASELINES: tuple[Baseline, ...] = (
    TokenBudget(),
    ThinkingBudget(),
    DeepConf(),
    TrialConfidence(),
    EntropyAfterThink(),
    AnswerConsistency(),
)


def certified_parameter(rule: Baseline, table: Table, *, max_loss: float, level: float, seed: int) -> tuple[float | None, str]:
    """The rule's parameter by the certificate of :mod:`entropy_chains.offline.certify`, and the reason; None = never stop.

    The same test as for this library's thresholds: lost-correct, one run a group, exact binomial, the walk ends at the first
    setting that fails. A parameter that saves nothing on the fitting part is not kept.
    """
    tested = table.subset(one_run_a_group(table, seed))
    (allowed,) = allowances(tested.runs, max_loss, level)
    if tested.cut.all() or allowed < 0:
        return None, "too_few_examples"
    values, settings = rule.values(tested), rule.settings()
    measured = np.sort(values[~np.isnan(values)])
    below = np.searchsorted(measured, settings, "left" if rule.at_least else "right")
    _, first, same = np.unique(below, return_index=True, return_inverse=True)  # settings that the same values reach stop alike
    losses = np.zeros(len(first), np.int64)
    for i, parameter in enumerate(settings[first]):
        stops = first_stops(tested, rule.reached(values, parameter))
        losses[i] = tested.lost[stop_rows(tested, stops)].sum()
    losses = losses[same]
    at = last_passing(losses, allowed)
    if at is None:
        return None, "no_safe_threshold"
    chosen = float(settings[at])
    if rule.spent(table, rule.stops(table, chosen), chosen).sum() >= table.tokens.sum():
        return None, "no_safe_threshold"
    return chosen, "certified"
