"""Runs that were cut off: what a stop on them costs, and what is told of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cut_recordings import HEADER, RIGHT, WRONG
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_chains.core.policy import Policy
from entropy_chains.errors import InputError
from entropy_chains.offline import cut_runs
from entropy_chains.offline.calibrate import calibrate
from entropy_chains.offline.compare import compare
from entropy_chains.offline.diagnose import diagnose
from entropy_chains.offline.replay import judge, judge_live, replay
from entropy_chains.offline.table import as_table
from entropy_chains.offline.traces import Step, Trace
from entropy_chains.options import OPTIONS
from entropy_chains.show.report import build_report


@st.composite
def mixed(draw):
    """Small files of whole and cut runs, with gold answers or without."""
    answer = st.sampled_from([RIGHT, WRONG, None])
    step = st.builds(Step, answer, st.sampled_from([None, 0.0, 0.5, 1.0]), st.integers(0, 50), probe_tokens=st.integers(0, 3))
    finish = st.sampled_from([None, "stop", "length", "content_filter", "error", "other"])
    gold = draw(st.sampled_from([RIGHT, None]))
    run = st.builds(Trace, st.just(""), st.lists(step, min_size=1, max_size=4), finish=finish, gold=st.just(gold))
    return [replace(t, id=str(n)) for n, t in enumerate(draw(st.lists(run, min_size=2, max_size=8)))]


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
