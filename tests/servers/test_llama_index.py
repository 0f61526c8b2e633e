"""A LlamaIndex engine with the one added line, on real servers with the bundled reasoner."""

from __future__ import annotations

import asyncio

import pytest
from llama_index.core import Document, SummaryIndex
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms import ChatMessage
from llama_index.llms.entropy_chains import EarlyStopLLM, attach
from llama_index.llms.openai_like import OpenAILike

from entropy_chains.demo import MODEL_NAME
from entropy_chains.demo.questions import draw_questions
from entropy_chains.policy import Policy
from entropy_chains.recording import conversation
from entropy_chains.steps import Segmentation

pytestmark = pytest.mark.servers
POLICY = Policy(MODEL_NAME, (0.005,), segmentation=Segmentation("line", 32))
QUESTIONS = draw_questions(3, 5)
ASKED = QUESTIONS[0]["question"]
MOST = 0.67
"""Share of the full run's tokens that the engine may make; a quarter is read."""


@pytest.fixture(params=["vllm", "llama"])
def engine(request):
    return request.getfixturevalue(request.param)


def inside(engine, **settings):
    given = {"is_chat_model": True, "temperature": 0, "max_tokens": 1200, "context_window": 8000} | settings
    return OpenAILike(model=engine.name, api_base=engine.base_url, api_key="none", **given)


def generated(engine, work):
    """What the work gives, and the tokens that the engine made for it, by its own counter.

    The fewest of several tries: on a busy machine the bundled model can be done before the client has read half of it.
    """
    texts, counts = set(), []
    for _ in range(4):
        before = engine.counters()["generated"]
        texts.add(work())
        counts.append(engine.counters()["generated"] - before)
    (text,) = texts
    return text, min(counts)


@pytest.mark.parametrize("asynchronously", [False, True])
def test_a_query_engine_stops_and_answers(engine, asynchronously):
    """Before and after the one added line: the same answer, for fewer tokens by the engine's own count."""
    query_engine = SummaryIndex.from_documents([Document(text="Sums are worked out step by step.")]).as_query_engine(
        llm=inside(engine)
    )

    def ask():
        return str(asyncio.run(query_engine.aquery(ASKED)) if asynchronously else query_engine.query(ASKED)).strip()

    full, all_tokens = generated(engine, ask)
    attach(query_engine, POLICY, name=MODEL_NAME)
    early, tokens = generated(engine, ask)
    assert early == full
    assert tokens < MOST * all_tokens


@pytest.mark.parametrize("method", ["chat", "stream_chat"])
def test_a_chat_engine_stops_and_answers(engine, method):
    """The same for a chat engine, streamed or not."""

    def ask(chat_engine):
        made = getattr(chat_engine, method)(ASKED)
        return ("".join(made.response_gen) if method == "stream_chat" else str(made)).strip()

    full, all_tokens = generated(engine, lambda: ask(SimpleChatEngine.from_defaults(llm=inside(engine))))
    stopping = attach(SimpleChatEngine.from_defaults(llm=inside(engine)), POLICY, name=MODEL_NAME)
    early, tokens = generated(engine, lambda: ask(stopping))
    assert early == full
    assert tokens < MOST * all_tokens


@pytest.mark.parametrize("reuse_client", [True, False])
def test_answers_are_the_full_runs(engine, reuse_client):
    """Every question is stopped, sync and async alike, and answered as in full; the prompt's count is near."""
    llm = EarlyStopLLM(llm=inside(engine, reuse_client=reuse_client), policy=POLICY, name=MODEL_NAME)
    for question in QUESTIONS:
        asked = [ChatMessage(role=m["role"], content=m["content"]) for m in conversation(question)]
        full, early, late = llm.chat(asked, early_stop=False), llm.chat(asked), asyncio.run(llm.achat(asked))
        assert early.message.content == late.message.content == full.message.content.strip()
        assert early.additional_kwargs["early_stop_stopped"] is True
        assert early.additional_kwargs["early_stop_tokens"] == late.additional_kwargs["early_stop_tokens"]
        assert abs(early.additional_kwargs["prompt_tokens"] - full.additional_kwargs["prompt_tokens"]) <= 8
