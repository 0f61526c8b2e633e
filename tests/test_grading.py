"""Grading what was recorded: what stands beside each answer, what the command says at its end, and the user's own grader."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from entropy_chains import Monitor, Policy, Sampling, calibrate, replay
from entropy_chains import cli as commands
from entropy_chains.backends.scripted import Script, ScriptedBackend
from entropy_chains.core.monitor import Decision
from entropy_chains.core.signals import StepRecord
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import InputError, PolicyError, PolicyMismatch, SettingsError
from entropy_chains.grading import named_grader
from entropy_chains.offline.table import Table
from entropy_chains.offline.traces import Step, Trace
from entropy_chains.recording import record

LINES = Segmentation("line", 1)
STEPS = [("one ", 1.0), ("\n", 1.0), ("two ", 0.5), ("\n", 0.5), ("three ", 0.1), ("\n", 0.1)]
EARLY = ["I would say 3.", "2 × 2 = **4**.", ""]
QUESTIONS = [{"id": f"q{n}", "question": f"{n}?", "gold": "4" if n else "5"} for n in range(3)]


def backend() -> ScriptedBackend:
    """Three steps a question, answers in prose."""
    return ScriptedBackend(Script(STEPS, "The answer is 4.", early=EARLY), segmentation=LINES)


def recorded(questions=QUESTIONS, **given) -> list[Trace]:
    b = backend()
    return list(record(b, questions, **{"details": b.details(Sampling()), **given}))


def yes_if_same_end(answer: str, gold: str) -> bool:
    """A grader of the user's."""
    return answer.rstrip(".*").endswith(gold.rstrip(".*")[-1])


# --- traces


def test_what_was_read_stands_beside_the_answer():
    """Raw answer, what was read where that is not all of it, and whether it is right; a missing answer has neither."""
    wrong, right, _ = recorded()
    assert (wrong.grade, [s.correct for s in wrong.steps]) == ("auto", [False, False, None, False])
    assert [(s.answer, s.read, s.correct) for s in right.steps] == [
        ("I would say 3.", "3", False),
        ("2 × 2 = **4**.", "4", True),
        (None, None, None),
        ("The answer is 4.", "4", True),
    ]
    again = Trace.from_dict(json.loads(json.dumps(right.to_dict())))
    assert [s.read for s in again.steps] == [s.read for s in right.steps]


def test_without_gold_nothing_is_judged():
    """The grade says how the answers are compared with each other."""
    trace = recorded([{"id": "q", "question": "?"}])[0]
    assert trace.grade == "auto"
    assert {s.correct for s in trace.steps} == {None}


@pytest.mark.parametrize(
    ("grade", "right"),
    [
        ("auto", [False, True, None, True]),
        ("number", [False, True, None, True]),
        ("exact", [False, False, None, False]),
        ("regex:\\d+", [False, True, None, True]),
        ("python:mine", [False, True, None, True]),
    ],
)
def test_each_grade_judges(grade, right):
    """The trace says which it was; a policy calibrated on such traces holds it."""
    traces = recorded(grade=grade, grader=yes_if_same_end if grade.startswith("python") else None)
    assert [s.correct for s in traces[1].steps] == right
    assert {t.grade for t in traces} == {grade}
    table = Table.from_traces(traces, grader=yes_if_same_end if grade.startswith("python") else None)
    assert calibrate(table, rule="fixed-step").grade == grade


@pytest.mark.parametrize(
    ("grade", "gold", "told"),
    [
        ("number", "Paris", "'q1' is 'Paris', which is no number"),
        ("choice", "42", "which is no choice"),
        ("auto", None, "1 of 2 questions have no gold answer ('q1')"),
    ],
)
def test_gold_is_judged_before_anything_is_spent(grade, gold, told):
    """Gold that no answer could equal, or that some questions lack, is an error before the model is asked."""
    questions = [
        {"id": "q0", "question": "?", "gold": "B" if grade == "choice" else "7"},
        {"id": "q1", "question": "?", "gold": gold},
    ]
    with pytest.raises(InputError, match=r".") as caught:
        recorded(questions, grade=grade)
    assert told in str(caught.value)


def test_files_of_two_grades_are_not_mixed():
    """Nothing said and auto are the same."""
    traces = recorded()
    with pytest.raises(InputError, match="grade is 'exact'"):
        Table.from_traces([*traces, *(replace(t, id=t.id + "x", grade="exact") for t in traces)])
    assert Table.from_traces([*traces, *(replace(t, id=t.id + "x", grade=None) for t in traces)]).runs == 6


def test_agreement_in_replay_compares_as_live_does():
    """Two answers in prose agree; the grade exact says no."""
    steps = [Step("2 × 2 = **4**.", 0.1, 50), Step("So it is 4.", 0.1, 50), Step("The answer is 4.", None, 10)]
    for grade, agrees in (("auto", True), ("exact", False)):
        traces = [Trace(f"q{n}", steps, gold="4", grade=grade) for n in range(3)]
        assert Table.from_traces(traces).same_as_previous.reshape(3, 3)[:, 1].all() == agrees
        policy = Policy("m", (0.5,), rule="entropy+agreement", min_steps=2, grade=grade)
        assert (replay(traces, policy).stopped_early == 1.0) is agrees
        assert live(policy, [s.answer for s in steps[:2]]) is agrees


def live(policy: Policy, answers: list[str | None]) -> bool:
    """Whether a run of sure steps with these answers is stopped."""
    monitor = Monitor(replace(policy, mode="refine", segmentation=Segmentation("call", 1)))
    record = StepRecord(step=1, entropy=0.1, tokens=50, mass=1.0, lower=0.1, upper=0.1, signals={"mean_entropy": 0.1})
    return [monitor.take(record, answer) for answer in answers][-1] is Decision.STOP


# --- policies


def test_a_grader_named_in_a_policy_is_never_imported(tmp_path, monkeypatch):
    """The module is not even looked at: without the function it is a mismatch, and nothing is stopped."""
    (tmp_path / "grader_of_a_stranger.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    policy = Policy("m", (0.5,), rule="entropy+agreement", min_steps=2, grade="python:grader_of_a_stranger:grade")
    policy.save(tmp_path / "policy.json")
    policy = Policy.load(tmp_path / "policy.json")
    with pytest.raises(PolicyMismatch, match="with_grader"):
        policy.check(model="m")
    with pytest.warns(UserWarning, match="with_grader"):
        policy.check(model="m", on_mismatch="warn")
    outcome = Monitor(policy).finish()
    assert not outcome.active
    assert "with_grader" in outcome.reason
    assert not live(policy, ["4", "4"])
    assert "grader_of_a_stranger" not in sys.modules


def test_a_policy_with_the_users_function_stops_by_it():
    """The same file with the function: answers agree as it says; it is no part of the file."""
    policy = Policy("m", (0.5,), rule="entropy+agreement", min_steps=2, grade="python:mine").with_grader(yes_if_same_end)
    policy.check(model="m")
    assert live(policy, ["it is 14", "no, 24"])
    assert not live(policy, ["it is 14", "no, 25"])
    assert "grader" not in policy.to_dict()
    with pytest.raises(PolicyError, match=r"grader is "):
        Policy.from_dict({**policy.to_dict(), "grader": "os.system"})


def test_only_a_rule_that_compares_answers_needs_the_function():
    """An entropy rule runs without it."""
    policy = Policy("m", (0.5,), grade="python:mine")
    policy.check(model="m")
    assert Monitor(policy).finish().active


def test_the_grade_is_in_the_fingerprint_only_where_it_says_something():
    """Nothing said and auto compare alike; every other grade decides otherwise."""
    policies = [Policy("m", (0.5,), grade=grade) for grade in (None, "auto", "exact", "number", "regex:a", "python:a")]
    prints = [policy.fingerprint for policy in policies]
    assert prints[0] == prints[1]
    assert len(set(prints)) == len(prints) - 1
    assert "grade" not in policies[0].to_dict()
    assert policies[2].to_dict()["grade"] == "exact"


@pytest.mark.parametrize("grade", ["", "mine", "regex:(", 5, ["auto"]])
def test_a_policy_with_another_grade_is_refused(grade):
    """At load, with what there is."""
    with pytest.raises(PolicyError, match="grade is"):
        Policy.from_dict({**Policy("m", (0.5,)).to_dict(), "grade": grade})


def test_replay_refuses_a_policy_that_compares_answers_otherwise():
    """Only where its rule compares them."""
    traces = [
        Trace(f"q{n}", [Step("4", 0.1, 50), Step("4", 0.1, 50), Step("4", None, 10)], gold="4", grade="exact") for n in range(3)
    ]
    with pytest.raises(PolicyMismatch, match="grade"):
        replay(traces, Policy("m", (0.5,), rule="entropy+agreement", min_steps=2))
    assert replay(traces, Policy("m", (0.5,))).stopped_early == 1.0


def test_traces_of_a_grader_that_is_not_there_agree_in_nothing():
    """The labels stand in them; what would need the function says so and counts as different."""
    traces = recorded(grade="python:mine", grader=yes_if_same_end)
    with pytest.warns(UserWarning, match="python:mine"):
        table = Table.from_traces(traces)
    assert not table.same_as_previous.any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Table.from_traces(traces, grader=lambda a, b: True).same_as_previous.any()


# --- the command


class Recorder:
    """The command, with a scripted model."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, questions=QUESTIONS):
        self.data, self.out = folder / "q.jsonl", folder / "t.jsonl"
        self.data.write_text("".join(json.dumps(q) + "\n" for q in questions))
        monkeypatch.setattr(commands, "load", lambda *_: backend())
        monkeypatch.chdir(folder)

    def run(self, *options: str):
        return CliRunner().invoke(
            commands.main, ["record", "--data", str(self.data), "--out", str(self.out), "--model", "m", *options]
        )


def test_record_ends_by_telling_how_many_equal_gold(tmp_path, monkeypatch):
    """And shows the first that do not, as they were read, as they were written, and gold; also for programs."""
    recorder = Recorder(tmp_path, monkeypatch)
    lines = recorder.run().stdout.splitlines()
    assert "2 of 3 full answers equal gold" in lines
    assert "  'q0': read '4', written 'The answer is 4.'; gold '5'" in lines
    recorder.out.unlink()
    found = json.loads(recorder.run("--json").stdout)
    assert (found["equal_to_gold"], found["with_gold"]) == (2, 3)
    assert found["unequal"] == [{"id": "q0", "answer": "The answer is 4.", "read": "4", "gold": "5"}]


def test_the_grade_of_the_command(tmp_path, monkeypatch):
    """It is written, and a file is not gone on with under another."""
    recorder = Recorder(tmp_path, monkeypatch)
    assert "0 of 2 full answers equal gold" in recorder.run("--grade", "exact", "--limit", "2").stdout
    assert {json.loads(line)["grade"] for line in recorder.out.read_text().splitlines()} == {"exact"}
    refused = recorder.run("--resume")
    assert (refused.exit_code, "grade 'exact', this run has 'auto'" in refused.stderr) == (2, True)
    assert recorder.run("--resume", "--grade", "exact").exit_code == 0


def test_the_users_grader_on_the_command_line(tmp_path, monkeypatch):
    """A function of a module in the working folder."""
    (tmp_path / "my_grader_here.py").write_text("def judge(answer, gold):\n    return gold in answer\n")
    recorder = Recorder(tmp_path, monkeypatch)
    assert "2 of 3 full answers equal gold" in recorder.run("--grade", "python:my_grader_here:judge").stdout


@pytest.mark.parametrize(
    "grade", ["python:no_such_module:f", "python:json:nothing", "python:json", "python:json:__name__", "regex:(", "best"]
)
def test_a_grade_that_is_none_ends_before_anything_is_spent(grade, tmp_path, monkeypatch):
    """Exit status 2, and no file."""
    recorder = Recorder(tmp_path, monkeypatch)
    result = recorder.run("--grade", grade)
    assert (result.exit_code, recorder.out.exists()) == (2, False)
    assert "grade is" in result.stderr
    with pytest.raises(SettingsError):
        named_grader(grade)


def test_calibrate_says_when_no_answer_equals_gold(tmp_path, monkeypatch):
    """With a pair to look at: it is the form, not the number of questions."""
    recorder = Recorder(tmp_path, monkeypatch, [{**q, "gold": "Paris"} for q in QUESTIONS])
    recorder.run()
    told = CliRunner().invoke(commands.main, ["calibrate", str(recorder.out), "-o", str(tmp_path / "p.json")]).stderr
    assert "0 of 3 full answers equal gold" in told
    assert "gold 'Paris'" in told
