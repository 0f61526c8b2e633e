"""Which rules and signals calibration tries, and which it keeps."""

from __future__ import annotations

import numpy as np
import pytest
from populations import RIGHT, WRONG, population

from entropy_chains.core.rules import EntropyRule, FixedStepRule
from entropy_chains.errors import InputError
from entropy_chains.offline.calibrate import calibrate
from entropy_chains.offline.certify import (
    curve,
    last_passing,
)
from entropy_chains.offline.replay import decisions
from entropy_chains.offline.table import as_table
from entropy_chains.offline.traces import Step, Trace


def test_auto_keeps_the_candidate_that_saves_most():
    """The chosen rule saves at least as much as each of the others walked with the losses allowed to it."""
    table = as_table(population(300))
    policy = calibrate(table)
    savings = {}
    candidates = (EntropyRule(), EntropyRule(signal="sum_entropy"), FixedStepRule())
    for c, allowed in zip(candidates, policy.calibration["certificate"]["allowed"], strict=False):
        found = curve(table, c, np.ones(table.runs, bool))
        at = last_passing(found.losses, allowed)
        savings[c.name, c.signal] = -1 if at is None else found.saved[at]
    assert savings[policy.rule, policy.signal] == max(savings.values()) > 0.3


def test_agreement_is_chosen_where_answers_tell_more_than_entropy():
    """Entropy that tells little and wrong answers that never repeat: the agreement rule is free in this loop and is kept."""
    runs = population(400, shift=0.1, wrong=0.2)
    for t in runs:
        for i, s in enumerate(t.steps[:-1]):
            s.answer = RIGHT if s.answer == RIGHT else f"wrong {i}"
    policy = calibrate(runs)
    assert (policy.rule, policy.min_steps) == ("entropy+agreement", 2)


def trying(questions, **tells):
    """Runs of one stream whose steps' entropy tells little, and whose tried answers' entropy tells much, where it is recorded."""
    runs = population(questions, shift=0.1, wrong=0.2)
    for t in runs:
        for s in t.steps[:-1]:
            s.probe_tokens, s.signals = 1, {"trial_entropy": 0.1 if s.answer == RIGHT else 1.0} if tells else {}
    return runs


def test_the_tried_answer_s_entropy_takes_the_place_of_agreement():
    """Where it is recorded, by ``auto`` alone: as many rules are tried as without, at the same level; its probes are paid."""
    policy = calibrate(trying(400, trial=True))
    certificate = policy.calibration["certificate"]
    assert (policy.rule, policy.signal, policy.min_steps) == ("entropy", "trial_entropy", 1)
    assert "entropy (trial_entropy)" in certificate["rules_tried"]
    assert "entropy+agreement" not in certificate["rules_tried"]
    assert len(certificate["rules_tried"]) == len(calibrate(trying(400)).calibration["certificate"]["rules_tried"])
    table = as_table(trying(400, trial=True))
    stop, full = table.costs(every_probe=True)
    at = (table.step == 2) & ~table.is_last
    assert policy.remaining_tokens(2) == round(float((full[table.run] - stop)[at].mean()))


@pytest.mark.parametrize("asked", [{"rule": "entropy"}, {"signal": "mean_entropy"}, {"method": "mean"}])
def test_only_auto_tries_answers_unasked(asked):
    """Whoever names the rule ``entropy``, a signal or a plain formula gets no rule that asks for answers after every step."""
    policy = calibrate(trying(400, trial=True), **asked)
    assert policy.signal != "trial_entropy"
    rules = (policy.calibration["certificate"] or {}).get("rules_tried", [])
    assert "entropy (trial_entropy)" not in rules


def test_a_tried_answer_s_entropy_may_be_asked_for_by_name():
    """As any signal, and it is replayed so; of no answer nobody is sure, whatever a file says."""
    runs = trying(400, trial=True)
    policy = calibrate(runs, rule="entropy", signal="trial_entropy")
    assert (policy.reason, policy.signal) == ("certified", "trial_entropy")
    assert (decisions(as_table(runs), policy) == 1).any()
    for t in runs:
        t.steps[0].answer = None
    assert not (decisions(as_table(runs), policy) == 1).any()


def test_fixed_step_reads_no_entropy():
    """Without any entropy a fixed step can still be certified, by ``auto`` too; its step is the threshold."""
    runs = [Trace(str(i), [Step(WRONG, None, 9), *[Step(RIGHT, None, 9)] * 3], gold=RIGHT) for i in range(60)]
    policy = calibrate(runs, rule="fixed-step")
    assert (policy.rule, policy.thresholds, policy.min_steps, policy.active) == ("fixed-step", (2.0,), 2, True)
    assert calibrate(runs, rule="fixed-step", min_steps=3).thresholds == (3.0,)
    policy = calibrate(runs, min_steps=1)
    assert (policy.rule, policy.reason, policy.calibration["entropy_recorded"]) == ("fixed-step", "certified", 0.0)


@pytest.mark.parametrize(("questions", "tried"), [(44, 0), (45, 1), (58, 1), (59, 2), (66, 2), (67, 3), (71, 3), (72, 4)])
def test_few_questions_try_fewer_rules(questions, tried):
    """With m rules n must reach .95^n <= .1/m: below that the last ones are given up, which depends on n alone; below 45, all.

    Whatever the number of questions, the policy names one number that is needed: with 72 all four are tried.
    """
    policy = calibrate(population(questions, shift=2.0, wrong=0.3))
    certificate = policy.calibration["certificate"]
    assert (policy.calibration["rules"], policy.calibration["examples_needed"]) == (4, 72)
    if tried:
        assert policy.reason in ("certified", "no_safe_threshold")
        assert certificate is None or [k >= 0 for k in certificate["allowed"]] == [True] * tried + [False] * (4 - tried)
    else:
        assert policy.reason == "too_few_examples"


def test_a_plain_fixed_step_is_refused():
    """A fixed step has no entropy threshold to compute."""
    with pytest.raises(InputError, match="certified"):
        calibrate(population(10), method="mean", rule="fixed-step")
