"""The event handler over real HTTP, against the scripted server of the tests (a fake: it thinks nothing)."""

from __future__ import annotations

import asyncio
import io
import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
from llama_index.core import MockEmbedding, SummaryIndex
from llama_index.core.llms import ChatMessage, MockLLM
from llama_index.core.schema import TextNode
from llama_index.llms.entropy_chains.base import EarlyStopLLM
from llama_index.llms.entropy_chains.handlers import OPEN, EntropyEventHandler
from llms import ASKED, EIGHT, POLICY, acomplete, chat, llm_at, stream_chat
from loopback import SURE, UNSURE, Loopback, Reply, thinking
from rich.console import Console

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import SettingsError


@pytest.mark.parametrize("call", EIGHT)
def test_every_call_is_measured_and_runs_in_full(server, listen, call):
    """Steps, entropies and the step of a would-be stop are those of the script; nothing is cut; no state is left."""
    handler = listen(POLICY)
    call(llm_at(server))
    (row,) = handler.summary().rows
    # asyncio: LlamaIndex drops a stream's first chunk where it has no content, which here is the role's
    assert [round(h, 2) for h in row.entropies] == [UNSURE, UNSURE, SURE, SURE, SURE, SURE]
    assert (row.outcome.active, row.outcome.stopped, row.outcome.step) == (False, False, 3)
    assert row.would_save == 3 * 40
    assert row.outcome.tokens == server.calls[0].made == server.calls[0].planned
    assert row.streamed == ("stream" in call.__name__)
    assert handler._open == {}


@pytest.mark.parametrize(
    ("call", "settings", "why"),
    [
        (chat, {}, "does not stream"),
        (acomplete, {}, "does not stream"),
        (lambda llm: list(llm.stream_chat(ASKED, tools=[{"type": "function"}])), {}, "has tools"),
        (lambda llm: list(llm.stream_chat(ASKED, response_format={"type": "json_object"})), {}, "structured output"),
        (stream_chat, {"additional_kwargs": {"response_format": {"type": "json_object"}}}, "structured output"),
        (lambda llm: list(llm.stream_chat(ASKED, extra_body={"guided_regex": "4.*"})), {}, "structured output"),
    ],
)
def test_what_a_handler_cannot_stop_runs_in_full_and_says_why(server, listen, call, settings, why):
    """Calls that do not stream, have tools or want structured output are measured, whole, with the reason."""
    handler, llm = listen(POLICY, stop=True), llm_at(server, **settings)
    handler.prepare(llm)
    call(llm)
    (row,) = handler.summary().rows
    assert (row.outcome.active, row.outcome.stopped, row.outcome.step) == (False, False, 3)
    assert why in row.outcome.reason
    assert server.calls[0].made == server.calls[0].planned


def test_streams_of_an_llm_that_is_not_prepared_are_left_alone(server, listen):
    """Read in turns with a prepared one's, and after it: only the prepared one's is ended."""
    handler, mine, other = listen(POLICY, stop=True), llm_at(server), llm_at(server, additional_kwargs={"seed": 7})
    handler.prepare(mine)
    ended, whole = mine.stream_chat(ASKED), other.stream_chat(ASKED)
    for _ in zip(ended, whole, strict=False):
        pass
    list(whole)
    made = {bool(c.body.get("seed")): c for c in server.calls}
    assert made[False].made < made[False].planned
    assert made[True].made == made[True].planned
    reasons = [r.outcome.reason for r in handler.summary().rows if not r.outcome.stopped]
    assert reasons == ["this LLM's streams cannot be ended by the handler: call handler.prepare(llm), or use EarlyStopLLM"]


def test_the_off_switch(server, listen, monkeypatch):
    """ENTROPY_CHAINS_STOP=0: full runs, shadow figures kept."""
    monkeypatch.setenv("ENTROPY_CHAINS_STOP", "0")
    handler, llm = listen(POLICY, stop=True), llm_at(server)
    handler.prepare(llm)
    stream_chat(llm)
    (row,) = handler.summary().rows
    assert (row.outcome.stopped, row.outcome.step, row.would_save) == (False, 3, 120)
    assert server.calls[0].made == server.calls[0].planned


def script_by_seed(body):
    """The script of a call is told by its question: sure from the step that it names."""
    sure = int(str(body["messages"][-1]["content"]).rsplit(" ", 1)[-1])
    return thinking(*[UNSURE if n < sure else SURE for n in range(1, 7)], pace=0.0002)


def test_calls_at_once_never_mix(listen):
    """24 streams over threads and 24 over tasks, each with a stop of its own: every row has its own call's step."""
    with Loopback(script_by_seed) as server:
        handler, llm = listen(POLICY), llm_at(server)
        asked = [[ChatMessage(role="user", content=f"sure from {1 + n % 6}")] for n in range(24)]
        with ThreadPoolExecutor(12) as pool:
            list(pool.map(lambda m: list(llm.stream_chat(m)), asked))

        async def one(messages):
            async for _ in await llm.astream_chat(messages):
                pass

        async def every():
            await asyncio.gather(*map(one, asked))

        asyncio.run(every())
    rows = handler.summary().rows
    assert sorted(r.outcome.step for r in rows) == sorted(2 * [1 + n % 6 for n in range(24)])
    assert all([round(h, 2) for h in r.entropies].index(SURE) + 1 == r.outcome.step for r in rows)
    assert handler._open == {}


def test_streams_read_in_turns_never_mix(listen):
    """Two streams of one thread read a chunk each in turn are followed apart."""
    with Loopback(script_by_seed) as server:
        handler, llm = listen(POLICY), llm_at(server)
        pair = [llm.stream_chat([ChatMessage(role="user", content=f"sure from {n}")]) for n in (2, 5)]
        for _ in zip(*pair, strict=False):
            pass
        for stream in pair:
            list(stream)
    assert sorted(r.outcome.step for r in handler.summary().rows) == [2, 5]


def test_nothing_stays_of_calls_that_never_end(server, listen):
    """A stream abandoned in the middle ends its row, one never read is forgotten in time, a failure leaves nothing."""
    handler, llm = listen(POLICY), llm_at(server)
    stream = llm.stream_chat(ASKED)
    next(stream)
    stream.close()
    (row,) = handler.summary().rows
    assert "not read to its end" in row.outcome.reason
    for _ in range(3):
        llm.stream_chat(ASKED)
    assert len(handler._open) == 3 <= OPEN
    with Loopback(lambda body: Reply(status=400)) as broken, pytest.raises(Exception, match="scripted"):
        llm_at(broken, max_retries=0).chat(ASKED)
    assert len(handler._open) == 3


def test_without_logprobs_nothing_is_claimed(server, listen):
    """A full run, its tokens counted, no entropy, and the reason with the remedy."""
    handler = listen(POLICY)
    stream_chat(llm_at(server, logprobs=None))
    (row,) = handler.summary().rows
    assert row.entropies == ()
    assert "gives no logprobs" in row.outcome.reason
    assert row.outcome.tokens >= server.calls[0].made - 1  # entries, where the server counts nothing
    assert handler.summary().totals.measured == 0


def test_another_models_calls_are_measured_and_not_judged(server, listen):
    """A policy for another model is no error of the run: the row says so, and on_mismatch='warn' judges all the same."""
    other = Policy("else", (0.2,), segmentation=Segmentation("line", 32))
    strict = listen(other)
    stream_chat(llm_at(server))
    (row,) = strict.summary().rows
    assert row.outcome.step is None
    assert len(row.entropies) == 6
    assert "policy is for model 'else', but this run has model 'scripted'" in row.outcome.reason


def test_calls_of_an_early_stop_llm_are_rows_with_its_own_verdict(server, listen):
    """The cut request and its answer's are one row, with the wrapper's outcome, and are not stopped twice."""
    handler = listen(POLICY, stop=True)
    answer = EarlyStopLLM(llm_at(server, logprobs=None), POLICY).chat(ASKED)
    assert answer.message.content == "The answer is 42"
    (row,) = handler.summary().rows
    assert len(server.calls) == 2
    assert (row.outcome.stopped, row.outcome.step, row.outcome.active) == (True, 3, True)
    assert row.outcome.tokens == answer.additional_kwargs["early_stop_tokens"]
    totals = handler.summary().totals
    assert (totals.calls, totals.stopped, totals.saved) == (1, 1, 120)


@pytest.mark.parametrize("mode", ["query", "aquery"])
def test_a_querys_response_says_what_its_calls_cost(server, listen, mode):
    """In response.metadata, beside what stands there."""
    listen(POLICY)
    index = SummaryIndex([TextNode(text="six times seven is asked for")], embed_model=MockEmbedding(8))
    engine = index.as_query_engine(llm=llm_at(server))
    response = asyncio.run(engine.aquery("What is 6*7?")) if mode == "aquery" else engine.query("What is 6*7?")
    told = {k: v for k, v in response.metadata.items() if k.startswith("early_stop_")}
    assert (told["early_stop_step"], told["early_stop_stopped"], told["early_stop_runs"]) == (3, False, 1)
    assert told["early_stop_tokens"] == server.calls[0].made
    assert len(response.metadata) == len(told) + 1  # the node's own
    assert told["early_stop_policy"] == POLICY.fingerprint


def test_figures_of_two_queries_stay_apart(server, listen):
    """A query that fails leaves nothing to the next one."""
    listen(POLICY)
    node = TextNode(text="six times seven")
    broken = SummaryIndex([node], embed_model=MockEmbedding(8))
    with Loopback(lambda body: Reply(status=400)) as down, pytest.raises(Exception, match="scripted"):
        broken.as_query_engine(llm=llm_at(down, max_retries=0)).query("?")
    engine = broken.as_query_engine(llm=llm_at(server))
    assert [engine.query("?").metadata["early_stop_runs"] for _ in range(2)] == [1, 1]


def test_an_error_of_ours_never_breaks_a_run(server, listen, caplog, monkeypatch):
    """It is logged with its cause, and the call's result is whole."""
    listen(POLICY)
    monkeypatch.setattr("llama_index.llms.entropy_chains._measured.reader_of", lambda raw: 1 / 0)
    with caplog.at_level(logging.WARNING, "entropy_chains"):
        assert stream_chat(llm_at(server)).message.content == "The answer is 42"
    assert "measuring a LLMChatInProgressEvent failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_the_summary_shows_a_table(server, listen):
    """One line a call, the totals below; rows beyond `keep` are in the totals only; no key is anywhere in it."""
    handler = listen(POLICY, keep=2)
    for _ in range(3):
        chat(llm_at(server))
    summary = handler.summary()
    assert (len(summary.rows), summary.totals.calls, summary.totals.would_save) == (2, 3, 360)
    shown = Console(file=io.StringIO(), width=160)
    shown.print(summary)
    text = shown.file.getvalue()
    assert "(120)" in text
    assert "(360)" in text
    assert "sk-hidden" not in text + repr(summary) + repr(handler)


def test_an_llm_that_is_no_api_is_measured_as_what_it_is(listen):
    """No tokens, no logprobs: a row without figures, and no error."""
    handler = listen(POLICY, on_mismatch="error")
    assert MockLLM().complete("hello").text
    assert "is for model" in handler.summary().rows[0].outcome.reason


@pytest.mark.parametrize(
    ("use", "remedy"),
    [
        (lambda: EntropyEventHandler(stop=True), "give one"),
        (lambda: EntropyEventHandler(POLICY, on_mismatch="ignore"), "one of error, warn"),
        (lambda: EntropyEventHandler(POLICY).prepare(MockLLM()), "stop=True"),
        (lambda: EntropyEventHandler(POLICY, stop=True).prepare(MockLLM()), "OpenAILike"),
    ],
)
def test_bad_settings_name_the_remedy(use, remedy):
    """Each is a SettingsError that says what to use instead."""
    with pytest.raises(SettingsError, match=remedy):
        use()
