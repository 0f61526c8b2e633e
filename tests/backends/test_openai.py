"""The OpenAI-compatible backend over real HTTP, against the scripted server of the tests (a fake: it thinks nothing)."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import openai
import pytest
from loopback import Loopback, Reply, Tok, is_answer_call, said, sums

from entropy_chains.backends import Sampling
from entropy_chains.backends.openai import AsyncOpenAIBackend, OpenAIBackend
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import NoLogprobsError, SettingsError

ASKED = [{"role": "user", "content": "What is 6*7?"}]
POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))


@pytest.fixture
def server():
    with Loopback() as running:
        yield running


def sync(server, policy=POLICY, **settings):
    with openai.OpenAI(base_url=server.url, api_key="none") as client:
        return OpenAIBackend(client, "scripted", **settings).generate([ASKED], policy=policy)[0]


def asynchronous(server, policy=POLICY, **settings):
    async def run():
        async with openai.AsyncOpenAI(base_url=server.url, api_key="none") as client:
            return (await AsyncOpenAIBackend(client, "scripted", **settings).agenerate([ASKED], policy=policy))[0]

    return asyncio.run(run())


@pytest.mark.parametrize("run", [sync, asynchronous])
def test_a_stop_ends_the_servers_work_and_gives_the_answer(server, run):
    """By the server's own count fewer tokens are made than planned, and the answer is the one after the closed thinking."""
    made = run(server)
    assert (made.answer, made.outcome.stopped, made.outcome.step) == ("The answer is 42", True, 3)
    reasoned, answered = server.calls
    assert reasoned.gone
    assert 120 <= reasoned.made <= 124 < reasoned.planned
    assert answered.body["continue_final_message"] is True
    assert answered.body["messages"][-1]["content"].endswith("</think>\n\n")
    assert made.tokens == 120 + answered.made


@pytest.mark.parametrize("run", [sync, asynchronous])
def test_without_a_policy_nothing_is_closed(server, run):
    """One request, read to its end; the tokens are the server's."""
    made = run(server, None)
    assert [c.gone for c in server.calls] == [False]
    assert made.tokens == server.made == server.calls[0].planned


@pytest.mark.parametrize("run", [sync, asynchronous])
def test_the_responses_api_is_stopped_too(run):
    """Thinking in the output text has logprobs: the stream is closed at the boundary, and a new turn gives the answer."""
    with Loopback(field_name="") as server:
        made = run(server, api="responses")
        reasoned, answered = server.calls
    assert (made.answer, made.outcome.stopped, made.outcome.step) == ("The answer is 42", True, 3)
    assert {c.path for c in server.calls} == {"/v1/responses"}
    assert reasoned.gone
    assert reasoned.made < reasoned.planned
    assert (reasoned.body["include"], reasoned.body["top_logprobs"]) == (["message.output_text.logprobs"], 20)
    assert "final answer now" in answered.body["input"][-1]["content"]
    assert "include" not in answered.body


@pytest.mark.parametrize("run", [sync, asynchronous])
def test_a_full_run_over_the_responses_api(run):
    """One request, read to its end; its tokens are the server's count."""
    with Loopback(field_name="") as server:
        made = run(server, None, api="responses")
        assert [c.gone for c in server.calls] == [False]
    assert (made.answer, made.tokens, made.finish_reason) == ("The answer is 42", server.made, "stop")


def test_reasoning_items_of_the_responses_api_have_no_logprobs():
    """They are refused, not taken for certainty."""
    with Loopback() as server, pytest.raises(NoLogprobsError):
        sync(server, api="responses")


@pytest.mark.parametrize(
    ("settings", "match"),
    [({"api": "rest"}, "api is 'rest'"), ({"api": "responses", "continuation": "prefill"}, "has 'turn' only")],
)
def test_a_bad_api_is_named(server, settings, match):
    with pytest.raises(SettingsError, match=match):
        sync(server, **settings)


@pytest.mark.parametrize("run", [sync, asynchronous])
def test_what_the_sdk_takes_besides_the_body_arrives(server, run):
    """Headers, query and body settings of the user's own are sent with every request, as the SDK's ``create`` sends them."""
    own = {"extra_headers": {"X-Team": "a"}, "extra_query": {"version": "2"}, "extra_body": {"lora": "b"}, "timeout": 30.0}
    made = run(server, request=own | {"user": "me"})
    assert made.outcome.stopped
    for call in server.calls:
        assert {"x-team": "a"}.items() <= {name.lower(): value for name, value in call.headers.items()}.items()
        assert call.query == "version=2"
        assert {"lora": "b", "user": "me"}.items() <= call.body.items()
        assert not {"extra_headers", "extra_query", "extra_body", "timeout"} & set(call.body)


def probes(server, n, asynchronous):
    """The answer after step ``n`` of a full run."""
    if not asynchronous:
        with openai.OpenAI(base_url=server.url, api_key="none") as client:
            backend = OpenAIBackend(client, "scripted")
            return backend.probe([(ASKED, backend.generate([ASKED])[0], n)], sampling=Sampling())[0]

    async def asked():
        async with openai.AsyncOpenAI(base_url=server.url, api_key="none") as client:
            backend = AsyncOpenAIBackend(client, "scripted")
            return (await backend.aprobe([(ASKED, (await backend.agenerate([ASKED]))[0], n)], sampling=Sampling()))[0]

    return asyncio.run(asked())


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (
            [Tok("4", 1.0, False), Tok("2", 2.0, False)],
            {"trial_confidence": 0.375, "trial_entropy": 1.5},
        ),  # probabilities 1/2 and 1/4
        ([Tok("4", 1.0, False), Tok("2", None, False)], {}),  # a token without a logprob
        ([Tok(t, 1.0, False) for t in ("</think>", "42")], {}),  # not all of it is the answer
    ],
)
def test_a_recorded_answer_tells_its_confidence(answer, told, asynchronous):
    """The mean probability of its tokens, where every one of them was told; a server tells no more."""
    with Loopback(lambda body: Reply(answer) if is_answer_call(body) else sums(body)) as server:
        probe = probes(server, 3, asynchronous)
        assert (server.calls[-1].body["logprobs"], server.calls[-1].body["top_logprobs"]) == (True, 20)
    assert (probe.answer, probe.tokens) == ("42", len(answer))
    assert probe.signals == pytest.approx(told)


def refusing_prefill(script):
    """A server that is taken for one that continues a turn, and refuses to."""

    def answered(body):
        if body.get("continue_final_message"):
            return Reply(status=400, message="continue_final_message: extra inputs are not permitted")
        return script(body)

    return answered


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_recorded_answer_is_asked_for_in_the_next_way_too(asynchronous):
    """As after a stop: where the first way is refused, nothing is lost."""
    with Loopback(refusing_prefill(sums)) as server:
        assert probes(server, 3, asynchronous).answer == "The answer is 42"
        assert [bool(c.body.get("continue_final_message")) for c in server.calls[-3:]] == [False, True, False]


BY_ANSWER = replace(POLICY, signal="trial_entropy", thresholds=(3.0,))


@pytest.mark.parametrize("run", [sync, asynchronous])
def test_a_probe_is_asked_for_in_the_next_way_too(run):
    """The run is stopped by its answer; later requests do not begin with the way that was refused."""
    with Loopback(refusing_prefill(lambda body: Reply(said("42", 0.5)) if is_answer_call(body) else sums(body))) as server:
        made = run(server, replace(BY_ANSWER, min_steps=2, rule="entropy+agreement"))
        assert (made.answer, made.outcome.stopped) == ("42", True)
        assert [bool(c.body.get("continue_final_message")) for c in server.calls] == [False, True, False, False]


def test_a_run_that_nobody_waits_for_ends_in_its_probe():
    """A worker hears of it there as well: the probe's request is ended, and no other one is sent."""
    cancelled = threading.Event()

    def script(body):
        if not is_answer_call(body):
            return sums(body)
        cancelled.set()
        return Reply(said(" ".join(["so"] * 400)), pace=0.001)

    with Loopback(script) as server, openai.OpenAI(base_url=server.url, api_key="none") as client:
        OpenAIBackend(client, "scripted").worker(cancelled).generate([ASKED], policy=BY_ANSWER)
        reasoned, probed = server.calls
        server.settled()
        assert reasoned.gone
        assert probed.gone
        assert probed.made < probed.planned
