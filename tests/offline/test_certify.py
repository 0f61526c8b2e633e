"""The certificate: what it allows, by hand; the fast walk against a naive loop; and what a certified policy says."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from populations import RIGHT, WRONG, population
from recorded import every_signal
from scipy import stats

from entropy_chains.core.policy import Policy
from entropy_chains.core.rules import RULES, EntropyRule, certifiable
from entropy_chains.core.signals import MassFloor, Signal, StepRecord
from entropy_chains.core.steps import Segmentation
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
from entropy_chains.offline.table import as_table
from entropy_chains.offline.traces import Step, Trace

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
        else:  # a longer run could be stopped at steps that this one never had
            losses += run.is_cut and (len(run.steps) - 1 < last or not candidate.limited)
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
