"""What a certificate on runs that were cut off promises for whole runs, on made-up models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cut_recordings import HEADER, RIGHT, WRONG, cut_at
from scipy import stats

from entropy_chains.offline.calibrate import calibrate
from entropy_chains.offline.replay import replay
from entropy_chains.offline.table import as_table
from entropy_chains.offline.traces import Step, Trace

EPSILON, DELTA, REPEATS = 0.05, 0.1, 60
ALLOWED = int(stats.binom.ppf(0.99, REPEATS, DELTA))


def hard_but_found(rng) -> list[Step]:
    """Half of the questions need a second step to be right; their first answers are wrong at any entropy below 1 bit."""
    hard = rng.random() < 0.5
    first = Step(WRONG, rng.random(), 100) if hard else Step(RIGHT, rng.random() / 2, 100)
    return [first, Step(RIGHT, None, 400 if hard else 100)]


def surely_wrong_later(rng) -> list[Step]:
    """Four in ten are unsure at first, surely wrong at step 3, and right in the end; a few are cut off before step 1 ends."""
    if rng.random() > 0.4:
        return [Step(RIGHT, 0.1, 100), Step(RIGHT, None, 50)]
    first = 300 if rng.random() < 0.01 else 100
    return [Step(WRONG, 2.0, first), Step(WRONG, 2.0, 100), Step(WRONG, 0.05, 100), Step(RIGHT, 0.5, 100), Step(RIGHT, None, 50)]


MODELS = [hard_but_found, surely_wrong_later]


def drawn(model, count, seed):
    rng = np.random.default_rng([seed, 81])
    return [Trace(f"{seed}-{n}", model(rng), **HEADER) for n in range(count)]


def violations(model, choose) -> int:
    """In how many of the draws of 150 cut recordings the chosen policy loses more than 5 % of 2,000 whole runs."""
    whole = as_table(drawn(model, 2000, 10**6))
    risks = []
    for seed in range(REPEATS):
        policy = choose([cut_at(trace, 250) for trace in drawn(model, 150, seed)], seed)
        risks.append(replay(whole, policy, resamples=100).risk)
    return sum(risk > EPSILON for risk in risks)


@pytest.mark.parametrize("rule", ["entropy", "fixed-step"])
@pytest.mark.parametrize("model", MODELS)
def test_the_certificate_covers_what_longer_runs_would_have_answered(model, rule):
    """Calibrated on cut recordings, judged on whole runs: no more than a tenth of the draws lose too many, within chance."""
    assert violations(model, lambda traces, seed: calibrate(traces, rule=rule, seed=seed)) <= ALLOWED


def test_the_certified_policies_do_stop():
    """Keeping the promise is work: most draws stop, and save."""
    policies = [calibrate([cut_at(t, 250) for t in drawn(m, 150, seed)], rule="entropy") for m in MODELS for seed in range(10)]
    assert sum(policy.active for policy in policies) > 10


def test_taking_cut_runs_for_wrong_ones_is_caught():
    """The planted fault: where a cut run counts as wrong, a stop on it can lose nothing."""
    assert violations(hard_but_found, lambda traces, seed: calibrate(traces, rule="entropy", cut_runs="wrong", seed=seed)) > ALLOWED


def test_stopping_after_the_cut_is_caught():
    """The planted fault: a threshold that goes on behind the last step that was seen stops where nobody looked."""

    def going_on(traces, seed):
        policy = calibrate(traces, rule="entropy", seed=seed)
        return replace(policy, thresholds=policy.thresholds[:1])

    assert violations(surely_wrong_later, going_on) > ALLOWED
