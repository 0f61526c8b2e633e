"""A policy on recorded runs: the same decisions as live, costs by hand, paired intervals."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from entropy_chains.core.monitor import Decision, StepRecord, _Course
from entropy_chains.core.policy import Policy
from entropy_chains.core.rules import RULES, EntropyAgreementRule, EntropyRule
from entropy_chains.core.signals import MEAN, SIGNALS
from entropy_chains.errors import InputError, PolicyMismatch
from entropy_chains.offline import bootstrap
from entropy_chains.offline.replay import decisions, judge, replay
from entropy_chains.offline.table import as_table
from entropy_chains.offline.traces import Step, Trace

RIGHT, WRONG = "1", "0"
READ = [s.name for s in SIGNALS.values() if not s.higher_is_surer]
"""Signals that a rule may read."""


def two_runs(**given):
    """One run stopped right at step 1 of 3, one stopped wrong at step 2 of 3, at a threshold of .2 bits."""
    first = [Step(RIGHT, 0.1, 10, seconds=1.0), Step(RIGHT, 0.1, 20, seconds=2.0), Step(RIGHT, 0.1, 30, seconds=3.0)]
    second = [
        Step(RIGHT, 0.9, 10, seconds=1.0),
        Step(WRONG, 0.2, 10, seconds=1.0, probe_tokens=5),
        Step(RIGHT, 0.1, 20, seconds=2.0),
    ]
    return [Trace("a", first, gold=RIGHT, **given), Trace("b", second, gold=RIGHT, **given)]


def test_a_replay_by_hand():
    """Costs 10 of 60 and 10 + 10 + 5 of 40: 65 % saved of 100; one right answer of two lost; the oracle keeps 10 + 10."""
    result = replay(two_runs(), Policy("m", (0.2,)))
    assert (result.tokens_full, result.tokens, result.tokens_saved) == (100, 35, pytest.approx(0.65))
    assert (result.accuracy_full, result.accuracy, result.accuracy_change) == (1.0, 0.5, -0.5)
    assert (result.lost_correct, result.gained_correct) == (1, 0)
    assert (result.seconds_full, result.seconds) == (10.0, 3.0)
    assert result.oracle_tokens_saved == pytest.approx(0.8)
    assert (result.stopped_early, result.stops_at_step) == (1.0, (1, 1, 0))
    assert (result.stop_step.tolist(), result.run_tokens.tolist(), result.run_correct.tolist()) == ([1, 2], [10, 25], [True, False])


def test_a_rule_that_reads_answers_pays_every_probe():
    """Probes of 4 before steps 1 and 2 are paid by a run that stops at 2, and by one that never stops."""
    steps = [Step(RIGHT, 0.1, 10, probe_tokens=4), Step(RIGHT, 0.1, 20, probe_tokens=4), Step(RIGHT, 0.1, 30, probe_tokens=4)]
    agreement = Policy("m", (0.2,), rule="entropy+agreement", min_steps=2)
    assert replay([Trace("a", steps, gold=RIGHT)], agreement).tokens == 38
    never = Policy("m", (None,), rule="entropy+agreement", min_steps=2)
    assert replay([Trace("a", steps, gold=RIGHT)], never).tokens == 68
    assert replay([Trace("a", steps, gold=RIGHT)], never).tokens_saved == pytest.approx(-8 / 60)


def test_an_inactive_policy_runs_in_full():
    """Nothing stops, nothing is probed, nothing changes."""
    policy = Policy("m", (4.0,), rule="entropy+agreement", min_steps=2, active=False, reason="no_signal")
    result = replay(two_runs(), policy)
    assert (result.tokens_saved, result.accuracy_change, result.stopped_early) == (0.0, 0.0, 0.0)
    assert result.accuracy_change_interval == result.tokens_saved_interval == (0.0, 0.0)


def test_no_loss_is_no_certainty():
    """An active policy that lost nothing in two questions, stopping or not, has an interval around 0, never the point itself."""
    for threshold in (0.1, 0.0):
        low, high = replay(two_runs(), Policy("m", (threshold,))).accuracy_change_interval
        assert low < -0.5 < 0.5 < high


def test_the_last_step_is_never_an_early_stop():
    """A run of one step, and one whose only low entropy is its last, run in full."""
    runs = [Trace("a", [Step(RIGHT, 0.0, 9)]), Trace("b", [Step(RIGHT, 3.0, 9), Step(RIGHT, 0.0, 9)])]
    assert decisions(as_table(runs), Policy("m", (1.0,))).tolist() == [0, 0]
    assert decisions(as_table(runs), Policy("m", (1.0,), rule="fixed-step", min_steps=1)).tolist() == [0, 1]


def test_the_oracle_keeps_the_full_run_s_answer_right_or_wrong():
    """It stops where the last answer first stood, 10 + 1 for the probe of 60, though that is wrong; without one it runs in full.

    A run that was cut off has no last answer either: there it stops where gold grades the answer right, 10 + 20 + 1 of 60.
    """
    answers = (WRONG, RIGHT, WRONG)
    steps = [Step(a, 0.1, 10 * i, probe_tokens=1) for i, a in enumerate(answers, 1)]
    assert replay([Trace("a", steps, gold=RIGHT)], Policy("m", (None,))).oracle_tokens_saved == pytest.approx(1 - 11 / 60)
    steps[2].answer = None
    assert replay([Trace("a", steps, gold=RIGHT, finish="stop")], Policy("m", (None,))).oracle_tokens_saved == 0.0
    assert replay([Trace("a", steps, gold=RIGHT)], Policy("m", (None,))).oracle_tokens_saved == pytest.approx(1 - 31 / 60)


def test_the_oracle_stops_only_where_that_pays():
    """A dear probe: the later step with a cheap one is taken, and none where every stop costs as much as the full run."""
    costs = [(10, 30), (10, 2), (10, 0)]
    steps = [Step(RIGHT, 0.1, tokens, probe_tokens=probe) for tokens, probe in costs]
    assert replay([Trace("a", steps, gold=RIGHT)], Policy("m", (None,))).oracle_tokens_saved == pytest.approx(1 - 22 / 30)
    steps[1].probe_tokens = 10
    assert replay([Trace("a", steps, gold=RIGHT)], Policy("m", (None,))).oracle_tokens_saved == 0.0


@st.composite
def recorded(draw):
    step = st.builds(
        Step,
        st.sampled_from([RIGHT, WRONG, "1.0", None]),
        st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5, 1.0])),
        st.integers(0, 50),
        mass=st.sampled_from([None, 0.79, 0.8, 1.0]),
        signals=st.fixed_dictionaries({}, optional={name: st.sampled_from([0.25, 2.0]) for name in READ if name != MEAN}),
    )
    runs = draw(st.lists(st.lists(step, min_size=1, max_size=6), min_size=1, max_size=8))
    return [Trace(str(i), steps, gold=RIGHT) for i, steps in enumerate(runs)]


def check_that_replay_decides_as_live(**how):
    """The recorded steps, fed to the live decision one by one, stop each run where replay says: under every rule, every signal."""

    @given(
        recorded(),
        st.sampled_from(list(RULES)),
        st.lists(st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.6])), min_size=1, max_size=3),
        st.integers(1, 3),
        st.sampled_from(READ),
    )
    @settings(max_examples=300, deadline=None, **how)
    def check(runs, rule, thresholds, min_steps, signal):
        known = Step(RIGHT, None, 1, signals=dict.fromkeys(READ, 1.0))
        table = as_table([*runs, Trace("s", [known], gold=RIGHT)])
        policy = Policy("m", tuple(thresholds), rule=rule, min_steps=min_steps, signal=signal)
        for run, stopped in zip(runs, decisions(table, policy).tolist(), strict=False):
            course = _Course(policy, stop=True, holdout=False)
            live = 0
            for number, step in enumerate(run.steps[:-1], 1):
                record = StepRecord(number, step.tokens, step.entropy, step.mass, signals=step.signals)
                if course.ended(record, step.answer, answered=True) in (Decision.STOP, Decision.CLOSE):
                    live = number
                    break
            assert stopped == live

    check()


def test_replay_decides_as_live():
    """Whatever the rule and the signal: a new one is drawn as soon as it has its row."""
    check_that_replay_decides_as_live()


def test_a_rule_whose_rows_decide_otherwise_is_found(monkeypatch):
    """Planted: a rule that forgets in its row form what a reading must meet. The property draws it unasked, and fails."""

    @dataclass(frozen=True, slots=True)
    class Drifted(EntropyAgreementRule):
        name: ClassVar[str] = "drifted"

        def stops_rows(self, rows):
            return EntropyRule(self.thresholds, self.min_steps).stops_rows(rows)

    monkeypatch.setitem(RULES, Drifted.name, Drifted)
    with pytest.raises(AssertionError, match="assert"):
        check_that_replay_decides_as_live(derandomize=True, phases=[Phase.generate])


def test_agreement_labels_have_no_accuracy():
    """Without gold the accuracy figures are null; lost means differing from the full run."""
    runs = two_runs()
    for t in runs:
        t.gold = None
    result = replay(runs, Policy("m", (0.2,)))
    assert (result.accuracy_full, result.accuracy, result.accuracy_change, result.accuracy_change_interval) == (None,) * 4
    assert result.lost_correct == 1


def test_the_object_has_the_contract_s_keys():
    """``to_dict`` has exactly the keys that the contract lists, and is JSON."""
    written = replay(two_runs(), Policy("m", (0.2,))).to_dict()
    assert set(written) == {
        "questions",
        "groups",
        "accuracy_full",
        "accuracy",
        "accuracy_change",
        "accuracy_change_interval",
        "lost_correct",
        "gained_correct",
        "judged",
        "cut",
        "lost_cut",
        "tokens_full",
        "tokens",
        "tokens_saved",
        "tokens_saved_interval",
        "seconds_full",
        "seconds",
        "oracle_tokens_saved",
        "stopped_early",
        "stops_at_step",
    }
    assert json.loads(json.dumps(written, allow_nan=False)) == written
    assert written["stops_at_step"] == [1, 1, 0]


def test_one_group_has_no_interval_and_unknown_seconds_are_null():
    """A single question says nothing about spread; one unrecorded time leaves no total."""
    runs = two_runs(group="g")
    runs[0].steps[1].seconds = None
    result = replay(runs, Policy("m", (0.2,)))
    assert (result.groups, result.accuracy_change_interval, result.tokens_saved_interval) == (1, None, None)
    assert (result.seconds_full, result.seconds) == (None, None)


def test_copies_of_a_run_do_not_narrow_the_interval():
    """Four equal runs of each question give the interval of one run of each."""
    rng = np.random.default_rng(5)
    lost = rng.random(60) < 0.2

    def widths(copies):
        runs = [
            Trace(f"{i}-{j}", [Step(WRONG if x else RIGHT, 0.1, 40), Step(RIGHT, 0.1, 60)], gold=RIGHT, group=str(i))
            for i, x in enumerate(lost)
            for j in range(copies)
        ]
        low, high = judge(as_table(runs), np.ones(60 * copies, np.int32), False).accuracy_change_interval
        return high - low

    assert widths(4) == pytest.approx(widths(1))


def test_a_part_of_the_groups_gives_nearly_the_whole_s_interval(monkeypatch):
    """Above the row limit the bootstrap works on a part of the groups; scaled, its interval is the whole's within a fifth."""
    rng = np.random.default_rng(6)
    lengths = rng.integers(20, 200, (3000, 2)).tolist()
    table = as_table([Trace(str(i), [Step(RIGHT, 0.1, a), Step(RIGHT, 0.1, b)], gold=RIGHT) for i, (a, b) in enumerate(lengths)])
    stops = np.ones(3000, np.int32)
    low, high = judge(table, stops, False).tokens_saved_interval
    monkeypatch.setattr(bootstrap, "MAX_ROWS", 1000)
    part_low, part_high = judge(table, stops, False).tokens_saved_interval
    assert part_high - part_low == pytest.approx(high - low, rel=0.2)
    assert (part_low + part_high) / 2 == pytest.approx((low + high) / 2, abs=0.1 * (high - low))


def test_a_policy_for_another_model_is_refused_or_warned_about():
    """A mismatch is an error that names both; ``on_mismatch="warn"`` goes on."""
    with pytest.raises(PolicyMismatch, match="'m'"):
        replay(two_runs(model="n"), Policy("m", (0.2,)))
    with pytest.warns(UserWarning, match="'n'"):
        assert replay(two_runs(model="n"), Policy("m", (0.2,)), on_mismatch="warn").tokens == 35


def test_bad_arguments_are_named():
    """A wrong number of resamples, and a policy whose signal was not recorded, are refused by name."""
    with pytest.raises(InputError, match="resamples is 3"):
        replay(two_runs(), Policy("m", (0.2,)), resamples=3)
    with pytest.raises(InputError, match="sum_entropy"):
        replay(two_runs(), Policy("m", (0.2,), signal="sum_entropy"))
