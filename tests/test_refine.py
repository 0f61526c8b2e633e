"""The paper's loop: who is asked again, who is not, and what it costs."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest

from entropy_chains.backends import Sampling
from entropy_chains.backends.scripted import Script, ScriptedBackend
from entropy_chains.core.policy import Policy
from entropy_chains.core.signals import StepRecord
from entropy_chains.errors import BackendError, BatchError, NoLogprobsError, PolicyMismatch, SettingsError
from entropy_chains.refine import AGAIN, PER_CALL, STRIDE, RefineError, arun_refine, run_refine


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
        self.asked, self.seeds = [], []

    def generate(self, conversations, **kwargs):
        self.seeds.append(kwargs["sampling"].seed)
        self.asked.append([[m["content"] for m in c] for c in conversations])
        return super().generate(conversations, **kwargs)


class Async:
    """The same scripts behind ``agenerate``; keeps what was asked, how many at once, and never answers in order."""

    def __init__(self, *args, **kwargs):
        self.scripted = ScriptedBackend(*args, **kwargs)
        self.model, self.details = self.scripted.model, self.scripted.details
        self.asked, self.seeds, self.running, self.most = [], [], 0, 0

    async def agenerate(self, conversations, **kwargs):
        self.asked += [[m["content"] for m in c] for c in conversations]
        self.seeds.append(kwargs["sampling"].seed)
        self.running += 1
        self.most = max(self.most, self.running)
        for _ in range(7 * len(self.asked) % 5 + 1):
            await asyncio.sleep(0)
        self.running -= 1
        return self.scripted.generate(conversations, **kwargs)


def both(scripts, questions, **given):
    """The sync and the async runs, told to be the same, of questions by their text."""
    asked = [ask(q) for q in questions]
    runs = run_refine(ScriptedBackend(scripts), asked, **given)
    assert asyncio.run(arun_refine(Async(scripts), asked, **given)) == runs
    return runs


def entropies(*values):
    """Calls of these entropies that answer with their own number."""
    return [call(str(n), value) for n, value in enumerate(values, 1)]


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


# --- reallocation

SHARED = {
    "a": entropies(2.0, 0.1),
    "b": entropies(0.3),
    "c": entropies(2.0, 1.5, 1.0, 0.9, 0.2),
    "d": entropies(2.0, 2.0, 2.0, 1.8, 1.7, 0.1),
}


def test_reallocation_by_hand():
    """Of three calls each a leaves one and b two. First d (2.0) and c (1.0) get one; the last goes to d (1.8 against .9)."""
    backend, done = Recorded(SHARED), []
    asked = [ask(q) for q in "abcd"]
    runs = run_refine(backend, asked, policy=POLICY, steps=3, reallocate=True, on_done=done.append)
    assert [(len(r.calls), r.answer, r.outcome.stopped) for r in runs] == [
        (2, "2", True), (1, "1", True), (4, "4", False), (5, "5", False),
    ]  # fmt: skip
    assert [[c[0] for c in batch] for batch in backend.asked] == [
        ["a", "b", "c", "d"],
        ["a", "c", "d"],
        ["c", "d"],
        ["d", "c"],
        ["d"],
    ]
    assert runs[3].outcome.reason == "all 5 calls made; nothing was left to reallocate"
    assert done == [1, 1, 0, 0, 0, 2]
    other = []
    same = asyncio.run(arun_refine(Async(SHARED), asked, policy=POLICY, steps=3, reallocate=True, on_done=other.append))
    assert (same, sum(other)) == (runs, 4)


def test_reallocation_stops_where_it_becomes_sure():
    """With two more to give, c is sure at its fifth call: stopped early, of the six it might have had, and nothing saved."""
    scripts = SHARED | {"e": entropies(0.0)}
    policy = replace(POLICY, calibration={"remaining_tokens": [2.0, 1.0]})
    runs = both(scripts, "abec", policy=policy, steps=3, reallocate=True)
    assert [len(r.calls) for r in runs] == [2, 1, 1, 5]
    assert (runs[3].outcome.stopped, runs[3].outcome.step, runs[3].outcome.tokens_saved) == (True, 5, None)
    assert [r.outcome.tokens_saved for r in runs[:3]] == [1, 2, 2]


def test_sure_at_the_last_scheduled_call_asks_for_no_more():
    """With reallocation the last scheduled call is judged: a third call that is sure leaves b's calls to others."""
    scripts = {"a": entropies(2.0, 2.0, 0.1, 0.0), "b": entropies(0.3)}
    runs = both(scripts, "ab", policy=POLICY, steps=3, reallocate=True)
    assert [(len(r.calls), r.outcome.stopped) for r in runs] == [(3, True), (1, True)]


def test_most_calls():
    """max_steps ends it, the call there is never an early stop; twice the schedule by default."""
    scripts = {"a": entropies(*[2.0] * 3, 0.1), **{q: entropies(0.0) for q in "bcdef"}}
    runs = both(scripts, "abcdef", policy=POLICY, steps=3, reallocate=True, max_steps=4)
    assert (len(runs[0].calls), runs[0].outcome.stopped, runs[0].outcome.reason) == (4, False, "all 4 calls made")
    endless = scripts | {"a": entropies(2.0)}
    assert len(both(endless, "abcdef", policy=POLICY, steps=3, reallocate=True)[0].calls) == 6


def test_ties_go_by_order_and_the_unknown_comes_last():
    """One call to give: of two alike the first gets it, and one without logprobs none, wherever it stands."""
    scripts = {"n": [call("5", None)], "x": entropies(1.0), "y": entropies(1.0), "s": entropies(9 / 10, 0.1)}
    runs = both(scripts, "nxys", policy=POLICY, steps=3, reallocate=True)
    assert [len(r.calls) for r in runs] == [3, 4, 3, 2]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "no policy"),
        ({"policy": replace(POLICY, active=False, reason="no signal")}, "not active: no signal"),
        ({"policy": POLICY, "stop": False}, "switched off"),
        ({"policy": POLICY, "holdout": [True] * 4}, "holdout"),
    ],
)
def test_nothing_to_reallocate(given, told):
    """Where nobody may stop, nobody leaves anything: the plain schedule, and the reason says why."""
    runs = both(SHARED, "abcd", steps=3, reallocate=True, **given)
    assert [len(r.calls) for r in runs] == [3, 3, 3, 3]
    assert all(told in r.outcome.reason for r in runs)


def test_a_holdout_neither_gives_nor_gets():
    """Held out, b leaves nothing and d gets nothing: both make their three, and only a's one is given."""
    runs = both(SHARED, "abcd", policy=POLICY, steps=3, reallocate=True, holdout=[False, True, False, True])
    assert [len(r.calls) for r in runs] == [2, 3, 4, 3]


def test_a_failed_conversation_leaves_nothing():
    """Who fails at its first call is not sure: the calls it did not make are not given, and c ends with its schedule."""
    scripts = {"f": Script(answer="2", fail_at=1), "c": SHARED["c"]}
    with pytest.raises(RefineError) as error:
        asyncio.run(arun_refine(Async(scripts), [ask("f"), ask("c")], policy=POLICY, steps=3, reallocate=True))
    assert [r and len(r.calls) for r in error.value.runs] == [None, 3]


@pytest.mark.parametrize("seed", range(30))
def test_the_fixed_schedule_is_never_exceeded(seed):
    """Random entropies: never more calls than scheduled in all, each run begins with those of its fixed schedule.

    The sync and the async way agree, and calls are left over only where nobody unsure may have them.
    """
    rng = random.Random(seed)
    steps, most = rng.randint(1, 4), rng.randint(4, 7)
    scripts = {f"q{n}": entropies(*(rng.choice([0.1, 0.7, 1.0, 2.0]) for _ in range(8))) for n in range(rng.randint(1, 9))}
    fixed = run_refine(ScriptedBackend(scripts), [ask(q) for q in scripts], steps=steps)
    runs = both(scripts, scripts, policy=POLICY, steps=steps, reallocate=True, max_steps=most)
    total = sum(len(r.calls) for r in runs)
    assert total <= steps * len(scripts)
    for full, run in zip(fixed, runs, strict=True):
        scheduled = run.calls[:steps]
        assert scheduled == full.calls[: len(scheduled)]
        assert len(scheduled) == steps or run.outcome.stopped
        assert len(run.calls) <= most
    if total < steps * len(scripts):
        assert all(r.outcome.stopped or len(r.calls) == most for r in runs)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"max_steps": 5}, "max_steps is 5, but only reallocate=True"),
        ({"max_steps": 2, "reallocate": True}, "max_steps is 2; with 3 steps scheduled"),
        ({"holdout": [True]}, "holdout has 1 values for 2"),
    ],
)
def test_settings_that_cannot_work(given, told):
    """Refused before anything is asked, the same in both ways."""
    backend, other, asked = Recorded(SHARED), Async(SHARED), [ask("a"), ask("b")]
    with pytest.raises(SettingsError, match=told):
        run_refine(backend, asked, policy=POLICY, steps=3, **given)
    with pytest.raises(SettingsError, match=told):
        asyncio.run(arun_refine(other, asked, policy=POLICY, steps=3, **given))
    assert backend.asked == other.asked == []
