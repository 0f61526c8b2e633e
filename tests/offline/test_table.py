"""Recorded runs as columns: labels, groups, costs, what may stand in one table."""

from __future__ import annotations

import numpy as np
import pytest

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import InputError, PolicyMismatch, TraceError
from entropy_chains.offline.table import Table, as_table
from entropy_chains.offline.traces import Step, Trace, append_traces


def run(name, *answers, **given):
    return Trace(name, [Step(a, 0.1 * i, 10 * i) for i, a in enumerate(answers, 1)], **given)


def test_gold_is_compared_in_normal_form_and_null_equals_nothing():
    """1,000.0 equals 1000; no answer equals neither the gold answer nor another missing one."""
    table = as_table([run("a", "7", None, None, "1,000.0", gold="1000")])
    assert table.correct.tolist() == [0, 0, 0, 1]
    assert table.same_as_previous.tolist() == [False] * 4
    assert table.same_as_last.tolist() == [False, False, False, True]
    assert table.lost.tolist() == [True, True, True, False]
    assert table.labels == "gold"


def test_correct_wins_over_gold():
    """A judged step keeps its judgement whatever the gold answer says; one without falls back to gold."""
    trace = Trace("a", [Step("1", 0.1, 1, correct=False), Step("2", 0.1, 1, correct=True), Step("1", 0.1, 1)], gold="1")
    assert as_table([trace]).correct.tolist() == [0, 1, 1]


def test_without_labels_the_last_answer_stands_in():
    """Agreement labels: right = the run's last answer; a whole run without a last answer has nothing to lose."""
    table = as_table([run("a", "1", "2", "2.0"), run("b", "1", None, finish="stop")])
    assert table.labels == "agreement"
    assert table.correct.tolist() == [0, 1, 1, 0, 0]
    assert table.lost.tolist() == [True, False, False, False, False]


CUT = [
    ({"gold": "1"}, ["2", "1", None], [True, False, False]),  # only what gold calls right is kept
    ({"gold": "1", "finish": "length"}, ["2", "1", "1"], [True, False, False]),  # its last answer is half of one
    ({"gold": "1", "finish": "stop"}, ["2", "1", None], [False, False, False]),  # a wrong full answer: nothing to lose
    ({"gold": "1", "finish": "stop"}, ["2", "1", "1"], [True, False, False]),
    ({}, ["2", "1", None], [True, True, False]),  # nothing to compare with
    ({"finish": "content_filter"}, ["2", "1", "1"], [True, True, False]),
    ({"finish": "stop"}, ["2", "1", "1"], [True, False, False]),
]


@pytest.mark.parametrize(("given", "answers", "lost"), CUT)
def test_a_stop_on_a_cut_run_loses_unless_gold_calls_its_answer_right(given, answers, lost):
    """``finish`` tells what was cut, else a missing last answer; the last row is no stop and loses nothing."""
    table = as_table([run("a", *answers, **given)])
    assert table.lost.tolist() == lost
    assert table.cut.tolist() == [given.get("finish") not in ("stop",) and (answers[-1] is None or "finish" in given)]
    assert not table.with_cut_as_full().cut.any()


def test_a_judged_answer_of_a_cut_run_is_kept():
    """``correct`` stands for gold: the stop at step 2 loses nothing."""
    steps = [Step("x", 0.1, 1, correct=False), Step("y", 0.1, 1, correct=True), Step(None, None, 1, correct=False)]
    assert as_table([Trace("a", steps, finish="length")]).lost.tolist() == [True, False, False]


def test_accuracy_is_that_of_the_runs_that_came_to_their_end():
    """One right of two; the two cut runs are no wrong answers. Nothing is known where all are cut. The limit is the smallest."""
    ended = [run("a", "1", "1", gold="1", max_tokens=90), run("b", "1", "2", gold="1", max_tokens=60)]
    cut = [run("c", "1", None, gold="1"), run("d", "1", "1", gold="1", finish="error")]
    table = as_table(ended + cut)
    assert (table.accuracy_full, table.full_right.tolist(), table.max_tokens) == (0.5, [True, False, False, False], 60)
    assert as_table(cut).accuracy_full is None
    kept = table.subset(np.array([False, True, True, False]))
    assert (kept.cut.tolist(), kept.accuracy_full) == ([False, True], 0.0)


def test_the_two_kinds_of_label_do_not_mix():
    """A file with a gold answer on some lines only is refused, whichever comes first."""
    gold, none = run("a", "1", gold="1"), run("b", "1")
    for traces in ([gold, none], [none, gold]):
        with pytest.raises(TraceError, match="one kind"):
            as_table(traces)


@pytest.mark.parametrize(
    ("field", "one", "other"),
    [("model", "m", "n"), ("estimator", "full", "renormalised"), ("k", 5, 20), ("mode", "thinking", "refine")],
)
def test_different_recordings_do_not_mix(field, one, other):
    """One table has one model, estimator, k and mode: the error names both values."""
    with pytest.raises(TraceError, match=rf"{field} is {other!r}.*have {one!r}"):
        as_table([run("a", "1", **{field: one}), run("b", "1", **{field: other})])


def test_several_temperatures_are_a_warning():
    """Temperatures may mix; the table lists them, ascending."""
    with pytest.warns(UserWarning, match=r"0\.2, 0\.6"):
        table = as_table([run("a", "1", temperature=0.6), run("b", "1", temperature=0.2)])
    assert table.temperatures == (0.2, 0.6)


def test_a_group_is_the_group_else_the_question_else_the_id():
    """Runs share a group by name, by question, or not at all."""
    traces = [
        run("a", "1", group="g"),
        run("b", "1", group="g", question="x"),
        run("c", "1", question="x"),
        run("d", "1", question="x"),
    ]
    assert as_table([*traces, run("e", "1")]).group.tolist() == [0, 0, 1, 1, 2]


def test_a_signal_named_late_is_missing_before():
    """A statistic that only later runs record is NaN in earlier ones, and wherever the step's entropy is missing."""
    late = Trace("b", [Step("1", 0.3, 1, signals={"sum_entropy": 9.0}), Step("1", None, 1, signals={"sum_entropy": 5.0})])
    np.testing.assert_array_equal(as_table([run("a", "1"), late]).values("sum_entropy"), [np.nan, 9.0, np.nan])


def test_an_unknown_signal_and_an_upside_down_one_are_refused():
    """The error lists what is recorded; a confidence is refused by name, for lower must mean surer."""
    table = as_table([Trace("a", [Step("1", 0.3, 1, signals={"sum_entropy": 9.0, "deepconf": 2.0})])])
    with pytest.raises(InputError, match=r"record mean_entropy, sum_entropy$"):
        table.values("eat")
    with pytest.raises(InputError, match="higher means surer"):
        table.values("deepconf")


def test_costs_by_hand():
    """Tokens 10, 20, 30, probes 1, 2, 4: an entropy rule pays the probe it stops with, one that reads answers all before too."""
    steps = [Step("1", 0.1, 10, probe_tokens=1), Step("1", 0.1, 20, probe_tokens=2), Step("1", 0.1, 30, probe_tokens=4)]
    table = as_table([Trace("z", [Step("1", 0.1, 5)]), Trace("a", steps)])
    stop, full = table.costs(every_probe=False)
    assert (stop[1:3].tolist(), full.tolist()) == ([11, 32], [5, 60])
    stop, full = table.costs(every_probe=True)
    assert (stop[1:3].tolist(), full.tolist()) == ([11, 33], [5, 63])


def test_a_subset_is_what_its_traces_alone_would_give():
    """Choosing runs equals building the table of those runs."""
    traces = [
        run("a", "1", "2", gold="2", group="g"),
        run("b", "1", gold="2", group="h"),
        run("c", None, "2", "2", gold="2", group="g"),
    ]
    part, alone = as_table(traces).subset(np.array([True, False, True])), as_table([traces[0], traces[2]])
    for name in Table.__slots__:
        one, other = getattr(part, name), getattr(alone, name)
        np.testing.assert_array_equal(one, other, err_msg=name) if isinstance(one, np.ndarray) else None
        assert isinstance(one, np.ndarray) or one == other


def test_files_traces_objects_and_tables_are_all_taken(tmp_path):
    """A path, several paths, traces, their dictionaries and a table give the same columns."""
    traces = [run("a", "1", "2", gold="2"), run("b", "1", gold="2")]
    path, second = tmp_path / "t.jsonl", tmp_path / "u.jsonl"
    append_traces(path, traces[:1])
    append_traces(second, traces[1:])
    whole = as_table(traces)
    for given in ([path, str(second)], iter(traces), [t.to_dict() for t in traces], whole):
        assert as_table(given).entropy.tolist() == whole.entropy.tolist()
    assert as_table(path).ids == ("a",)


@pytest.mark.parametrize("nothing", [[], iter(())])
def test_no_traces_is_an_error_with_a_remedy(nothing):
    """An empty list says what to do."""
    with pytest.raises(InputError, match="record"):
        as_table(nothing)


def test_something_else_is_refused():
    """A number is no trace source."""
    with pytest.raises(InputError, match="trace file"):
        as_table(3)


def test_a_bad_line_is_named_by_file_and_line(tmp_path):
    """The columnar reader checks as strictly as the other one, and names the place."""
    path = tmp_path / "t.jsonl"
    append_traces(path, [run("a", "1")])
    path.write_text(path.read_text() + '{"id": "b", "steps": [{"answer": "1", "entropy": true, "tokens": 1}]}\n')
    with pytest.raises(TraceError, match=r"steps\[0\]") as caught:
        as_table(path)
    assert (caught.value.file, caught.value.line, caught.value.field) == (str(path), 2, "steps[0].entropy")


def test_a_step_takes_at_most_200_bytes():
    """With five named statistics a step holds well under 200 bytes, and no object of its own."""
    signals = dict.fromkeys(("sum_entropy", "top_tenth_entropy", "max_entropy", "tail_entropy", "deepconf"), 1.0)
    table = as_table([Trace(str(i), [Step("1", 0.1, 1, signals=signals)] * 4) for i in range(500)])
    assert table.nbytes / len(table.step) < 120
    assert len(table.ids) == 500


def test_a_policy_for_something_else_is_refused_and_what_is_not_stated_is_not_compared():
    """Model, k and segmentation are compared where the traces state them; temperature only warns."""
    policy = Policy(model="m", thresholds=(0.1,), k=20, temperature=(0.6,))
    as_table([run("a", "1")]).check(policy)
    for given in ({"model": "n"}, {"model": "m", "estimator": "renormalised"}, {"segmentation": {"boundary": "line"}}):
        with pytest.raises(PolicyMismatch):
            as_table([run("a", "1", **given)]).check(policy)
    same = {"segmentation": Segmentation().to_dict(), "model": "m", "k": 20, "estimator": "renormalised", "temperature": 0.6}
    as_table([run("a", "1", **same)]).check(policy)
    with pytest.warns(UserWarning, match="temperature"):
        as_table([run("a", "1", temperature=0.9)]).check(policy)
    with pytest.warns(UserWarning, match="model"):
        as_table([run("a", "1", model="n")]).check(policy, "warn")
