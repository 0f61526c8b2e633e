"""Recording: questions read with care, and traces that add up."""

from __future__ import annotations

import asyncio
import threading
import warnings
from dataclasses import replace
from itertools import chain, repeat

import openai
import pytest
from hostile import Act, Hostile, begin, end, event, events, whole
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import UNSURE, Loopback, Reply, is_answer_call, said, sums, thinking

from entropy_chains.backends import Probe, Sampling
from entropy_chains.backends.openai import AsyncOpenAIBackend, OpenAIBackend
from entropy_chains.backends.scripted import Script, ScriptedBackend
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import BackendError, BatchError, InputError, NoLogprobsError, SettingsError
from entropy_chains.offline.cut_runs import of_recording
from entropy_chains.offline.table import as_table
from entropy_chains.offline.traces import Trace, append_traces, read_traces
from entropy_chains.recording import PATIENCE, RecordError, conversation, record, thinking_steps

LINES = Segmentation("line", 1)
STEPS = [("one ", 1.0), ("\n", 1.0), ("two ", 0.5), ("\n", 0.5), ("three ", 0.0), ("\n", 0.0)]
QUESTIONS = [{"id": f"q{n}", "question": f"{n}?", "gold": "4"} for n in range(3)]


def backend():
    """Three steps a question; closed after them it says 3, 4 and nothing."""
    return ScriptedBackend(Script(STEPS, "the answer is 4", early=["3", "4", ""]), segmentation=LINES)


def recorded(**given):
    b = backend()
    return list(record(b, QUESTIONS, **{"details": b.details(Sampling()), **given}))


# --- thinking


def test_a_thinking_trace_by_hand():
    """Open tag + 2, 2, 2 tokens with the answers 3, 4, none; last the rest: closing (2) and four words, as they were said."""
    trace = recorded()[0]
    assert [s.tokens for s in trace.steps] == [3, 2, 2, 6]
    assert [s.answer for s in trace.steps] == ["3", "4", None, "the answer is 4"]
    assert [s.entropy for s in trace.steps] == [pytest.approx(1.0), pytest.approx(0.5), pytest.approx(0.0), None]
    assert [s.probe_tokens for s in trace.steps] == [3, 3, 2, 0]
    assert [s.text for s in trace.steps] == ["<think>one \n", "two \n", "three \n", None]
    assert (trace.id, trace.question, trace.gold, trace.mode, trace.model) == ("q0", "0?", "4", "thinking", "scripted")
    assert (trace.k, trace.estimator, trace.segmentation, trace.template) == (
        20,
        "renormalised",
        LINES.to_dict(),
        backend().template,
    )


def test_what_a_probe_read_stands_among_its_step_s_signals():
    """Beside the step's own statistics; the last step was not probed and has none."""
    run = backend().generate([conversation(QUESTIONS[0])], stop=False)[0]
    probes = [Probe("3", 5, {"eat": 1.5, "trial_confidence": 0.75}), Probe("4", 5), Probe(None, 5, {"eat": 0.5})]
    steps = thinking_steps(run, probes)
    assert [{n: s.signals.get(n) for n in ("eat", "trial_confidence")} for s in steps[:3]] == [
        {"eat": 1.5, "trial_confidence": 0.75},
        {"eat": None, "trial_confidence": None},
        {"eat": 0.5, "trial_confidence": None},
    ]
    assert all(s.signals["sum_entropy"] >= 0 for s in steps[:3])
    assert [s.probe_tokens for s in steps] == [5, 5, 5, 0]
    assert steps[-1].signals == {}


def test_a_thinking_trace_adds_up():
    """Its steps hold all tokens of the full run."""
    runs = backend().generate([conversation(q) for q in QUESTIONS])
    assert [sum(s.tokens for s in t.steps) for t in recorded()] == [g.tokens for g in runs]


@pytest.mark.parametrize("steps", [1, 2, 3, 9])
def test_at_most_so_many_boundaries(steps):
    """The rest of the run is its last step, so nothing is lost from the count."""
    limited, whole = recorded(steps=steps)[0], recorded()[0]
    kept = min(steps, 3)
    assert len(limited.steps) == kept + 1
    assert [s.tokens for s in limited.steps[:kept]] == [s.tokens for s in whole.steps[:kept]]
    assert sum(s.tokens for s in limited.steps) == sum(s.tokens for s in whole.steps)
    assert limited.steps[-1].answer == whole.steps[-1].answer


def test_a_run_without_a_boundary_has_one_step():
    """A direct answer is the full run and nothing else."""
    b = ScriptedBackend(Script(answer="4"), segmentation=LINES)
    trace = next(record(b, QUESTIONS[:1]))
    assert [(s.answer, s.tokens, s.entropy) for s in trace.steps] == [("4", 1, None)]


def test_traces_can_be_written_read_and_used(tmp_path):
    """The file's records are valid, the table takes them, and a policy of these settings fits them."""
    traces = recorded()
    append_traces(tmp_path / "t.jsonl", traces)
    assert [t.to_dict() for t in read_traces(tmp_path / "t.jsonl")] == [t.to_dict() for t in traces]
    table = as_table(traces)
    assert (table.runs, table.labels) == (3, "gold")
    table.check(Policy("scripted", (0.5,), segmentation=LINES, template=backend().template), "error")


def test_seeds_go_with_the_place_of_the_question():
    """A batch of two and a batch of one: the seed moves on by the questions before."""
    assert [(t.seed, t.batch) for t in recorded(batch=2, sampling=Sampling(seed=10))] == [(10, 2), (10, 2), (12, 1)]


def test_a_system_prompt_is_asked_first():
    """And nothing is asked without one."""
    assert [m["role"] for m in conversation(QUESTIONS[0], "be brief")] == ["system", "user"]
    assert conversation(QUESTIONS[0]) == [{"role": "user", "content": "0?"}]


def test_recording_never_stops(monkeypatch):
    """The full run is what is recorded, whatever the environment."""
    whole = [t.to_dict() for t in recorded()]
    monkeypatch.setenv("ENTROPY_CHAINS_STOP", "0")
    assert [t.to_dict() for t in recorded()] == whole


# --- runs that were cut off


@pytest.mark.filterwarnings("ignore:.*runs were cut off")
@pytest.mark.parametrize(
    ("limit", "finish", "answer"), [(14, "stop", "the answer is 4"), (13, "length", None), (9, "length", None), (4, "length", None)]
)
def test_a_run_at_its_limit_has_no_full_answer(limit, finish, answer):
    """13 tokens, and the end after them. One fewer leaves an answer that may go on, which is none; the steps keep theirs."""
    trace = recorded(sampling=Sampling(max_tokens=limit))[0]
    assert (trace.finish, trace.finish_raw, trace.max_tokens, trace.is_cut) == (finish, finish, limit, finish != "stop")
    assert trace.steps[-1].answer == answer
    assert [s.answer for s in trace.steps[:-1]] == ["3", "4", None][: len(trace.steps) - 1]
    assert sum(s.tokens for s in trace.steps) == min(limit, 13)


def test_cut_runs_are_counted_at_the_end():
    """A warning, or who asks for it, is told how many there were and which limit to raise; of none nothing is said."""
    with pytest.warns(UserWarning, match=r"3 of 3 runs were cut off \(length: 3\).*--max-tokens; it was 9"):
        recorded(sampling=Sampling(max_tokens=9))
    told = []
    recorded(sampling=Sampling(max_tokens=9), tell=told.append)
    assert [text.split(" (")[0] for text in told] == ["3 of 3 runs were cut off"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recorded(tell=told.append)
    assert len(told) == 1


@pytest.mark.parametrize(
    ("finishes", "told"),
    [
        ({"stop": 5}, None),
        ({"stop": 5, "error": 1}, "1 of 6 runs were cut off (error: 1)"),
        ({"length": 2, "content_filter": 1}, "3 of 3 runs were cut off (length: 2, content_filter: 1)"),
    ],
)
def test_what_is_told_of_cut_runs(finishes, told):
    """The limit where it was reached; else where to find the server's own words."""
    message = of_recording(finishes, 100)
    assert (message is None) == (told is None)
    if message is not None:
        assert message.startswith(told)
        assert ("--max-tokens" in message) == ("length" in finishes)
        assert "finish_raw" in message


@pytest.mark.filterwarnings("ignore:.*runs were cut off")
def test_calls_that_were_cut_off_have_no_answer():
    """Of the loop the last call tells how it ended; one that was cut off earlier has no answer."""
    long, short = Script(answer=[("half ", 1.0), ("an ", 1.0), ("answer", 1.0)]), Script(answer=[("4", 0.5)])
    for turns, answers, finish in (([long, short], [None, "4"], "stop"), ([short, long], ["4", None], "length")):
        b = ScriptedBackend({"0?": turns})
        trace = next(record(b, QUESTIONS[:1], mode="refine", steps=2, sampling=Sampling(max_tokens=2)))
        assert ([s.answer for s in trace.steps], trace.finish, trace.max_tokens) == (answers, finish, 2)


WORDS = [("stop", "stop"), ("eos", "stop"), ("length", "length"), ("content_filter", "content_filter")]
WORDS += [("insufficient_system_resource", "error"), ("abort", "error"), ("repetition", "other")]


@pytest.mark.filterwarnings("ignore:.*runs were cut off")
@pytest.mark.parametrize("mode", ["thinking", "refine"])
@pytest.mark.parametrize(("word", "finish"), WORDS)
def test_what_a_server_ends_a_reply_with_is_recorded(word, finish, mode):
    """Its own word and what it means; only an end of its own leaves an answer."""

    def script(body):
        return sums(body) if is_answer_call(body) else replace(thinking(2.0, 0.1, answer="42"), finish=word)

    with Loopback(script) as server, openai.OpenAI(base_url=server.url, api_key="none") as client:
        b = OpenAIBackend(client, "scripted", segmentation=LINES)
        (trace,) = record(b, QUESTIONS[:1], mode=mode, steps=2, sampling=Sampling(max_tokens=500))
    assert (trace.finish, trace.finish_raw, trace.max_tokens) == (finish, word, 500)
    assert trace.steps[-1].answer == ("42" if finish == "stop" else None)
    assert Trace.from_dict(trace.to_dict()) == trace


# --- the loop


def test_a_refine_trace():
    """One step a call, with its own answer, no probes, and the segmentation of calls."""
    turns = [Script(answer=[("3", 1.0)]), Script(answer=[("4", 0.5), (" ", 0.1)]), Script(answer=[("5", 0.2)])]
    b = ScriptedBackend({"0?": turns})
    trace = next(record(b, QUESTIONS[:1], mode="refine", steps=3))
    assert [(s.answer, s.tokens, s.probe_tokens) for s in trace.steps] == [("3", 1, 0), ("4", 2, 0), ("5", 1, 0)]
    assert [s.entropy for s in trace.steps] == [pytest.approx(e) for e in (1.0, 0.3, 0.2)]
    assert (trace.mode, trace.segmentation) == ("refine", {"boundary": "call", "min_tokens": 1})


@pytest.mark.parametrize(("given", "told"), [({"mode": "think"}, "mode is 'think'"), ({"steps": 0}, "steps is 0")])
def test_impossible_settings(given, told):
    """The message names the value."""
    with pytest.raises(SettingsError, match=told):
        recorded(**given)


def test_a_trace_tells_how_its_entropies_came_about():
    """Without being told to: a policy calibrated on it is then one for this k, template and temperature; a field given wins."""
    b = ScriptedBackend({"0?": Script(answer=[("3", 1.0)])})
    trace = next(record(b, QUESTIONS[:1], sampling=Sampling(temperature=0.7)))
    assert {"k": trace.k, "estimator": trace.estimator, "temperature": trace.temperature, "template": trace.template} == {
        "k": 20,
        "estimator": "renormalised",
        "temperature": 0.7,
        "template": b.template,
    }
    assert next(record(b, QUESTIONS[:1], details={"k": 5})).k == 5


# --- what fails


def failing(*bad, count=6):
    """A backend of which these questions fail, and its questions."""
    scripts = {f"{n}?": Script(STEPS, "4", fail_at=2 if n in bad else None) for n in range(count)}
    return ScriptedBackend(scripts, segmentation=LINES), [{"id": f"q{n}", "question": f"{n}?"} for n in range(count)]


def until_it_ends(traces):
    """Ids of the traces, and what was raised after the last."""
    found, raised = [], None
    try:
        found.extend(trace.id for trace in traces)
    except Exception as error:  # noqa: BLE001 (looked at by the caller)
        raised = error
    return found, raised


@pytest.mark.parametrize("mode", ["thinking", "refine"])
def test_the_error_comes_last_and_holds_what_failed(mode):
    """All other traces are yielded before; the error names the first by its id, and has each reason in its place and by id."""
    b, questions = failing(1, 4)
    told = []
    traces = record(b, questions, mode=mode, batch=3, on_failure=lambda question, error: told.append((question["id"], error)))
    found, error = until_it_ends(traces)
    assert found == ["q0", "q2", "q3", "q5"]
    assert isinstance(error, RecordError)
    assert isinstance(error, BatchError)
    assert str(error) == "2 of 6 questions failed, the first (q1) with the script fails at token 2, as it was told to"
    assert list(error.failed.items()) == told
    assert [name for name, _ in told] == ["q1", "q4"]
    assert [type(e) for e in error.errors] == [BackendError if n in (1, 4) else type(None) for n in range(6)]
    assert (error.__cause__, error.runs, error.given_up) == (error.failed["q1"], (), 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.sets(st.integers(0, 8)), st.integers(1, 10), st.sampled_from(["thinking", "refine"]))
def test_every_question_is_recorded_once_or_named(count, bad, batch, mode):
    """Whatever fails and however many run together; a second recording of what is left then has the rest, in the same places."""
    bad = {n for n in bad if n < count}
    b, questions = failing(*bad, count=count)
    given = {"mode": mode, "batch": batch, "sampling": Sampling(seed=100)}
    found, error = until_it_ends(record(b, questions, **given))
    assert found == [f"q{n}" for n in range(count) if n not in bad]
    assert (list(error.failed) if error else []) == [f"q{n}" for n in sorted(bad)]
    whole, _ = failing(count=count)
    again = list(record(whole, questions, **given, done=found))
    assert [t.id for t in again] == [f"q{n}" for n in sorted(bad)]
    places = [int(t.id[1:]) for t in again]
    assert all(100 + place // batch * batch <= t.seed <= 100 + place for place, t in zip(places, again, strict=True))
    assert batch > 1 or [t.seed for t in again] == [100 + place for place in places]


def test_a_batch_that_fails_as_a_whole_is_halved():
    """A backend that cannot tell which question it was, or has no room for so many: only those that fail alone are lost."""

    class Small(ScriptedBackend):
        def generate(self, conversations, **kwargs):
            if len(conversations) > 4:
                raise MemoryError("no room for so many")
            if any("3?" in str(messages) for messages in conversations):
                raise ValueError("one of these")
            return super().generate(conversations, **kwargs)

    questions = [{"id": f"q{n}", "question": f"{n}?"} for n in range(9)]
    found, error = until_it_ends(record(Small(Script(STEPS, "4"), segmentation=LINES), questions))
    assert found == [f"q{n}" for n in range(9) if n != 3]
    assert str(error).endswith("the first (q3) with ValueError: one of these")


class Blind(ScriptedBackend):
    """Gives no logprobs for questions that are told."""

    def __init__(self, *blind):
        super().__init__(Script(STEPS, "4"), segmentation=LINES)
        self.blind, self.asked = blind, []

    def generate(self, conversations, **kwargs):
        self.asked += [int(messages[0]["content"][:-1]) for messages in conversations]
        if self.asked[-1] in self.blind:
            raise NoLogprobsError("none here")
        return super().generate(conversations, **kwargs)


def many(count):
    return [{"id": f"q{n}", "question": f"{n}?"} for n in range(count)]


def test_what_would_befall_all_is_raised_itself():
    """Nothing was recorded, and nothing can be: the error's own type, after a handful of questions, with a note of the rest."""
    b = Blind(*range(50))
    found, error = until_it_ends(record(b, many(50), batch=1))
    assert (found, type(error), str(error), len(b.asked)) == ([], NoLogprobsError, "none here", PATIENCE)
    assert error.__notes__ == [f"{50 - PATIENCE} more were given up: each would have failed alike"]
    found, error = until_it_ends(record(Blind(0, 1), many(2), batch=1))
    assert (found, type(error), getattr(error, "__notes__", [])) == ([], NoLogprobsError, [])


def test_one_of_them_among_others_ends_nothing():
    """A reply without logprobs now and then is its own question's failure; only many in a row end the recording."""
    found, error = until_it_ends(record(Blind(*range(0, 50, 2)), many(50), batch=1))
    assert len(found) == len(error.failed) == 25
    b = Blind(*range(10, 50))
    found, error = until_it_ends(record(b, many(50), batch=1))
    assert (len(found), list(error.failed), error.given_up) == (10, [f"q{n}" for n in range(10, 10 + PATIENCE)], 40 - PATIENCE)
    assert len(b.asked) == 10 + PATIENCE


def test_a_cancelled_recording_yields_what_is_finished():
    """The rest of the batch that is being yielded comes; no further one is asked."""
    cancelled = threading.Event()
    found = []
    for trace in record(backend(), many(9), batch=3, cancelled=cancelled):
        found.append(trace.id)
        cancelled.set()
    assert found == ["q0", "q1", "q2"]


# --- a server


def answer(request):
    """Two steps and an answer, or the answer alone."""
    made = Reply(said("The answer is 4")) if is_answer_call(request.body) else thinking(UNSURE, UNSURE, answer="The answer is 4")
    return [*begin(), *events(made, request.body), *end(len(made.tokens))]


def served(client, **settings):
    return OpenAIBackend(client, "scripted", segmentation=Segmentation("line", 32), **settings)


def asked_of(request):
    """Number of the question."""
    return int(request.body["messages"][0]["content"][:-1])


def test_a_slow_question_keeps_no_other_waiting():
    """The first gets no answer until the last trace came: every other comes before it, with the seed of its place."""
    free = threading.Event()

    async def slowly(request):
        while not free.is_set():
            yield b""
        for act in answer(request):
            yield act

    def script(request):
        return slowly(request) if asked_of(request) == 0 and not is_answer_call(request.body) else answer(request)

    seeds = {}
    with Hostile(script) as server, openai.OpenAI(base_url=server.url, api_key="none") as client:
        for trace in record(served(client, concurrency=2), many(8), sampling=Sampling(seed=10)):
            seeds[trace.id] = (trace.seed, trace.batch)
            if len(seeds) == 7:
                free.set()
        assert len(server.requests) == 8 * (1 + 2)  # a run and its two probes
    assert sorted(seeds) == [f"q{n}" for n in range(8)]
    assert list(seeds)[-1] == "q0"
    assert all(seeds[f"q{n}"] == (10 + n, 1) for n in range(8))


def test_never_more_requests_than_the_backend_s_concurrency():
    """Though 64 questions may run together: runs and probes count alike."""
    with Hostile(answer) as server, openai.OpenAI(base_url=server.url, api_key="none") as client:
        most = 0

        def script(request):
            nonlocal most
            most = max(most, server.busy)
            return answer(request)

        server.script = script
        assert len(list(record(served(client, concurrency=3), many(12)))) == 12
        assert len(server.requests) == 12 * 3
    assert most <= 3


@pytest.mark.parametrize("mode", ["thinking", "refine"])
def test_leaving_a_recording_ends_the_work(mode):
    """Closing it closes the requests under way at their next token, and nothing is asked that nobody waits for."""

    def script(request):
        endless = chain.from_iterable(repeat(events(thinking(UNSURE), request.body)))
        return chain(begin(), endless) if asked_of(request) else answer(request)

    with Hostile(script) as server, openai.OpenAI(base_url=server.url, api_key="none") as client:
        traces = record(served(client, concurrency=3), many(50), mode=mode, steps=2)
        assert next(traces).id == "q0"
        assert {asked_of(r) for r in server.requests} <= {0, 1, 2}
        traces.close()
        assert server.quiet()
        assert {asked_of(r) for r in server.requests} <= {0, 1, 2}


def test_a_probe_that_fails_is_its_question_s_failure():
    """The answer after a step cannot be had: that question is named, with the probe's own error."""

    def script(request):
        return [Act.CLOSE] if asked_of(request) == 1 and is_answer_call(request.body) else answer(request)

    with Hostile(script) as server, openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        found, error = until_it_ends(record(served(client), many(4)))
    assert sorted(found) == ["q0", "q2", "q3"]
    assert type(error.failed["q1"]) is BackendError
    assert "the connection to" in str(error)


@pytest.mark.parametrize(("wrong", "named"), [({"question": ""}, "question"), ({"group": 4}, "group"), ({"gold": ["4"]}, "gold")])
def test_questions_are_checked_before_any_is_asked(wrong, named):
    """From Python as from a file: the message says which question and which field; whole numbers are taken as texts."""
    asked = backend()
    asked.generate = None
    with pytest.raises(InputError, match=f"question 2: '{named}'"):
        list(record(asked, [QUESTIONS[0], {**QUESTIONS[0], "id": "b", **wrong}]))
    (trace,) = record(backend(), [{"id": 7, "question": QUESTIONS[0]["question"], "gold": 4}])
    assert (trace.id, trace.gold) == ("7", "4")


def test_further_details_are_kept():
    """A field of the user's own stands in the trace file as it was given."""
    (trace,) = record(backend(), QUESTIONS[:1], details={"machine": "a"})
    assert trace.extra == {"machine": "a"}
    assert trace.to_dict()["machine"] == "a"


# --- runs whose stream breaks


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
