"""The paper's loop: who is asked again, who is not, and what it costs."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from refining import POLICY, SHARED, TURNS, Async, Recorded, ask, both, call, entropies

from entropy_chains.backends import Sampling
from entropy_chains.backends.scripted import Script, ScriptedBackend
from entropy_chains.core.signals import StepRecord
from entropy_chains.errors import BackendError, BatchError, NoLogprobsError, PolicyMismatch, SettingsError
from entropy_chains.refine import AGAIN, STRIDE, RefineError, arun_refine, run_refine


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
    runs = both(TURNS, "ab")
    assert [(r.answer, len(r.calls)) for r in runs] == [("4", 4), ("8", 4)]
    assert runs[0].outcome.reason == "no policy: measuring only"


def test_the_last_step_is_never_an_early_stop():
    """Sure at the last call only: not stopped."""
    (run,) = both(TURNS, "a", policy=POLICY, steps=3)
    assert (run.answer, run.outcome.stopped, run.outcome.step) == ("3", False, None)
    assert run.outcome.reason == "all 3 calls made"


def test_a_call_that_was_cut_off_is_never_a_stop():
    """Half an answer is none, however sure it looks: the loop goes on until a call ends by itself."""
    turns = {"a": [Script(answer=[("half ", 0.1), ("an ", 0.1), ("answer", 0.1)]), call("whole", 0.1), call("late", 0.1)]}
    (run,) = both(turns, "a", policy=POLICY, steps=3, sampling=Sampling(max_tokens=2))
    assert ([c.finish_reason for c in run.calls], run.answer, run.outcome.step) == (["length", "stop"], "whole", 2)


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
    assert (run.outcome.stopped, run.records) == (False, (StepRecord(1, 1), StepRecord(2, 1)))
    assert (run.outcome.active, run.outcome.reason) == (False, "no call has an entropy: there are no logprobs")


class Thinker(Recorded):
    """Thinks before every answer, as a server with a field of its own for the reasoning tells it."""

    def generate(self, conversations, **kwargs):
        return [replace(g, reasoning="hm hm") for g in super().generate(conversations, **kwargs)]


def test_what_is_sent_back():
    """The answers of the calls before, not their thinking, and the turn that was chosen."""
    backend = Thinker(TURNS)
    run_refine(backend, [ask("a")], steps=3, again="Sure?")
    assert backend.asked[2] == [["a", "1", "Sure?", "2", "Sure?"]]


def test_a_call_without_an_answer():
    """Sure, but nothing to show: no stop. Nothing of it is sent back either, so the next call reads what this one read."""
    backend = Thinker({"q": call("", 0.0)})
    (run,) = run_refine(backend, [ask("q")], policy=POLICY, steps=3)
    assert ([c.answer for c in run.calls], run.records[0].entropy) == ([None, None, None], 0.0)
    assert not run.outcome.stopped
    assert backend.asked == [[["q"]]] * 3


def test_no_draw_is_used_twice():
    """A seed moves on with every step, in the further calls too, from the seed given; without one there is none."""
    backend = Recorded(SHARED)
    run_refine(backend, [ask(q) for q in "abcd"], policy=POLICY, steps=3, reallocate=True, sampling=Sampling(seed=7))
    assert backend.seeds == [7 + n * STRIDE for n in range(5)]
    run_refine(backend, [ask("b")], policy=POLICY)
    assert backend.seeds[5:] == [None]
    other = Async(SHARED)
    asyncio.run(arun_refine(other, [ask("c")], steps=3, sampling=Sampling(seed=7)))
    assert other.seeds == [7 + n * STRIDE for n in range(3)]


def test_records_are_numbered_by_call():
    """Each call's own record says step 1; in the loop it is the call's number, as in the outcome."""
    (run,) = both(TURNS, "a", policy=POLICY)
    assert [r.step for r in run.records] == [1, 2, 3]


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


# --- many at once


@pytest.mark.parametrize("concurrency", [1, 3, 50])
def test_concurrency_is_bounded(concurrency):
    """As many calls at once as allowed and wanted, and not one more; the runs do not depend on it."""
    scripts = {f"q{n}": entropies(*[1.0] * (n % 4), 0.1) for n in range(20)}
    backend, asked, done = Async(scripts), [ask(q) for q in scripts], []
    runs = asyncio.run(arun_refine(backend, asked, policy=POLICY, concurrency=concurrency, on_done=done.append))
    assert backend.most == min(concurrency, 20)
    assert runs == run_refine(ScriptedBackend(scripts), asked, policy=POLICY)
    assert done == [1] * 20


def test_at_least_one_at_a_time():
    """No concurrency, no calls: refused instead of waiting forever."""
    with pytest.raises(SettingsError, match="concurrency is 0"):
        asyncio.run(arun_refine(Async(TURNS), [ask("a")], concurrency=0))


FAILS = {"a": entropies(1.0, 0.1), "b": [call("1", 1.0), Script(answer="2", fail_at=1)], "c": entropies(1.0, 1.0, 0.2)}


def test_an_error_ends_its_own_conversation_only():
    """The second fails at its second call; a and c go on and finish, and are on the error."""
    done = []
    with pytest.raises(RefineError, match="1 of 3 conversations failed, the first with BackendError: the script fails") as error:
        asyncio.run(arun_refine(Async(FAILS), [ask(q) for q in "abc"], policy=POLICY, on_done=done.append))
    assert [r and len(r.calls) for r in error.value.runs] == [2, None, 3]
    assert [type(e) for e in error.value.errors] == [type(None), BackendError, type(None)]
    assert error.value.__cause__ is error.value.errors[1]
    assert sum(done) == 3


def test_an_error_in_a_batch():
    """The backend tells which conversation failed: the others of its batch go on."""
    with pytest.raises(RefineError, match="1 of 3") as error:
        run_refine(ScriptedBackend(FAILS), [ask(q) for q in "abc"], policy=POLICY)
    assert [r and len(r.calls) for r in error.value.runs] == [2, None, 3]


def test_an_error_of_a_whole_batch():
    """The backend does not tell which it was: all that were asked at that step fail; a, sure before, is not lost."""

    class Whole(ScriptedBackend):
        def generate(self, conversations, **kwargs):
            try:
                return super().generate(conversations, **kwargs)
            except BatchError as error:
                raise BackendError("the batch failed") from error

    with pytest.raises(RefineError, match="2 of 3") as error:
        run_refine(Whole(FAILS | {"a": entropies(0.1)}), [ask(q) for q in "abc"], policy=POLICY)
    assert [r and r.answer for r in error.value.runs] == ["1", None, None]


def test_nothing_to_save():
    """Where every conversation fails the error is the backend's own, to be caught by its type."""

    class Bare(Async):
        async def agenerate(self, conversations, **kwargs):
            raise NoLogprobsError("none here")

    with pytest.raises(NoLogprobsError, match="none here"):
        asyncio.run(arun_refine(Bare(TURNS), [ask("a"), ask("b")]))
    with pytest.raises(BackendError, match="fails at token 1"):
        run_refine(ScriptedBackend(Script(answer="2", fail_at=1)), [ask("a"), ask("b")])
