"""The paper's loop: who is asked again, who is not, and what it costs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from entropy_chains.backends.scripted import Script, ScriptedBackend
from entropy_chains.errors import PolicyMismatch, SettingsError
from entropy_chains.monitor import StepRecord
from entropy_chains.policy import Policy
from entropy_chains.refine import AGAIN, PER_CALL, run_refine


def call(answer, entropy):
    """A call of one token."""
    return Script(answer=[(answer, entropy)])


def ask(text):
    return [{"role": "user", "content": text}]


TURNS = {"a": [call("1", 2.0), call("2", 1.0), call("3", 0.2), call("4", 0.1)], "b": [call("7", 0.3), call("8", 0.0)]}
POLICY = Policy("scripted", (0.5,), mode="refine", segmentation=PER_CALL)


class Recorded(ScriptedBackend):
    """Keeps what it was asked."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.asked = []

    def generate(self, conversations, **kwargs):
        self.asked.append([[m["content"] for m in c] for c in conversations])
        return super().generate(conversations, **kwargs)


def test_the_loop_by_hand():
    """2.0, 1.0, then .2 stops question a at its third call; question b stops at its first; both in one batch a step."""
    backend, done = Recorded(TURNS), []
    runs = run_refine(backend, [ask("a"), ask("b")], policy=POLICY, on_done=done.append)
    assert [(r.answer, len(r.calls), r.outcome.step, r.outcome.stopped) for r in runs] == [("3", 3, 3, True), ("7", 1, 1, True)]
    assert [r.outcome.tokens for r in runs] == [3, 1]
    assert [[x.entropy for x in r.records] for r in runs] == [[pytest.approx(e) for e in (2.0, 1.0, 0.2)], [pytest.approx(0.3)]]
    assert backend.asked == [[["a"], ["b"]], [["a", "1", AGAIN]], [["a", "1", AGAIN, "2", AGAIN]]]
    assert done == [1, 0, 1]


def test_without_a_policy_every_step_is_called():
    """Four steps by default, the last answer counts; the reason says that nothing was stopping."""
    runs = run_refine(ScriptedBackend(TURNS), [ask("a"), ask("b")])
    assert [(r.answer, len(r.calls)) for r in runs] == [("4", 4), ("8", 4)]
    assert runs[0].outcome.reason == "no policy: measuring only"


def test_the_last_step_is_never_an_early_stop():
    """Sure at the last call only: not stopped."""
    run = run_refine(ScriptedBackend(TURNS), [ask("a")], policy=POLICY, steps=3)[0]
    assert (run.answer, run.outcome.stopped, run.outcome.step) == ("3", False, None)


@pytest.mark.parametrize(("given", "told"), [({"stop": False}, "switched off"), ({"holdout": [True]}, "holdout")])
def test_a_loop_that_is_only_watched(given, told):
    """All calls, and where it would have ended."""
    run = run_refine(ScriptedBackend(TURNS), [ask("a")], policy=POLICY, **given)[0]
    assert (run.answer, len(run.calls), run.outcome.stopped, run.outcome.step) == ("4", 4, False, 3)
    assert told in run.outcome.reason


def test_the_off_switch(monkeypatch):
    """The environment ends all stopping."""
    monkeypatch.setenv("ENTROPY_CHAINS_STOP", "0")
    assert len(run_refine(ScriptedBackend(TURNS), [ask("b")], policy=POLICY)[0].calls) == 4


def test_agreement_is_free_here():
    """Answers 5, 6, 6: ended after the third call, for the tokens of three calls and not one more."""
    backend = ScriptedBackend({"q": [call("5", 0.0), call("6", 0.0), call("6", 0.0), call("9", 0.0)]})
    policy = replace(POLICY, rule="entropy+agreement", min_steps=2)
    run = run_refine(backend, [ask("q")], policy=policy)[0]
    assert (run.answer, run.outcome.step, run.outcome.tokens) == ("6", 3, 3)


def test_a_call_without_logprobs_never_stops():
    """Missing is not sure."""
    run = run_refine(ScriptedBackend({"q": [call("5", None), call("6", None)]}), [ask("q")], policy=POLICY, steps=2)[0]
    assert (run.outcome.stopped, run.records[0]) == (False, StepRecord(1, 1))


@pytest.mark.parametrize(
    ("field", "value"), [("mode", "thinking"), ("model", "other"), ("k", 5), ("estimator", "full"), ("template", "sha256:f")]
)
def test_a_policy_for_something_else(field, value):
    """Refused before anything is asked: the loop measures with the backend's own k and estimator."""
    backend = Recorded(TURNS)
    with pytest.raises(PolicyMismatch, match=field):
        run_refine(backend, [ask("a")], policy=replace(POLICY, **{field: value}))
    assert backend.asked == []


def test_at_least_one_step():
    """No loop without a call."""
    with pytest.raises(SettingsError, match="steps is 0"):
        run_refine(ScriptedBackend(TURNS), [ask("a")], steps=0)


def test_nobody_asked():
    """No conversations, no calls."""
    assert run_refine(ScriptedBackend(TURNS), []) == []
