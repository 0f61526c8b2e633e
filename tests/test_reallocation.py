"""Calls that sure conversations did not need go to the unsure ones: by hand, and never more than the schedule."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest
from refining import POLICY, SHARED, Async, Recorded, ask, both, call, entropies

from entropy_chains.backends.scripted import Script, ScriptedBackend
from entropy_chains.errors import SettingsError
from entropy_chains.refine import RefineError, arun_refine, run_refine


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
