"""Paired runs: the same questions in full and with stopping."""

from __future__ import annotations

import json

import pytest

from entropy_chains.errors import InputError
from entropy_chains.savings.figures import Figure, latency
from entropy_chains.savings.runs import Run, Savings


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
