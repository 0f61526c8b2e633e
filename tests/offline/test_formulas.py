"""Thresholds by the paper's formulas, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from populations import RIGHT, population
from scipy import stats

from entropy_chains.offline import formulas
from entropy_chains.offline.calibrate import calibrate
from entropy_chains.offline.diagnose import Separation


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
