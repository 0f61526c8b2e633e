"""No policy stops after the last step that enough runs reached, or that was recorded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cut_recordings import RIGHT

from entropy_chains.backends.scripted import Script, ScriptedBackend
from entropy_chains.core.policy import Policy
from entropy_chains.core.rules import EntropyRule
from entropy_chains.core.steps import Segmentation
from entropy_chains.offline.calibrate import calibrate
from entropy_chains.offline.certify import allowances, last_seen_step
from entropy_chains.offline.replay import replay
from entropy_chains.offline.table import as_table
from entropy_chains.offline.traces import Step, Trace
from entropy_chains.recording import record
from entropy_chains.show.wording import thresholds_text

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
