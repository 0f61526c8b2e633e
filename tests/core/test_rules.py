"""Stop rules: small values with one question, for one reading and for many rows."""

from __future__ import annotations

import ast
import math
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT

from entropy_chains.core import answers
from entropy_chains.core.rules import (
    MISSING,
    RULES,
    AgreementRule,
    EntropyAgreementRule,
    EntropyRule,
    FixedStepRule,
    Reading,
    Readings,
    certifiable,
    threshold_at,
)
from entropy_chains.core.signals import SIGNALS, MassFloor, StepRecord
from entropy_chains.options import OPTIONS

VALUES = st.sampled_from([0.0, 2.0**-14, 0.25, 0.5, 0.51, 4.0, MISSING])
ANSWERS = st.sampled_from([None, "4", "4.0", "5"])


def test_the_last_threshold_repeats():
    """Steps count from 1; None stays None."""
    assert [threshold_at((0.3, None, 0.1), step) for step in (1, 2, 3, 4, 99)] == [0.3, None, 0.1, 0.1, 0.1]


@pytest.mark.parametrize(
    ("step", "value", "stops"),
    [(1, 0.1, False), (2, 0.1, True), (2, 0.2, True), (2, 0.2000001, False), (2, MISSING, False), (3, 0.0, False), (4, 0.5, True)],
)
def test_the_entropy_rule(step, value, stops):
    """At or under the threshold of its step, from min_steps on; never on a missing value, never where the threshold is None."""
    assert EntropyRule((0.2, 0.2, None, 0.5), min_steps=2).stops(Reading(step, value)) is stops


@pytest.mark.parametrize(
    ("previous", "answer", "value", "both", "agree"),
    [
        ("4", "4", 0.1, True, True),
        ("4", "4.0", 0.1, True, True),
        ("4", "5", 0.1, False, False),
        (None, None, 0.1, False, False),
        (None, "4", 0.1, False, False),
        ("4", "4", 0.3, False, True),
        ("4", "4", MISSING, False, True),
    ],
)
def test_the_agreement_rules(previous, answer, value, both, agree):
    """The last two answers are the same, and, for one of the two rules, the entropy rule; a missing answer agrees with nothing."""
    reading = Reading(2, value, answer, previous)
    assert EntropyAgreementRule((0.2,)).stops(reading) is both
    assert AgreementRule((0.2,)).stops(reading) is AgreementRule((None,)).stops(reading) is agree


@pytest.mark.parametrize("rule", [EntropyAgreementRule, AgreementRule])
def test_agreement_needs_two_steps(rule):
    """Whatever was set by mistake: nothing agrees with the answer before the first."""
    assert not rule((0.2,), min_steps=1).stops(Reading(1, 0.0, "4", None))
    assert rule.earliest == 2


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.just(MISSING) | st.floats(0, 5))
def test_the_fixed_step_reads_no_entropy(limit, step, value):
    """From its step on, whatever the value."""
    assert FixedStepRule(min_steps=limit).stops(Reading(step, value)) is (step >= limit)


def test_which_rules_cost_a_probe():
    """Those that read answers, and every rule on a signal of a tried answer."""
    ours = (EntropyRule, EntropyAgreementRule, FixedStepRule, AgreementRule)
    assert {rule.name for rule in ours if rule().reads_answers} == {"entropy+agreement", "agreement"}
    tried = {rule.name for rule in ours if rule(signal="trial_entropy").reads_answers}
    assert tried == {"entropy", "entropy+agreement", "agreement"}


def test_of_no_answer_nobody_is_sure():
    """A signal of a tried answer is missing where no answer came; one of the step, and one with an answer, is there."""
    record = StepRecord(1, 10, 0.5, 1.0, signals={"eat": 0.1})
    read = {
        (s, a): EntropyRule(signal=s).reading(record, MassFloor(), a, None).value
        for s in ("eat", "mean_entropy")
        for a in (None, "4")
    }
    assert math.isnan(read.pop(("eat", None)))
    assert read == {("eat", "4"): 0.1, ("mean_entropy", None): 0.5, ("mean_entropy", "4"): 0.5}


@st.composite
def readings(draw):
    """Readings of a few steps, with every signal that a rule may read beside the first."""
    steps = draw(st.lists(st.tuples(st.integers(1, 5), VALUES, ANSWERS, ANSWERS, VALUES), min_size=1, max_size=8))
    return [Reading(s, v, a, p, dict.fromkeys(SIGNALS, other)) for s, v, a, p, other in steps]


def as_rows(read):
    others = {name: np.array([r.others[name] for r in read]) for name in SIGNALS}
    steps, values = np.array([r.step for r in read]), np.array([r.value for r in read])
    return Readings(steps, values, np.array([answers.same(r.previous, r.answer) for r in read]), others)


THRESHOLDS = st.lists(st.none() | st.sampled_from([0.0, 0.25, 0.6]), min_size=1, max_size=3).map(tuple)


@pytest.mark.parametrize("name", RULES)
@settings(deadline=None)
@given(read=readings(), thresholds=THRESHOLDS, min_steps=st.integers(1, 3))
def test_rows_are_decided_as_readings(name, read, thresholds, min_steps):
    """A rule's two forms say the same of every reading."""
    rule = RULES[name](thresholds, min_steps)
    assert rule.stops_rows(as_rows(read)).tolist() == [rule.stops(r) for r in read]


@pytest.mark.parametrize("name", certifiable())
@settings(deadline=None)
@given(read=readings(), min_steps=st.integers(1, 3))
def test_the_walk_s_settings_are_the_rule_s(name, read, min_steps):
    """At each of its settings a rule stops after a reading if that reading's first setting is no more lenient, and not before.

    So a more lenient setting stops after whatever a stricter one stops after: the walk of a certificate depends on it.
    """
    candidate = RULES[name](min_steps=min_steps)
    every = candidate.settings(4, 20, None)
    first = candidate.first_settings(as_rows(read), every)
    fixed = RULES[name].sets_step  # in a run it stops at the step itself, later ones are never reached
    for at in range(0, len(every), 1 if len(every) < 9 else 13):
        rule = candidate.with_setting(float(every[at]))
        assert [rule.stops(r) for r in read] == (first <= at).tolist()
        assert not fixed or rule.min_steps == every[at]


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_a_frozen_value(name):
    """Equal numbers make equal rules, of one class only, and nothing can be changed or added."""
    rule = RULES[name]((0.5,), 2, "sum_entropy")
    assert rule == RULES[name]((0.5,), 2, "sum_entropy")
    assert hash(rule) == hash(RULES[name]((0.5,), 2, "sum_entropy"))
    assert [other for other in RULES if RULES[other]((0.5,), 2, "sum_entropy") == rule] == [name]
    with pytest.raises(FrozenInstanceError):
        rule.min_steps = 1


@pytest.mark.parametrize("name", RULES)
def test_a_rule_has_its_words(name):
    """Its name is its key; title, reason and description are texts, and name the signal where it reads one."""
    rule = RULES[name]((0.5,), 3, "sum_entropy")
    assert rule.name == name
    assert rule.describe().startswith("stop ")
    assert ("sum_entropy" in rule.reason(4)) is ("sum_entropy" in rule.title) is rule.reads_signal
    assert set(rule.certified_in) <= set(OPTIONS["mode"])


@pytest.mark.parametrize("name", RULES)
def test_where_a_rule_can_still_stop(name):
    """It can stop later than a step if, and only if, it stops after some reading of a later one, were all as sure as can be."""
    for thresholds, min_steps in ((0.5,), 3), ((None,), 1), ((0.5, None), 1), ((None, None, 0.5, None), 1):
        rule = RULES[name](thresholds, min_steps)
        for step in range(5):
            later = [Reading(s, 0.0, "4", "4", dict.fromkeys(SIGNALS, 0.0)) for s in range(step + 1, 9)]
            # The fixed step itself is behind it: a run that came further is past its stop.
            can = rule.min_steps > step if rule.sets_step else any(rule.stops(r) for r in later)
            assert rule.may_stop_after(step) is can


@pytest.mark.parametrize("name", RULES)
def test_until_a_step(name):
    """Up to the step it decides as before; a rule with thresholds has none after it."""
    rule = RULES[name]((0.5, 0.6), 1)
    cut = rule.until(3)
    assert rule.until(None) is rule
    for step in range(1, 7):
        sure = Reading(step, 0.55, "4", "4", dict.fromkeys(SIGNALS, 0.0))
        assert cut.stops(sure) is (rule.stops(sure) and (step <= 3 or not rule.reads_signal))


NAMED = ("rule", "signal", "name")


def compared_names(source):
    """Lines of comparisons of a rule or a signal, by its name, with one of the tables' names."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            inside = list(ast.walk(node))
            texts = {n.value for n in inside if isinstance(n, ast.Constant) and isinstance(n.value, str)}
            words = {getattr(n, "attr", getattr(n, "id", "")) for n in inside}
            if texts & {*RULES, *SIGNALS} and words & set(NAMED):
                yield node.lineno


def test_nobody_compares_names():
    """Outside of the tables rules and signals are asked; a comparison, planted, is found."""
    assert list(compared_names('x = policy.rule == "fixed-step"\ny = signal in ("eat", "other")\nz = rule == "auto"')) == [1, 2]
    found = {
        f"{path.name}:{line}"
        for folder in ("entropy_chains", "integrations")
        for path in (ROOT / folder).rglob("*.py")
        if "tests" not in path.relative_to(ROOT).parts and path.name not in ("rules.py", "signals.py")
        for line in compared_names(path.read_text(encoding="utf-8"))
    }
    assert not found
