"""EntropyCallbackHandler over real HTTP, against the scripted server of the tests (a fake: it thinks nothing)."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import openai
import pytest
from langchain.agents import create_agent
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableParallel
from langchain_entropy_chains._measured import NO_LOGPROBS, Measurement
from langchain_entropy_chains.callbacks import EarlyStopped, EntropyCallbackHandler
from langchain_openai import ChatOpenAI
from loopback import Reply, sums

from entropy_chains.backends.openai import OpenAIBackend
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import PolicyMismatch, SettingsError

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32), calibration={"remaining_tokens": [200, 160, 120]})


def chat(server, **settings):
    given = {"logprobs": True, "top_logprobs": 20, "max_retries": 0, **settings}
    return ChatOpenAI(model="scripted", base_url=server.url, api_key="sk-verysecret123", **given)


def invoke(runnable, asked, config):
    return runnable.invoke(asked, config)


def stream(runnable, asked, config):
    return list(runnable.stream(asked, config))


def batch(runnable, asked, config):
    return runnable.batch([asked], config)


def ainvoke(runnable, asked, config):
    return asyncio.run(runnable.ainvoke(asked, config))


def astream(runnable, asked, config):
    async def run():
        return [c async for c in runnable.astream(asked, config)]

    return asyncio.run(run())


WAYS = [invoke, stream, batch, ainvoke, astream]


def chain(model):
    return ChatPromptTemplate.from_template("{x}") | model | StrOutputParser()


def parallel(model):
    return RunnableParallel(a=chain(model))


def agent(model):
    return (lambda asked: {"messages": [("user", asked["x"])]}) | create_agent(model)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_measured_equals_the_core(server, way):
    """Streamed or not, a run that is only watched has the entropies, the step and the tokens that the core has of it."""
    handler = EntropyCallbackHandler(POLICY)
    way(chat(server, stream_usage=True), "q", {"callbacks": [handler]})
    with openai.OpenAI(base_url=server.url, api_key="none") as client:
        asked = [[{"role": "user", "content": "q"}]]
        core = OpenAIBackend(client, "scripted").generate(asked, policy=POLICY, stop=False)[0]
    (row,) = handler.runs
    assert row.entropies == tuple(s.record.entropy for s in core.steps)
    assert row.metadata["early_stop_step"] == core.outcome.step == 3
    assert row.tokens == core.tokens == 244
    assert row.would_save == core.reasoning_tokens - core.steps[2].end == 120
    assert (row.measured, row.stopped) == (True, False)


@pytest.mark.parametrize("make", [chain, parallel, agent])
@pytest.mark.parametrize("way", WAYS)
def test_a_stop_hangs_up_within_the_step_and_gives_the_answer(server, way, make):
    """By the server's count it makes less than one step more; the exception has the thinking, and finish() the answer."""
    handler, model = EntropyCallbackHandler(POLICY, stop=True), chat(server)
    with pytest.raises(EarlyStopped) as raised:
        way(make(model), {"x": "q"}, {"callbacks": [handler]})
    server.settled()
    assert 120 <= server.calls[0].made < 160
    stopped = raised.value
    assert (stopped.outcome.step, stopped.generation.tokens, stopped.answer) == (3, 120, None)
    assert stopped.reasoning.count("step3") == 40
    assert "step4" not in stopped.reasoning
    answer = stopped.finish(model)
    assert answer.content == "The answer is 42"
    assert answer.response_metadata["early_stop_tokens"] == 124
    assert (handler._live, handler._roots, handler._stops) == ({}, {}, {})


def test_afinish_answers_and_prefill_is_the_exact_continuation(server):
    """The thinking goes back closed, the server is told to go on with it, and the model's own extra_body is kept."""
    model = chat(server, extra_body={"mine": 1})
    with pytest.raises(EarlyStopped) as raised:
        model.invoke("q", {"callbacks": [EntropyCallbackHandler(POLICY, stop=True)]})
    answer = asyncio.run(raised.value.afinish(model, continuation="prefill"))
    body = server.calls[-1].body
    assert answer.content == "The answer is 42"
    assert (body["mine"], body["continue_final_message"]) == (1, True)
    assert body["messages"][-1]["content"].endswith("</think>\n\n")


def test_a_malformed_answer_is_run_in_full(server):
    """An empty answer after the stop is thrown away, and the question asked without stopping."""
    model = chat(server)
    handler = EntropyCallbackHandler(POLICY, stop=True)
    with pytest.raises(EarlyStopped) as raised:
        model.invoke("q", {"callbacks": [handler]})
    server.script = lambda body: Reply() if len(body["messages"]) > 1 else sums(body)
    answer = raised.value.finish(model, {"callbacks": [handler]})
    assert answer.content == "The answer is 42"
    assert answer.response_metadata["early_stop_stopped"] is False
    assert len(server.calls) == 3


@pytest.mark.parametrize("way", [invoke, ainvoke])
def test_a_retry_sends_nothing_more(server, way):
    """A stop under with_retry is raised again without a request, and forgotten with the chain."""
    handler = EntropyCallbackHandler(POLICY, stop=True)
    retried = chain(chat(server)).with_retry(stop_after_attempt=3, wait_exponential_jitter=False)
    for calls in (1, 2):
        with pytest.raises(EarlyStopped):
            way(retried, {"x": "q"}, {"callbacks": [handler]})
        assert len(server.calls) == calls
    assert (handler._live, handler._roots, handler._stops) == ({}, {}, {})


def test_without_logprobs_it_says_so_once(server, caplog):
    """Missing logprobs are never certainty: nothing would have been stopped, the reason says why, the log has it once."""
    handler = EntropyCallbackHandler(POLICY, stop=True)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            chat(server, logprobs=None, top_logprobs=None).invoke("q", {"callbacks": [handler]})
    assert [(r.measured, r.stopped, r.reason, r.entropies) for r in handler.runs] == [(False, False, NO_LOGPROBS, ())] * 3
    assert sum(NO_LOGPROBS in r.message for r in caplog.records) == 1


@pytest.mark.parametrize("name", ["chunk", "end", "result"])
@pytest.mark.parametrize("way", [invoke, stream, astream])
def test_a_fault_of_ours_never_breaks_the_run(server, monkeypatch, way, name):
    """Whatever fails inside, the user gets the answer."""

    def broken(*args, **kwargs):
        raise RuntimeError("ours")

    monkeypatch.setattr(Measurement, name, broken)
    handler = EntropyCallbackHandler(POLICY, stop=name != "end")
    way(chain(chat(server)), {"x": "q"}, {"callbacks": [handler]})
    assert server.calls[0].made == server.calls[0].planned
    assert not any(r.measured for r in handler.runs)
    assert handler._live == {}


def test_nothing_is_left_after_many_runs(server):
    """After 100 runs at once, half of them failing, only the rows are left, and no more than asked for."""
    server.script = lambda body: Reply(status=500) if "odd" in str(body) else sums(body)
    handler = EntropyCallbackHandler(POLICY, keep=10)
    asked = [{"x": "odd" if n % 2 else "even"} for n in range(100)]
    done = chain(chat(server)).batch(asked, {"callbacks": [handler], "max_concurrency": 8}, return_exceptions=True)
    assert sum(isinstance(d, Exception) for d in done) == 50
    assert (handler._live, handler._roots, handler._stops) == ({}, {}, {})
    summary = handler.summary()
    assert (summary.runs, summary.measured, summary.would_stop, len(summary.rows)) == (100, 50, 50, 10)
    assert summary.would_save == 50 * 120
    assert summary.to_dict()["would_save"] == 6000


def test_structured_output_and_switched_off_calls_are_not_cut(server):
    """A call with a response format, or with early_stop False in its metadata, runs to its end."""
    handler = EntropyCallbackHandler(POLICY, stop=True)
    chat(server).bind(response_format={"type": "json_object"}).invoke("q", {"callbacks": [handler]})
    chat(server).invoke("q", {"callbacks": [handler], "metadata": {"early_stop": False}})
    assert [c.made == c.planned for c in server.calls] == [True, True]


def test_a_holdout_runs_in_full(server):
    """With a share of 1 nothing is stopped, and the row says so and what it would have saved."""
    handler = EntropyCallbackHandler(POLICY, stop=True, holdout=1.0)
    chat(server).invoke("q", {"callbacks": [handler]})
    (row,) = handler.runs
    assert (row.metadata["early_stop_holdout"], row.stopped, row.would_save) == (True, False, 120)


def test_a_policy_for_another_model(server):
    """Stopping by it is an error; measuring says why nothing is judged."""
    other = replace(POLICY, model="another")
    with pytest.raises(PolicyMismatch):
        chat(server).invoke("q", {"callbacks": [EntropyCallbackHandler(other, stop=True)]})
    handler = EntropyCallbackHandler(other)
    chat(server).invoke("q", {"callbacks": [handler]})
    assert "another" in handler.runs[0].reason
    assert handler.runs[0].would_save is None


@pytest.mark.parametrize("settings", [{"stop": True}, {"holdout": 2.0}])
def test_settings_that_cannot_work(settings):
    """Bad settings are said at the door."""
    with pytest.raises(ValueError, match=r"policy|share"):
        EntropyCallbackHandler(**settings)


def test_a_policy_that_reads_answers_cannot_stop_here():
    """A callback cannot ask for the answer after each step."""
    with pytest.raises(SettingsError, match="EarlyStopChatModel"):
        EntropyCallbackHandler(replace(POLICY, rule="entropy+agreement"), stop=True)
