"""Calls whose reply is no single stream are the inner LLM's own. The server is scripted (a fake: it thinks nothing)."""

from __future__ import annotations

import asyncio

import pytest
from llama_index.core import Document, SummaryIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.llms.entropy_chains import EarlyStopFunctionAgent, EarlyStopLLM, attach
from llama_index.llms.openai import OpenAI
from llms import ANSWER, ASKED, KEY, LOOP, METHODS, POLICY, ask_all, inside, text_of, wrapped
from loopback import SURE, Loopback, thinking

TWO = {
    "on the LLM": {"inner": {"additional_kwargs": {"n": 2}}},
    "in its body": {"inner": {"additional_kwargs": {"extra_body": {"n": 2}}}},
    "of a completion model": {"inner": {"is_chat_model": False, "additional_kwargs": {"n": 2}}},
    "only measured": {"policy": None, "inner": {"additional_kwargs": {"n": 2}}},
    "in the loop": {"policy": LOOP, "mode": "refine", "inner": {"additional_kwargs": {"n": 2}}},
}


@pytest.fixture
def server():
    """A server that thinks two short lines, sure of both."""
    with Loopback(lambda body: thinking(SURE, SURE, words=3, answer=ANSWER)) as running:
        yield running


def bodies(server):
    return [call.body for call in server.calls]


@pytest.mark.parametrize("where", TWO)
@pytest.mark.parametrize("method", METHODS)
def test_several_replies_are_what_the_inner_llm_makes_of_them(server, method, where):
    """The request, the text, the raw response and the type of it are the plain class's; the reason is told, and nothing stopped."""
    settings = TWO[where]
    plain = ask_all(inside(server, **settings["inner"]), method)
    requests = bodies(server)
    responses = ask_all(wrapped(server, **settings), method)
    assert bodies(server) == requests * 2
    if "stream" in method:
        assert responses.pop().delta == ""
    assert [(r.delta, text_of(r), r.raw) for r in responses] == [(r.delta, text_of(r), r.raw) for r in plain]


@pytest.mark.parametrize("method", METHODS)
def test_the_reason_is_told_for_several_replies(server, method):
    """Also where they are asked for in the call; tokens are those that the server counted, where it told."""
    told = ask_all(wrapped(server), method, n=2)[-1].additional_kwargs
    assert told["early_stop_reason"] == "n is 2: only one stream can be followed"
    assert (told["early_stop_active"], told["early_stop_stopped"]) == (False, False)
    counted = None if "stream" in method else server.calls[0].planned
    assert told.get("early_stop_tokens") == told.get("completion_tokens") == counted


@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize", "simple_summarize"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_query_engine_answers_with_several_replies(server, mode, streaming):
    """After ``attach`` it gives the answer that it gave before, and tells why nothing was stopped."""
    llm = inside(server, additional_kwargs={"n": 2})
    index = SummaryIndex.from_documents([Document(text="Six times seven is 42.")])
    engine = index.as_query_engine(llm=llm, response_mode=mode, streaming=streaming)

    def asked():
        response = engine.query("6*7?")
        return ("".join(response.response_gen) if streaming else str(response)), response.metadata

    before, _ = asked()
    attach(engine, POLICY)
    answer, metadata = asked()
    assert answer == before
    assert answer == ANSWER or streaming  # LlamaIndex mixes the replies of a stream
    assert metadata["early_stop_reason"] == "n is 2: only one stream can be followed"
    assert not metadata["early_stop_active"]


def test_audio_is_not_streamed(server):
    """LlamaIndex refuses to stream it, so the call is the plain class's own."""
    settings = {"modalities": ["text", "audio"], "audio_config": {"voice": "x", "format": "wav"}}
    llm = EarlyStopLLM(OpenAI("gpt-4o-audio-preview", api_base=server.url, api_key=KEY, **settings))
    response = llm.chat(ASKED)
    assert not server.calls[0].body.get("stream")
    assert (response.message.content, response.additional_kwargs["early_stop_active"]) == (ANSWER, False)
    assert response.additional_kwargs["early_stop_reason"].startswith("the reply has audio")


@pytest.mark.parametrize("streaming", [False, True])
def test_an_agent_whose_llm_gives_several_replies(server, streaming):
    """An agent that measures its steps itself answers as LlamaIndex's own does, around the LLM and around the wrapper."""
    answers = []
    for kind, llm in (
        (FunctionAgent, inside(server, additional_kwargs={"n": 2})),
        (EarlyStopFunctionAgent, inside(server, additional_kwargs={"n": 2})),
        (EarlyStopFunctionAgent, wrapped(server, inner={"additional_kwargs": {"n": 2}})),
    ):
        agent = kind(llm=llm, streaming=streaming, timeout=20)

        async def run(agent=agent):
            return await agent.run("6*7?")

        answers.append(str(asyncio.run(run())))
    assert answers == answers[:1] * 3
