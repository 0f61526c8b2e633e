"""Calibration: every reason for not stopping, what counts as a loss, and what a policy is told of its runs."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest
from populations import RIGHT, WRONG, population
from recorded import every_signal

from entropy_chains.core.rules import RULES, certifiable
from entropy_chains.core.signals import MassFloor
from entropy_chains.errors import InputError
from entropy_chains.offline.calibrate import calibrate
from entropy_chains.offline.diagnose import diagnose
from entropy_chains.offline.replay import decisions, replay
from entropy_chains.offline.table import as_table
from entropy_chains.offline.traces import Step, Trace

# --- the policy


@pytest.mark.parametrize("method", ["certified", "mean", "information", "bayes", "scale-invariant"])
@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"shift": 0.0}, "no_signal"),
        ({"shift": -0.3}, "inverted_signal"),
        ({"full": 0.0}, "too_few_examples"),
        ({"questions": 1}, "too_few_examples"),
    ],
)
def test_every_method_says_why_it_does_not_stop(method, given, reason):
    """No signal, an inverted one, one class only or too few: inactive, thresholds null, the same reason from every method."""
    policy = calibrate(population(seed=1, **given), method=method)
    assert (policy.active, policy.reason, policy.thresholds) == (False, reason, (None,))
    json.dumps(policy.to_dict(), allow_nan=False)


def test_no_safe_threshold_is_a_result():
    """A signal, but one surest answer in twenty is wrong: the strictest threshold already loses too much, nothing is certified."""
    runs = population(300, full=1.0)
    for t in runs[:15]:
        t.steps[0] = Step(WRONG, 0.0, 100)
    assert calibrate(runs, rule="entropy", signal="mean_entropy", max_loss=0.01, confidence=0.9).reason == "no_safe_threshold"


# --- what the gate takes out, and what it leaves


def with_answers(right, wrong, questions, seed=0, steps=3):
    """Runs of which so many end right; of so many the early answers are wrong; entropies say nothing."""
    rng = np.random.default_rng(seed)
    return [
        Trace(
            str(n),
            [
                *(Step(WRONG if questions - n <= wrong else RIGHT, float(rng.uniform(0.1, 1.0)), 50) for _ in range(steps - 1)),
                Step(RIGHT if n < right else WRONG, 0.1, 50),
            ],
            gold=RIGHT,
        )
        for n in range(questions)
    ]


@pytest.mark.parametrize("method", ["certified", "mean"])
@pytest.mark.parametrize(("right", "reason"), [(9, "too_few_examples"), (10, None)])
def test_fewer_than_ten_right_full_answers_are_too_few(right, reason, method):
    """Counted in questions: nine are too few for any rule, in each of two runs, too; with ten something else decides."""
    runs = with_answers(right, 40, 60)
    twice = [Trace(f"{t.id}-{i}", t.steps, group=t.id, gold=RIGHT) for t in runs for i in range(2)]
    for recordings in (runs, twice):
        policy = calibrate(recordings, method=method, max_loss=0.08)
        assert policy.calibration["questions_right"] == right
        assert (policy.reason == "too_few_examples") == (reason is not None)


def test_few_wrong_early_answers_are_walked_and_the_policy_says_so():
    """Nine questions with a wrong early answer show no signal, and only they can be lost: the certificate counts them."""
    policy = calibrate(with_answers(300, 9, 300), rule="entropy")
    assert (policy.active, policy.reason) == (True, "certified")
    assert (policy.calibration["verdict"], policy.calibration["questions_wrong_early"]) == ("too_few_examples", 9)
    assert diagnose(with_answers(300, 9, 300)).verdict == "too_few_examples"
    assert calibrate(with_answers(300, 30, 300), rule="entropy").reason == "no_signal"


def test_a_fixed_step_needs_no_signal():
    """Entropies say nothing and the second answer is right: ``auto`` stops at step 2, whatever the verdict of the signal."""
    runs = with_answers(100, 40, 100, steps=4)
    for t in runs:
        t.steps[1].answer = t.steps[2].answer = RIGHT
    policy = calibrate(runs)
    assert (policy.rule, policy.min_steps, policy.reason) == ("fixed-step", 2, "certified")
    assert policy.calibration["verdict"] == "no_signal"


def test_the_last_step_tells_nothing_of_a_signal():
    """Early entropies separate; those of the full answers are upside down: they are no stop, and do not count."""
    runs = population(150, 2, full=0.6)
    for t in runs:
        t.steps[-1].entropy = 0.1 if t.steps[-1].answer == WRONG else 4.0
    assert diagnose(runs).verdict == calibrate(runs).calibration["verdict"] == "signal"


@pytest.mark.parametrize(("right", "reason"), [(30, "no_safe_threshold"), (31, "certified")])
def test_a_promise_of_more_than_half_of_the_right_answers_is_refused(right, reason):
    """5 % of all is half of the right answers of a model that is right on 10 %: at 30 of 301 it is refused, at 31 not."""
    runs = [Trace(str(n), [Step(RIGHT if n < right else WRONG, 0.1, 50)] * 3, gold=RIGHT) for n in range(301)]
    assert calibrate(runs).reason == reason
    assert calibrate(runs, max_loss=0.04).reason == "certified"


@pytest.mark.parametrize("rule", [name for name in certifiable() if "refine" in RULES[name].certified_in])
def test_a_missing_answer_is_no_place_to_stop_in_the_refine_loop(rule):
    """Surest where the answer is missing: calibration, replay and the walk pass over it there; in one stream nobody sees it."""
    answers = [None, RIGHT, RIGHT, RIGHT]
    levels = [(a, 0.0 if a is None else 0.5) for a in answers]
    steps = [Step(a, h, 50, signals=every_signal(h)) for a, h in levels]
    runs = [Trace(str(n), steps, gold=RIGHT, mode="refine") for n in range(100)]
    policy = calibrate(runs, rule=rule)
    first = 3 if RULES[rule].compares_answers else 2
    assert (policy.reason, set(replay(runs, policy).stop_step.tolist())) == ("certified", {first})
    assert policy.calibration["answers_missing"] == pytest.approx(1 / 3)
    for t in runs:
        t.mode = "thinking"
    if not RULES[rule].compares_answers:
        assert set(decisions(as_table(runs), replace(policy, mode="thinking", min_steps=1)).tolist()) == {1}


def test_runs_of_one_question_count_once():
    """Forty questions recorded three times are forty examples, too few for a certificate."""
    runs = [Trace(f"{t.id}-{i}", t.steps, group=t.id, gold=t.gold) for t in population(40) for i in range(3)]
    policy = calibrate(runs)
    assert (policy.reason, policy.calibration["runs"], policy.calibration["groups"]) == ("too_few_examples", 120, 40)


def test_per_step_thresholds_follow_each_step_s_level():
    """Entropy that halves from step to step gets thresholds that halve, and the certificate counts the other half only."""
    runs = population(400)
    for t in runs:
        for i, s in enumerate(t.steps):
            s.entropy *= 0.5**i
    policy = calibrate(runs, rule="entropy", signal="mean_entropy", per_step=True)
    assert policy.calibration["certificate"]["groups"] == 200
    ratios = np.array(policy.thresholds[1:3]) / np.array(policy.thresholds[:2])
    np.testing.assert_allclose(ratios, 0.5, rtol=0.1)


@pytest.mark.parametrize("method", ["certified", "information"])
def test_a_step_without_a_signal_gets_no_threshold_of_its_own(method):
    """Step 2's entropies are dealt out anew among the runs: there nothing is stopped, before and after it runs are."""
    runs = population(600)
    others = random.Random(3).sample([t.steps[1].entropy for t in runs], len(runs))
    for t, entropy in zip(runs, others, strict=True):
        t.steps[1].entropy = entropy
    verdicts = [s.auroc_interval[0] > 0.5 for s in diagnose(runs).steps[:3]]
    policy = calibrate(runs, method=method, rule="entropy", signal="mean_entropy", per_step=True)
    stopped = replay(runs, policy).stops_at_step
    assert (verdicts, policy.active) == ([True, False, True], True)
    assert [t is not None for t in policy.thresholds[:3]] == [True, False, True]
    assert (stopped[0] > 0, stopped[1], stopped[2] > 0) == (True, 0, True)


def test_agreement_labels_certify_disagreement():
    """Without gold the certified risk is differing from the full run's answer."""
    runs = population(300, full=1.0)
    for t in runs:
        t.gold = None
    policy = calibrate(runs)
    assert policy.calibration["certificate"]["risk"] == "disagreement"
    assert (policy.calibration["labels"], policy.calibration["accuracy_full"]) == ("agreement", None)


def test_remaining_tokens_and_quantiles_by_hand():
    """Runs of 10+20+30 and 10+40 tokens, probe 2: a stop saves (48 + 38)/2 = 43 tokens after step 1, 28 after step 2, then 0."""
    long = [Step(RIGHT, 0.1, 10, probe_tokens=2), Step(RIGHT, 0.3, 20, probe_tokens=2), Step(RIGHT, 0.2, 30)]
    short = [Step(RIGHT, 0.5, 10, probe_tokens=2), Step(RIGHT, None, 40)]
    figures = calibrate([Trace("a", long, gold=RIGHT), Trace("b", short, gold=RIGHT)]).calibration
    assert figures["remaining_tokens"] == [43.0, 28.0, 0.0]
    assert figures["entropy_quantiles"][0] == pytest.approx([0.12, 0.2, 0.4, 0.48])
    assert figures["entropy_quantiles"][1] == [0.3] * 4
    assert calibrate([Trace("b", short, gold=RIGHT)]).calibration["entropy_quantiles"][1] is None


def test_a_probe_that_costs_more_than_it_saves_is_no_saving():
    """With probes dearer than the steps they spare, nothing is certified as saving."""
    runs = population(200)
    for t in runs:
        for s in t.steps:
            s.probe_tokens = 1000
    assert calibrate(runs).reason == "no_safe_threshold"


def test_low_mass_and_missing_entropies_never_stop():
    """Steps whose top-k holds too little probability are not eligible, whatever their entropy says."""
    runs = population(200)
    for t in runs:
        for s in t.steps:
            s.mass = 0.5
    assert calibrate(runs, rule="entropy").reason == "no_safe_threshold"
    assert calibrate(runs, rule="entropy").mass_floor == MassFloor()


def test_examples_are_a_seeded_draw_of_questions():
    """``examples`` calibrates on that many questions, other ones with another seed, and says if there are not as many."""
    runs = population(200)
    one, again, other = (calibrate(runs, examples=80, seed=s) for s in (1, 1, 2))
    assert one.calibration["groups"] == 80
    assert one.to_dict() == again.to_dict() != other.to_dict()
    with pytest.raises(InputError, match=r"examples is 500.*200 questions"):
        calibrate(runs, examples=500)


@pytest.mark.parametrize(
    "bad",
    [
        {"method": "magic"},
        {"rule": "magic"},
        {"signal": "magic"},
        {"signal": "deepconf"},
        {"max_loss": 0.0},
        {"max_loss": 1},
        {"max_loss": True},
        {"confidence": 1.0},
        {"confidence": "0.9"},
        {"min_steps": 0},
        {"examples": 0},
        {"per_step": 1},
        {"seed": -1},
        {"scope": "galaxy"},
    ],
)
def test_bad_arguments_are_named(bad):
    """Each wrong argument is refused with its name and value."""
    ((name, value),) = bad.items()
    with pytest.raises(InputError, match=f"{name} is {value!r}"):
        calibrate(population(10), **bad)
