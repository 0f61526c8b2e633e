"""Questions that fail while others are recorded, scripted and over real HTTP: each is told, and none keeps others waiting."""

from __future__ import annotations

import threading
from itertools import chain, repeat

import openai
import pytest
from hostile import Act, Hostile, begin, events
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import UNSURE, is_answer_call, thinking
from recording_servers import LINES, STEPS, answer, asked_of, backend, failing, many, served, until_it_ends

from entropy_chains.backends import Sampling
from entropy_chains.backends.scripted import Script, ScriptedBackend
from entropy_chains.errors import BackendError, BatchError, NoLogprobsError
from entropy_chains.recording import MOST_FAILURES, RecordError, record

# --- what fails


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


def test_what_would_befall_all_is_raised_itself():
    """Nothing was recorded, and nothing can be: the error's own type, after a handful of questions, with a note of the rest."""
    b = Blind(*range(50))
    found, error = until_it_ends(record(b, many(50), batch=1))
    assert (found, type(error), str(error), len(b.asked)) == ([], NoLogprobsError, "none here", MOST_FAILURES)
    assert error.__notes__ == [f"{50 - MOST_FAILURES} more were given up: each would have failed alike"]
    found, error = until_it_ends(record(Blind(0, 1), many(2), batch=1))
    assert (found, type(error), getattr(error, "__notes__", [])) == ([], NoLogprobsError, [])


def test_one_of_them_among_others_ends_nothing():
    """A reply without logprobs now and then is its own question's failure; only many in a row end the recording."""
    found, error = until_it_ends(record(Blind(*range(0, 50, 2)), many(50), batch=1))
    assert len(found) == len(error.failed) == 25
    b = Blind(*range(10, 50))
    found, error = until_it_ends(record(b, many(50), batch=1))
    assert (len(found), list(error.failed), error.given_up) == (
        10,
        [f"q{n}" for n in range(10, 10 + MOST_FAILURES)],
        40 - MOST_FAILURES,
    )
    assert len(b.asked) == 10 + MOST_FAILURES


def test_a_cancelled_recording_yields_what_is_finished():
    """The rest of the batch that is being yielded comes; no further one is asked."""
    cancelled = threading.Event()
    found = []
    for trace in record(backend(), many(9), batch=3, cancelled=cancelled):
        found.append(trace.id)
        cancelled.set()
    assert found == ["q0", "q1", "q2"]


# --- a server


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
