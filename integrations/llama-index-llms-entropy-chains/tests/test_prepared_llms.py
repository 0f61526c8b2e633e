"""LLMs prepared by the event handler: their streams end at the stop. The server is scripted (a fake: it thinks nothing)."""

from __future__ import annotations

import copy
import pickle

import pytest
from llama_index.llms.entropy_chains.base import EarlyStopLLM
from llama_index.llms.openai import OpenAIResponses
from llama_index.llms.openai_like import OpenAILike
from llms import POLICY, STREAMS, achat, astream_chat, astream_complete, chat, llm_at, stream_chat
from loopback import Loopback


@pytest.mark.parametrize("call", STREAMS)
def test_a_prepared_stream_is_ended_at_the_stop(server, listen, call):
    """By the server's own count fewer tokens are made than planned, in all four streaming methods, and the LLM ends normally."""
    handler, llm = listen(POLICY, stop=True), llm_at(server)
    handler.prepare(llm)
    call(llm)
    (made,) = server.calls
    assert server.settled() < made.planned
    assert made.gone
    (row,) = handler.summary().rows
    assert (row.outcome.stopped, row.outcome.step, row.outcome.tokens_saved) == (True, 3, 120)
    assert row.outcome.tokens <= 121  # what was read: the stream is closed with the chunk after the decision at the latest
    assert row.outcome.reason == "mean_entropy at or under the threshold"
    assert handler.summary().totals.saved == 120


SECOND = {"api_key": "sk-of-the-second"}


def set_later(llm, other):
    llm.api_base, llm.api_key = other.url, SECOND["api_key"]
    return llm


COPIES = {
    "model_copy": lambda llm, other: llm.model_copy(update={"api_base": other.url, **SECOND}),
    "model_copy, deep": lambda llm, other: set_later(llm.model_copy(deep=True), other),
    "copy": lambda llm, other: set_later(copy.copy(llm), other),
    "deepcopy": lambda llm, other: set_later(copy.deepcopy(llm), other),
    "pickle": lambda llm, other: set_later(pickle.loads(pickle.dumps(llm)), other),
    "set later": set_later,
}


@pytest.mark.parametrize(("call", "reuse_client"), [(stream_chat, True), (astream_chat, False)])
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_of_a_prepared_llm_asks_its_own_server_and_is_ended(server, listen, how, reuse_client, call):
    """With its own key, whether clients are kept or not; nothing is sent to the first server. It was not used before."""
    handler, llm = listen(POLICY, stop=True), llm_at(server, reuse_client=reuse_client)
    handler.prepare(llm)
    with Loopback() as other:
        call(COPIES[how](llm, other))
        assert other.settled() < other.calls[0].planned
    assert (server.calls, [c.headers["Authorization"] for c in other.calls]) == ([], ["Bearer sk-of-the-second"])
    (row,) = handler.summary().rows
    assert row.outcome.stopped


@pytest.mark.parametrize("call", [stream_chat, achat, astream_complete])
@pytest.mark.parametrize("reuse_client", [True, False])
def test_a_prepared_llm_may_be_used_again(server, listen, reuse_client, call):
    """In a second event loop too, as the LLM itself."""
    handler, llm = listen(POLICY, stop=True), llm_at(server, reuse_client=reuse_client)
    handler.prepare(llm)
    handler.prepare(llm)
    answers = {call(llm).message.content if "chat" in call.__name__ else call(llm).text for _ in range(2)}
    assert len(answers) == 1
    assert len(server.calls) >= 2  # with a client that is kept, a second loop's first try may fail, and is repeated


def test_another_llm_of_the_class_is_not_prepared(server, listen):
    """It runs in full, and is of the class that the first one had."""
    handler, llm = listen(POLICY, stop=True), llm_at(server)
    handler.prepare(llm)
    made = type(llm)(model="scripted", api_base=server.url, api_key="none", is_chat_model=True, logprobs=True, top_logprobs=20)
    assert type(made) is OpenAILike
    stream_chat(made)
    assert server.settled() == server.calls[0].planned


def test_an_early_stop_llm_around_a_prepared_one_ends_its_own_streams(server, listen):
    """And has the answer."""
    handler, llm = listen(POLICY, stop=True), llm_at(server)
    handler.prepare(llm)
    for call in (chat, astream_chat):
        last = call(EarlyStopLLM(llm, POLICY))
        assert (last.message.content, last.additional_kwargs["early_stop_stopped"]) == ("The answer is 42", True)


@pytest.mark.parametrize("call", [stream_chat, astream_chat])
def test_an_llm_of_the_responses_api_can_be_prepared(server, listen, call):
    """It gives what it gave before."""
    llm = OpenAIResponses(model="gpt-4o", api_base=server.url, api_key="none")
    before = call(llm).message
    listen(POLICY, stop=True).prepare(llm)
    assert call(llm).message == before


def test_preparing_keeps_no_client(server, listen):
    """Neither client nor key is put on the LLM: it makes its own when it is asked."""
    handler, llm = listen(POLICY, stop=True), llm_at(server)
    before = dict(llm.__pydantic_private__), dict(vars(llm))
    handler.prepare(llm)
    assert (llm.__pydantic_private__, vars(llm)) == before
    assert llm.to_dict() == llm_at(server).to_dict()
