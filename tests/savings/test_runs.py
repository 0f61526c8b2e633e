"""Figures, paired savings, the holdout and the drift check."""

from __future__ import annotations

import json
import subprocess
import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_chains.core.policy import Policy
from entropy_chains.errors import InputError
from entropy_chains.savings.runs import (
    EnergyMeter,
    Figure,
    Run,
    Savings,
    drift,
    flops,
    holdout_saving,
    is_holdout,
    latency,
    money,
)


def test_module_needs_no_numpy() -> None:
    """Live wrappers import the module and assign the holdout without numpy, scipy or pynvml being loaded."""
    code = (
        "import sys; from entropy_chains.savings.runs import Figure, Run, is_holdout; is_holdout('r', share=0.5);"
        "Figure(1.0, 's', 'measured', 'clock'); print([m for m in ('numpy', 'scipy', 'pynvml') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# --- figures


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"mean": float("nan")}])
def test_figure_refuses_what_is_not_a_number(value: float) -> None:
    """A figure that could not be had is None: NaN and infinity are refused."""
    with pytest.raises(InputError, match="None, not a Figure"):
        Figure(value, "s", "measured", "clock")


def test_figure_refuses_an_unknown_kind() -> None:
    """A figure is measured, counted or estimated, nothing else."""
    with pytest.raises(InputError, match="measured, counted, estimated"):
        Figure(1.0, "s", "guessed", "clock")  # type: ignore[arg-type]


def test_latency_by_hand() -> None:
    """1, 2, 3, 6 s: mean 3, median 2.5, std √(14/3) with ddof 1, and p95 = 3 + 0.85·(6 - 3) = 5.55 (0.95·3 = position 2.85)."""
    found = latency([6.0, 1.0, 3.0, 2.0])
    assert found == pytest.approx({"mean": 3.0, "p50": 2.5, "p95": 5.55, "std": (14 / 3) ** 0.5})


def test_latency_of_one_run_has_no_spread() -> None:
    """With one run a standard deviation with ddof 1 does not exist: None, not 0 and not NaN."""
    assert latency([2.0]) == {"mean": 2.0, "p50": 2.0, "p95": 2.0, "std": None}


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=50), st.floats(0, 1e6))
def test_latency_moves_with_its_data(seconds: list[float], shift: float) -> None:
    """Adding the same time to all runs shifts mean and quantiles by it and leaves the spread; values stay within the range."""
    plain, moved = latency(seconds), latency([s + shift for s in seconds])
    for name in ("mean", "p50", "p95"):
        assert moved[name] == pytest.approx(plain[name] + shift, rel=1e-9, abs=1e-6)
        assert min(seconds) - 1e-6 <= plain[name] <= max(seconds) + 1e-6
    assert moved["std"] == pytest.approx(plain["std"], rel=1e-6, abs=1e-4)


@pytest.mark.parametrize("seconds", [[], [-1.0], [float("nan")], [float("inf"), 1.0]])
def test_latency_refuses_what_is_not_a_duration(seconds: list[float]) -> None:
    """No runs, negative and non-finite seconds are input errors."""
    with pytest.raises(InputError, match="duration"):
        latency(seconds)


def test_flops_by_hand() -> None:
    """A 1.3 M-parameter model generating 100 tokens: 2·1.3e6·100 = 2.6e8 FLOP, estimated; the sentence says what is left out."""
    figure = flops(1.3e6, 100)
    assert figure.value == pytest.approx(2.6e8)
    assert (figure.unit, figure.kind) == ("FLOP", "estimated")
    assert "attention" in figure.how


def test_money_by_hand() -> None:
    """500,000 prompt tokens at 2 and 250,000 completion tokens at 8 a million: 1 + 2 = 3."""
    figure = money(500_000, 250_000, 2.0, 8.0, currency="EUR")
    assert (figure.value, figure.unit, figure.kind) == (pytest.approx(3.0), "EUR", "estimated")


@pytest.mark.parametrize("call", [lambda: flops(-1, 5), lambda: flops(1, -5), lambda: money(1, 1, -2, 8)])
def test_negative_amounts_are_refused(call) -> None:
    """Negative parameters, tokens and prices are input errors."""
    with pytest.raises(InputError, match="negative"):
        call()


class FakeNvml(types.ModuleType):
    """Stands in for pynvml: a counter in mJ that gives ``readings`` in turn."""

    def __init__(self, readings: list[int], *, broken: bool = False):
        super().__init__("pynvml")
        self.readings, self.broken, self.open = readings, broken, 0

    def nvmlInit(self) -> None:  # noqa: N802  pynvml's name
        if self.broken:
            raise RuntimeError("Driver Not Loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        if not self.readings:
            raise RuntimeError("GPU is lost")
        return self.readings.pop(0)


def test_energy_is_the_counter_difference(monkeypatch) -> None:
    """A counter going from 5,000 to 12,500 mJ during the block is 7.5 J, measured, and NVML is shut down again."""
    nvml = FakeNvml([5_000, 12_500])
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    with EnergyMeter() as meter:
        assert meter.figure is None
    assert meter.figure is not None
    assert (meter.figure.value, meter.figure.unit, meter.figure.kind) == (7.5, "J", "measured")
    assert meter.reason is None
    assert nvml.open == 0


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (None, "pynvml is not installed"),
        (FakeNvml([], broken=True), "Driver Not Loaded"),
        (FakeNvml([]), "GPU is lost"),
        (FakeNvml([5_000]), "could not be read again"),
        (FakeNvml([5_000, 4_000]), "started anew"),
    ],
)
def test_energy_without_a_counter_is_none_with_a_reason(monkeypatch, module, reason: str) -> None:
    """No package, no driver, no counter, a lost GPU or a reset counter: no figure, a reason, and the block runs all the same."""
    monkeypatch.setitem(sys.modules, "pynvml", module)  # None makes the import fail
    ran = False
    with EnergyMeter() as meter:
        ran = True
    assert ran
    assert meter.figure is None
    assert reason in (meter.reason or "")
    assert module is None or module.open == 0


def test_energy_meter_lets_errors_through(monkeypatch) -> None:
    """An exception of the measured code is not swallowed."""
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml([1, 2]))
    with pytest.raises(KeyError), EnergyMeter():
        raise KeyError("x")


# --- paired savings


def test_savings_by_hand() -> None:
    """Two runs, 100 + 300 tokens in full, 60 + 100 stopped: 1 - 160/400 = 60 % of tokens saved; calls of a root add up."""
    full = [Run("a", 100, seconds=1.0, prompt_tokens=10), Run("b", 300, seconds=3.0, prompt_tokens=10)]
    stopped = [
        Run("b", 100, seconds=1.5, prompt_tokens=10),
        Run("a", 40, seconds=0.5, prompt_tokens=10),
        Run("a", 20, seconds=0.5, prompt_tokens=30),
    ]
    found = Savings.from_runs(full, stopped, parameters=1000, prices=(1.0, 10.0))
    assert found.saved("tokens") == pytest.approx(0.6)
    assert found.saved("flops") == pytest.approx(0.6)
    assert found.saved("seconds") == pytest.approx(1 - 2.5 / 4)
    assert found.latency == Figure(latency([1.5, 1.0]), "s", "measured", found.latency.how)
    assert found.money_full.value == pytest.approx((20 + 4000) / 1e6)
    assert found.money.value == pytest.approx((50 + 1600) / 1e6)
    assert [found.tokens.kind, found.seconds.kind, found.flops.kind, found.money.kind] == [
        "counted",
        "measured",
        "estimated",
        "estimated",
    ]
    assert found.energy is None
    assert found.saved("energy") is None


def test_savings_are_json_and_missing_seconds_stay_missing() -> None:
    """One run without a clock leaves seconds and latency None (never a partial sum), and to_dict is JSON."""
    found = Savings.from_runs([Run("a", 10, seconds=1.0), Run("b", 10)], [Run("a", 5, seconds=1.0), Run("b", 5, seconds=1.0)])
    written = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert written["seconds_full"] is None
    assert written["latency_full"] is None
    assert found.saved("seconds") is None
    assert written["tokens"] == {"value": 10, "unit": "tokens", "kind": "counted", "how": found.tokens.how}


def test_savings_must_be_paired() -> None:
    """A run on one side only is an input error that names it."""
    with pytest.raises(InputError, match="'b'"):
        Savings.from_runs([Run("a", 1), Run("b", 1)], [Run("a", 1)])
    with pytest.raises(InputError, match="paired"):
        Savings.from_runs([], [])


# --- the holdout


def test_holdout_assignment_is_pinned() -> None:
    """The assignment is SHA-256 of the JSON list [salt, root run]: a value computed by hand never changes between releases.

    sha256('["", "run-1"]') begins with these 53 bits as a fraction; a share just above holds it out, one at it does not.
    """
    import hashlib

    fraction = (int(hashlib.sha256(b'["", "run-1"]').hexdigest()[:16], 16) >> 11) / 2**53
    assert is_holdout("run-1", share=np.nextafter(fraction, 1.0))
    assert not is_holdout("run-1", share=fraction)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.02, 0.98), st.text(max_size=8))
def test_holdout_share_is_about_right(share: float, salt: str) -> None:
    """Of 2,000 runs the held-out part is within 5 standard errors of the share, and a second look assigns alike."""
    drawn = [is_holdout(f"run-{i}", share=share, salt=salt) for i in range(2000)]
    assert abs(np.mean(drawn) - share) < 5 * (share * (1 - share) / 2000) ** 0.5
    assert drawn[:50] == [is_holdout(f"run-{i}", share=share, salt=salt) for i in range(50)]


@given(st.text(), st.text(), st.floats(0, 1), st.floats(0, 1))
def test_holdout_grows_with_the_share(root: str, salt: str, a: float, b: float) -> None:
    """A run held out at one share is held out at every larger one; 0 holds out none and 1 all."""
    assert is_holdout(root, share=min(a, b), salt=salt) <= is_holdout(root, share=max(a, b), salt=salt)
    assert not is_holdout(root, share=0.0, salt=salt)
    assert is_holdout(root, share=1.0, salt=salt)


def test_holdout_is_the_same_in_another_process() -> None:
    """Python's hash randomisation plays no part: another process assigns the same runs."""
    code = (
        "from entropy_chains.savings.runs import is_holdout; print([is_holdout(f'ü{i}', share=0.3, salt='s') for i in range(40)])"
    )
    env = {"PYTHONHASHSEED": "77", "PYTHONPATH": ":".join(sys.path)}
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout.strip()
    here = [is_holdout(f"ü{i}", share=0.3, salt="s") for i in range(40)]
    assert other == str(here)
    assert 0 < sum(here) < 40


def test_salts_draw_different_holdouts_and_cannot_be_confused() -> None:
    """Another salt draws another holdout, and (salt, run) = ('a', 'bc') is not ('ab', 'c')."""
    runs = [str(i) for i in range(200)]
    assert [is_holdout(r, share=0.5, salt="x") for r in runs] != [is_holdout(r, share=0.5, salt="y") for r in runs]
    pairs = [(is_holdout(f"bc{i}", share=0.5, salt="a"), is_holdout(f"c{i}", share=0.5, salt="ab")) for i in range(100)]
    assert any(a != b for a, b in pairs)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), True])
def test_holdout_share_is_checked(share: float) -> None:
    """A share outside 0 to 1 is an input error."""
    with pytest.raises(InputError, match="between 0"):
        is_holdout("r", share=share)


def test_holdout_saving_by_hand() -> None:
    """Intention to treat: runs assigned to stopping count whether they stopped or not.

    Holdout 100 and 300 tokens (mean 200), stopping 100 and 40 (mean 70): 1 - 70/200 = 65 %. Shadow decisions would have made the
    holdout cost 50 + 150: 1 - 200/400 = 50 %. Two runs a side are too few for an interval, and the reason says so.
    """
    runs = [
        Run("h1", 100, holdout=True, shadow_tokens=50, correct=True),
        Run("h2", 300, holdout=True, shadow_tokens=150, correct=True),
        Run("s1", 100, correct=True),
        Run("s2", 30, correct=False),
        Run("s2", 10),
    ]
    found = holdout_saving(runs)
    assert (found.runs_holdout, found.runs_stopping) == (2, 2)
    assert (found.tokens_holdout.value, found.tokens_stopping.value) == (200, 70)
    assert found.saved.value == pytest.approx(0.65)
    assert found.saved_shadow.value == pytest.approx(0.5)
    assert (found.accuracy_holdout, found.accuracy_stopping, found.accuracy_change) == (1.0, 0.5, -0.5)
    assert (found.saved.kind, found.saved_shadow.kind, found.tokens_holdout.kind) == ("measured", "estimated", "counted")
    assert found.saved_interval is None
    assert "10 runs" in found.reason
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_root_run_on_both_sides_is_refused() -> None:
    """Assignment per call instead of per root run is an input error."""
    with pytest.raises(InputError, match="root run"):
        holdout_saving([Run("a", 1, holdout=True), Run("a", 1)])


def test_an_empty_side_gives_no_saving_but_a_reason() -> None:
    """Without holdout runs nothing was measured: no figure, and the reason counts both sides."""
    found = holdout_saving([Run("a", 5)])
    assert found.saved is None
    assert "0 runs in the holdout and 1" in found.reason


def test_holdout_interval_covers_and_shadow_is_tighter() -> None:
    """The true saving of 40 % is inside the 95 % interval in most of 40 repeats, and the paired interval is narrower.

    Full costs are lognormal (spread 0.6); stopping saves exactly 40 % of each run, so the shadow figure is 40 % in every repeat.
    A correct interval misses 5 % of 40 = 2 on average; 8 misses or more have a chance below 0.1 %.
    """
    missed = 0
    for repeat in range(40):
        rng = np.random.default_rng(repeat)
        costs = rng.lognormal(6.0, 0.6, 400).round()
        runs = [Run(str(i), int(c), holdout=True, shadow_tokens=int(0.6 * c)) for i, c in enumerate(costs[:200])]
        runs += [Run(str(i), int(0.6 * c)) for i, c in enumerate(costs[200:], 200)]
        found = holdout_saving(runs, seed=repeat)
        low, high = found.saved_interval
        missed += not low <= 0.4 <= high
        assert found.saved_shadow.value == pytest.approx(0.4, abs=0.01)
        assert found.saved_shadow_interval[1] - found.saved_shadow_interval[0] < (high - low) / 10
    assert missed < 8


def test_holdout_interval_is_seeded_and_keeps_its_width_in_blocks() -> None:
    """The same seed gives the same interval; above 20,000 runs the blocks keep the width of √(σ²/n) theory within a third."""
    rng = np.random.default_rng(3)
    costs = rng.normal(1000, 100, 50_000)
    runs = [Run(str(i), int(c), holdout=i % 2 == 0) for i, c in enumerate(costs)]
    first, second = holdout_saving(runs, seed=5), holdout_saving(runs, seed=5)
    assert first == second
    width = first.saved_interval[1] - first.saved_interval[0]
    theory = 2 * 1.96 * 0.1 * (2 / 25_000) ** 0.5
    assert theory * 0.67 < width < theory * 1.33


# --- drift


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
