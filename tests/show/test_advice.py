"""What a calibration says that it gives, and the next step where it will not stop: each fault is named, in figures."""

from __future__ import annotations

import random

import pytest

from entropy_chains.core.policy import Policy
from entropy_chains.offline.calibrate import calibrate
from entropy_chains.offline.compare import compare
from entropy_chains.offline.diagnose import NOT_RECORDED, diagnose
from entropy_chains.offline.hold_out import FOLDS, calibrate_and_judge
from entropy_chains.offline.traces import Step, Trace
from entropy_chains.show import advice

RIGHT, WRONG = "1", "0"


def runs(questions, *, full=1.0, shift=1.0, early=0.8, missing=0.0, recorded=True, mode="thinking"):
    """Three steps; wrong early answers have the higher entropy by ``shift`` bits."""
    rng, made = random.Random(5), []
    for n in range(questions):
        steps = []
        for _ in range(2):
            right = rng.random() < early
            value = abs(abs(rng.gauss(0.3, 0.1)) + (0 if right else shift))
            answer = None if rng.random() < missing else RIGHT if right else WRONG
            steps.append(Step(answer, value if recorded else None, 50))
        steps.append(Step(RIGHT if n < full * questions else WRONG, 0.1 if recorded else None, 50))
        made.append(Trace(str(n), steps, gold=RIGHT, mode=mode))
    return made


@pytest.mark.parametrize(
    ("given", "settings", "words"),
    [
        ({"questions": 40}, {}, ("Number:", "3 rules and signals need at least 67 questions", "record 27 more")),
        ({"questions": 40}, {"rule": "fixed-step"}, ("one rule needs at least 45 questions", "record 5 more")),
        ({"questions": 50, "full": 0.1}, {}, ("right in 5 of 50 questions", "takes 100 questions")),
        ({"questions": 50, "full": 0.0}, {}, ("Format or model: no full answer of 50 questions",)),
        ({"questions": 200, "full": 0.08}, {}, ("Model: 8.0 %", "62 % of the right answers", "--max-loss 0.04, which needs 84")),
        ({"questions": 200, "shift": 0.0}, {}, ("Signal: AUROC 0.",)),
        ({"questions": 200, "shift": -0.3}, {}, ("Signal: AUROC 0.",)),
        ({"questions": 60, "shift": 0.05, "early": 0.3}, {"max_loss": 0.03}, ("Number:", "need at least 112 questions")),
        (
            {"questions": 200, "missing": 0.9, "mode": "refine", "full": 0.04},
            {},
            ("Format: 88 % of the early answers are missing",),
        ),
    ],
)
def test_the_next_step_names_what_is_at_fault(given, settings, words):
    """Number, format, model or signal, each with its figures."""
    policy = calibrate(runs(**given), **settings)
    assert not policy.active
    text = advice.next_step(policy)
    for word in words:
        assert word in text


def test_a_limit_that_is_too_strict_is_named():
    """A fixed step loses too much on many questions: more of them, or a larger limit than the one given."""
    policy = calibrate(runs(300), rule="fixed-step")
    assert "accept a larger --max-loss than 0.05" in advice.next_step(policy)


def test_missing_entropies_are_told_whether_it_stops_or_not():
    """A fixed step may still stop; both are told that no entropy is recorded."""
    for early in (1.0, 0.3):
        policy = calibrate(runs(100, early=early, recorded=False))
        assert (policy.active, advice.evidence(policy)) == (early == 1.0, NOT_RECORDED)


def test_a_signal_that_was_not_shown_is_told():
    """Too few wrong early answers: the promise rests on the count alone. A rule that reads none says that entropy tells nothing."""
    policy = calibrate(runs(200, early=0.99), rule="entropy")
    assert policy.active
    assert "is not shown" in advice.evidence(policy)
    assert advice.evidence(calibrate(runs(200))) == ""


def test_what_it_gives_on_held_out_questions():
    """The saving is of the part that calibration never saw, and no question stands in both."""
    given = runs(200)
    policy = calibrate_and_judge(given, hold_out_share=0.3)
    judged = policy.calibration["judged"]
    assert (policy.calibration["groups"], judged["groups"], judged["on"], policy.calibration["left_out"]) == (
        140,
        60,
        "held_out",
        60,
    )
    assert "on 60 questions that calibration never saw" in advice.saving(policy)
    assert "points" in advice.change(policy)


def test_what_it_gives_where_none_are_held_out():
    """All questions are calibrated on, and each fifth is judged by a policy fitted on the others, with the same draws each time."""
    given = runs(200)
    policy = calibrate_and_judge(given)
    judged = policy.calibration["judged"]
    assert judged["groups"] == policy.calibration["groups"] == 200
    assert (judged["on"], policy.calibration["left_out"]) == ("folds", 0)
    assert "estimated on 200 questions by folds" in advice.saving(policy)
    assert "points" in advice.change(policy)
    assert Policy.from_dict(policy.to_dict()) == policy == calibrate_and_judge(given)
    by_compare = next(r for r in compare(given, folds=FOLDS).rules if r.rule == "auto")
    for name in ("tokens_saved", "lost_correct", "accuracy_change", "tokens_saved_interval"):
        figure = getattr(by_compare, name)
        assert judged[name] == (list(figure) if isinstance(figure, tuple) else figure)


def test_too_few_questions_for_parts_are_judged_on_themselves():
    """Four fifths of 50 questions certify nothing, and that would be no estimate: the flattering one is told as such."""
    policy = calibrate_and_judge(runs(50, early=1.0))
    assert policy.active
    assert policy.calibration["judged"]["on"] == "calibration"
    assert "which flatters; --hold-out" in advice.saving(policy)


def test_examples_are_drawn_before_the_folds():
    """Of 200 questions 100 are calibrated on and judged, and the others are told to be left out."""
    policy = calibrate_and_judge(runs(200), examples=100)
    figures = policy.calibration
    assert (figures["groups"], figures["left_out"], figures["judged"]["groups"]) == (100, 100, 100)


def test_what_does_not_stop_is_not_estimated():
    """There is nothing to fit on the parts: the figures are those of full runs."""
    judged = calibrate_and_judge(runs(40)).calibration["judged"]
    assert (judged["on"], judged["tokens_saved"], judged["lost_correct"]) == ("calibration", 0.0, 0)


def test_what_it_may_lose_is_told_twice():
    """5 % of all questions is 10 % of the right answers of a model that is right on half of them."""
    text = advice.losable(calibrate(runs(200, full=0.5)))
    assert "5 % of all questions, which is 10 % of those answered right in full" in text


@pytest.mark.parametrize(
    ("settings", "here", "not_here"),
    [
        ({}, "the vLLM plug-in, callbacks", "not the"),
        ({"rule": "fixed-step"}, "It needs no logprobs", "must give"),
        ({"rule": "entropy+agreement", "min_steps": 2}, "not the vLLM plug-in or callbacks, which cannot ask", "needs no"),
        ({"signal": "trial_entropy"}, "--rule entropy", "needs no"),
        ({"mode": "refine"}, "the refine loop", "cannot ask"),
        ({"mode": "refine", "scope": "agent"}, "agents", "plug-in"),
    ],
)
def test_where_a_rule_can_run(settings, here, not_here):
    """As the plug-in, the callbacks and the wrappers themselves refuse or take it."""
    text = advice.places(Policy("m", (0.2,), **settings))
    assert here in text
    assert not_here not in text


def test_runs_of_a_single_step_are_told_so():
    """There is nothing to stop after: more questions would not help, other steps do."""
    single = [Trace(t.id, t.steps[-1:], gold=t.gold, mode=t.mode) for t in runs(100, full=0.8)]
    assert diagnose(single).sentence.startswith("No run has a step before its last")
    text = advice.next_step(calibrate(single))
    assert text.startswith("Steps: no run has a step before its last")
    assert "--min-tokens" in text
    assert "record more" not in text.lower()
