"""Whether live steps still look like calibration."""

from __future__ import annotations

import json

import numpy as np
import pytest

from entropy_chains.core.policy import Policy
from entropy_chains.savings.drift import drift


def policy_from(samples: list[np.ndarray], **fields) -> Policy:
    quantiles = [np.quantile(s, [0.05, 0.25, 0.75, 0.95]).tolist() for s in samples]
    return Policy("m", (0.3,), calibration={"entropy_quantiles": quantiles, "groups": len(samples[0])}, **fields)


def test_drift_by_hand() -> None:
    """40 live values all in the middle bin, expected 20: X² = 2+8+20²/20+8+2 = 40, with no calibration size known p = χ²(4)."""
    from scipy.stats import chi2

    policy = Policy("m", (0.3,), calibration={"entropy_quantiles": [[1.0, 2.0, 3.0, 4.0]]})
    found = drift([np.linspace(2.1, 2.9, 40).tolist()], policy)
    assert found.steps[0].p_value == pytest.approx(chi2.sf(40, 4))
    assert found.drifted is True
    assert "calibrate again" in found.verdict
    sized = Policy("m", (0.3,), calibration={"entropy_quantiles": [[1.0, 2.0, 3.0, 4.0]], "groups": 40})
    assert drift([np.linspace(2.1, 2.9, 40).tolist()], sized).steps[0].p_value == pytest.approx(chi2.sf(20, 4))


@pytest.mark.parametrize("live", [200, 5000])
def test_drift_raises_few_false_alarms(live: int) -> None:
    """Live values drawn like calibration's are flagged at most twice in 300 repeats, with little and with much more traffic.

    A level of 0.001 expects 0.3; three or more have a chance of 0.4 % if the level holds. Without the correction for
    the calibration's own size most repeats with 5,000 live values would be flagged, so the test can fail.
    """
    alarms, naive = 0, 0
    for repeat in range(300):
        rng = np.random.default_rng(repeat)
        policy = policy_from([rng.gamma(2.0, 0.2, 240) for _ in range(3)], min_steps=3)
        values = [rng.gamma(2.0, 0.2, live).tolist() for _ in range(3)]
        alarms += bool(drift(values, policy).drifted)
        if repeat < 30:
            unsized = Policy("m", (0.3,), min_steps=3, calibration={"entropy_quantiles": policy.calibration["entropy_quantiles"]})
            naive += bool(drift(values, unsized).drifted)
    assert alarms <= 2
    assert live == 200 or naive > 15


def test_drift_flags_a_shift_at_its_step() -> None:
    """Values 60 % higher at step 2 alone are flagged there and not at step 1."""
    rng = np.random.default_rng(0)
    policy = policy_from([rng.gamma(2.0, 0.2, 300) for _ in range(2)], min_steps=2)
    found = drift([rng.gamma(2.0, 0.2, 200), 1.6 * rng.gamma(2.0, 0.2, 200)], policy)
    assert [s.flagged for s in found.steps] == [False, True]
    assert "step 2" in found.verdict


def test_drift_compares_only_steps_that_all_runs_reach() -> None:
    """Stopping takes the surest runs out of later steps: those are compared only for full runs, or it would always be drift."""
    rng = np.random.default_rng(1)
    first, second = rng.gamma(2.0, 0.2, (2, 2000))
    policy = policy_from([first, second], min_steps=1)
    survivors = [first, second[second > np.quantile(second, 0.6)]]
    assert drift(survivors, policy).drifted is False
    assert "full_runs=True" in drift(survivors, policy).steps[1].note
    assert drift(survivors, policy, full_runs=True).drifted is True


def test_drift_with_few_values_knows_nothing() -> None:
    """29 values are not tested, 30 are; missing values do not count."""
    policy = Policy("m", (0.3,), calibration={"entropy_quantiles": [[0.1, 0.2, 0.3, 0.4]], "groups": 100})
    few = [*[0.05] * 2, *[0.15] * 6, *[0.25] * 14, *[0.35] * 6, 0.45, None, float("nan")]  # 5, 20, 50, 20, 5 %
    assert drift([few], policy).drifted is None
    assert drift([few], policy).steps[0].n == 29
    assert drift([[*few, 0.45]], policy).drifted is False
    assert drift([[0.1] * 50], Policy("m", (0.3,))).drifted is None
    assert drift([[0.1] * 50], Policy("m", (0.3,), calibration={"entropy_quantiles": [None]})).drifted is None


def test_drift_does_not_take_heaps_of_equal_values_for_drift() -> None:
    """A third of the values exactly 0, in calibration as live: bins at the heap are joined and nothing is flagged."""
    rng = np.random.default_rng(2)
    for share in (0.08, 0.33):  # one quantile on the heap, or two equal ones
        sample = np.where(rng.random(400) < share, 0.0, rng.gamma(2.0, 0.2, 400))
        live = np.where(rng.random(400) < share, 0.0, rng.gamma(2.0, 0.2, 400))
        found = drift([live], policy_from([sample]))
        assert found.drifted is False
        assert found.steps[0].p_value is not None
    assert drift([np.zeros(100)], policy_from([np.zeros(100)])).steps[0].note == "the calibration values are nearly all equal"


def test_drift_is_json() -> None:
    """The result is plain JSON."""
    found = drift([np.linspace(0, 1, 50).tolist()], policy_from([np.linspace(0, 1, 100)]))
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["drifted"] is False
