"""Intervals of a change of accuracy: by hand, and their coverage as a guarantee, summed exactly over all samples."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from scipy import stats

from entropy_chains.intervals import NINETY_FIVE, difference, paired_change
from entropy_chains.offline.replay import judge
from entropy_chains.offline.table import as_table
from entropy_chains.offline.traces import Step, Trace

RIGHT, WRONG = "1", "0"
COVERED = 0.93
SCENARIOS = [(60, -0.02), (150, -0.01), (150, -0.02), (300, -0.03)]
"""Questions and true change."""


def adjusted_wald(lost, gained, questions):
    """The interval of single runs."""
    change = np.repeat([-1.0, 1.0, 0.0], [lost, gained, questions - lost - gained])
    return paired_change(change, np.ones(questions))


def bootstrap(lost, gained, questions):
    """The percentile bootstrap of the same, where answers are lost only: a resample loses Bin(n, lost/n)."""
    return tuple(-q / questions for q in stats.binom.ppf([0.975, 0.025], questions, lost / questions))


def coverage(interval, questions, lost, gained):
    """The chance that the interval of a sample holds the truth, summed over all samples that are not out of the question."""
    held = 0.0
    for b in range(questions + 1):
        chance = stats.binom.pmf(b, questions, lost)
        if chance < 1e-9:
            continue
        for c in range(questions - b + 1 if gained else 1):
            both = chance * (stats.binom.pmf(c, questions - b, gained / (1 - lost)) if gained else 1.0)
            if both > 1e-9:
                low, high = interval(b, c, questions)
                held += both * (low <= gained - lost <= high)
    return held


def test_the_formula_by_hand():
    """6 lost and 2 gained of 60: shares 7/62 and 3/62, change -4/62, variance (10/62 - (4/62)²)/62."""
    shares, change = 10 / 62, -4 / 62
    half = NINETY_FIVE * sqrt((shares - change**2) / 62)
    assert adjusted_wald(6, 2, 60) == pytest.approx((change - half, change + half))


@pytest.mark.parametrize("gained", [0.0, 0.005, 0.02])
@pytest.mark.parametrize(("questions", "change"), SCENARIOS)
def test_the_interval_holds_the_true_change(questions, change, gained):
    """At least 93 times in a hundred, however few answers change."""
    assert coverage(adjusted_wald, questions, gained - change, gained) >= COVERED


@pytest.mark.parametrize(("questions", "change"), SCENARIOS[:2])
def test_the_percentile_bootstrap_is_caught(questions, change):
    """The planted fault: in the same harness it misses the truth at least one time in five."""
    assert coverage(bootstrap, questions, -change, 0.0) < 0.8


@pytest.mark.parametrize("questions", [2, 10, 60, 1000])
def test_no_change_is_no_single_point(questions):
    """Nothing lost and nothing gained: the interval still holds the loss of one in so many, and is no point."""
    low, high = adjusted_wald(0, 0, questions)
    assert -high == pytest.approx(low)
    assert low < -1 / questions if questions > 2 else low < 0


def test_one_question_has_no_interval():
    """A single group says nothing about spread, and groups without a judged run do not count."""
    assert paired_change(np.array([-1.0]), np.array([3])) is None
    assert paired_change(np.array([-1.0, 0.0]), np.array([3, 0])) is None


def runs(lost, gained, copies):
    """Questions of two steps, each with its number of equal runs: from right to wrong, or the other way, or right throughout."""
    made = []
    for i, n in enumerate(copies):
        early = WRONG if i < lost else RIGHT
        full = WRONG if lost <= i < lost + gained else RIGHT
        made += [Trace(f"{i}-{j}", [Step(early, 0.1, 40), Step(full, 0.1, 60)], group=str(i), gold=RIGHT) for j in range(n)]
    return as_table(made)


def test_a_replay_has_this_interval_whatever_the_copies():
    """Every run is stopped at step 1: the interval is that of the questions, whether each was run once or three times."""
    for copies in (1, 3):
        table = runs(4, 1, [copies] * 80)
        found = judge(table, np.ones(table.runs, np.int32), False)
        assert found.accuracy_change == pytest.approx(-3 / 80)
        assert found.accuracy_change_interval == pytest.approx(adjusted_wald(4, 1, 80))


def test_unequal_groups_keep_the_coverage():
    """Questions with one to four runs, which share their fate in part; the truth is the mean over runs."""
    rng, held = np.random.default_rng(8), 0
    for _ in range(400):
        sizes = rng.integers(1, 5, 100)
        risk = np.where(rng.random(100) < 0.1, 0.4, 0.0)  # of a question's runs; 4 % on average
        held += bool((bounds := paired_change(-rng.binomial(sizes, risk).astype(float), sizes)) and bounds[0] <= -0.04 <= bounds[1])
    assert held >= stats.binom.ppf(0.01, 400, COVERED)


@pytest.mark.parametrize(("n", "right"), [(30, 1.0), (30, 0.95), (100, 0.98)])
def test_two_samples_keep_the_coverage(n, right):
    """Holdout and stopped runs, both nearly always right: the interval of the difference holds 0, and is no single point."""
    chances, held = stats.binom.pmf(np.arange(n + 1), n, right), 0.0
    for a, b in ((a, b) for a in range(n + 1) for b in range(n + 1) if chances[a] * chances[b] > 1e-7):
        low, high = difference(*(np.repeat([1.0, 0.0], [x, n - x]) for x in (a, b)))
        assert low < high
        held += chances[a] * chances[b] * (low <= 0 <= high)
    assert held >= COVERED


def test_the_two_sample_formula_by_hand():
    """Agresti & Caffo: 9 of 10 and 6 of 10 become 10/12 and 7/12."""
    low, high = difference(np.repeat([1.0, 0.0], [9, 1]), np.repeat([1.0, 0.0], [6, 4]))
    half = NINETY_FIVE * sqrt(10 / 12 * 2 / 12 / 12 + 7 / 12 * 5 / 12 / 12)
    assert (low, high) == pytest.approx((-0.25 - half, -0.25 + half))
