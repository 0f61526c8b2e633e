"""Servers that refuse a request because it asks for logprobs: asked again where that is allowed, remembered."""

from __future__ import annotations

import asyncio
import warnings
from contextlib import aclosing
from dataclasses import replace

import openai
import pytest
from loopback import REFUSALS, SURE, UNSURE, Loopback, Reply, asks_logprobs, is_answer_call, refusing, said, sums, thinking

from entropy_chains.backends import Sampling
from entropy_chains.backends.openai import AsyncOpenAIBackend, OpenAIBackend
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.doctor.examine import examine
from entropy_chains.errors import BackendError, NoLogprobsError
from entropy_chains.recording import record
from entropy_chains.refine import arun_refine, run_refine

ASKED = [{"role": "user", "content": "What is 6*7?"}]
POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))
UNREAD = {
    "fixed-step": Policy("scripted", (None,), rule="fixed-step", min_steps=2, segmentation=POLICY.segmentation),
    "agreement": Policy("scripted", (None,), rule="agreement", segmentation=POLICY.segmentation),
}
LOOP = Policy("scripted", (0.2,), mode="refine", segmentation=Segmentation("call", 1))
LINE = "42 is what six times seven is, and here is why, in more words than a server's patience is tried by: it is so"


def quick(body):
    """Three lines of thinking, then the answer."""
    return (
        Reply(said("The answer is 42"))
        if is_answer_call(body)
        else thinking(UNSURE, SURE, SURE, words=32, answer="The answer is 42")
    )


def slow(body):
    """The same at a pace at which a client on a busy machine keeps up."""
    return replace(quick(body), pace=0.001)


def refused_by(refused=REFUSALS["not allowed"]):
    """A server's script that refuses logprobs, and answers all else."""
    return refusing(refused, quick)


def silent(body):
    """No logprobs, whatever was asked."""
    return refused_by()({**body, "logprobs": None, "top_logprobs": None})


def sync(server, policy=POLICY, count=1, **settings):
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        return [OpenAIBackend(client, "scripted", **settings).generate([ASKED], policy=policy)[0] for _ in range(count)]


def asynchronous(server, policy=POLICY, count=1, **settings):
    async def run():
        async with openai.AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
            return [
                (await AsyncOpenAIBackend(client, "scripted", **settings).agenerate([ASKED], policy=policy))[0]
                for _ in range(count)
            ]

    return asyncio.run(run())


def streamed(server, policy=POLICY, count=1, **settings):
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        return [list(OpenAIBackend(client, "scripted", **settings).stream(ASKED, policy=policy))[-1].final for _ in range(count)]


def astreamed(server, policy=POLICY, count=1, **settings):
    async def run():
        async with openai.AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
            made = []
            for _ in range(count):
                async with aclosing(AsyncOpenAIBackend(client, "scripted", **settings).astream(ASKED, policy=policy)) as chunks:
                    made.append([chunk async for chunk in chunks][-1].final)
            return made

    return asyncio.run(run())


STREAMS = pytest.mark.parametrize("run", [streamed, astreamed])
BOTH = pytest.mark.parametrize("run", [sync, asynchronous])


@pytest.mark.parametrize("refused", REFUSALS.values(), ids=REFUSALS)
@BOTH
def test_full_gives_the_reply_all_the_same(run, refused):
    """One more request for the first reply, none for the next; one warning; the outcome is not active and says why."""
    with Loopback(refused_by(refused)) as server, pytest.warns(UserWarning, match=r"scripted.*refuses") as caught:
        made = run(server, count=2, without_logprobs="full")
    assert [asks_logprobs(call.body) for call in server.calls] == [True, False, False]
    assert len([w for w in caught if "refuses" in str(w.message)]) == 1
    for each in made:
        assert (each.answer, each.outcome.active, each.outcome.stopped) == ("The answer is 42", False, False)
        assert "the server refuses logprobs" in each.outcome.reason


@pytest.mark.parametrize("refused", REFUSALS.values(), ids=REFUSALS)
@BOTH
def test_error_is_raised_before_anything_is_paid_for(run, refused):
    """It names the server's reason and the ways out; the client's error is its cause."""
    with (
        Loopback(refused_by(refused)) as server,
        pytest.raises(NoLogprobsError, match=r"(?i)\(.*logprobs.*\).*without_logprobs") as caught,
    ):
        run(server)
    assert len(server.calls) == 1
    assert server.made == 0
    assert caught.value.__cause__ is not None


@STREAMS
def test_a_stream_begins_again_unseen(run):
    """What was refused showed nothing: the stream is that of the second request, whole."""
    with Loopback(refused_by(REFUSALS["in the stream"])) as server, pytest.warns(UserWarning, match="refuses"):
        (made,) = run(server, without_logprobs="full")
    assert (made.answer, made.tokens) == ("The answer is 42", server.calls[1].made)


@BOTH
def test_agreement_stops_without_entropy(run):
    """Two answers in a row agree: no request asks for logprobs any more, and the thinking is closed."""
    with Loopback(refused_by()) as server, pytest.warns(UserWarning, match="agree"):
        (made,) = run(server, without_logprobs="agreement")
    assert [asks_logprobs(call.body) for call in server.calls] == [True, False, False, False]
    assert (made.answer, made.outcome.stopped, made.outcome.reason) == ("The answer is 42", True, "answers agree")


@pytest.mark.parametrize(("chosen", "reason"), [("full", "does not tell trial_entropy"), ("agreement", "answers agree")])
@BOTH
def test_where_only_probes_are_refused_the_run_goes_on(run, chosen, reason):
    """The thinking has logprobs, the tried answers may have none: they are asked for without, and their entropy is given up."""

    def script(body):
        return refused_by()(body) if is_answer_call(body) else slow(body)

    policy = Policy("scripted", (0.01,), signal="trial_entropy", segmentation=POLICY.segmentation)
    with Loopback(script) as server, pytest.warns(UserWarning, match="does not tell"):
        (made,) = run(server, policy, without_logprobs=chosen)
    assert made.answer == "The answer is 42"
    assert reason in made.outcome.reason


@BOTH
def test_agreement_in_the_place_of_the_entropy_of_answers(run):
    """A policy on ``trial_entropy`` is served by agreement, too: its probes ask for no logprobs."""
    policy = Policy("scripted", (0.2,), signal="trial_entropy", segmentation=POLICY.segmentation)
    with Loopback(refused_by()) as server, pytest.warns(UserWarning, match="agree"):
        (made,) = run(server, policy, without_logprobs="agreement")
    assert (made.answer, made.outcome.reason) == ("The answer is 42", "answers agree")
    assert sum(asks_logprobs(call.body) for call in server.calls) == 1


@pytest.mark.parametrize("script", [refused_by(), refused_by(REFUSALS["in the stream"])], ids=["status", "in the stream"])
@pytest.mark.parametrize("rule", UNREAD)
@pytest.mark.parametrize("chosen", ["error", "full"])
@BOTH
def test_a_rule_that_reads_no_entropy_stops_all_the_same(run, chosen, rule, script):
    """Nothing is missing for it: no error, no warning, and it asks for none."""
    with warnings.catch_warnings(), Loopback(script) as server:
        warnings.simplefilter("error")
        runs = run(server, UNREAD[rule], count=2, without_logprobs=chosen)
    for made in runs:
        assert (made.answer, made.outcome.stopped, made.outcome.step) == ("The answer is 42", True, 2)
    assert not any(asks_logprobs(call.body) for call in server.calls)


@pytest.mark.parametrize("missing", ["refused", "not sent"])
@BOTH
def test_switched_off_it_is_no_error(run, monkeypatch, missing):
    """``ENTROPY_CHAINS_STOP=0`` runs in full whatever was chosen, whether logprobs are refused or just not sent."""
    monkeypatch.setenv("ENTROPY_CHAINS_STOP", "0")
    with Loopback(refused_by() if missing == "refused" else silent) as server, pytest.warns(UserWarning, match="logprobs"):
        (made,) = run(server)
    assert (made.answer, made.outcome.active, made.outcome.reason) == ("The answer is 42", False, "stopping is switched off")


@BOTH
def test_switched_off_figures_are_kept_where_the_server_gives_them(run, monkeypatch):
    """Logprobs are asked for as before: the outcome tells where it would have stopped."""
    monkeypatch.setenv("ENTROPY_CHAINS_STOP", "0")
    with Loopback() as server:
        (made,) = run(server)
    assert (made.outcome.stopped, made.outcome.step, len(server.calls)) == (False, 3, 1)


@BOTH
def test_the_responses_api(run):
    """It asks in another way, and is asked again in the same."""
    with Loopback(refused_by(), field_name="") as server, pytest.warns(UserWarning, match="refuses"):
        made = run(server, api="responses", count=2, without_logprobs="full")
    assert [asks_logprobs(call.body) for call in server.calls] == [True, False, False]
    assert [each.answer for each in made] == ["The answer is 42"] * 2


@BOTH
def test_what_was_no_refusal_of_logprobs_is_raised_as_it_is(run):
    """The request without logprobs fails as well: its own error comes, nothing is said of logprobs, and nothing is remembered."""
    with warnings.catch_warnings(), Loopback(lambda body: Reply(status=400, message="unknown model; logprobs ignored")) as server:
        warnings.simplefilter("error")
        with pytest.raises(BackendError, match="unknown model") as caught:
            run(server, without_logprobs="full")
        assert not isinstance(caught.value, NoLogprobsError)
        server.script = sums
        (made,) = run(server, without_logprobs="full")
    assert made.outcome.stopped


def test_a_connection_of_another_client_is_asked_for_itself():
    """What one client's server refuses is not known of another's."""
    with Loopback(refused_by()) as one, Loopback() as other:
        with pytest.warns(UserWarning, match="refuses"):
            (first,) = sync(one, without_logprobs="full")
        (second,) = sync(other, without_logprobs="full")
    assert (first.outcome.stopped, second.outcome.stopped) == (False, True)


def test_a_batch_pays_once():
    """After the first refusal no conversation of a later batch asks for logprobs; in the first one, at most those that ran."""
    with Loopback(refused_by()) as server, openai.OpenAI(base_url=server.url, api_key="none") as client:
        backend = OpenAIBackend(client, "scripted", without_logprobs="full", concurrency=2)
        with pytest.warns(UserWarning, match="refuses") as caught:
            runs = backend.generate([ASKED] * 4, policy=POLICY) + backend.generate([ASKED] * 4, policy=POLICY)
    assert len(runs) == 8
    assert sum(asks_logprobs(call.body) for call in server.calls) <= 2
    assert len(caught) == 1


def test_missing_logprobs_are_told_once_a_model():
    """Where they are just not sent, too; and the outcome is not active."""
    with Loopback(silent) as server, pytest.warns(UserWarning, match="no logprobs") as caught:
        made = sync(server, count=3, without_logprobs="full")
    assert len(caught) == 1
    assert [(each.answer, each.outcome.active) for each in made] == [("The answer is 42", False)] * 3


# --- the loop, probes, recording, the doctor


def looped(server, policy, asynchronous, **settings):
    """The loop's run of one question."""
    asked = {"policy": policy, "steps": 3}
    if not asynchronous:
        with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
            return run_refine(OpenAIBackend(client, "scripted", **settings), [ASKED], **asked)[0]

    async def run():
        async with openai.AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
            return (await arun_refine(AsyncOpenAIBackend(client, "scripted", **settings), [ASKED], **asked))[0]

    return asyncio.run(run())


def spoken(body):
    return Reply(said(LINE))


SHELLS = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


@pytest.mark.parametrize("refused", [True, False], ids=["refused", "not sent"])
@SHELLS
class TestTheLoop:
    """Several calls of one question, on a server that refuses logprobs, or just sends none."""

    def server(self, refused):
        scripted = refusing(script=spoken)
        return Loopback(scripted if refused else lambda body: scripted({**body, "logprobs": None, "top_logprobs": None}))

    def test_error(self, refused, asynchronous):
        """The first call raises it."""
        with self.server(refused) as server, pytest.raises(NoLogprobsError):
            looped(server, LOOP, asynchronous)

    def test_full(self, refused, asynchronous):
        """All calls are made; the outcome is not active, and says why."""
        with self.server(refused) as server, pytest.warns(UserWarning, match="logprobs"):
            run = looped(server, LOOP, asynchronous, without_logprobs="full")
        assert (run.answer, len(run.calls), run.outcome.active, run.outcome.stopped) == (LINE, 3, False, False)
        assert "no logprobs" in run.outcome.reason

    def test_agreement(self, refused, asynchronous):
        """The second call's answer is the first one's: the loop ends."""
        with self.server(refused) as server, pytest.warns(UserWarning, match="logprobs"):
            run = looped(server, LOOP, asynchronous, without_logprobs="agreement")
        assert (run.answer, len(run.calls), run.outcome.stopped, run.outcome.reason) == (LINE, 2, True, "answers agree")

    def test_switched_off(self, refused, asynchronous, monkeypatch):
        """Whatever was chosen, all calls are made."""
        monkeypatch.setenv("ENTROPY_CHAINS_STOP", "0")
        with self.server(refused) as server, pytest.warns(UserWarning, match="logprobs"):
            run = looped(server, LOOP, asynchronous)
        assert (run.answer, len(run.calls), run.outcome.reason) == (LINE, 3, "stopping is switched off")

    @pytest.mark.parametrize("chosen", ["error", "agreement"])
    @pytest.mark.parametrize("rule", UNREAD)
    def test_a_rule_that_reads_no_entropy(self, refused, asynchronous, rule, chosen):
        """It ends the loop, and nothing is said of logprobs, whatever was chosen for their want."""
        policy = Policy("scripted", (None,), rule=rule, mode="refine", min_steps=2, segmentation=LOOP.segmentation)
        with warnings.catch_warnings(), self.server(refused) as server:
            warnings.simplefilter("error")
            run = looped(server, policy, asynchronous, without_logprobs=chosen)
        assert (run.answer, len(run.calls), run.outcome.policy) == (LINE, 2, policy.fingerprint)


@SHELLS
def test_a_probe_of_a_finished_run_needs_no_logprobs(asynchronous):
    """Where they are refused for it alone the answer is asked for without: the run that it belongs to was paid for."""

    def script(body):
        return refused_by()(body) if is_answer_call(body) else quick(body)

    async def asked(server):
        async with openai.AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
            backend = AsyncOpenAIBackend(client, "scripted")
            (run,) = await backend.agenerate([ASKED])
            runs = [(ASKED, run, 2)], [(ASKED, run, 1)]
            return [*await backend.aprobe(runs[0], sampling=Sampling()), *await backend.aprobe(runs[1], sampling=Sampling())]

    def asked_now(server):
        with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
            backend = OpenAIBackend(client, "scripted")
            run = backend.generate([ASKED])[0]
            return [*backend.probe([(ASKED, run, 2)], sampling=Sampling()), *backend.probe([(ASKED, run, 1)], sampling=Sampling())]

    with Loopback(script) as server, pytest.warns(UserWarning, match="refuses"):
        probe, again = asyncio.run(asked(server)) if asynchronous else asked_now(server)
    assert (probe.answer, probe.signals) == (again.answer, again.signals) == ("The answer is 42", {})
    assert [asks_logprobs(call.body) for call in server.calls] == [True, True, False, False]


def test_recording_is_an_error_unless_it_is_allowed():
    """``record`` measures: without logprobs it raises before a reply was paid for; with ``full`` its steps have no entropy."""
    questions = [{"id": "1", "question": "What is 6*7?", "gold": "42"}]
    with Loopback(refused_by()) as server, openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        with pytest.raises(NoLogprobsError):
            list(record(OpenAIBackend(client, "scripted"), questions))
        assert server.made == 0
        with pytest.warns(UserWarning, match="nothing is measured"):
            (trace,) = record(OpenAIBackend(client, "scripted", without_logprobs="full"), questions)
    assert {step.entropy for step in trace.steps} == {None}


@pytest.mark.parametrize("refused", REFUSALS.values(), ids=REFUSALS)
def test_the_doctor_tells_it(refused):
    """A refusal of logprobs, with a 403 too, is a finding and no end of the examination."""
    plain = refusing(refused, lambda body: Reply(said("The answer is 42 " * 20)))
    with Loopback(plain, owned_by="openai") as server, openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        found = examine(client, "scripted")
    assert (found.stopping, found["logprobs"]) == (False, False)
    assert "gives no logprobs" in found.verdict
    assert "logprobs" in next(f for f in found.findings if f.name == "logprobs").evidence.partition("asked for 20: ")[2].lower()
