"""Runs that were cut off: what a certificate on them promises for whole runs, and what is told of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from entropy_chains.backends.scripted import Script, ScriptedBackend
from entropy_chains.core.policy import Policy
from entropy_chains.core.rules import EntropyRule
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import InputError
from entropy_chains.offline import cut_runs
from entropy_chains.offline.calibrate import calibrate
from entropy_chains.offline.certify import allowances, last_seen_step
from entropy_chains.offline.compare import compare
from entropy_chains.offline.diagnose import diagnose
from entropy_chains.offline.replay import judge, judge_live, replay
from entropy_chains.offline.table import as_table
from entropy_chains.offline.traces import Step, Trace
from entropy_chains.options import OPTIONS
from entropy_chains.recording import record
from entropy_chains.show.report import build_report
from entropy_chains.show.wording import thresholds_text

RIGHT, WRONG = "1", "0"
EPSILON, DELTA, REPEATS = 0.05, 0.1, 60
ALLOWED = int(stats.binom.ppf(0.99, REPEATS, DELTA))
HEADER = {"model": "m", "estimator": "renormalised", "k": 20, "gold": RIGHT}


def cut_at(trace: Trace, limit: int) -> Trace:
    """The run as it is recorded under a limit of tokens: whole, or its steps before the limit and a rest without an answer."""
    if sum(step.tokens for step in trace.steps) <= limit:
        return replace(trace, finish="stop", max_tokens=limit)
    ends = np.cumsum([step.tokens for step in trace.steps[:-1]])
    kept = trace.steps[: int((ends <= limit).sum())]
    rest = Step(None, None, limit - sum(step.tokens for step in kept))
    return replace(trace, steps=[*kept, rest], finish="length", max_tokens=limit)


@st.composite
def mixed(draw):
    """Small files of whole and cut runs, with gold answers or without."""
    answer = st.sampled_from([RIGHT, WRONG, None])
    step = st.builds(Step, answer, st.sampled_from([None, 0.0, 0.5, 1.0]), st.integers(0, 50), probe_tokens=st.integers(0, 3))
    finish = st.sampled_from([None, "stop", "length", "content_filter", "error", "other"])
    gold = draw(st.sampled_from([RIGHT, None]))
    run = st.builds(Trace, st.just(""), st.lists(step, min_size=1, max_size=4), finish=finish, gold=st.just(gold))
    return [replace(t, id=str(n)) for n, t in enumerate(draw(st.lists(run, min_size=2, max_size=8)))]


# --- the promise, on made-up models whose long runs are cut off at 250 tokens


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


# --- by hand


def recording(*lengths: int, cut: tuple[int, ...] = ()) -> list[Trace]:
    """Runs of so many steps before the last; those numbered in ``cut`` have no full answer."""
    return [
        Trace(str(n), [*[Step(RIGHT, 0.1, 10)] * steps, Step(None if n in cut else RIGHT, None, 10)], gold=RIGHT)
        for n, steps in enumerate(lengths)
    ]


@pytest.mark.parametrize(
    ("max_loss", "level", "losses", "step"),
    [(0.05, 0.1, -1, 2), (0.5, 0.1, 0, 2), (0.7, 0.1, 1, 3), (0.7, 0.4, 2, 3), (0.9, 0.4, 3, 5)],
)
def test_the_last_step_that_enough_runs_reach(max_loss, level, losses, step):
    """No limit without cut runs; else the first step that a cut run lacks ends it. Half of the allowed losses may lack it."""
    assert allowances(4, max_loss, level) == [losses]
    everyone = np.ones(4, bool)
    assert last_seen_step(as_table(recording(3, 1, 2, 5)), everyone, losses) is None
    assert last_seen_step(as_table(recording(3, 1, 2, 5, cut=(0, 2))), everyone, losses) == step


def test_thresholds_end_with_the_last_step():
    """Each step has its own, and none after it."""
    assert EntropyRule((0.5,)).until(None).thresholds == (0.5,)
    assert EntropyRule((0.5, 0.4)).until(3).thresholds == (0.5, 0.4, 0.4, None)
    assert EntropyRule((0.5,)).until(0).thresholds == (None,)


@pytest.mark.parametrize(("sure_at", "stop"), [(1, 1), (2, 2), (3, 0)])
def test_live_nothing_stops_after_the_last_seen_step(sure_at, stop):
    """Live and replayed, a step behind it is no stop, however sure."""
    lines = [
        piece for n in range(1, 5) for piece in ((f"step{n}", 0.1 if n == sure_at else 2.0), ("\n", 0.1 if n == sure_at else 2.0))
    ]
    cutting = Segmentation("line", 1)
    backend = ScriptedBackend(Script(lines, "1", early=["1"] * 4), segmentation=cutting)
    policy = Policy("scripted", EntropyRule((0.5,)).until(2).thresholds, segmentation=cutting, template=backend.template)
    outcome = backend.generate([[{"role": "user", "content": "1?"}]], policy=policy)[0].outcome
    assert (outcome.step if outcome.stopped else 0) == stop
    traces = list(record(backend, [{"id": "q", "question": "1?", "gold": "1"}]))
    assert replay(traces, policy, resamples=100).stop_step.tolist() == [stop]


# --- steps that were not recorded: ``record`` with ``steps``


def hard() -> Script:
    """Unsure for two steps, surely wrong after the third, right in the end."""
    lines = [(piece, entropy) for entropy in (2.0, 2.0, 0.05, 0.5) for piece in ("a", "\n")]
    return Script([(p, e) for p, e in lines], "1", early=["0", "0", "0", "1"])


@pytest.fixture(scope="module")
def half_hard():
    """A backend, its questions, and their whole runs: two in five need more than two steps."""
    easy = Script([("a", 0.1), ("\n", 0.1), *[("z", 0.5)] * 30], "1", early=["1"])
    questions = [{"id": f"q{n}", "question": f"Q{n}", "gold": "1"} for n in range(200)]
    scripts = {q["question"]: hard() if n % 5 < 2 else easy for n, q in enumerate(questions)}
    backend = ScriptedBackend(scripts, segmentation=Segmentation("line", 1))
    return backend, questions, list(record(backend, questions))


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize(
    "settings",
    [{}, {"rule": "entropy"}, {"per_step": True}, {"rule": "entropy+agreement"}, {"rule": "fixed-step"}, {"method": "mean"}],
    ids=str,
)
def test_no_policy_stops_after_the_last_step_that_was_recorded(half_hard, settings, steps):
    """Live and replayed on whole runs it stops alike, never later, and a certified one loses no more than it promises."""
    backend, questions, whole = half_hard
    traces = list(record(backend, questions, steps=steps))
    assert {t.max_steps for t in traces} == {steps}
    policy = calibrate(traces, **settings)
    assert not policy.may_stop_after(steps)
    replayed = replay(whole, policy, resamples=100)
    assert replayed.stop_step.max() <= steps
    assert replay(traces, policy, resamples=100).stop_step.tolist() == replayed.stop_step.tolist()
    assert policy.method != "certified" or replayed.risk <= 0.05
    sample = questions[:10]
    live = backend.generate([[{"role": "user", "content": q["question"]}] for q in sample], policy=policy)
    stops = [run.outcome.step if run.outcome.stopped else 0 for run in live]
    assert stops == replayed.stop_step[:10].tolist()


def test_one_threshold_for_all_steps_is_caught(half_hard):
    """The planted fault: where the file does not tell of its limit, two in five questions lose their answers."""
    backend, questions, whole = half_hard
    policy = calibrate([replace(t, max_steps=None) for t in record(backend, questions, steps=2)], rule="entropy")
    assert replay(whole, policy, resamples=100).risk > 0.3


def test_a_replay_tells_of_stops_that_its_file_cannot_show(half_hard):
    """The policy may stop after steps that were not recorded; nothing is said where all were, or where it cannot."""
    backend, questions, whole = half_hard
    two = list(record(backend, questions, steps=2))
    policy = Policy("scripted", (0.5,), segmentation=backend.segmentation, template=backend.template)
    with pytest.warns(UserWarning, match=r"no more than 2 steps of a run.*--steps"):
        replay(two, policy, resamples=100)
    for traces, other in (
        (whole, policy),
        (two, replace(policy, thresholds=(0.5, None))),
        (two, replace(policy, active=False)),
        ([replace(t, max_steps=4) for t in two], policy),
    ):
        replay(traces, other, resamples=100)  # warnings are errors here


@pytest.mark.parametrize(
    ("given", "step", "may"),
    [
        ({"thresholds": (0.5,)}, 9, True),
        ({"thresholds": (0.5, None)}, 1, False),
        ({"thresholds": (None, 0.5, None)}, 1, True),
        ({"thresholds": (None, 0.5, None)}, 2, False),
        ({"thresholds": (None, 0.5)}, 1, True),
        ({"thresholds": (3.0,), "rule": "fixed-step", "min_steps": 3}, 2, True),
        ({"thresholds": (3.0,), "rule": "fixed-step", "min_steps": 3}, 3, False),
        ({"thresholds": (None,), "rule": "agreement"}, 5, True),
        ({"thresholds": (0.5,), "active": False}, 1, False),
    ],
)
def test_whether_a_policy_may_stop_after_a_step(given, step, may):
    """By its thresholds, the last one repeated; by its step; not where it is switched off."""
    assert Policy("m", **given).may_stop_after(step) is may


def test_in_the_loop_the_number_of_steps_is_the_schedule():
    """Every call is a step of its own: nothing is left out of the trace."""
    backend = ScriptedBackend({"0?": [Script(answer=[("4", 0.5)])]})
    (trace,) = record(backend, [{"id": "q", "question": "0?", "gold": "4"}], mode="refine", steps=3)
    assert (len(trace.steps), trace.max_steps) == (3, None)


@pytest.mark.parametrize(
    ("thresholds", "text"),
    [
        ((0.25,), "0.25"),
        ((0.25, 0.25, None), "0.25 for 2 steps, never"),
        ((0.5, 0.25, None), "0.5, 0.25, never"),
        ((None,), "never"),
    ],
)
def test_equal_thresholds_are_told_as_one(thresholds, text):
    """In the order of the steps."""
    assert thresholds_text(Policy("m", thresholds)) == text


def many(count: int, **given) -> list[Trace]:
    """Whole runs, a tenth wrong and unsure at first and right in the end."""
    steps = [
        [Step(WRONG if n % 10 == 0 else RIGHT, 1.0 if n % 10 == 0 else 0.1, 100), Step(RIGHT, None, 100)] for n in range(count)
    ]
    return [Trace(f"{given}{n}", s, **HEADER, **given) for n, s in enumerate(steps)]


def cut_ones(count: int, answer: str = WRONG, entropy: float = 1.0) -> list[Trace]:
    return [Trace(f"cut {n}", [Step(answer, entropy, 100), Step(None, None, 100)], finish="length", **HEADER) for n in range(count)]


def test_the_figures_of_a_policy_tell_of_cut_runs():
    """Right, wrong and cut runs are counted, and left-out ones; accuracy is over the runs that came to their end."""
    wrong = [replace(t, id=f"w{t.id}", steps=[t.steps[0], Step(WRONG, None, 100)]) for t in many(20)]
    traces = [*many(100, max_tokens=400), *wrong, *cut_ones(30)]
    figures = calibrate(traces).calibration
    counts = ("runs", "right", "wrong", "cut", "left_out", "max_tokens", "cut_runs")
    assert [figures[name] for name in counts] == [150, 100, 20, 30, 0, 400, "lost"]
    assert figures["accuracy_full"] == pytest.approx(100 / 120)
    figures = calibrate(traces, cut_runs="wrong").calibration
    assert [figures[name] for name in counts] == [150, 100, 50, 30, 0, 400, "wrong"]
    assert figures["accuracy_full"] == pytest.approx(100 / 150)
    figures = calibrate(traces, examples=100).calibration
    assert (figures["runs"], figures["left_out"]) == (100, 50)
    assert figures["right"] + figures["wrong"] + figures["cut"] == 100


def test_a_stop_on_a_cut_run_costs_the_certificate_a_loss():
    """As sure as right ones: lost, so nothing is certified; kept by gold, or taken for full runs: certified."""
    assert calibrate([*many(100), *cut_ones(30, entropy=0.1)], rule="entropy").reason == "no_safe_threshold"
    assert calibrate([*many(100), *cut_ones(30, RIGHT, 0.1)], rule="entropy").active
    assert calibrate([*many(100), *cut_ones(30, entropy=0.1)], rule="entropy", cut_runs="wrong").active


@pytest.mark.parametrize("mode", OPTIONS["cut_runs"])
@pytest.mark.parametrize("method", OPTIONS["method"])
def test_where_every_run_was_cut_nothing_stops(method, mode):
    """Whatever the method, and though every early answer is right: nobody knows a full answer. The remedy is told."""
    traces = [*cut_ones(60, RIGHT, 0.1), *(replace(t, id=f"x{t.id}") for t in cut_ones(60))]
    policy = calibrate(traces, method=method, cut_runs=mode)
    assert (policy.active, policy.reason, policy.thresholds) == (False, "too_few_examples", (None,))
    assert "All 120 calibration runs were cut off" in cut_runs.of_calibration(policy)
    assert "--max-tokens" in cut_runs.of_calibration(policy)


def test_calibration_tells_of_cut_runs_only_where_there_are_some():
    """Nothing without; what counts as lost; and for whom the policy is where they were taken for full runs."""
    assert cut_runs.of_calibration(calibrate(many(100))) == ""
    assert "30 of the 130 calibration runs were cut off" in cut_runs.of_calibration(calibrate([*many(100), *cut_ones(30)]))
    told = cut_runs.of_calibration(calibrate([*many(100, max_tokens=400), *cut_ones(30)], cut_runs="wrong"))
    assert "cut off at 400 tokens" in told


@pytest.mark.parametrize("method", OPTIONS["method"])
@pytest.mark.parametrize("answer", [None, RIGHT])
def test_without_gold_cut_runs_are_not_taken_for_full_ones(method, answer):
    """Nobody knows what their ends are worth, so a stop on them could lose nothing: refused, with the numbers and what to do."""
    cut = [replace(t, steps=[t.steps[0], Step(answer, None, 100)]) for t in cut_ones(30, entropy=0.1)]
    traces = [replace(t, gold=None) for t in [*many(100), *cut]]
    with pytest.raises(InputError, match=r"cut_runs is 'wrong', but 30 of 130 runs were cut off .* gold answers, or .*'lost'"):
        calibrate(traces, method=method, cut_runs="wrong")
    assert calibrate(traces[:100], method=method, cut_runs="wrong").calibration["cut"] == 0
    assert calibrate(traces, method=method).calibration["cut"] == 30


@pytest.mark.parametrize("rule", ["entropy", "fixed-step"])
@pytest.mark.parametrize(("count", "cut", "finish"), [(120, 1, "error"), (199, 2, "content_filter"), (399, 3, "length")])
def test_a_few_cut_runs_cost_losses_and_not_everything(count, cut, finish, rule):
    """However early they were cut: what is certified without them is with them, each for a loss at most."""
    longer = [replace(t, steps=[*t.steps[:1], Step(RIGHT, 0.1, 100), *t.steps[1:]]) for t in many(count)]
    alone = calibrate(longer, rule=rule)
    for seen in (0, 1):
        short = [replace(t, steps=[*t.steps[:seen], Step(None, None, 9)], finish=finish) for t in longer[1 : cut + 1]]
        policy = calibrate([*longer[:1], *short, *longer[cut + 1 :]], rule=rule)
        assert policy.active
        losses = (policy.calibration["certificate"]["losses"], alone.calibration["certificate"]["losses"])
        assert losses[0] <= losses[1] + cut


def test_an_unknown_way_to_take_cut_runs_is_refused():
    """The message names the value and what is allowed."""
    with pytest.raises(InputError, match=r"cut_runs is 'right'; it must be one of lost, wrong"):
        calibrate(many(10), cut_runs="right")


def test_a_replay_on_cut_runs_by_hand():
    """Of four lines one whole run keeps and one loses; of two cut ones gold keeps one. The risk is 2 of 4."""
    whole = [Trace("a", [Step(RIGHT, 0.1, 10), Step(RIGHT, None, 10)], gold=RIGHT)]
    whole += [Trace("b", [Step(WRONG, 0.1, 10), Step(RIGHT, None, 10)], gold=RIGHT)]
    cut = [Trace("c", [Step(RIGHT, 0.1, 10), Step(None, None, 10)], gold=RIGHT)]
    cut += [Trace("d", [Step(WRONG, 0.1, 10), Step(RIGHT, None, 10)], gold=RIGHT, finish="error")]
    found = replay([*whole, *cut], Policy("m", (0.2,)))
    assert (found.questions, found.judged, found.cut) == (4, 2, 2)
    assert (found.accuracy_full, found.accuracy, found.accuracy_change) == (1.0, 0.5, -0.5)
    assert (found.lost_correct, found.gained_correct, found.lost_cut, found.risk) == (1, 0, 1, 0.5)
    assert found.run_lost.tolist() == [False, True, False, True]
    assert (found.tokens, found.tokens_full, found.stopped_early) == (40, 80, 1.0)
    never = replay([*whole, *cut], Policy("m", (None,)))
    assert (never.lost_correct, never.lost_cut, never.risk, never.accuracy_change) == (0, 0, 0.0, 0.0)


def test_live_runs_are_judged_against_cut_full_runs():
    """A right live answer is kept though the full run was cut off; a wrong one is lost; one that was not stopped loses nothing."""
    found = judge_live(
        as_table(cut_ones(3)), np.array([1, 1, 0]), np.array([100, 100, 200]), np.array([True, False, False]), resamples=100
    )
    assert (found.judged, found.cut, found.lost_cut, found.lost_correct, found.gained_correct) == (0, 3, 1, 0, 0)
    assert found.risk == pytest.approx(1 / 3)


def test_without_gold_every_stop_on_a_cut_run_is_lost():
    """There is nothing to tell that its answer would have stayed."""
    traces = [
        Trace("a", [Step("5", 0.1, 1), Step("5", None, 1)]),
        Trace("b", [Step("5", 0.1, 1), Step("5", None, 1)], finish="length"),
    ]
    found = replay(traces, Policy("m", (0.2,)))
    assert (found.lost_correct, found.lost_cut, found.risk, found.accuracy) == (0, 1, 0.5, None)


def test_a_replay_of_cut_runs_only_has_no_accuracy():
    """Nothing is judged: null, with its interval."""
    found = replay(cut_ones(3), Policy("m", (2.0,))).to_dict()
    assert [found[n] for n in ("accuracy_full", "accuracy", "accuracy_change", "accuracy_change_interval")] == [None] * 4
    assert (found["judged"], found["cut"], found["lost_cut"]) == (0, 3, 3)


@pytest.mark.parametrize(
    ("answers", "gold", "saved"),
    [
        ((RIGHT, RIGHT, None), RIGHT, 20 / 30),
        ((WRONG, RIGHT, None), RIGHT, 10 / 30),
        ((WRONG, RIGHT, RIGHT), RIGHT, 10 / 30),
        ((WRONG, WRONG, WRONG), RIGHT, 0.0),
        ((RIGHT, RIGHT, RIGHT), None, 0.0),
    ],
)
def test_the_oracle_stops_a_cut_run_where_gold_grades_it_right(answers, gold, saved):
    """Nothing is lost there. Elsewhere, and without gold, no answer is known that it could stop at."""
    trace = Trace("a", [Step(answer, 0.1, 10) for answer in answers], gold=gold, finish="length")
    assert replay([trace], Policy("m", (None,))).oracle_tokens_saved == pytest.approx(saved)


@given(mixed(), st.lists(st.integers(0, 3), min_size=8, max_size=8))
@settings(max_examples=150, deadline=None)
def test_nothing_that_keeps_every_answer_saves_more_than_the_oracle(traces, wanted):
    """Wherever runs are stopped: if each stop gives the full run's answer, or a right one where that is not known."""
    table = as_table(traces)
    stops = np.array([min(w, len(t.steps) - 1) for w, t in zip(wanted, traces, strict=False)])
    rows = table.offsets[:-1] + stops - 1
    kept = np.where(table.cut, table.correct[rows] == 1, table.same_as_last[rows])
    stops = np.where(kept, stops, 0)
    for every_probe in (False, True):
        found = judge(table, stops, every_probe, resamples=100)
        assert found.lost_correct == found.lost_cut == 0
        assert found.tokens_saved <= found.oracle_tokens_saved + 1e-12


def test_a_comparison_counts_lost_cut_runs():
    """A rule that stops every run after step 1 loses all 30 cut ones, and is not within the loss asked for."""
    found = compare([*many(100), *cut_ones(30, entropy=0.1)], resamples=100)
    assert (found.judged, found.cut) == (100, 30)
    for rule in found.rules:
        if rule.applicable:
            assert rule.lost_share == (rule.lost_correct + rule.lost_cut) / 130
            assert rule.within_max_loss == (rule.lost_share <= 0.05)
    assert max(rule.lost_cut for rule in found.rules if rule.applicable) == 30
    assert next(r for r in found.rules if r.rule == "oracle").lost_cut == 0


def test_diagnosis_leaves_the_end_of_cut_runs_out():
    """The last row of a cut run is no wrong answer; its other rows are judged by gold, and by nothing where there is none."""
    found = diagnose([*many(20), *cut_ones(10)], resamples=100)
    assert (found.judged, found.cut, found.accuracy_full) == (20, 10, 1.0)
    assert [(s.step, s.n) for s in found.steps] == [(1, 30), (2, 20)]
    found = diagnose([replace(t, gold=None) for t in [*many(20), *cut_ones(10)]], resamples=100)
    assert [(s.step, s.n) for s in found.steps] == [(1, 20)]


def test_of_figures_is_silent_without_cut_runs():
    """And says how many count as lost where there are some."""
    assert cut_runs.of_figures(replay(many(10), Policy("m", (0.5,))).to_dict()) == ""
    told = cut_runs.of_figures(replay([*many(10), *cut_ones(5)], Policy("m", (2.0,))).to_dict())
    assert told.startswith("5 runs were cut off")
    assert "the other 10" in told
    assert "not known to be right: 5" in told
    assert "no run came to its end" in cut_runs.of_figures(diagnose(cut_ones(5), resamples=100).to_dict())


@given(mixed(), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from(OPTIONS["cut_runs"]))
@settings(max_examples=60, deadline=None)
def test_any_mix_of_cut_and_whole_runs_adds_up(traces, threshold, mode):
    """Judged and cut lines are all lines; losses are counted once, as walking the runs counts them; nothing breaks."""
    policy = Policy("m", (threshold,))
    found = replay(traces, policy, resamples=100)
    lost_correct = lost_cut = 0
    for trace, stop in zip(traces, found.stop_step.tolist(), strict=True):
        last = trace.steps[-1].answer
        right = trace.gold or (None if trace.is_cut else last)
        kept = stop and trace.steps[stop - 1].answer is not None and trace.steps[stop - 1].answer == right
        lost_cut += bool(trace.is_cut and stop and not kept)
        lost_correct += bool(not trace.is_cut and stop and last is not None and last == right and not kept)
    assert (found.lost_correct, found.lost_cut) == (lost_correct, lost_cut)
    assert found.judged + found.cut == found.questions == len(traces)
    assert found.risk == (lost_correct + lost_cut) / len(traces)
    assert (found.accuracy is None) == (found.judged == 0 or traces[0].gold is None)
    diagnose(traces, resamples=100)
    figures = calibrate(traces, cut_runs=mode if traces[0].gold else "lost").calibration
    assert figures["cut"] == sum(trace.is_cut for trace in traces)


def test_a_report_on_cut_runs_says_so():
    """In the subtitle, the first sentence, the examples, and where stopping is off; cut runs alone have no accuracy."""
    traces = [*many(40), *cut_ones(10)]
    page = build_report(traces, calibrate(traces))
    assert "10 of the runs cut off" in page
    assert "10 runs were cut off, so their full answers are not known; accuracy is over the other 40." in page
    stopped = build_report(traces, Policy("m", (2.0,)))
    assert "with an answer that is not known to be right; the full run was cut off" in stopped
    assert "not known to be right: 10. These count as lost." in stopped
    assert "(not judged: the run was cut off)" in stopped
    for policy in (None, calibrate(cut_ones(60)), Policy("m", (2.0,))):
        page = build_report(cut_ones(60), policy)
        assert "every run was cut off" in page or "no run came to its end" in page
        assert "What stopping costs and saves" not in page
    assert "All 60 calibration runs were cut off" in build_report(cut_ones(60), calibrate(cut_ones(60)))
