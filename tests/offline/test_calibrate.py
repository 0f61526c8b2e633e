"""Thresholds: the paper's formulas by hand, the certified walk against a naive loop, and every reason for not stopping."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import every_signal
from scipy import stats

from entropy_chains.core.policy import Policy
from entropy_chains.core.rules import RULES, EntropyRule, FixedStepRule, certifiable
from entropy_chains.core.signals import MassFloor, Signal, StepRecord
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import InputError
from entropy_chains.offline import formulas
from entropy_chains.offline.calibrate import calibrate
from entropy_chains.offline.certify import (
    allowances,
    curve,
    examples_needed,
    last_passing,
    one_run_a_group,
    tail,
    upper_bound,
)
from entropy_chains.offline.diagnose import Separation, diagnose
from entropy_chains.offline.replay import decisions, replay
from entropy_chains.offline.table import as_table
from entropy_chains.offline.traces import Step, Trace

RIGHT, WRONG = "1", "0"


def population(questions=200, steps=4, *, shift=1.0, wrong=0.25, seed=0, full=0.95, **given):
    """Runs whose wrong answers have the higher entropy; the sum is recorded too."""
    rng = np.random.default_rng(seed)
    runs = []
    for i in range(questions):
        recorded = []
        for step in range(1, steps + 1):
            bad = rng.random() < (wrong if step < steps else 1 - full)
            h, tokens = float(abs(abs(rng.normal(0.5, 0.2)) + shift * bad)), int(rng.integers(80, 120))
            recorded.append(Step(WRONG if bad else RIGHT, h, tokens, signals={"sum_entropy": h * tokens}))
        runs.append(Trace(str(i), recorded, gold=RIGHT, **given))
    return runs


# --- the paper's formulas


def test_plain_thresholds_by_hand():
    """μ_c 1, σ_c .5, d 2: mean 1; information 1 + .5·ln 3 = 1.5493; scale-invariant 1·(1 + .5·ln 3) = 1.5493."""
    s = Separation(1.0, 0.5, 2.0, 0.5, 2.0, 10, 10)
    assert formulas.entropy_mean(s) == 1.0
    assert formulas.information(s) == pytest.approx(1 + 0.5 * math.log(3))
    assert formulas.scale_invariant(s) == pytest.approx(1 + 0.5 * math.log(3))
    wide = Separation(1.0, 1.5, 2.0, 0.5, 2.0, 10, 10)
    assert formulas.scale_invariant(wide) == 1.0  # the factor max(0, 1 - σ_c/μ_c) is 0


def test_the_bayes_boundary_by_hand():
    """Equal spreads and priors: half-way, 1.5; three right to one wrong moves it by σ²·ln 3 / (μ_i - μ_c) = .2747 upwards."""
    assert formulas.bayes(Separation(1.0, 0.5, 2.0, 0.5, 2.0, 10, 10)) == pytest.approx(1.5)
    assert formulas.bayes(Separation(1.0, 0.5, 2.0, 0.5, 2.0, 30, 10)) == pytest.approx(1.5 + 0.25 * math.log(3))


@given(st.floats(0.1, 2), st.floats(0.05, 1), st.floats(0.05, 2), st.floats(0.05, 1), st.integers(2, 90), st.integers(2, 90))
@settings(max_examples=200)
def test_the_bayes_boundary_is_where_the_classes_are_equally_likely(mu, sigma, apart, rho, right, wrong):
    """At the boundary π_c·N(μ_c, σ_c) = π_i·N(μ_i, σ_i), and it lies between the means; else there is no sign change to find."""
    tau = formulas.bayes(Separation(mu, sigma, mu + apart, rho, 1.0, right, wrong))

    def lead(x):
        return math.log(right) + stats.norm.logpdf(x, mu, sigma) - math.log(wrong) - stats.norm.logpdf(x, mu + apart, rho)

    if tau is None:
        assert not (lead(mu) > 1e-9 and lead(mu + apart) < -1e-9)
    else:
        assert mu <= tau <= mu + apart
        assert lead(tau) == pytest.approx(0, abs=1e-5 * (1 + abs(lead(mu)) + abs(lead(mu + apart))))


def test_a_plain_method_reads_step_one_only():
    """The mean threshold is the mean entropy of step 1's right answers, whatever later steps say."""
    runs = population()
    policy = calibrate(runs, method="mean")
    expected = np.mean([t.steps[0].entropy for t in runs if t.steps[0].answer == RIGHT])
    assert policy.thresholds == (pytest.approx(expected),)
    assert (policy.reason, policy.active, policy.rule, policy.calibration["certificate"]) == ("uncertified", True, "entropy", None)
    assert len(calibrate(runs, method="mean", per_step=True).thresholds) == 4


def test_inverted_and_missing_classes_have_no_bayes_boundary():
    """Where wrong answers lie lower there is no boundary to stop under."""
    assert formulas.bayes(Separation(2.0, 0.5, 1.0, 0.5, -2.0, 10, 10)) is None


# --- the walk


@pytest.mark.parametrize(("signal", "k", "size"), [("mean_entropy", 20, math.log2(20)), ("sum_entropy", 20, 2.0**14)])
def test_the_grid_is_what_the_certificate_says(signal, k, size):
    """0, then 2^-14 and 16 an octave, up to the signal's maximum: log2 k bits, or 2^14 for a sum."""
    grid = Signal.named(signal).grid(k)
    assert (grid[0], grid[1], grid[-1]) == (0.0, 2.0**-14, size)
    np.testing.assert_allclose(grid[2:-1] / grid[1:-2], 2 ** (1 / 16))


def test_the_grid_of_a_full_vocabulary():
    """Without k the maximum is log2 of the vocabulary, 18 bits where that is unknown; k = 1 leaves the threshold 0."""
    mean = Signal.named("mean_entropy")
    assert mean.grid(None, 1024)[-1] == 10.0
    assert mean.grid(None)[-1] == 18.0
    assert mean.grid(1).tolist() == [0.0]


def test_the_walk_stops_at_the_first_failure():
    """With n = 60 and 5 % at .1, none and no more may be lost (p = .046, .1916): a later pass is not looked at."""
    (allowed,) = allowances(60, 0.05, 0.1)
    assert allowed == 0
    assert last_passing(np.array([0, 0, 1, 0]), allowed) == 1
    assert last_passing(np.array([1, 0, 0]), allowed) is None
    assert last_passing(np.array([0, 0]), allowed) == 1


@pytest.mark.parametrize(
    ("n", "allowed"),
    [
        (44, [-1, -1, -1]),
        (45, [0, -1, -1]),
        (60, [0, 0, -1]),
        (75, [0, 0, 0]),
        (99, [1, 1, 0]),
        (120, [2, 1, 1]),
        (150, [3, 2, 2]),
        (200, [4, 4, 4]),
        (240, [6, 5, 5]),
        (300, [8, 8, 7]),
    ],
)
def test_the_losses_allowed_to_three_rules(n, allowed):
    """5 % at .1, worked by hand: an equal share first, then one more each in turn while the tails add up to at most .1."""
    assert allowances(n, 0.05, 0.1, 3) == allowed


@given(st.integers(1, 400), st.floats(0.01, 0.5), st.floats(0.01, 0.5), st.integers(1, 6))
@settings(max_examples=200, deadline=None)
def test_the_allowance_keeps_to_delta_and_leaves_nothing(n, max_loss, delta, rules):
    """The tails add up to at most delta, nobody can get one more, nobody has less than an equal share, and none is two ahead."""
    allowed = allowances(n, max_loss, delta, rules)
    spent = sum(tail(k, n, max_loss) for k in allowed)
    assert spent <= delta
    assert all(spent - tail(k, n, max_loss) + tail(k + 1, n, max_loss) > delta for k in allowed if k < n)
    assert all(tail(k + 1, n, max_loss) > delta / rules for k in allowed if k < n)
    assert allowed == sorted(allowed, reverse=True)
    assert (min(allowed) >= 0) == (n >= examples_needed(max_loss, delta, rules))


@pytest.mark.parametrize(("max_loss", "needed"), [(0.05, 45), (0.02, 114), (0.01, 230)])
def test_how_many_examples_a_certificate_needs(max_loss, needed):
    """At 90 % a risk of 5, 2, 1 % is certified by 45, 114, 230 questions without a loss, and by no fewer."""
    assert examples_needed(max_loss, 0.1) == needed
    assert stats.binom.cdf(0, needed, max_loss) <= 0.1 < stats.binom.cdf(0, needed - 1, max_loss)


@pytest.mark.parametrize(("n", "bound"), [(10, 0.206), (20, 0.109), (60, 0.038), (100, 0.023)])
def test_the_upper_bound_with_no_loss(n, bound):
    """No loss in n: the 90 % bound of the risk is 1 - .1^(1/n)."""
    assert upper_bound(0, n, 0.1) == pytest.approx(1 - 0.1 ** (1 / n))
    assert upper_bound(0, n, 0.1) == pytest.approx(bound, abs=5e-4)


@given(st.integers(1, 300), st.integers(0, 300), st.floats(0.01, 0.5))
@settings(max_examples=100)
def test_the_bound_and_the_test_agree(n, losses, level):
    """The exact bound is at or under 5 % where, and only where, the p-value passes."""
    losses = min(losses, n)
    p = stats.binom.cdf(losses, n, 0.05)
    if abs(p - level) > 1e-9:
        assert (upper_bound(losses, n, level) <= 0.05) == (p <= level)


@st.composite
def recorded(draw):
    value = st.sampled_from([0.0, 2.0**-14, 0.25, 0.5, 0.51, 1.0, 4.0])
    step = st.builds(
        Step,
        st.sampled_from([RIGHT, WRONG, None]),
        st.one_of(st.none(), value),
        st.integers(0, 50),
        signals=st.builds(every_signal, value),
        probe_tokens=st.one_of(st.none(), st.integers(0, 9)),
        mass=st.sampled_from([None, 0.79, 0.8, 1.0]),
    )
    runs = draw(st.lists(st.lists(step, min_size=1, max_size=5), min_size=1, max_size=6))
    return [Trace(str(i), steps, gold=RIGHT, k=20) for i, steps in enumerate(runs)]


def naive(runs, candidate, setting, scales):
    """Losses and tokens of one setting, by walking every run through the live rule."""
    losses = tokens = 0
    last = max(len(run.steps) for run in runs) - 1
    for run in runs:
        rule = candidate.with_setting(float(setting), tuple(scales))
        spent, previous, at = 0, None, len(run.steps)
        for number, step in enumerate(run.steps[:-1], 1):
            record = StepRecord(number, step.tokens, step.entropy, step.mass, signals=step.signals)
            spent += step.probe_tokens or 0 if rule.reads_answers else 0
            if rule.stops(rule.reading(record, MassFloor(), step.answer, previous)):
                spent += 0 if rule.reads_answers else step.probe_tokens or 0
                losses += step.answer != RIGHT and (run.is_cut or run.steps[-1].answer == RIGHT)
                at = number
                break
            previous = step.answer
        else:  # a longer run could be stopped at steps that this one was cut off before
            losses += run.is_cut and len(run.steps) - 1 < last
        tokens += spent + sum(s.tokens for s in run.steps[:at])
    return losses, tokens


@given(recorded(), st.sampled_from(certifiable()), st.integers(1, 3), st.booleans())
@settings(max_examples=80, deadline=None)
def test_the_fast_walk_equals_a_loop_over_thresholds(runs, rule, min_steps, scaled):
    """At every setting, losses and tokens equal those of walking each run through the live rule, per-step scales included."""
    scales = np.array([1.0, 0.7, 1.3]) if scaled else np.ones(1)
    candidate, table = RULES[rule](min_steps=min_steps), as_table(runs)
    scaled = scaled and candidate.reads_signal
    found = curve(table, candidate, np.ones(table.runs, bool), scales=scales if scaled else None)
    full = max(1, sum(s.tokens for r in runs for s in r.steps))
    for i in [*range(0, len(found.settings), 17), len(found.settings) - 1] if len(found.settings) else []:
        losses, tokens = naive(runs, candidate, found.settings[i], scales if scaled else np.ones(1))
        assert found.losses[i] == losses
        assert found.saved[i] == pytest.approx(
            (full - tokens) / full if sum(s.tokens for r in runs for s in r.steps) else found.saved[i]
        )


def test_one_run_of_each_group_is_drawn():
    """Exactly one run a group, and each has its turn over seeds."""
    table = as_table([Trace(str(i), [Step(RIGHT, 0.1, 1)], group=str(i // 3), gold=RIGHT) for i in range(9)])
    drawn = np.array([one_run_a_group(table, seed) for seed in range(60)])
    assert (np.add.reduceat(drawn, [0, 3, 6], axis=1) == 1).all()
    assert drawn.any(0).all()


# --- the policy


def test_a_certified_policy_carries_what_the_contract_lists():
    """Every field of the contract's example is there, with the header of the traces, and the file is JSON."""
    header = {"model": "m", "mode": "refine", "estimator": "renormalised", "k": 5, "temperature": 0.6, "template": "t"}
    policy = calibrate(population(300, temperature_mode="raw", segmentation={"boundary": "call", "min_tokens": 7}, **header))
    figures = policy.calibration
    assert (policy.active, policy.reason, policy.method) == (True, "certified", "certified")
    assert (policy.model, policy.mode, policy.k, policy.temperature, policy.template) == ("m", "refine", 5, (0.6,), "t")
    assert policy.segmentation == Segmentation("call", 7)
    assert set(figures) == {
        "runs",
        "groups",
        "labels",
        "accuracy_full",
        "right",
        "wrong",
        "cut",
        "left_out",
        "cut_runs",
        "max_tokens",
        "mu_correct",
        "sigma_correct",
        "mu_wrong",
        "sigma_wrong",
        "cohens_d",
        "auroc",
        "auroc_interval",
        "verdict",
        "entropy_quantiles",
        "remaining_tokens",
        "questions_right",
        "questions_wrong_early",
        "entropy_recorded",
        "answers_missing",
        "max_loss",
        "confidence",
        "rules",
        "examples_needed",
        "certificate",
    }
    certificate = figures["certificate"]
    assert set(certificate) == {
        "risk",
        "max_loss",
        "confidence",
        "groups",
        "losses",
        "upper_bound",
        "level",
        "allowed",
        "grid",
        "rules_tried",
    }
    assert (certificate["risk"], certificate["max_loss"], certificate["confidence"]) == ("lost-correct", 0.05, 0.9)
    assert certificate["rules_tried"] == ["entropy+agreement", "entropy", "entropy (sum_entropy)", "fixed-step"]
    assert certificate["allowed"] == allowances(300, 0.05, 0.1, 4) == [8, 7, 7, 7]
    chosen = certificate["rules_tried"].index(
        policy.rule if policy.signal == "mean_entropy" else f"{policy.rule} ({policy.signal})"
    )
    assert certificate["level"] == tail(certificate["allowed"][chosen], 300, 0.05)
    assert figures["examples_needed"] == 72
    assert certificate["upper_bound"] <= 0.05
    assert Policy.from_dict(json.loads(json.dumps(policy.to_dict(), allow_nan=False))) == policy


def test_the_last_passing_setting_is_kept_and_the_next_one_fails():
    """The kept threshold passes the exact test, the next of the grid does not, and the losses are those of replaying it."""
    table = as_table(population(300))
    policy = calibrate(table, rule="entropy", signal="mean_entropy")
    found = curve(table, EntropyRule(), np.ones(table.runs, bool))
    at = int(np.flatnonzero(found.settings == policy.thresholds[0])[0])
    p = stats.binom.cdf(found.losses, 300, 0.05)
    assert p[at] <= 0.1 < p[at + 1]
    assert policy.calibration["certificate"]["losses"] == found.losses[at]


def test_auto_keeps_the_candidate_that_saves_most():
    """The chosen rule saves at least as much as each of the others walked with the losses allowed to it."""
    table = as_table(population(300))
    policy = calibrate(table)
    savings = {}
    candidates = (EntropyRule(), EntropyRule(signal="sum_entropy"), FixedStepRule())
    for c, allowed in zip(candidates, policy.calibration["certificate"]["allowed"], strict=False):
        found = curve(table, c, np.ones(table.runs, bool))
        at = last_passing(found.losses, allowed)
        savings[c.name, c.signal] = -1 if at is None else found.saved[at]
    assert savings[policy.rule, policy.signal] == max(savings.values()) > 0.3


def test_agreement_is_chosen_where_answers_tell_more_than_entropy():
    """Entropy that tells little and wrong answers that never repeat: the agreement rule is free in this loop and is kept."""
    runs = population(400, shift=0.1, wrong=0.2)
    for t in runs:
        for i, s in enumerate(t.steps[:-1]):
            s.answer = RIGHT if s.answer == RIGHT else f"wrong {i}"
    policy = calibrate(runs)
    assert (policy.rule, policy.min_steps) == ("entropy+agreement", 2)


def trying(questions, **tells):
    """Runs of one stream whose steps' entropy tells little, and whose tried answers' entropy tells much, where it is recorded."""
    runs = population(questions, shift=0.1, wrong=0.2)
    for t in runs:
        for s in t.steps[:-1]:
            s.probe_tokens, s.signals = 1, {"trial_entropy": 0.1 if s.answer == RIGHT else 1.0} if tells else {}
    return runs


def test_the_tried_answer_s_entropy_takes_the_place_of_agreement():
    """Where it is recorded, by ``auto`` alone: as many rules are tried as without, at the same level; its probes are paid."""
    policy = calibrate(trying(400, trial=True))
    certificate = policy.calibration["certificate"]
    assert (policy.rule, policy.signal, policy.min_steps) == ("entropy", "trial_entropy", 1)
    assert "entropy (trial_entropy)" in certificate["rules_tried"]
    assert "entropy+agreement" not in certificate["rules_tried"]
    assert len(certificate["rules_tried"]) == len(calibrate(trying(400)).calibration["certificate"]["rules_tried"])
    table = as_table(trying(400, trial=True))
    stop, full = table.costs(every_probe=True)
    at = (table.step == 2) & ~table.is_last
    assert policy.remaining_tokens(2) == round(float((full[table.run] - stop)[at].mean()))


@pytest.mark.parametrize("asked", [{"rule": "entropy"}, {"signal": "mean_entropy"}, {"method": "mean"}])
def test_only_auto_tries_answers_unasked(asked):
    """Whoever names the rule ``entropy``, a signal or a plain formula gets no rule that asks for answers after every step."""
    policy = calibrate(trying(400, trial=True), **asked)
    assert policy.signal != "trial_entropy"
    rules = (policy.calibration["certificate"] or {}).get("rules_tried", [])
    assert "entropy (trial_entropy)" not in rules


def test_a_tried_answer_s_entropy_may_be_asked_for_by_name():
    """As any signal, and it is replayed so; of no answer nobody is sure, whatever a file says."""
    runs = trying(400, trial=True)
    policy = calibrate(runs, rule="entropy", signal="trial_entropy")
    assert (policy.reason, policy.signal) == ("certified", "trial_entropy")
    assert (decisions(as_table(runs), policy) == 1).any()
    for t in runs:
        t.steps[0].answer = None
    assert not (decisions(as_table(runs), policy) == 1).any()


def test_fixed_step_reads_no_entropy():
    """Without any entropy a fixed step can still be certified, by ``auto`` too; its step is the threshold."""
    runs = [Trace(str(i), [Step(WRONG, None, 9), *[Step(RIGHT, None, 9)] * 3], gold=RIGHT) for i in range(60)]
    policy = calibrate(runs, rule="fixed-step")
    assert (policy.rule, policy.thresholds, policy.min_steps, policy.active) == ("fixed-step", (2.0,), 2, True)
    assert calibrate(runs, rule="fixed-step", min_steps=3).thresholds == (3.0,)
    policy = calibrate(runs, min_steps=1)
    assert (policy.rule, policy.reason, policy.calibration["entropy_recorded"]) == ("fixed-step", "certified", 0.0)


@pytest.mark.parametrize("method", ["certified", "mean", "information", "bayes", "scale-invariant"])
@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"shift": 0.0}, "no_signal"),
        ({"shift": -0.3}, "inverted_signal"),
        ({"full": 0.0}, "too_few_examples"),
        ({"questions": 1}, "too_few_examples"),
    ],
)
def test_every_method_says_why_it_does_not_stop(method, given, reason):
    """No signal, an inverted one, one class only or too few: inactive, thresholds null, the same reason from every method."""
    policy = calibrate(population(seed=1, **given), method=method)
    assert (policy.active, policy.reason, policy.thresholds) == (False, reason, (None,))
    json.dumps(policy.to_dict(), allow_nan=False)


def test_no_safe_threshold_is_a_result():
    """A signal, but one surest answer in twenty is wrong: the strictest threshold already loses too much, nothing is certified."""
    runs = population(300, full=1.0)
    for t in runs[:15]:
        t.steps[0] = Step(WRONG, 0.0, 100)
    assert calibrate(runs, rule="entropy", signal="mean_entropy", max_loss=0.01, confidence=0.9).reason == "no_safe_threshold"


@pytest.mark.parametrize(("questions", "tried"), [(44, 0), (45, 1), (58, 1), (59, 2), (66, 2), (67, 3), (71, 3), (72, 4)])
def test_few_questions_try_fewer_rules(questions, tried):
    """With m rules n must reach .95^n <= .1/m: below that the last ones are given up, which depends on n alone; below 45, all.

    Whatever the number of questions, the policy names one number that is needed: with 72 all four are tried.
    """
    policy = calibrate(population(questions, shift=2.0, wrong=0.3))
    certificate = policy.calibration["certificate"]
    assert (policy.calibration["rules"], policy.calibration["examples_needed"]) == (4, 72)
    if tried:
        assert policy.reason in ("certified", "no_safe_threshold")
        assert certificate is None or [k >= 0 for k in certificate["allowed"]] == [True] * tried + [False] * (4 - tried)
    else:
        assert policy.reason == "too_few_examples"


# --- what the gate takes out, and what it leaves


def with_answers(right, wrong, questions, seed=0, steps=3):
    """Runs of which so many end right; of so many the early answers are wrong; entropies say nothing."""
    rng = np.random.default_rng(seed)
    return [
        Trace(
            str(n),
            [
                *(Step(WRONG if questions - n <= wrong else RIGHT, float(rng.uniform(0.1, 1.0)), 50) for _ in range(steps - 1)),
                Step(RIGHT if n < right else WRONG, 0.1, 50),
            ],
            gold=RIGHT,
        )
        for n in range(questions)
    ]


@pytest.mark.parametrize("method", ["certified", "mean"])
@pytest.mark.parametrize(("right", "reason"), [(9, "too_few_examples"), (10, None)])
def test_fewer_than_ten_right_full_answers_are_too_few(right, reason, method):
    """Counted in questions: nine are too few for any rule, in each of two runs, too; with ten something else decides."""
    runs = with_answers(right, 40, 60)
    twice = [Trace(f"{t.id}-{i}", t.steps, group=t.id, gold=RIGHT) for t in runs for i in range(2)]
    for recordings in (runs, twice):
        policy = calibrate(recordings, method=method, max_loss=0.08)
        assert policy.calibration["questions_right"] == right
        assert (policy.reason == "too_few_examples") == (reason is not None)


def test_few_wrong_early_answers_are_walked_and_the_policy_says_so():
    """Nine questions with a wrong early answer show no signal, and only they can be lost: the certificate counts them."""
    policy = calibrate(with_answers(300, 9, 300), rule="entropy")
    assert (policy.active, policy.reason) == (True, "certified")
    assert (policy.calibration["verdict"], policy.calibration["questions_wrong_early"]) == ("too_few_examples", 9)
    assert diagnose(with_answers(300, 9, 300)).verdict == "too_few_examples"
    assert calibrate(with_answers(300, 30, 300), rule="entropy").reason == "no_signal"


def test_a_fixed_step_needs_no_signal():
    """Entropies say nothing and the second answer is right: ``auto`` stops at step 2, whatever the verdict of the signal."""
    runs = with_answers(100, 40, 100, steps=4)
    for t in runs:
        t.steps[1].answer = t.steps[2].answer = RIGHT
    policy = calibrate(runs)
    assert (policy.rule, policy.min_steps, policy.reason) == ("fixed-step", 2, "certified")
    assert policy.calibration["verdict"] == "no_signal"


def test_the_last_step_tells_nothing_of_a_signal():
    """Early entropies separate; those of the full answers are upside down: they are no stop, and do not count."""
    runs = population(150, 2, full=0.6)
    for t in runs:
        t.steps[-1].entropy = 0.1 if t.steps[-1].answer == WRONG else 4.0
    assert diagnose(runs).verdict == calibrate(runs).calibration["verdict"] == "signal"


@pytest.mark.parametrize(("right", "reason"), [(30, "no_safe_threshold"), (31, "certified")])
def test_a_promise_of_more_than_half_of_the_right_answers_is_refused(right, reason):
    """5 % of all is half of the right answers of a model that is right on 10 %: at 30 of 301 it is refused, at 31 not."""
    runs = [Trace(str(n), [Step(RIGHT if n < right else WRONG, 0.1, 50)] * 3, gold=RIGHT) for n in range(301)]
    assert calibrate(runs).reason == reason
    assert calibrate(runs, max_loss=0.04).reason == "certified"


@pytest.mark.parametrize("rule", [name for name in certifiable() if "refine" in RULES[name].certified_in])
def test_a_missing_answer_is_no_place_to_stop_in_the_refine_loop(rule):
    """Surest where the answer is missing: calibration, replay and the walk pass over it there; in one stream nobody sees it."""
    answers = [None, RIGHT, RIGHT, RIGHT]
    levels = [(a, 0.0 if a is None else 0.5) for a in answers]
    steps = [Step(a, h, 50, signals=every_signal(h)) for a, h in levels]
    runs = [Trace(str(n), steps, gold=RIGHT, mode="refine") for n in range(100)]
    policy = calibrate(runs, rule=rule)
    first = 3 if RULES[rule].compares_answers else 2
    assert (policy.reason, set(replay(runs, policy).stop_step.tolist())) == ("certified", {first})
    assert policy.calibration["answers_missing"] == pytest.approx(1 / 3)
    for t in runs:
        t.mode = "thinking"
    if not RULES[rule].compares_answers:
        assert set(decisions(as_table(runs), replace(policy, mode="thinking", min_steps=1)).tolist()) == {1}


def test_runs_of_one_question_count_once():
    """Forty questions recorded three times are forty examples, too few for a certificate."""
    runs = [Trace(f"{t.id}-{i}", t.steps, group=t.id, gold=t.gold) for t in population(40) for i in range(3)]
    policy = calibrate(runs)
    assert (policy.reason, policy.calibration["runs"], policy.calibration["groups"]) == ("too_few_examples", 120, 40)


def test_per_step_thresholds_follow_each_step_s_level():
    """Entropy that halves from step to step gets thresholds that halve, and the certificate counts the other half only."""
    runs = population(400)
    for t in runs:
        for i, s in enumerate(t.steps):
            s.entropy *= 0.5**i
    policy = calibrate(runs, rule="entropy", signal="mean_entropy", per_step=True)
    assert policy.calibration["certificate"]["groups"] == 200
    ratios = np.array(policy.thresholds[1:3]) / np.array(policy.thresholds[:2])
    np.testing.assert_allclose(ratios, 0.5, rtol=0.1)


@pytest.mark.parametrize("method", ["certified", "information"])
def test_a_step_without_a_signal_gets_no_threshold_of_its_own(method):
    """Step 2's entropies are dealt out anew among the runs: there nothing is stopped, before and after it runs are."""
    runs = population(600)
    others = random.Random(3).sample([t.steps[1].entropy for t in runs], len(runs))
    for t, entropy in zip(runs, others, strict=True):
        t.steps[1].entropy = entropy
    verdicts = [s.auroc_interval[0] > 0.5 for s in diagnose(runs).steps[:3]]
    policy = calibrate(runs, method=method, rule="entropy", signal="mean_entropy", per_step=True)
    stopped = replay(runs, policy).stops_at_step
    assert (verdicts, policy.active) == ([True, False, True], True)
    assert [t is not None for t in policy.thresholds[:3]] == [True, False, True]
    assert (stopped[0] > 0, stopped[1], stopped[2] > 0) == (True, 0, True)


def test_agreement_labels_certify_disagreement():
    """Without gold the certified risk is differing from the full run's answer."""
    runs = population(300, full=1.0)
    for t in runs:
        t.gold = None
    policy = calibrate(runs)
    assert policy.calibration["certificate"]["risk"] == "disagreement"
    assert (policy.calibration["labels"], policy.calibration["accuracy_full"]) == ("agreement", None)


def test_remaining_tokens_and_quantiles_by_hand():
    """Runs of 10+20+30 and 10+40 tokens, probe 2: a stop saves (48 + 38)/2 = 43 tokens after step 1, 28 after step 2, then 0."""
    long = [Step(RIGHT, 0.1, 10, probe_tokens=2), Step(RIGHT, 0.3, 20, probe_tokens=2), Step(RIGHT, 0.2, 30)]
    short = [Step(RIGHT, 0.5, 10, probe_tokens=2), Step(RIGHT, None, 40)]
    figures = calibrate([Trace("a", long, gold=RIGHT), Trace("b", short, gold=RIGHT)]).calibration
    assert figures["remaining_tokens"] == [43.0, 28.0, 0.0]
    assert figures["entropy_quantiles"][0] == pytest.approx([0.12, 0.2, 0.4, 0.48])
    assert figures["entropy_quantiles"][1] == [0.3] * 4
    assert calibrate([Trace("b", short, gold=RIGHT)]).calibration["entropy_quantiles"][1] is None


def test_a_probe_that_costs_more_than_it_saves_is_no_saving():
    """With probes dearer than the steps they spare, nothing is certified as saving."""
    runs = population(200)
    for t in runs:
        for s in t.steps:
            s.probe_tokens = 1000
    assert calibrate(runs).reason == "no_safe_threshold"


def test_low_mass_and_missing_entropies_never_stop():
    """Steps whose top-k holds too little probability are not eligible, whatever their entropy says."""
    runs = population(200)
    for t in runs:
        for s in t.steps:
            s.mass = 0.5
    assert calibrate(runs, rule="entropy").reason == "no_safe_threshold"
    assert calibrate(runs, rule="entropy").mass_floor == MassFloor()


def test_examples_are_a_seeded_draw_of_questions():
    """``examples`` calibrates on that many questions, other ones with another seed, and says if there are not as many."""
    runs = population(200)
    one, again, other = (calibrate(runs, examples=80, seed=s) for s in (1, 1, 2))
    assert one.calibration["groups"] == 80
    assert one.to_dict() == again.to_dict() != other.to_dict()
    with pytest.raises(InputError, match=r"examples is 500.*200 questions"):
        calibrate(runs, examples=500)


@pytest.mark.parametrize(
    "bad",
    [
        {"method": "magic"},
        {"rule": "magic"},
        {"signal": "magic"},
        {"signal": "deepconf"},
        {"max_loss": 0.0},
        {"max_loss": 1},
        {"max_loss": True},
        {"confidence": 1.0},
        {"confidence": "0.9"},
        {"min_steps": 0},
        {"examples": 0},
        {"per_step": 1},
        {"seed": -1},
        {"scope": "galaxy"},
    ],
)
def test_bad_arguments_are_named(bad):
    """Each wrong argument is refused with its name and value."""
    ((name, value),) = bad.items()
    with pytest.raises(InputError, match=f"{name} is {value!r}"):
        calibrate(population(10), **bad)


def test_a_plain_fixed_step_is_refused():
    """A fixed step has no entropy threshold to compute."""
    with pytest.raises(InputError, match="certified"):
        calibrate(population(10), method="mean", rule="fixed-step")
