"""Thresholds from recorded runs: certified ones, and the paper's.

**Certified** (Learn then Test, fixed sequence). The loss of a question is *lost-correct*: the full run is right and the early
answer wrong; its mean bounds the accuracy drop from above. Thresholds go from never stopping to the most lenient one, on a grid
fixed before the data are seen; each is tested with the exact binomial p-value of "the risk is above max_loss" on one run a group;
the walk ends at the first that fails, and the last that passed is kept. Then P(risk <= max_loss) >= confidence for questions drawn
alike. With m candidates (rules and signals) each is walked at (1 - confidence)/m, and the one that saves most is kept.

**Plain** (arXiv 2510.08146): a formula on the right and wrong answers of step 1. Needs few examples and promises nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from entropy_chains.core.policy import QUANTILES, STOPPING, Policy
from entropy_chains.core.rules import RULES, EntropyAgreementRule, EntropyRule, FixedStepRule, Rule, certifiable
from entropy_chains.core.signals import GRID, SIGNALS, MassFloor
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import InputError
from entropy_chains.offline.bootstrap import Interval, check_seed
from entropy_chains.offline.certify import (
    curve,
    examples_needed,
    last_passing,
    last_recorded_step,
    last_seen_step,
    one_run_a_group,
    readings,
    upper_bound,
)
from entropy_chains.offline.diagnose import Separation, judged_rows, rows_by_step, separation, signal_aurocs, verdict_of
from entropy_chains.offline.table import Array, Table, Traces, as_table
from entropy_chains.options import OPTIONS, CutRuns

RESAMPLES = 1000


def calibrate(
    traces: Traces,
    *,
    method: str = "certified",
    rule: str = "auto",
    signal: str = "auto",
    max_loss: float = 0.05,
    confidence: float = 0.9,
    per_step: bool = False,
    min_steps: int | None = None,
    examples: int | None = None,
    seed: int = 0,
    scope: str = "call",
    cut_runs: CutRuns = "lost",
) -> Policy:
    """Fit a stop rule to recorded runs. A rule that must not stop comes back too, with ``active`` False and the reason.

    Args:
        traces: a table, a file, several, or traces in memory.
        method: ``certified``, or a plain formula: ``mean``, ``information``, ``bayes``, ``scale-invariant``.
        rule: ``auto`` tries several (a plain method: ``entropy``); or one of ``entropy``, ``entropy+agreement``, ``fixed-step``.
        signal: ``auto`` tries the mean and, where every run recorded it, ``sum_entropy``; with the rule ``auto`` also
            ``trial_entropy``, that of the answer asked for after every step, in the place of ``entropy+agreement``; or a name.
        max_loss: largest risk, a fraction of all questions.
        confidence: that the risk is no larger, 0 to 1.
        per_step: a threshold for every step, none where the step's own AUROC shows no signal; ``certified`` then learns their
            proportions on half of the groups.
        min_steps: first step at which a stop is allowed; None: 1, or 2 for a rule that compares two answers.
        examples: calibrate on this many groups, drawn by ``seed``.
        seed: of every draw.
        scope: ``call`` or ``agent``.
        cut_runs: what a run is taken for that was cut off. ``lost``: nobody knows its full answer, so a stop loses it unless the
            answer there is known to be right, and longer runs are covered, too. ``wrong``: users run under the same limit, so
            where it ends is the full run, which gold answers must judge.

    Raises:
        InputError: bad traces, a bad argument, or runs that cannot be taken as asked.
    """
    _check_arguments(method, rule, max_loss, confidence, per_step, min_steps, examples, seed, cut_runs)
    table = given = as_table(traces)
    mode = table.mode or "thinking"
    if rule != "auto" and mode not in (can := RULES[rule].certified_in):
        raise InputError(f"rule is {rule!r}, which cannot be calibrated in mode {mode!r}, only in {', '.join(can)}")
    if examples is not None:
        table = _draw_groups(table, examples, seed)
    cut = int(table.cut.sum())
    if cut_runs == "wrong" and cut:
        if table.labels != "gold":
            raise InputError(
                f"cut_runs is 'wrong', but {cut} of {table.runs} runs were cut off and the traces hold no gold answers, "
                "so nobody knows whether a stop is worse than where they end; record with gold answers, or use cut_runs='lost'"
            )
        table = table.with_cut_as_full()
    if signal != "auto":
        table.values(signal)  # refuses what cannot be read
    basis = _Basis(table, max_loss, confidence, per_step, min_steps or 1, seed)
    found = _certify(basis, rule, signal) if method == "certified" else _plain(basis, method, rule, signal)
    if cut == table.runs:  # no run came to its end: there is nothing that could be kept or lost
        found = found._replace(rule=replace(found.rule, thresholds=(None,)), reason="too_few_examples", certificate=None)
    by_call = {"boundary": "call"} if mode == "refine" else {}
    return Policy(
        model=table.model or "unknown",
        thresholds=found.rule.thresholds,
        rule=found.rule.name,
        min_steps=found.rule.min_steps,
        mode=mode,
        scope=scope,
        signal=found.rule.signal,
        estimator=table.estimator or "renormalised",
        k=table.k,
        temperature=table.temperatures,
        temperature_mode=table.temperature_mode or "raw",
        segmentation=Segmentation.from_dict(table.segmentation or by_call),
        template=table.template,
        grade=table.grade,
        mass_floor=basis.floor,
        method=method,
        active=found.reason in STOPPING,
        reason=found.reason,
        calibration=_figures(basis, found)
        | {"max_tokens": table.max_tokens, "cut_runs": cut_runs, "cut": cut, "left_out": given.runs - table.runs},
    )


# --- the two methods


class _Basis:
    """What both methods need: the table, the settings, and each signal's AUROC, computed once."""

    def __init__(self, table: Table, max_loss: float, confidence: float, per_step: bool, min_steps: int, seed: int) -> None:
        self.table, self.max_loss, self.confidence, self.seed = table, max_loss, confidence, seed
        self.delta = round(1.0 - confidence, 12)  # 0.1, not 0.09999999999999998
        self.per_step, self.min_steps, self.floor = per_step, min_steps, MassFloor()
        self._aurocs: dict[str, tuple[float | None, Interval]] = {}

    def auroc(self, signal: str) -> tuple[float | None, Interval]:
        if signal not in self._aurocs:
            self._aurocs[signal] = signal_aurocs(self.table, self.table.values(signal), self.seed, RESAMPLES)[:2]
        return self._aurocs[signal]

    def candidate(self, rule: type[Rule], signal: str) -> Rule:
        """The rule without a threshold."""
        return rule((None,), max(rule.earliest, self.min_steps), signal)


class _Found(NamedTuple):
    rule: Rule
    reason: str
    needed: int
    certificate: dict[str, Any] | None = None


def _candidates(basis: _Basis, rule: str, signal: str) -> list[Rule]:
    """What is tried, fixed before any outcome is read, in the order in which it is given up where questions are few."""
    table = basis.table
    main = table.signal if signal == "auto" else signal
    unasked = [s for s in SIGNALS.values() if signal == "auto" and s.tried and s.name != main and s.name in table.signals]
    known = ~np.isnan(table.entropy)
    whole = [s.name for s in unasked if s.source == "step" and not np.isnan(table.signals[s.name][known]).any()]
    # Both ask for the answer after every step: its entropy tells more than whether it came twice, where that is recorded.
    probed = [s.name for s in unasked if s.source == "probe" and rule == "auto" and table.mode != "refine"]
    listed: list[tuple[type[Rule], str]] = [(EntropyRule, s) for s in (main, *whole)]
    listed.append((FixedStepRule, main))
    listed += [(EntropyRule, s) for s in probed] if probed else [(EntropyAgreementRule, main)]
    if rule != "auto":
        listed = [(r, s) for r, s in listed if r is RULES[rule]] or [(RULES[rule], main)]
    return [basis.candidate(r, s) for r, s in listed]


def _certify(basis: _Basis, rule: str, signal: str) -> _Found:
    table = basis.table
    candidates = _candidates(basis, rule, signal)
    n = (table.groups + 1) // 2 if basis.per_step else table.groups
    while len(candidates) > 1 and stats.binom.cdf(0, n, basis.max_loss) > basis.delta / len(candidates):
        candidates.pop()
    level = basis.delta / len(candidates)
    needed = examples_needed(basis.max_loss, level)
    main = candidates[0].signal
    never = _Found(candidates[0], "too_few_examples", needed)
    if stats.binom.cdf(0, n, basis.max_loss) > level:
        return never
    reading = [c for c in candidates if c.reads_signal]
    silent = [c for c in reading if verdict_of(basis.auroc(c.signal)[1]) != "signal"]
    if reading and silent == reading:
        return never._replace(reason=verdict_of(basis.auroc(main)[1]))
    learning, walking = _halves(table, basis.seed) if basis.per_step else (table, table)
    tested = one_run_a_group(walking, basis.seed)
    last = last_seen_step(walking, tested, basis.max_loss, level)
    best, most = never._replace(reason="no_safe_threshold"), 0.0
    for c in candidates:
        if c in silent:
            continue
        scales = _scales(learning, c, basis) if basis.per_step and c.reads_signal else None
        found = curve(walking, c, tested, floor=basis.floor, scales=scales, last_step=last)
        at = last_passing(found.losses, found.n, basis.max_loss, level)
        if at is None or found.saved[at] <= most:
            continue
        most = float(found.saved[at])
        setting, losses = float(found.settings[at]), int(found.losses[at])
        certificate = {
            "risk": "lost-correct" if table.labels == "gold" else "disagreement",
            "max_loss": basis.max_loss,
            "confidence": basis.confidence,
            "groups": n,
            "losses": losses,
            "upper_bound": upper_bound(losses, n, level),
            "level": level,
            "grid": GRID,
            "rules_tried": [x.name if x.signal == main else f"{x.name} ({x.signal})" for x in candidates],
        }
        kept = c.with_setting(setting) if scales is None else c.with_setting(setting, tuple(scales.tolist()))
        best = _Found(kept.until(last), "certified", needed, certificate)
    return best


def _plain(basis: _Basis, method: str, rule: str, signal: str) -> _Found:
    table = basis.table
    kept = basis.candidate(EntropyRule if rule == "auto" else RULES[rule], table.signal if signal == "auto" else signal)
    values, wrong = table.values(kept.signal), table.correct == 0
    needed = examples_needed(basis.max_loss, basis.delta)
    never = _Found(kept, "too_few_examples", needed)
    classes = dict.fromkeys(range(1, int(table.step.max()) + 1 if basis.per_step else 2), separation(values[:0], wrong[:0]))
    for step, rows in rows_by_step(table.step, judged_rows(table)):
        if step in classes:
            classes[step] = separation(values[rows], wrong[rows])
    if classes[1].mu_correct is None:
        return never
    verdict = verdict_of(basis.auroc(kept.signal)[1])
    if verdict != "signal":
        return never._replace(reason=verdict)
    told = _steps_with_signal(table, values, basis.seed) if basis.per_step else {1}
    thresholds = tuple(PLAIN[method](s) if step in told else None for step, s in classes.items())
    if all(t is None for t in thresholds):
        return never._replace(reason="no_safe_threshold")
    return never._replace(rule=replace(kept, thresholds=thresholds).until(last_recorded_step(table)), reason="uncertified")


def entropy_mean(s: Separation) -> float | None:
    """Entropy mean, the paper's: τ = μ_c."""
    return s.mu_correct


def information(s: Separation) -> float | None:
    """Information-theoretic, the paper's: τ = μ_c + σ_c·ln(1 + |d|)."""
    if s.mu_correct is None or s.sigma_correct is None:
        return None
    return s.mu_correct + s.sigma_correct * math.log1p(abs(s.cohens_d or 0.0))


def bayes(s: Separation) -> float | None:
    """Minimum-error boundary of two Gaussians with priors: textbook; the paper names it and gives no formula.

    The root between μ_c and μ_i of ln(π_c/σ_c) - (τ-μ_c)²/2σ_c² = ln(π_i/σ_i) - (τ-μ_i)²/2σ_i²; None where there is none.
    """
    mu, sigma, nu, rho = s.mu_correct, s.sigma_correct, s.mu_wrong, s.sigma_wrong
    if mu is None or sigma is None or nu is None or rho is None or sigma <= 0 or rho <= 0 or mu >= nu:
        return None
    a = 0.5 / rho**2 - 0.5 / sigma**2
    b = mu / sigma**2 - nu / rho**2
    c = math.log(s.right * rho / (s.wrong * sigma)) + nu**2 / (2 * rho**2) - mu**2 / (2 * sigma**2)
    roots = np.roots([a, b, c])  # a = 0 leaves one root
    # Where right answers stop being the likelier ones, the difference falls.
    crossing = [float(r.real) for r in roots if abs(r.imag) < 1e-12 and mu <= r.real <= nu and 2 * a * r.real + b <= 0]
    return min(crossing, default=None)


def scale_invariant(s: Separation) -> float | None:
    """Scale-invariant universal, a reconstruction (only its factors are public): τ = μ_c·(1 + max(0, 1 - σ_c/μ_c)·ln(1 + |d|))."""
    if s.mu_correct is None or s.sigma_correct is None:
        return None
    steadiness = max(0.0, 1.0 - s.sigma_correct / s.mu_correct) if s.mu_correct > 0 else 0.0
    return s.mu_correct * (1.0 + steadiness * math.log1p(abs(s.cohens_d or 0.0)))


PLAIN: dict[str, Callable[[Separation], float | None]] = {
    "mean": entropy_mean,
    "information": information,
    "bayes": bayes,
    "scale-invariant": scale_invariant,
}


# --- parts of the data, and the figures that a policy carries


def _draw_groups(table: Table, examples: int, seed: int) -> Table:
    if examples > table.groups:
        raise InputError(f"examples is {examples}, but the traces hold {table.groups} questions; record more or ask for fewer")
    chosen = np.random.default_rng([seed, 4]).permutation(table.groups) < examples
    return table.subset(chosen[table.group])


def _halves(table: Table, seed: int) -> tuple[Table, Table]:
    """Two halves of the groups; the second, to be walked, has the odd one."""
    first = (np.random.default_rng([seed, 5]).permutation(table.groups) < table.groups // 2)[table.group]
    return table.subset(first), table.subset(~first)


def _scales(table: Table, rule: Rule, basis: _Basis) -> Array:
    """Median of the signal at each step relative to step 1, 1 where either is missing or 0; NaN = the step has no signal."""
    values = rule.value(readings(table, rule, basis.floor))
    medians = np.zeros(int(table.step.max()))
    for step, rows in rows_by_step(table.step, ~table.is_last & ~np.isnan(values)):
        medians[step - 1] = np.median(values[rows])
    usable = (medians > 0) & (medians[0] > 0)
    scales = np.where(usable, medians / np.where(usable, medians[0], 1.0), 1.0)
    told = _steps_with_signal(table, table.values(rule.signal), basis.seed)
    return np.where([step in told for step in range(1, len(scales) + 1)], scales, np.nan)


def _steps_with_signal(table: Table, values: Array, seed: int) -> set[int]:
    """Steps whose own AUROC is surely above one half: a threshold of its own for any other would stop without a reason."""
    by_step = signal_aurocs(table, values, seed, RESAMPLES)[2]
    return {step for step, (_, interval) in by_step.items() if verdict_of(interval) == "signal"}


def _figures(basis: _Basis, found: _Found) -> dict[str, Any]:
    table, values = basis.table, basis.table.values(found.rule.signal)
    first = judged_rows(table) & (table.step == 1)
    s = separation(values[first], table.correct[first] == 0)
    auroc, interval = basis.auroc(found.rule.signal)
    longest = int(table.step.max())
    quantiles: list[list[float] | None] = [None] * longest
    for step, rows in rows_by_step(table.step, ~np.isnan(values)):
        quantiles[step - 1] = np.quantile(values[rows], QUANTILES).tolist()
    stop_cost, full = table.costs(found.rule.reads_answers)
    early = ~table.is_last
    gold, right = table.labels == "gold", int(table.full_right.sum())
    saved = np.bincount(table.step[early], (full[table.run] - stop_cost)[early], minlength=longest + 1)[1:]
    counts = np.bincount(table.step[early], minlength=longest + 1)[1:]
    return {
        "runs": table.runs,
        "groups": table.groups,
        "labels": table.labels,
        "accuracy_full": table.accuracy_full,
        "right": right if gold else None,
        "wrong": int((~table.cut).sum()) - right if gold else None,
        **{name: getattr(s, name) for name in ("mu_correct", "sigma_correct", "mu_wrong", "sigma_wrong", "cohens_d")},
        "auroc": auroc,
        "auroc_interval": None if interval is None else list(interval),
        "entropy_quantiles": quantiles,
        "remaining_tokens": np.maximum(saved / np.maximum(counts, 1), 0.0).tolist(),
        "examples_needed": found.needed,
        "certificate": found.certificate,
    }


def _check_arguments(
    method: str,
    rule: str,
    max_loss: float,
    confidence: float,
    per_step: bool,
    min_steps: int | None,
    examples: int | None,
    seed: int,
    cut_runs: CutRuns,
) -> None:
    known_values = (
        ("method", method, OPTIONS["method"]),
        ("rule", rule, ("auto", *certifiable())),
        ("cut_runs", cut_runs, OPTIONS["cut_runs"]),
    )
    for name, given, known in known_values:
        if given not in known:
            raise InputError(f"{name} is {given!r}; it must be one of {', '.join(known)}")
    if method != "certified" and rule != "auto" and not RULES[rule].reads_signal:
        raise InputError(f"rule is {rule!r} and method {method!r}; the rule has no entropy threshold: use method 'certified'")
    for name, share in (("max_loss", max_loss), ("confidence", confidence)):
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
            raise InputError(f"{name} is {share!r}; it must be between 0 and 1, as 0.05 for 5 %")
    for name, count in (("min_steps", min_steps), ("examples", examples)):
        if count is not None and (type(count) is not int or count < 1):
            raise InputError(f"{name} is {count!r}; it must be a whole number of at least 1, or None")
    if not isinstance(per_step, bool):
        raise InputError(f"per_step is {per_step!r}; it must be True or False")
    check_seed(seed)
