"""How replies end that do not end as they should, asked in every way: what was cut is not passed as whole, and what is whole is."""

from __future__ import annotations

import json
import warnings
from contextlib import nullcontext

import openai
import pytest
from frameworks import WAYS, Asker
from hostile import Act, Hostile, begin, end, event, events, whole
from loopback import SURE, UNSURE, Reply, is_answer_call, said, thinking
from wire import HEAD

from entropy_chains.backends import Sampling
from entropy_chains.backends.openai import OpenAIBackend
from entropy_chains.backends.remote.transfer import Transfer
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import BackendError
from entropy_chains.recording import record

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 8))
WHOLE = thinking(UNSURE, UNSURE, words=10, answer="The answer is 42")
STOPPED = thinking(UNSURE, SURE, SURE, SURE, words=10, answer="The answer is 42")
IN_ALL_WAYS = pytest.mark.parametrize("way", WAYS)
UNFINISHED = "without a finish reason"
CUT = ("content_filter", "insufficient_system_resource", "abort", "repetition", "network_error", "model_context_window_exceeded")


def reply(request, made=WHOLE):
    return events(Reply(said("The answer is 42")) if is_answer_call(request.body) else made, request.body)


@IN_ALL_WAYS
@pytest.mark.parametrize("made", [WHOLE, STOPPED], ids=["in full", "stopped"])
def test_done_without_a_finish_reason_is_a_whole_reply(way, made):
    """The stream ends in order: the user has the answer, and one warning however many replies there are."""
    with Hostile(lambda request: [*begin(), *reply(request, made), event(b"[DONE]")]) as server:
        asker = Asker(way, server.url, POLICY)
        with pytest.warns(UserWarning, match=UNFINISHED) as warned:
            both = [asker.ask() for _ in range(2)]
    assert {(got.answer, got.stopped) for got in both} == {("The answer is 42", made is STOPPED)}
    assert sum(UNFINISHED in str(w.message) for w in warned) == 1


STRAYS = [
    b'event: error\ndata: {"message":"boom","code":500}\n\n',
    b'data: {"detail":"boom"}\n\n',
    b'data: {"type":"error","message":"boom"}\n\n',
    b'data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"m","choices":[],"message":"boom"}\n\n',
]


@pytest.mark.parametrize("way", [way for way in WAYS if not way.startswith("llama")])
@pytest.mark.parametrize("stray", STRAYS, ids=["event", "detail", "type", "choices"])
def test_an_answer_cut_by_an_error_of_another_form_is_none(way, stray):
    """An error that is no ``error`` object, and [DONE] after it: a part of an answer is not passed as whole."""
    part = events(Reply(said("The answer")), {"stream": True, "logprobs": True, "top_logprobs": 20})
    with Hostile(lambda request: [*begin(), *part, stray, event(b"[DONE]")]) as server, pytest.raises(BackendError, match="error"):
        Asker(way, server.url, POLICY).ask()


@IN_ALL_WAYS
def test_a_reply_without_a_reason_that_has_all_its_tokens_was_cut(way):
    """A server that never says why a reply ended: at the limit that was asked for, it was the limit."""
    given = {"sampling": Sampling(max_tokens=12)} if way.startswith("core") else {}
    body = {} if given else {"max_tokens": 12}
    made = Reply(said(" ".join(["word"] * 12)))
    with Hostile(lambda request: [*begin(), *events(made, request.body), event(b"[DONE]")]) as server, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert Asker(way, server.url, POLICY, body).ask(**given).finish == "length"


@IN_ALL_WAYS
def test_a_stream_without_any_end_broke_off(way):
    """The connection is closed in order, but nothing says that the reply was over: a part of an answer is no answer."""
    with Hostile(lambda request: [*begin(), *reply(request), Act.CLOSE]) as server, pytest.raises(BackendError, match="broke off"):
        Asker(way, server.url, POLICY).ask()


@IN_ALL_WAYS
@pytest.mark.parametrize("word", CUT)
def test_the_servers_word_is_carried_to_the_caller(way, word):
    """A reply that the server cut has the server's word for it, stopped or not."""
    for made in (WHOLE, STOPPED):
        with Hostile(lambda request, made=made: [*begin(), *reply(request, made), *end(30, reason=word)]) as server:
            got = Asker(way, server.url, POLICY).ask()
        assert (got.finish, got.stopped) == (word, made is STOPPED)


ERRORS = {
    "OpenAI's": {"error": {"message": "the model is overloaded", "code": 503}},
    "vLLM's": {"object": "error", "message": "the model is overloaded", "code": 503},
    "a text": {"error": "the model is overloaded"},
    "FastAPI's": {"detail": "the model is overloaded"},
    "a gateway's": {"code": 500, "msg": "the model is overloaded", "success": False},
}


@IN_ALL_WAYS
@pytest.mark.parametrize("body", ERRORS.values(), ids=ERRORS)
def test_an_error_with_status_200_has_the_servers_message(way, body):
    """It comes in the place of the stream."""
    with Hostile(lambda request: [whole(200, body)]) as server, pytest.raises(BackendError, match="the model is overloaded"):
        Asker(way, server.url, POLICY).ask()


IN_BAND = {
    "an object": event({"error": {"message": "the model is overloaded"}}),
    "an event": b"event: error\n" + event({"error": {"message": "the model is overloaded"}}),
    "vLLM's": event({"object": "error", "message": "the model is overloaded", "code": 503}),
    "a choice's": event(
        {**HEAD, "choices": [{"index": 0, "delta": {}, "error": {"message": "the model is overloaded"}, "finish_reason": "error"}]}
    ),
}


@IN_ALL_WAYS
@pytest.mark.parametrize("bad", IN_BAND.values(), ids=IN_BAND)
def test_an_error_in_the_stream_has_the_servers_message(way, bad):
    """Whatever its shape. The SDK raises some of these itself, which stay the framework's own error."""
    script, said = lambda request: [*begin(), *reply(request)[:20], bad, *end(20)], "the model is overloaded"
    with Hostile(script) as server, pytest.raises(Exception, match=said):
        Asker(way, server.url, POLICY).ask()


def test_a_trace_of_a_cut_reply_has_no_last_answer():
    """It says how the reply ended, in the server's word; a stream that ended in order without one is whole."""
    words = {None: ("stop", "42"), "abort": ("error", None), "content_filter": ("content_filter", None), "odd": ("other", None)}
    for word, (finish, answer) in words.items():
        last = end(30, reason=word) if word else [event(b"[DONE]")]

        def script(request, last=last):
            made = Reply(said("42")) if is_answer_call(request.body) else thinking(UNSURE, words=10, answer="42")
            return [*begin(), *events(made, request.body), *last]

        with Hostile(script) as server, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            client = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0)
            (trace,) = record(OpenAIBackend(client, "scripted"), [{"id": "q", "question": "6*7?"}])
        assert (trace.finish, trace.finish_raw, trace.steps[-1].answer) == (finish, word, answer)


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_the_end_is_seen_however_the_bytes_are_cut(size):
    """At the start of a line only: an answer that speaks of it, and JSON, in which a line end is escaped, do not end a stream."""
    spoken = b"data: " + json.dumps({"content": "then comes\ndata: [DONE] and data: [DONE]"}).encode() + b"\n\n"
    for data, done in ((spoken, False), (spoken + b"data: [DONE]\n\n", True), (spoken + b"data:[DONE]\r\n", True), (b"", False)):
        transfer = Transfer()
        for at in range(0, len(data), size):
            transfer.take(data[at : at + size])
        assert transfer.done is done


@pytest.mark.parametrize(("less", "is_told"), [(8, False), (40, True)])
def test_a_recording_is_kept_where_the_server_counts_fewer_tokens_than_came(less, is_told):
    """No step has fewer than no tokens, and nothing is lost for it; a count that is far off is told of."""
    made = lambda body: Reply(said("42")) if is_answer_call(body) else WHOLE  # noqa: E731

    def script(request):
        reply = made(request.body)
        return [*begin(), *events(reply, request.body), *end(max(1, len(reply.tokens) - less))]

    with Hostile(script) as server, openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        backend = OpenAIBackend(client, "scripted", segmentation=POLICY.segmentation)
        with pytest.warns(UserWarning, match="these are counted instead") if is_told else nullcontext():
            traces = list(record(backend, [{"id": "1", "question": "6*7?", "gold": "42"}]))
    assert [trace.steps[-1].answer for trace in traces] == ["The answer is 42"]
    assert all(step.tokens >= 0 for step in traces[0].steps)
