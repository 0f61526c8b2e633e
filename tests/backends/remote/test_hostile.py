"""Servers and users that misbehave, over real sockets: an answer or one clear error, a stop never retried, nothing left open."""

from __future__ import annotations

import re
from importlib import import_module
from itertools import chain, repeat

import openai
import pytest
from hostile import Act, Hostile, begin, end, event, events, whole
from hostile_runs import (
    ALL,
    ANSWER,
    ASKED,
    BOTH,
    FULL,
    KEY,
    LONG,
    POLICY,
    SHORT,
    STOP,
    THOUGHT,
    answered,
    endless,
    many,
    some,
    sync,
    whole_run,
)
from loopback import SURE, UNSURE, Reply, is_answer_call, line, said, thinking

from entropy_chains.backends.openai import OpenAIBackend
from entropy_chains.errors import BackendError, BatchError


def ask(run, server, policy=None, **settings):
    return run(server.url, policy, **{"api_key": KEY, "max_retries": 0, "timeout": LONG} | settings)


def refused(run, server, match, policy=None, **settings):
    """One error comes of it, with what happened and what to check; no key in it, no socket left."""
    with pytest.raises(BackendError) as caught:
        ask(run, server, policy, **settings)
    told = str(caught.value)
    assert re.search(match, told), told
    assert KEY not in told
    assert not isinstance(caught.value, BatchError)
    assert server.empty()


# --- a run that fails


def chunked(data):
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


FAILURES = {
    "error page": (lambda r: [whole(500, f"<html>{KEY}</html>", kind="text/html")], r"refused .*\(500\): a web page.*try again"),
    "bad gateway": (lambda r: [whole(502, "upstream connect error", kind="text/plain")], r"\(502\): .*upstream.*try again"),
    "wrong key": (lambda r: [whole(401, {"error": {"message": f"Incorrect: {KEY}"}})], r"\(401\): Incorrect: \[key\]; .*api_key"),
    "busy": (lambda r: [whole(429, {"error": {"message": "slow down"}})], r"\(429\): slow down; wait, lower concurrency"),
    "reset first": (lambda r: [Act.RESET], "connection to http://127.* failed .*check the address"),
    "close first": (lambda r: [Act.CLOSE], "connection to http://127.* failed .*check the address"),
    "no http": (lambda r: [b"SSH-2.0-OpenSSH\r\n"], "connection to http://127.* failed"),
    "reset thinking": (lambda r: [*some(r), Act.RESET], "connection to http://127.* failed"),
    "closed thinking": (lambda r: some(r), "the stream broke off: no finish reason.*server's log"),
    "closed answer": (lambda r: some(r, FULL - 2), "the stream broke off: no finish reason"),
    "half an event": (lambda r: [*some(r), events(THOUGHT, r.body)[50][:40]], "the stream broke off"),
    "chunk cut off": (
        lambda r: [begin(headers="Transfer-Encoding: chunked\r\n")[0], *map(chunked, events(THOUGHT, r.body)[:50])],
        "incomplete chunked read",
    ),
    "too short": (lambda r: [begin(headers="Content-Length: 9999\r\n")[0], *events(THOUGHT, r.body)[:2]], "connection to http"),
    "garbage": (lambda r: [*some(r), event(b'{"choices": [{'), *end()], "cannot be read .*OpenAI-compatible API"),
    "no utf-8": (lambda r: [*some(r), event(b'{"choices": "\xff\xfe"}'), *end()], "cannot be read .*UnicodeDecodeError"),
    "too deep": (lambda r: [*some(r), event(b"[" * 100_000), *end()], "cannot be read .*RecursionError"),
    "no gzip": (lambda r: [*begin(headers="Content-Encoding: gzip\r\n"), b"nonsense"], "decompressing"),
    "silence": (lambda r: [Act.SILENCE], "silent for longer than the client's timeout"),
    "silence thinking": (lambda r: [*some(r), Act.SILENCE], "silent for longer than the client's timeout"),
    "a web page": (lambda r: [whole(200, "<html>log in</html>", kind="text/html")], "no chunk of an answer; check that base_url"),
    "not streamed, and empty": (lambda r: [whole(200, {"choices": []})], "no chunk of an answer"),
    "nothing": (lambda r: begin(), "no chunk of an answer"),
    "moved": (
        lambda r: [whole(302, "", headers="Location: /login\r\n")],
        r"redirects the request \(to /login; set the client's base_url .*which answers 404",
    ),
    "error event": (
        lambda r: [*some(r), event({"error": {"message": f"out of memory, Bearer {KEY}", "code": 500}})],
        r"error in the stream: out of memory, \[key\]",
    ),
}


@ALL
@pytest.mark.parametrize("failure", FAILURES)
def test_a_run_that_fails_is_one_clear_error(run, failure):
    """Whatever goes wrong before or within a run: what happened and what to check; it was asked once, and the socket is closed."""
    script, message = FAILURES[failure]
    with Hostile(script) as server:
        refused(run, server, message, timeout=SHORT if "silence" in failure else LONG)
        assert len(server.requests) == 1


@ALL
def test_what_only_looks_odd_is_read(run):
    """Comments, pings, events that are no objects, a wrong content type: the full answer, every token counted once."""
    odd = [b": keep-alive\n\n", b"event: ping\ndata: {}\n\n", *(event(e) for e in (b"[1, 2]", b"null", b'"x"', b"7", b"{}"))]

    def script(request):
        sent = events(THOUGHT, request.body)
        return [*begin(kind="text/plain"), *odd, *sent[:50], *odd, *sent[50:], *odd, *end(FULL)]

    with Hostile(script) as server:
        made = ask(run, server)
    assert (made.answer, made.tokens) == ("The answer is 42", FULL)


def test_a_response_that_breaks_off_is_one_clear_error():
    """The Responses API ends a stream with an event that says so; without it a part of an answer is none."""
    delta = event({"type": "response.output_text.delta", "delta": "The answer", "logprobs": []})
    with Hostile(lambda r: [*begin(), delta, Act.CLOSE]) as server, openai.OpenAI(base_url=server.url, api_key=KEY) as client:
        with pytest.raises(BackendError, match="broke off: no finish reason"):
            OpenAIBackend(client, "scripted", api="responses").generate([ASKED])
        assert [r.path for r in server.requests] == ["/v1/responses"]


@BOTH
@pytest.mark.parametrize("first", [429, 500, 503])
def test_the_clients_own_retries_are_all_there_are(run, first):
    """A busy server is asked again by the SDK, when it said; the run is counted once. Without retries there is one request."""

    def script(request):
        busy = whole(first, {"error": {"message": "busy"}}, headers="Retry-After: 1\r\n")
        return [busy] if request.number == 0 else whole_run(request)

    with Hostile(script) as server:
        made = ask(run, server, max_retries=1)
        asked, again = server.requests
        assert (made.answer, made.tokens) == ("The answer is 42", FULL)
        assert again.at - asked.at >= 1


@BOTH
def test_an_open_client_keeps_no_broken_connection(run):
    """A client with room for one connection goes through every kind of failure, and its next run still has that one."""
    failing = [script for name, (script, _) in FAILURES.items() if "silence" not in name]
    scripts = [script for pair in zip(failing, repeat(whole_run), strict=False) for script in pair]
    httpx = next(c.__module__ for c in openai.DefaultHttpxClient.__mro__ if c.__module__.startswith("httpx"))  # or httpx2
    limits = import_module(httpx).Limits(max_connections=1)
    client = openai.DefaultHttpxClient if run is sync else openai.DefaultAsyncHttpxClient
    with Hostile(lambda request: scripts[request.number](request)) as server:
        settings = {"api_key": KEY, "max_retries": 0, "timeout": 5.0, "http_client": client(limits=limits)}
        made = many(run, server, [ASKED] * len(scripts), concurrency=1, **settings)
    assert [e is None for e in made.errors] == [False, True] * len(failing)
    assert not any("timeout" in str(e) for e in made.errors)


# --- a stop, and then


@ALL
@pytest.mark.parametrize("owner", ["vllm", "llamacpp", "nobody"])
def test_a_stop_is_not_retried(run, owner):
    """The SDK may retry as often as it likes: the closed stream is one request, the answer another, and the first is left."""

    def script(request):
        if request.path.endswith("/apply-template"):
            return [whole(200, {"prompt": "<|user|>"})]
        return answered(request) if is_answer_call(request.body) else endless_until_sure(request)

    with Hostile(script, owned_by=owner) as server:
        made = ask(run, server, POLICY, max_retries=5)
        assert server.quiet()
        runs = [r for r in server.requests if not r.path.endswith("/apply-template")]
    assert (made.answer, made.outcome.stopped, made.outcome.step) == ("The answer is 42", True, 3)
    assert made.tokens == STOP + len(ANSWER)
    assert [r.gone for r in runs] == [True, False]


def endless_until_sure(request):
    lines = [*thinking(UNSURE, UNSURE).tokens[:80], *line(" ".join(["sure"] * 40), SURE)]
    return chain(begin(), events(Reply(lines), request.body), endless(request))


BEFORE_TEXT = {
    "refused": lambda r: [whole(500, {"error": {"message": "no"}})],
    "reset": lambda r: [Act.RESET],
    "closed": lambda r: begin(),
    "a web page": lambda r: [whole(200, "<html></html>", kind="text/html")],
    "garbage": lambda r: [*begin(), event(b"{")],
}


@ALL
@pytest.mark.parametrize("failure", BEFORE_TEXT)
@pytest.mark.parametrize("owner", ["vllm", "llamacpp"])
def test_an_answer_that_cannot_be_had_is_asked_in_another_way(run, failure, owner):
    """The first way after the stop fails before any text: the second is used, and the run is a stopped one."""

    def script(request):
        if request.path.endswith("/apply-template"):
            return [whole(200, {"prompt": "<|user|>"})]
        if not is_answer_call(request.body):
            return whole_run(request)
        turn = "final answer now" in str(request.body)
        return answered(request) if turn else BEFORE_TEXT[failure](request)

    with Hostile(script, owned_by=owner) as server:
        made = ask(run, server, POLICY)
        assert server.empty()
    assert (made.answer, made.outcome.stopped, made.tokens) == ("The answer is 42", True, STOP + len(ANSWER))


@ALL
@pytest.mark.parametrize("failure", BEFORE_TEXT)
def test_an_answer_that_no_way_gives_is_a_full_run(run, failure):
    """Every way fails: the question is run in full, once; the stop is undone, says why, and its tokens are counted too."""
    with Hostile(lambda r: BEFORE_TEXT[failure](r) if is_answer_call(r.body) else whole_run(r)) as server:
        made = ask(run, server, POLICY)
        assert server.empty()
        assert [is_answer_call(r.body) for r in server.requests] == [False, True, True, False]
    assert (made.answer, made.outcome.stopped, made.tokens) == ("The answer is 42", False, STOP + FULL)
    assert "run in full" in made.outcome.reason
    assert KEY not in made.outcome.reason


@ALL
@pytest.mark.parametrize("last", [[Act.RESET], [Act.CLOSE], [event(b"{")], [Act.SILENCE]])
def test_an_answer_that_breaks_off_is_an_error(run, last):
    """Text of the answer was shown: no second one is put beside it, and no part of one is given for the whole."""

    def script(request):
        if not is_answer_call(request.body):
            return whole_run(request)
        return [*begin(), *events(Reply(said("The answer is what you get when six is multiplied")), request.body), *last]

    with Hostile(script) as server:
        refused(
            run, server, "broke off|connection to|cannot be read|silent", POLICY, timeout=SHORT if Act.SILENCE in last else LONG
        )
        assert len(server.requests) == 2


@BOTH
def test_a_redirect_without_end_is_named(run):
    """It is no connection that failed."""
    with Hostile(lambda r: [whole(307, "", headers=f"Location: {r.path}\r\n")]) as server:
        refused(run, server, "redirects without end .*set the client's base_url")
