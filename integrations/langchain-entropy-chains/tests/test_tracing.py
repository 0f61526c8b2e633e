"""EarlyStopTracer: what the real LangSmith SDK posts to a receiver on loopback, and what is read back from it."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from dataclasses import replace

import pytest
from click.testing import CliRunner
from langchain.agents import create_agent
from langchain_core.prompts import ChatPromptTemplate
from langchain_entropy_chains import EarlyStopChatModel, instrument
from langchain_entropy_chains.callbacks import EarlyStopped, EntropyCallbackHandler
from langchain_entropy_chains.langsmith_runs import read_runs, recorded_traces, savings_runs
from langchain_entropy_chains.tracing import EarlyStopTracer
from langchain_openai import ChatOpenAI
from langsmith_receiver import PROJECT, Receiver
from loopback import Loopback, sums

from entropy_chains.cli import main
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.offline.traces import Trace, read_traces
from entropy_chains.savings.holdout import holdout_saving

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32), calibration={"remaining_tokens": [200, 160, 120]})


def chat(server, **settings):
    given = {"logprobs": True, "top_logprobs": 20, "max_retries": 0} | settings
    return ChatOpenAI(model="scripted", base_url=server.url, api_key="sk-verysecret123", **given)


def chain(model):
    return ChatPromptTemplate.from_template("{x}") | model


def invoke(model, config):
    chain(model).invoke({"x": "q"}, config)


def stream(model, config):
    list(chain(model).stream({"x": "q"}, config))


def batch(model, config):
    chain(model).batch([{"x": "q"}], config)


def ainvoke(model, config):
    asyncio.run(chain(model).ainvoke({"x": "q"}, config))


def agent(model, config):
    create_agent(model).invoke({"messages": [("user", "q")]}, config)


@pytest.mark.parametrize("way", [invoke, stream, batch, ainvoke, agent])
def test_a_stop_arrives_with_metadata_tag_usage_and_totals(server, receiver, way):
    """The model run and the root have the contract's table and the tag; usage is what was computed; no key, no logprobs."""
    tracer = EarlyStopTracer(client=receiver.client(), project_name="p")
    way(EarlyStopChatModel(inner=chat(server), policy=POLICY), {"callbacks": [tracer]})
    tracer.client.flush()
    (run,), (root,) = receiver.llm(), receiver.roots()
    found = run["extra"]["metadata"]
    assert (found["early_stop_stopped"], found["early_stop_step"], found["early_stop_tokens"]) == (True, 3, 124)
    assert found["usage_metadata"]["output_tokens"] == 124
    assert found["ls_model_name"] == "scripted"
    assert "early-stopped" in run["tags"]
    assert not run.get("error")
    totals = root["extra"]["metadata"]
    assert (totals["early_stop_runs"], totals["early_stop_tokens"], totals["early_stop_stopped_runs"]) == (1, 124, 1)
    assert totals["early_stop_tokens_saved_estimate"] == 120
    assert "early-stopped" in root["tags"]
    assert b'"alt1"' not in receiver.posted
    assert b"verysecret" not in receiver.posted
    assert receiver.compressed
    assert (tracer._totals, tracer.run_map) == ({}, {})


def test_a_callbacks_stop_keeps_its_tokens(server, receiver):
    """To LangChain it is an error without usage; the tracer writes the tokens that were computed."""
    tracer = EarlyStopTracer(client=receiver.client(), project_name="p")
    with pytest.raises(EarlyStopped):
        invoke(chat(server), {"callbacks": [EntropyCallbackHandler(POLICY, stop=True), tracer]})
    tracer.client.flush()
    (run,) = receiver.llm()
    assert run["error"]
    assert run["extra"]["metadata"]["usage_metadata"]["output_tokens"] == 120
    assert "early-stopped" in run["tags"]


def test_totals_are_sums_over_the_root(server, receiver):
    """Three model runs under one root: their tokens and stops are added up there, and feedback does not extend retention."""
    tracer = EarlyStopTracer(client=receiver.client(), project_name="p", feedback=True)
    model = chain(EarlyStopChatModel(inner=chat(server), policy=POLICY))
    three = {"a": model, "b": model, "c": model}
    (ChatPromptTemplate.from_template("{x}") | (lambda _: {"x": "q"}) | three).invoke({"x": "q"}, {"callbacks": [tracer]})
    tracer.wait_for_futures()
    (root,) = receiver.roots()
    totals = root["extra"]["metadata"]
    assert (totals["early_stop_runs"], totals["early_stop_stopped_runs"], totals["early_stop_tokens"]) == (3, 3, 3 * 124)
    scores = {f["key"]: (f["score"], f["extend_trace_retention"], f["run_id"]) for f in receiver.feedback}
    assert scores["early_stop_tokens_saved"] == (360, False, root["id"])
    assert {f["session_id"] for f in receiver.feedback} == {PROJECT}


def test_feedback_keeps_nobody_waiting(server, receiver, monkeypatch):
    """LangSmith does not answer for a second, or refuses: the chain is done before, and what failed is only logged."""
    posted = []
    slow = lambda *given, **more: (time.sleep(1), posted.append(given), 1 / 0)  # noqa: E731
    monkeypatch.setattr("langsmith.Client.create_feedback", slow)
    tracer = EarlyStopTracer(client=receiver.client(), project_name="p", feedback=True)
    invoke(EarlyStopChatModel(inner=chat(server), policy=POLICY), {"callbacks": [tracer]})
    assert not posted
    tracer.wait_for_futures()
    assert len(posted) == 1


def test_logprobs_of_a_plain_model_are_not_posted(server, receiver):
    """They would be some KB a token, in every run of the chain; uncompressed posts are read as well."""
    with Receiver(zstd=False) as plain:
        tracer = EarlyStopTracer(client=plain.client(), project_name="p")
        message = chain(chat(server)).invoke({"x": "q"}, {"callbacks": [tracer]})
        tracer.client.flush()
        assert message.response_metadata["logprobs"]
        assert len(plain.runs) == 3
        assert b'"alt1"' not in plain.posted
        assert not plain.compressed


@pytest.mark.parametrize("change", [lambda m: m, lambda m: instrument(m, POLICY)], ids=["plain", "instrumented"])
def test_headers_are_not_posted(server, receiver, change):
    """LangChain would: those of the client with the model's settings, those of a call with its parameters."""
    tracer = EarlyStopTracer(client=receiver.client(), project_name="p")
    model = change(chat(server, default_headers={"X-Auth": "hidden-header"}))
    chain(model.bind(extra_headers={"Authorization": "Bearer sk-verysecret123"})).invoke({"x": "q"}, {"callbacks": [tracer]})
    tracer.client.flush()
    assert "hidden-header" in str(server.calls[-1].headers)
    assert len(receiver.runs) == 3
    assert b"hidden-header" not in receiver.posted
    assert b"verysecret" not in receiver.posted


def test_a_project_is_read_back(server, receiver):
    """Savings by holdout, root runs on either side; recorded steps as traces that the core accepts."""
    tracer = EarlyStopTracer(client=receiver.client(), project_name="p")
    invoke(EarlyStopChatModel(inner=chat(server), policy=POLICY), {"callbacks": [tracer]})
    invoke(chat(server), {"callbacks": [EntropyCallbackHandler(POLICY, stop=True, holdout=1.0, record=True), tracer]})
    tracer.client.flush()
    receiver.page = 1  # two pages
    runs = read_runs("p", client=receiver.client())
    query = receiver.queries[0]
    assert (query["filter"], query["project_ids"]) == ('eq(metadata_key, "early_stop_tokens")', [PROJECT])
    assert query["min_start_time"].startswith("2020")  # without one LangSmith gives one day
    saving = holdout_saving(savings_runs(runs))
    assert (saving.runs_holdout, saving.runs_stopping) == (1, 1)
    assert saving.saved.value == pytest.approx(1 - 124 / 244)
    assert saving.saved_shadow.value == pytest.approx(120 / 244)
    (trace,) = recorded_traces(runs)
    assert Trace.from_dict(trace.to_dict()).steps[2].entropy == pytest.approx(0.05, abs=1e-4)
    assert [s.tokens for s in trace.steps] == [40] * 6 + [4]
    assert (trace.question, trace.steps[-1].answer) == ("q", "The answer is 42")
    assert (trace.finish, trace.finish_raw) == ("stop", "stop")


@pytest.mark.parametrize(("word", "finish"), [("length", "length"), ("content_filter", "content_filter"), ("eos", "stop")])
def test_a_run_read_back_tells_how_it_ended(receiver, word, finish):
    """A live run that was cut off has no full answer, as in a recording."""
    tracer = EarlyStopTracer(client=receiver.client(), project_name="p")
    with Loopback(lambda body: replace(sums(body), finish=word)) as server:
        invoke(chat(server), {"callbacks": [EntropyCallbackHandler(POLICY, record=True), tracer]})
    tracer.client.flush()
    (trace,) = recorded_traces(read_runs("p", client=receiver.client()))
    assert (trace.finish, trace.finish_raw, trace.is_cut) == (finish, word, finish != "stop")
    assert trace.steps[-1].answer == ("The answer is 42" if finish == "stop" else None)


def test_the_command_tells_what_a_project_saved(server, receiver, monkeypatch, tmp_path):
    """``entropy-chains langsmith``: the table by holdout, the recorded traces in a file; no such project, no key: status 2 or 1."""
    tracer = EarlyStopTracer(client=receiver.client(), project_name="p")
    for holdout in (0.0, 1.0):
        handler = EntropyCallbackHandler(POLICY, stop=True, holdout=holdout, record=True)
        with suppress(EarlyStopped):
            invoke(chat(server), {"callbacks": [handler, tracer]})
    tracer.client.flush()
    monkeypatch.setenv("LANGSMITH_ENDPOINT", receiver.origin)
    monkeypatch.setenv("LANGSMITH_API_KEY", "lsv2-test-key")
    out = tmp_path / "live.jsonl"
    told = CliRunner().invoke(main, ["langsmith", "p", "--json", "--traces", str(out)], catch_exceptions=False)
    found = json.loads(told.stdout)
    assert (found["runs"], found["runs_holdout"], found["runs_stopping"], found["traces"]) == (2, 1, 1, 1)
    assert [t.question for t in read_traces(out)] == ["q"]
    table = CliRunner().invoke(main, ["langsmith", "p"]).stdout
    assert "saved" in table
    nobody = CliRunner().invoke(main, ["langsmith", "nobody"])
    assert (nobody.exit_code, "no project 'nobody'" in nobody.output) == (2, True)
    monkeypatch.setenv("LANGSMITH_ENDPOINT", "http://127.0.0.1:9")
    silent = CliRunner().invoke(main, ["langsmith", "p"])
    assert (silent.exit_code, "LANGSMITH_ENDPOINT" in silent.output, "lsv2" in silent.output) == (1, True, False)
