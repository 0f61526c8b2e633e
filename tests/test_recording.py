"""Recording: questions read with care, and traces that add up."""

from __future__ import annotations

import warnings
from dataclasses import replace

import openai
import pytest
from loopback import Loopback, is_answer_call, sums, thinking
from recording_servers import LINES, QUESTIONS, backend

from entropy_chains.backends import Probe, Sampling
from entropy_chains.backends.openai import OpenAIBackend
from entropy_chains.backends.scripted import Script, ScriptedBackend
from entropy_chains.core.policy import Policy
from entropy_chains.errors import InputError, SettingsError
from entropy_chains.offline.cut_runs import of_recording
from entropy_chains.offline.table import as_table
from entropy_chains.offline.traces import Trace, append_traces, read_traces
from entropy_chains.recording import conversation, record, thinking_steps


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


# --- a server


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
