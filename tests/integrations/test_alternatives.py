"""Servers that allow fewer alternatives than were asked for, asked in every way: asked again once, remembered, and said."""

from __future__ import annotations

import warnings
from dataclasses import replace

import loopback
import openai
import pytest
from frameworks import WAYS, Asker
from langchain_entropy_chains import EarlyStopChatModel
from langchain_openai import ChatOpenAI
from llama_index.core.llms import ChatMessage
from llama_index.llms.entropy_chains import EarlyStopLLM
from llama_index.llms.openai_like import OpenAILike
from loopback import SURE, UNSURE, Loopback, Reply, asks_logprobs, is_answer_call, said, thinking
from wire import top

from entropy_chains.backends.openai import OpenAIBackend
from entropy_chains.backends.remote.refused import allowed
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.doctor.examine import examine
from entropy_chains.errors import NoLogprobsError, PolicyMismatch
from entropy_chains.recording import record
from entropy_chains.refine import run_refine

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 8))
FIVE, LOOP = replace(POLICY, k=5), Policy("scripted", (0.2,), mode="refine", segmentation=Segmentation("call", 1))
IN_ALL_WAYS = pytest.mark.parametrize("way", WAYS)
QUESTION = [{"role": "user", "content": "6*7?"}]


def short(body):
    return Reply(said("42")) if is_answer_call(body) else thinking(UNSURE, SURE, SURE, words=10, answer="42")


def limited(most=5, answered=short, status=400):
    """A server that refuses to give more alternatives than ``most``."""

    def script(body):
        if asks_logprobs(body) and top(body) > most:
            return Reply(status=status, message=f"Invalid 'top_logprobs': expected a value <= {most}, but got {top(body)} instead.")
        return answered(body)

    return script


def tops(server):
    return [call.body.get("top_logprobs") for call in server.calls if not is_answer_call(call.body)]


@pytest.mark.parametrize(
    ("said", "most"),
    [
        ("Requested sample logprobs of 20, which is greater than max allowed: 5", 5),
        ("top_logprobs must be between 0 and 5", 5),
        ("Invalid value for 'top_logprobs': must be less than or equal to 5.", 5),
        ("Invalid 'top_logprobs': integer above maximum value. Expected a value <= 5, but got 20 instead.", 5),
        ("top_logprobs: Input should be less than or equal to 5", 5),
        ("ensure this value is less than or equal to 8", 8),
        ("top_logprobs is limited to 10", 10),
        ("top_logprobs 20 exceeds the maximum of 5", 5),
        ("top_logprobs should be in the range of [0, 5]", 5),
        ("top_logprobs must be less than 6", 5),
        ("logprobs: at most 5 alternatives", 5),
        ("top_logprobs is not supported by this model", None),
        ("logprobs 20 is too many", None),
        ("top_logprobs must be between 0 and 20 for gpt-5", None),
        ("maximum context length is 8192 tokens", None),
        ("top_logprobs must be at most 0", None),
        (None, None),
    ],
)
def test_the_number_that_is_allowed(said, most):
    """In the words of servers and validators; one that is none, is not smaller, or is about something else, counts for nothing."""
    assert allowed(said, 20) == most


@IN_ALL_WAYS
@pytest.mark.parametrize("status", [400, 403, 422])
def test_a_policy_of_more_alternatives_has_no_logprobs(way, status):
    """An error that names both k where logprobs are needed: nothing is measured with fewer in silence, and nothing was paid for."""
    settings = {} if way.startswith("core") else {"without_logprobs": "error"}
    with Loopback(limited(status=status)) as server:
        asker = Asker(way, server.url, POLICY, **settings)
        for _ in range(2):
            with pytest.raises(NoLogprobsError, match="policy is for k 20, but this run has k 5"):
                asker.ask()
        assert tops(server) == [20] * len(server.calls)
        assert server.made == 0


@IN_ALL_WAYS
def test_behind_the_added_line_such_a_call_runs_in_full(way):
    """The plain reply and one warning; later calls do not ask for logprobs again."""
    settings = {"without_logprobs": "full"} if way.startswith("core") else {}
    with Loopback(limited()) as server:
        asker = Asker(way, server.url, POLICY, **settings)
        with pytest.warns(
            UserWarning, match="allows 5 alternatives a token, and the policy is for k=20: running in full"
        ) as caught:
            assert [asker.ask().answer for _ in range(2)] == ["42", "42"]
        assert sum("alternatives" in str(w.message) for w in caught) == 1
        assert tops(server) == [20, None, None]


@IN_ALL_WAYS
def test_a_mismatch_that_is_allowed_goes_on_with_what_the_server_gives(way):
    """Asked again once, remembered for the client, and said."""
    with Loopback(limited()) as server:
        settings = {} if way.startswith("core") else {"on_mismatch": "warn"}
        given = {"on_mismatch": "warn"} if way.startswith("core") else {}
        asker = Asker(way, server.url, POLICY, **settings)
        with pytest.warns(UserWarning, match="policy is for k 20, but this run has k 5"):
            first = asker.ask(**given)
        with pytest.warns(UserWarning, match="policy is for k 20"):
            second = asker.ask(**given)
        assert tops(server) == [20, 5, 5]
    assert (first.stopped, second.stopped, first.answer) == (True, True, "42")


@IN_ALL_WAYS
def test_a_policy_that_fits_is_never_refused(way):
    """What is asked for is the policy's."""
    with Loopback(limited()) as server, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Asker(way, server.url, FIVE).ask().stopped
        assert tops(server) == [5]


def test_a_recording_says_what_was_measured():
    """Its traces have the k that their entropies have; the next client is told again, this one is not."""
    with Loopback(limited()) as server, openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        backend = OpenAIBackend(client, "scripted", concurrency=1)
        questions = [{"id": str(n), "question": "6*7?"} for n in range(3)]
        with pytest.warns(UserWarning, match="allows 5 alternatives") as warned:
            traces = list(record(backend, questions, segmentation=POLICY.segmentation))
        assert [trace.k for trace in traces] == [5] * 3
        assert {step.entropy is None for trace in traces for step in trace.steps[:-1]} == {False}
        assert sum("allows 5" in str(w.message) for w in warned) == 1
        assert sum(body == 20 for body in tops(server)) == 1


CAPPED = pytest.mark.parametrize("how", ["refused", "capped"])


def loop_server(how):
    """A reply in one line, of a server that refuses more than five alternatives, or gives no more whatever is asked for."""
    reply = Reply(said("forty two is what six times seven is and there is no doubt about that at all my friend", 4.3))
    if how == "refused":
        return Loopback(limited(answered=lambda body: reply))

    return Loopback(lambda body: reply)


@CAPPED
def test_the_loop_checks_its_policys_k(how, monkeypatch):
    """In refine mode as in thinking mode, in the core and in both frameworks."""
    entry = loopback.entry
    monkeypatch.setattr(loopback, "entry", lambda token, k: entry(token, min(k, 5) if how == "capped" else k))

    def run(server):
        inner = ChatOpenAI(model="scripted", base_url=server.url, api_key="none", max_retries=0)
        inside = OpenAILike(model="scripted", api_base=server.url, api_key="none", is_chat_model=True, max_retries=0)
        client = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0)
        yield lambda: run_refine(OpenAIBackend(client, "scripted"), [QUESTION], policy=LOOP, steps=3)
        yield lambda: EarlyStopChatModel(inner, LOOP, mode="refine", without_logprobs="error").invoke("6*7?")
        yield lambda: EarlyStopLLM(inside, LOOP, mode="refine", without_logprobs="error").chat([ChatMessage("6*7?")])

    with loop_server(how) as server:
        for ask in run(server):
            with pytest.raises((PolicyMismatch, NoLogprobsError), match="policy is for k 20, but this run has k 5"):
                ask()


def test_the_doctor_asks_for_what_is_allowed():
    """Its verdict names the k that this server gives, whatever it is."""
    long = lambda body: thinking(*[UNSURE] * 6, words=20, answer="42")  # noqa: E731
    with Loopback(limited(8, long)) as server, openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        found = examine(client, "scripted")
    assert (found.stopping, found["logprobs"], found["k"]) == (True, True, 8)
    assert "k=8" in found.verdict


@IN_ALL_WAYS
@pytest.mark.parametrize("rule", ["fixed-step", "agreement"])
def test_a_rule_that_reads_no_entropy_asks_for_no_logprobs(way, rule):
    """A server that refuses them is never asked: no error, no warning, and the run is stopped.

    But for LangChain's ChatOpenAI: it drops the text of the reasoning where that has a field of its own, so it is read from them.
    """
    policy = Policy("scripted", (None,), rule=rule, min_steps=2, segmentation=POLICY.segmentation)
    inline = "" if way.startswith("langchain") else "reasoning"
    with Loopback(limited(0), field_name=inline) as server, warnings.catch_warnings():
        warnings.simplefilter("error")
        got = Asker(way, server.url, policy).ask()
        assert (got.answer, got.stopped, got.told["early_stop_step"]) == ("42", True, 2)
        assert sum(asks_logprobs(call.body) for call in server.calls) == way.startswith("langchain")
