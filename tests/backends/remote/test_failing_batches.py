"""Batches of which some conversations fail, over real sockets: those that are finished survive."""

from __future__ import annotations

import openai
import pytest
from hostile import Act, Hostile, begin, end, events
from hostile_runs import ANSWER, BOTH, KEY, POLICY, STOP, answered, many, some, whole_run
from loopback import UNSURE, Reply, is_answer_call, said, thinking

from entropy_chains.backends.openai import OpenAIBackend
from entropy_chains.errors import BackendError, BatchError, NoLogprobsError
from entropy_chains.refine import RefineError, run_refine


def numbered(count):
    return [[{"role": "user", "content": f"question {n}"}] for n in range(count)]


def number(request):
    return int(request.body["messages"][0]["content"].split()[-1])


def script_of(failing):
    def script(request):
        if number(request) in failing:
            return [*some(request), Act.RESET]
        return answered(request) if is_answer_call(request.body) else whole_run(request)

    return script


@BOTH
def test_finished_conversations_survive_those_that_fail(run):
    """Two of six fail: the error has the other four in their places, and the two reasons in theirs."""
    with Hostile(script_of({1, 4})) as server:
        error = many(run, server, numbered(6), policy=POLICY)
        assert server.empty()
    assert isinstance(error, BatchError)
    assert str(error).startswith("2 of 6 conversations failed, the first with BackendError: the connection to")
    assert [r and (r.answer, r.tokens, r.outcome.stopped) for r in error.runs] == [
        None if n in (1, 4) else ("The answer is 42", STOP + len(ANSWER), True) for n in range(6)
    ]
    assert [type(e) for e in error.errors] == [BackendError if n in (1, 4) else type(None) for n in range(6)]


@BOTH
def test_where_all_fail_it_is_the_first_ones_error(run):
    """No batch to be rescued: the reason itself."""
    with Hostile(script_of(range(3))) as server, pytest.raises(BackendError, match=r"^the connection to"):
        many(run, server, numbered(3))


@BOTH
def test_what_would_befall_all_ends_the_batch(run):
    """A server without logprobs is no conversation's own failure: the others are not asked for nothing."""
    blind = thinking(None, None)
    with Hostile(lambda r: [*begin(), *events(blind, r.body), *end()]) as server:
        with pytest.raises(NoLogprobsError):
            many(run, server, numbered(30))
        assert server.empty()
        assert len(server.requests) < 10


def test_a_loop_loses_only_the_conversation_that_failed():
    """The loop of several calls keeps its finished conversations too, though a step's calls are one batch."""
    spoken = said("The answer is 42", UNSURE)

    def script(request):
        if number(request) == 1 and len(request.body["messages"]) > 1:
            return [Act.RESET]
        return [*begin(), *events(Reply(spoken), request.body), *end(len(spoken))]

    with Hostile(script) as server, openai.OpenAI(base_url=server.url, api_key=KEY, max_retries=0) as client:
        backend = OpenAIBackend(client, "scripted")
        with pytest.raises(RefineError, match="1 of 3") as caught:
            run_refine(backend, numbered(3), steps=2)
    assert [r and len(r.calls) for r in caught.value.runs] == [2, None, 2]
    assert [e is None for e in caught.value.errors] == [True, False, True]
