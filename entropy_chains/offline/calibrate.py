"""Thresholds from recorded runs: certified ones, and the paper's.

**Certified** (Learn then Test, fixed sequence). The loss of a question is *lost-correct*: the full run is right and the early
answer wrong; its mean bounds the accuracy drop from above. Thresholds go from never stopping to the most lenient one, on a grid
fixed before the data are seen; each is tested with the exact binomial p-value of "the risk is above max_loss" on one run a group;
the walk ends at the first that fails, and the last that passed is kept. Then P(risk <= max_loss) >= confidence for questions drawn
alike. The candidates (rules and signals) share 1 - confidence (:func:`entropy_chains.offline.certify.allowances`), and the one that
saves most is kept. A signal that tells nothing takes the rules that read it out, and nothing else.

**Plain** (arXiv 2510.08146): a formula on the right and wrong answers of step 1. Needs few examples and promises nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from entropy_chains.core.policy import Policy
from entropy_chains.core.policy_fields import QUANTILES, STOPPING
from entropy_chains.core.rules import RULES, AgreementRule, EntropyAgreementRule, EntropyRule, FixedStepRule, Rule, certifiable
from entropy_chains.core.signals import GRID, SIGNALS, MassFloor
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import InputError
from entropy_chains.offline.bootstrap import Interval, check_seed
from entropy_chains.offline.certify import (
    allowances,
    curve,
    examples_needed,
    last_passing,
    last_recorded_step,
    last_seen_step,
    one_run_a_group,
    readings,
    tail,
    upper_bound,
)
from entropy_chains.offline.diagnose import (
    FEWEST,
    auroc_intervals,
    judged_rows,
    missing_share,
    questions_with,
    recorded_share,
    rows_by_step,
    separation,
    signal_strata,
    verdict_of,
)
from entropy_chains.offline.formulas import PLAIN
from entropy_chains.offline.table import Array, Table, Traces, as_table
from entropy_chains.options import CutRuns, Method, Scope, check_options

SILENT = ("no_signal", "inverted_signal")
"""Verdicts that take the rules on a signal out. Where examples are too few to tell, the certificate counts what is lost."""


def calibrate(
    traces: Traces,
    *,
    method: Method = "certified",
    rule: str = "auto",
    signal: str = "auto",
    max_loss: float = 0.05,
    confidence: float = 0.9,
    per_step: bool = False,
    min_steps: int | None = None,
    examples: int | None = None,
    seed: int = 0,
    scope: Scope = "call",
    cut_runs: CutRuns = "lost",
) -> Policy:
    """Fit a stop rule to recorded runs. A rule that must not stop comes back too, with ``active`` False and the reason.

    Args:
        traces: a table, a file, several, or traces in memory.
        method: ``certified``, or a plain formula: ``mean``, ``information``, ``bayes``, ``scale-invariant``.
        rule: ``auto`` tries several (a plain method: ``entropy``); or one of ``entropy``, ``entropy+agreement``, ``fixed-step``,
            ``agreement`` (in ``refine`` mode).
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
    table = recorded = as_table(traces)
    mode = table.mode or "thinking"
    if rule != "auto" and mode not in (can := RULES[rule].certified_in):
        raise InputError(f"rule is {rule!r}, which cannot be calibrated in mode {mode!r}, only in {', '.join(can)}")
    if examples is not None:
        table = draw_groups(table, examples, seed)
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
    basis = _Basis(table, max_loss, confidence, per_step, min_steps or 1, seed, scope)
    choice = _certify(basis, rule, signal) if method == "certified" else _plain(basis, method, rule, signal)
    if cut == table.runs:  # no run came to its end: there is nothing that could be kept or lost
        choice = choice._replace(rule=replace(choice.rule, thresholds=(None,)), reason="too_few_examples", certificate=None)
    by_call = {"boundary": "call"} if mode == "refine" else {}
    return Policy(
        model=table.model or "unknown",
        thresholds=choice.rule.thresholds,
        rule=choice.rule.name,
        min_steps=choice.rule.min_steps,
        mode=mode,
        scope=scope,
        signal=choice.rule.signal,
        estimator=table.estimator or "renormalised",
        k=table.k,
        temperature=table.temperatures,
        temperature_mode=table.temperature_mode or "raw",
        segmentation=Segmentation.from_dict(table.segmentation or by_call),
        template=table.template,
        grade=table.grade,
        mass_floor=basis.floor,
        method=method,
        active=choice.reason in STOPPING,
        reason=choice.reason,
        calibration=_figures(basis, choice)
        | {"max_tokens": table.max_tokens, "cut_runs": cut_runs, "cut": cut, "left_out": recorded.runs - table.runs},
    )


# --- the two methods


class _Basis:
    """What both methods need: the table, the settings, and each signal's AUROC, computed once."""

    def __init__(
        self, table: Table, max_loss: float, confidence: float, per_step: bool, min_steps: int, seed: int, scope: str
    ) -> None:
        self.table, self.max_loss, self.confidence, self.seed, self.scope = table, max_loss, confidence, seed, scope
        self.delta = round(1.0 - confidence, 12)  # 0.1, not 0.09999999999999998
        self.per_step, self.min_steps, self.floor = per_step, min_steps, MassFloor()
        self.right = questions_with(table, table.full_right[table.run])
        self._evidence: dict[tuple[str, int, int | None], _Evidence] = {}

    def evidence(self, rule: Rule, last: int | None) -> _Evidence:
        """What the rule's signal tells at the steps after which the rule, at some setting, can stop: none after ``last``."""
        first = max(rule.earliest, self.min_steps)
        if (key := (rule.signal, first, last)) not in self._evidence:
            table = self.table
            early = self.open(table, rule) & (table.step >= first) & (table.step <= (table.longest if last is None else last))
            wrong = questions_with(table, early & judged_rows(table) & (table.correct == 0))
            strata = signal_strata(table, table.values(rule.signal), early)
            ((auroc, interval),) = auroc_intervals([strata], table.groups, self.seed)
            self._evidence[key] = _Evidence(auroc, interval, wrong)
        return self._evidence[key]

    def open(self, table: Table, rule: Rule) -> Array:
        """Rows of (a part of) the table after which the rule may stop a run, bool [rows]."""
        return table.stops_allowed(rule.sees_answers(table.mode or "thinking", self.scope))

    def candidate(self, rule: type[Rule], signal: str) -> Rule:
        """The rule without a threshold."""
        return rule((None,), max(rule.earliest, self.min_steps), signal)


class _Evidence(NamedTuple):
    """A signal's AUROC with its interval; ``wrong``: questions with a wrong early answer."""

    auroc: float | None
    interval: Interval
    wrong: int

    @property
    def verdict(self) -> str:
        return verdict_of(self.interval, self.wrong)


class _Choice(NamedTuple):
    """What came of it. ``needed``: questions with which all ``tried`` rules can be tried; ``last``: no stop after this step."""

    rule: Rule
    reason: str
    needed: int
    tried: int = 1
    last: int | None = None
    certificate: dict[str, Any] | None = None


def _candidates(basis: _Basis, rule: str, signal: str) -> list[Rule]:
    """What is tried, fixed before any outcome is read, in the order in which losses are allowed to them."""
    table = basis.table
    main = table.signal if signal == "auto" else signal
    unasked = [s for s in SIGNALS.values() if signal == "auto" and s.tried and s.name != main and s.name in table.signals]
    measured = ~np.isnan(table.entropy)
    whole = [s.name for s in unasked if s.source == "step" and not np.isnan(table.signals[s.name][measured]).any()]
    # Both ask for the answer after every step: its entropy tells more than whether it came twice, where that is recorded.
    probed = [s.name for s in unasked if s.source == "probe" and rule == "auto" and table.mode != "refine"]
    listed: list[tuple[type[Rule], str]] = [*((EntropyRule, s) for s in (main, *whole)), (FixedStepRule, main)]
    if table.mode == "refine":  # there answers cost nothing
        listed.insert(0, (EntropyAgreementRule, main))
    else:
        listed += [(EntropyRule, s) for s in probed] if probed else [(EntropyAgreementRule, main)]
    # Where nobody knows how sure the model was, what reads no entropy is left.
    if rule == "auto" and not recorded_share(table, table.entropy):
        listed = [(r, main) for r in ((AgreementRule, FixedStepRule) if table.mode == "refine" else (FixedStepRule,))]
    if rule != "auto":
        listed = [(r, s) for r, s in listed if r is RULES[rule]] or [(RULES[rule], main)]
    return [basis.candidate(r, s) for r, s in listed]


def _certify(basis: _Basis, rule: str, signal: str) -> _Choice:
    table = basis.table
    candidates = _candidates(basis, rule, signal)
    n, m = (table.groups + 1) // 2 if basis.per_step else table.groups, len(candidates)
    allowed = allowances(n, basis.max_loss, basis.delta, m)
    needed = examples_needed(basis.max_loss, basis.delta, m)
    never = _Choice(candidates[0], "too_few_examples", 2 * needed - 1 if basis.per_step else needed, m, last_recorded_step(table))
    if basis.right < FEWEST or max(allowed) < 0:
        return never
    best, most = never._replace(reason="no_safe_threshold"), 0.0
    if basis.max_loss > largest_max_loss(table.accuracy_full):
        return best
    learning, walking = _halves(table, basis.seed) if basis.per_step else (table, table)
    tested = one_run_a_group(walking, basis.seed)
    verdicts = []
    for c, losable in zip(candidates, allowed, strict=True):
        if losable < 0:
            continue
        last = last_seen_step(walking, tested, losable)
        if c.reads_signal:
            verdicts.append(basis.evidence(c, last).verdict)
            if verdicts[-1] in SILENT:
                continue
        scales = _scales(learning, c, basis) if basis.per_step and c.reads_signal else None
        walk = curve(walking, c, tested, floor=basis.floor, scales=scales, last_step=last, scope=basis.scope)
        at = last_passing(walk.losses, losable)
        if at is None or walk.saved[at] <= most:
            continue
        most = float(walk.saved[at])
        fitted = c.with_setting(float(walk.settings[at]), (1.0,) if scales is None else tuple(scales.tolist()))
        level, losses = tail(losable, n, basis.max_loss), int(walk.losses[at])
        certificate = {
            "risk": "lost-correct" if table.labels == "gold" else "disagreement",
            "max_loss": basis.max_loss,
            "confidence": basis.confidence,
            "groups": n,
            "losses": losses,
            "upper_bound": min(upper_bound(losses, n, level), basis.max_loss),
            "level": level,
            "allowed": allowed,
            "grid": GRID if c.reads_signal else "steps, the latest first",
            "rules_tried": [x.name if x.signal == candidates[0].signal else f"{x.name} ({x.signal})" for x in candidates],
        }
        best = best._replace(rule=fitted.until(last), reason="certified", last=last, certificate=certificate)
    if best.certificate is None and verdicts and all(v in SILENT for v in verdicts):
        return best._replace(reason=verdicts[0])
    return best


def largest_max_loss(accuracy_full: float | None) -> float:
    """The largest promise that is worth something: half of the right answers; without gold answers, half of all."""
    return 0.5 * (1.0 if accuracy_full is None else accuracy_full)


def _plain(basis: _Basis, method: str, rule: str, signal: str) -> _Choice:
    table = basis.table
    candidate = basis.candidate(EntropyRule if rule == "auto" else RULES[rule], table.signal if signal == "auto" else signal)
    values, wrong = table.values(candidate.signal), table.correct == 0
    last = last_recorded_step(table)
    never = _Choice(candidate, "too_few_examples", examples_needed(basis.max_loss, basis.delta), last=last)
    classes = dict.fromkeys(range(1, int(table.step.max()) + 1 if basis.per_step else 2), separation(values[:0], wrong[:0]))
    for step, rows in rows_by_step(table.step, judged_rows(table)):
        if step in classes:
            classes[step] = separation(values[rows], wrong[rows])
    if classes[1].mu_correct is None or basis.right < FEWEST:
        return never
    verdict = verdict_of(basis.evidence(candidate, last).interval)
    if verdict != "signal":
        return never._replace(reason=verdict)
    with_signal = _steps_with_signal(table, candidate, basis) if basis.per_step else {1}
    thresholds = tuple(PLAIN[method](s) if step in with_signal else None for step, s in classes.items())
    if all(t is None for t in thresholds):
        return never._replace(reason="no_safe_threshold")
    return never._replace(rule=replace(candidate, thresholds=thresholds).until(last), reason="uncertified")


# --- parts of the data, and the figures that a policy carries


def draw_groups(table: Table, examples: int, seed: int) -> Table:
    """The table of so many of its questions."""
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
    with_signal = _steps_with_signal(table, rule, basis)
    return np.where([step in with_signal for step in range(1, len(scales) + 1)], scales, np.nan)


def _steps_with_signal(table: Table, rule: Rule, basis: _Basis) -> set[int]:
    """Steps whose own AUROC is surely above one half: a threshold of its own for any other would stop without a reason."""
    strata = signal_strata(table, table.values(rule.signal), basis.open(table, rule))
    aurocs = auroc_intervals([[s] for s in strata], table.groups, basis.seed)
    return {s.step for s, (_, interval) in zip(strata, aurocs, strict=True) if verdict_of(interval) == "signal"}


def _figures(basis: _Basis, choice: _Choice) -> dict[str, Any]:
    table, values = basis.table, basis.table.values(choice.rule.signal)
    first = judged_rows(table) & (table.step == 1)
    s = separation(values[first], table.correct[first] == 0)
    evidence = basis.evidence(choice.rule, choice.last)
    longest = int(table.step.max())
    quantiles: list[list[float] | None] = [None] * longest
    for step, rows in rows_by_step(table.step, ~np.isnan(values)):
        quantiles[step - 1] = np.quantile(values[rows], QUANTILES).tolist()
    stop_cost, full = table.costs(choice.rule.reads_answers)
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
        "auroc": evidence.auroc,
        "auroc_interval": None if evidence.interval is None else list(evidence.interval),
        "verdict": evidence.verdict,
        "entropy_quantiles": quantiles,
        "remaining_tokens": np.maximum(saved / np.maximum(counts, 1), 0.0).tolist(),
        "questions_right": basis.right,
        "questions_wrong_early": evidence.wrong,
        "entropy_recorded": recorded_share(table, values),
        "answers_missing": missing_share(table),
        "max_loss": basis.max_loss,
        "confidence": basis.confidence,
        "rules": choice.tried,
        "examples_needed": choice.needed,
        "certificate": choice.certificate,
    }


def _check_arguments(
    method: Method,
    rule: str,
    max_loss: float,
    confidence: float,
    per_step: bool,
    min_steps: int | None,
    examples: int | None,
    seed: int,
    cut_runs: CutRuns,
) -> None:
    check_options({"method": method, "cut_runs": cut_runs})
    if rule not in (names := ("auto", *certifiable())):
        raise InputError(f"rule is {rule!r}; it must be one of {', '.join(names)}")
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
