"""Runs whose stream breaks off are recorded as far as they came."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import openai
import pytest
from hostile import Act, Hostile, begin, event, events, whole
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import UNSURE, is_answer_call, thinking
from recording_servers import LINES, STEPS, answer, asked_of, failing, many, served, until_it_ends

from entropy_chains.backends.openai import AsyncOpenAIBackend
from entropy_chains.backends.scripted import Script, ScriptedBackend
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import BackendError
from entropy_chains.offline.table import as_table
from entropy_chains.offline.traces import append_traces
from entropy_chains.recording import RecordError, record


def breaking(at, *tail, bad=(1,)):
    """A server whose stream of these questions breaks after ``at`` tokens; ``tail``: how."""

    def script(request):
        if asked_of(request) not in bad or is_answer_call(request.body):
            return answer(request)
        return [*begin(), *events(replace(REASONED, tokens=REASONED.tokens[:at]), request.body), *tail]

    return Hostile(script)


REASONED = thinking(UNSURE, UNSURE, answer="The answer is 4")
"""What :func:`answer` says."""
BREAKS = {
    "closed": [Act.CLOSE],
    "no finish": [event(b"[DONE]")],
    "an error in the stream": [event({"error": {"message": "the engine died", "code": 500}})],
}


@pytest.mark.parametrize("tail", BREAKS.values(), ids=BREAKS)
def test_a_run_that_breaks_off_after_a_step_is_recorded(tail, tmp_path):
    """Its steps have the answers that a stop would give, its end has none; it is counted as cut off and named."""
    told = []
    with breaking(60, *tail) as server, openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        traces = {t.id: t for t in record(served(client), many(3), tell=told.append)}
    broken, whole = traces["q1"], traces["q0"]
    assert (broken.finish, broken.is_cut, broken.finish_raw is None) == ("error", True, False)
    assert [s.answer for s in broken.steps] == ["The answer is 4", None]
    assert [s.tokens for s in broken.steps] == [whole.steps[0].tokens, 60 - whole.steps[0].tokens]
    assert (broken.steps[0].entropy, broken.steps[0].signals) == (whole.steps[0].entropy, whole.steps[0].signals)
    assert [text for text in told if text.startswith("1 of 3 runs were cut off (error: 1)") and text.endswith("q1")] == told
    assert len(told) == 1
    append_traces(tmp_path / "t.jsonl", traces.values())
    assert as_table(tmp_path / "t.jsonl").cut.sum() == 1


def test_both_backends_hand_on_the_run_before_the_break():
    """Sync and async: the error of a stream that broke holds the steps that had ended, and no answer."""
    asked = [{"role": "user", "content": "1?"}]
    found = []
    with breaking(60, Act.CLOSE) as server:
        given = {"base_url": server.url, "api_key": "none", "max_retries": 0}

        async def ask():
            async with openai.AsyncOpenAI(**given) as client:
                await AsyncOpenAIBackend(client, "scripted", segmentation=Segmentation("line", 32)).agenerate([asked])

        with openai.OpenAI(**given) as client:
            for call in (lambda: served(client).generate([asked]), lambda: asyncio.run(ask())):
                with pytest.raises(BackendError) as raised:
                    call()
                found.append(raised.value.run)
    for run in found:
        assert (run.answer, run.finish_reason, run.tokens, [s.record for s in run.steps]) == (
            None,
            "error",
            60,
            [s.record for s in found[0].steps],
        )
    assert len(found[0].steps) == 1


def test_a_run_that_breaks_off_in_its_first_step_is_a_failure():
    """There is nothing to record; no other question is lost."""
    with breaking(5, Act.RESET) as server, openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        found, error = until_it_ends(record(served(client), many(3)))
    assert (sorted(found), list(error.failed), error.failed["q1"].run) == (["q0", "q2"], ["q1"], None)


@pytest.mark.filterwarnings("ignore:.*runs were cut off")
@pytest.mark.parametrize(("act", "recorded"), [(Act.CLOSE, True), ("401", False)], ids=["closed", "refused"])
def test_what_cannot_be_asked_after_a_broken_run_is_left_empty(act, recorded):
    """An answer that cannot be had is null; a server that refuses every question leaves the question to be asked again."""
    refusal = whole(401, {"error": {"message": "no such key"}})
    asked = []

    def script(request):
        if asked_of(request) != 1:
            return answer(request)
        asked.append(request)
        if len(asked) == 1:
            return [*begin(), *events(replace(REASONED, tokens=REASONED.tokens[:60]), request.body), event(b"[DONE]")]
        return [refusal if act == "401" else act]

    with Hostile(script) as server, openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        traces, error = {}, None
        try:
            traces.update((t.id, t) for t in record(served(client, concurrency=1), many(2)))
        except RecordError as raised:
            error = raised
    assert ("q1" in traces, error is None) == (recorded, recorded)
    if recorded:
        assert [(s.answer, s.probe_tokens) for s in traces["q1"].steps] == [(None, 0), (None, 0)]


@pytest.mark.filterwarnings("ignore:.*runs were cut off")
@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_loop_that_breaks_off_after_a_call_is_recorded(call):
    """The calls before keep their answers, and the one that broke has none; if that is the first, the question fails."""
    turns = []

    def script(request):
        turns.append(request)
        return [*begin(), Act.RESET] if len(turns) == call else answer(request)

    with Hostile(script) as server, openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        made = list(
            record(served(client, concurrency=1), many(1), mode="refine", steps=3)
            if call > 1
            else until_it_ends(record(served(client, concurrency=1), many(1), mode="refine", steps=3))[0]
        )
    if call == 1:
        assert made == []
        return
    (trace,) = made
    assert (trace.finish, trace.is_cut) == ("error", True)
    assert [s.answer for s in trace.steps] == ["The answer is 4"] * (call - 1) + [None]


@pytest.mark.filterwarnings("ignore:.*runs were cut off")
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 3))
def test_a_broken_run_is_the_beginning_of_the_whole_one(fail_at, batch, steps):
    """Wherever it breaks, alone or in a batch: the same steps with the same answers, up to there."""
    questions = failing(count=3)[1]
    script = Script(STEPS, "the answer is 4", early=["3", "4", ""])
    whole = {t.id: t for t in record(ScriptedBackend(script, segmentation=LINES), questions, steps=steps, batch=batch)}
    scripts = {f"{n}?": replace(script, fail_at=fail_at if n == 1 else None) for n in range(3)}
    found, failed = {}, []
    try:
        for trace in record(ScriptedBackend(scripts, segmentation=LINES), questions, steps=steps, batch=batch):
            found[trace.id] = trace
    except RecordError as error:
        failed = list(error.failed)
    assert failed == [q["id"] for q in questions if q["id"] not in found]
    assert [found["q0"], found["q2"]] == [whole["q0"], whole["q2"]]
    ended = min(max(0, (fail_at - 2) // 2), 3)  # steps of two tokens, after the opening tag
    assert ("q1" in found) == (ended > 0)
    if "q1" in found:
        kept = min(ended, steps)
        assert found["q1"].steps[:kept] == whole["q1"].steps[:kept]
        assert (len(found["q1"].steps), found["q1"].steps[-1].answer) == (kept + 1, None)
        assert sum(s.tokens for s in found["q1"].steps) == fail_at - 1
