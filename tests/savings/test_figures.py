"""Amounts saved, each with how it was got: latency, FLOPs, money, energy."""

from __future__ import annotations

import sys
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entropy_chains.errors import InputError
from entropy_chains.savings.figures import EnergyMeter, Figure, flops, latency, money


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
