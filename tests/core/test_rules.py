"""Stop rules: small values with one question."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_chains.core.answers import same
from entropy_chains.core.rules import AgreementRule, EntropyRule, FixedStepRule, Reading, threshold_at


def test_the_last_threshold_repeats():
    """Steps count from 1; None stays None."""
    assert [threshold_at((0.3, None, 0.1), step) for step in (1, 2, 3, 4, 99)] == [0.3, None, 0.1, 0.1, 0.1]


@pytest.mark.parametrize(
    ("step", "value", "stops"),
    [(1, 0.1, False), (2, 0.1, True), (2, 0.2, True), (2, 0.2000001, False), (2, None, False), (3, 0.0, False), (4, 0.5, True)],
)
def test_the_entropy_rule(step, value, stops):
    """At or under the threshold of its step, from min_steps on; never on a missing value, never where the threshold is None."""
    assert EntropyRule((0.2, 0.2, None, 0.5), min_steps=2).stops(Reading(step, value)) is stops


@pytest.mark.parametrize(
    ("previous", "answer", "value", "stops"),
    [
        ("4", "4", 0.1, True),
        ("4", "4.0", 0.1, True),
        ("4", "5", 0.1, False),
        (None, None, 0.1, False),
        (None, "4", 0.1, False),
        ("4", "4", 0.3, False),
        ("4", "4", None, False),
    ],
)
def test_the_agreement_rule(previous, answer, value, stops):
    """The entropy rule, and the last two answers are the same; a missing answer agrees with nothing."""
    assert AgreementRule((0.2,), same).stops(Reading(2, value, answer, previous)) is stops


def test_agreement_needs_two_steps():
    """Whatever was set by mistake: nothing agrees with the answer before the first."""
    assert not AgreementRule((0.2,), same, min_steps=1).stops(Reading(1, 0.0, "4", None))


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.none() | st.floats(0, 5))
def test_the_fixed_step_reads_no_entropy(limit, step, value):
    """From its step on, whatever the value."""
    assert FixedStepRule(limit).stops(Reading(step, value)) is (step >= limit)


def test_which_rules_cost_a_probe():
    """Only the one that reads answers."""
    assert [EntropyRule((1.0,)).reads_answers, AgreementRule((1.0,), same).reads_answers, FixedStepRule(1).reads_answers] == [
        False,
        True,
        False,
    ]


@settings(deadline=None)
@given(st.floats(0, 4), st.floats(0, 4), st.floats(0, 4), st.integers(1, 5))
def test_a_laxer_threshold_stops_whatever_a_stricter_one_stops(value, low, high, step):
    """The walk of the certificate depends on it."""
    low, high = sorted((low, high))
    reading = Reading(step, value)
    assert not EntropyRule((low,)).stops(reading) or EntropyRule((high,)).stops(reading)
