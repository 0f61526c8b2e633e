"""Engines, chat engines, agents and workflows with the one added line, against the scripted server of the tests (a fake)."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from attached import all_stopped, llm_of
from llama_index.core import Settings, VectorStoreIndex
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine, SimpleChatEngine
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RouterQueryEngine
from llama_index.core.selectors import LLMSingleSelector
from llama_index.core.tools import QueryEngineTool
from llama_index.llms.entropy_chains import EarlyStopLLM, attach, detach
from llms import ANSWER, POLICY, QUESTION, inside
from loopback import Loopback, Reply, is_answer_call, said, sums

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import NoLogprobsError, SettingsError

MODES = ["compact", "refine", "tree_summarize", "simple_summarize", "accumulate"]


@pytest.mark.parametrize("asynchronously", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_a_query_engine_stops_and_answers(server, index, mode, asynchronously):
    """The one added line, for every way to make an answer: each call is ended early, by the server's count."""
    engine = attach(index.as_query_engine(llm=inside(server), response_mode=mode), POLICY)
    response = asyncio.run(engine.aquery(QUESTION)) if asynchronously else engine.query(QUESTION)
    assert ANSWER in str(response)
    assert "step1" not in str(response)
    assert all_stopped(server)


@pytest.mark.parametrize("asynchronously", [False, True])
def test_a_streaming_query_engine_stops_and_answers(index, asynchronously):
    """The answer comes in parts, the thinking not at all."""
    answer = "The answer is 42 because six times seven is that"

    def script(body: dict[str, Any]) -> Reply:
        return Reply(said(answer)) if is_answer_call(body) else sums(body)

    async def run(engine: Any) -> list[str]:
        return [t async for t in (await engine.aquery(QUESTION)).response_gen if t]

    with Loopback(script) as server:
        engine = attach(index.as_query_engine(llm=inside(server), streaming=True, use_async=asynchronously), POLICY)
        tokens = asyncio.run(run(engine)) if asynchronously else [t for t in engine.query(QUESTION).response_gen if t]
        assert all_stopped(server)
    assert "".join(tokens) == answer
    assert len(tokens) > 3


def chat_engine(kind: str, index: VectorStoreIndex, llm: Any) -> Any:
    if kind == "simple":
        return SimpleChatEngine.from_defaults(llm=llm)
    cls = {"context": ContextChatEngine, "condense_plus_context": CondensePlusContextChatEngine}[kind]
    return cls.from_defaults(retriever=index.as_retriever(), llm=llm)


@pytest.mark.parametrize("kind", ["simple", "context", "condense_plus_context"])
@pytest.mark.parametrize("method", ["chat", "stream_chat", "achat", "astream_chat"])
def test_a_chat_engine_stops_and_answers(server, index, kind, method):
    """Two turns each, so that a history is condensed too; what is remembered is the answer."""
    engine = attach(chat_engine(kind, index, inside(server)), POLICY)

    async def turns() -> list[str]:
        texts = []
        for _ in range(2):
            made = await getattr(engine, method)(QUESTION) if method[0] == "a" else getattr(engine, method)(QUESTION)
            if method == "stream_chat":
                texts.append("".join(made.response_gen))
            elif method == "astream_chat":
                texts.append("".join([t async for t in made.async_response_gen()]))
            else:
                texts.append(str(made))
        return texts

    assert asyncio.run(turns()) == [ANSWER] * 2
    assert all_stopped(server)
    assert [m.content for m in engine.chat_history if m.role.value == "assistant"] == [ANSWER] * 2


# --- attach itself


def router(llm: Any, index: VectorStoreIndex) -> RouterQueryEngine:
    tools = [QueryEngineTool.from_defaults(index.as_query_engine(llm=llm), description=d) for d in ("sums", "others")]
    return RouterQueryEngine(LLMSingleSelector.from_defaults(llm=llm), tools, llm=llm)


def test_every_llm_is_swapped_shared_and_said(server, index, caplog):
    """A router's five places hold one wrapper around the one LLM; the log names number and places; detach undoes it."""
    llm = inside(server)
    engine = router(llm, index)
    with caplog.at_level(logging.INFO):
        assert attach(engine, POLICY) is engine
    assert "5 LLM(s)" in caplog.text
    assert "RouterQueryEngine._selector._llm" in caplog.text
    wrapper = engine._selector._llm
    assert isinstance(wrapper, EarlyStopLLM)
    assert wrapper is engine._query_engines[1]._response_synthesizer._llm
    detach(engine)
    assert engine._selector._llm is engine._query_engines[1]._response_synthesizer._llm is llm


@pytest.mark.parametrize("exclude", [LLMSingleSelector, "_selector", ["other", LLMSingleSelector]])
def test_what_is_excluded_stays(server, index, exclude):
    """By type or by the attribute's name."""
    llm = inside(server)
    engine = attach(router(llm, index), POLICY, exclude=exclude)
    assert engine._selector._llm is llm
    assert isinstance(engine._summarizer._llm, EarlyStopLLM)


def test_settings_are_a_target_too(server):
    """``attach(Settings, …)`` swaps the global LLM, and ``detach`` gives it back."""
    llm = Settings.llm = inside(server)
    try:
        attach(Settings, POLICY)
        assert isinstance(Settings.llm, EarlyStopLLM)
        detach(Settings)
        assert Settings.llm is llm
    finally:
        Settings._llm = None


def test_no_llm_is_an_error_with_the_remedy(index):
    """A retriever has none."""
    with pytest.raises(SettingsError, match=r"VectorIndexRetriever.*EarlyStopLLM"):
        attach(index.as_retriever(), POLICY)


OTHER = Policy("scripted", (0.1,), segmentation=Segmentation("line", 32))


def test_attaching_again_replaces(server, index):
    """A notebook's cell run again, then with another policy and settings: the new ones hold; a wrapper is never wrapped."""
    llm = inside(server)
    engine = index.as_query_engine(llm=llm)
    for policy, settings in ((POLICY, {"holdout": 0.5}), (POLICY, {}), (OTHER, {"max_steps": 3})):
        assert attach(engine, policy, **settings) is engine
        made = llm_of(engine)
        assert made.llm is llm
        assert (made.policy, made.settings, made.holdout) == (policy, settings, settings.get("holdout", 0))
    detach(engine)
    assert llm_of(engine) is llm


def test_a_wrapper_of_the_users_own_keeps_its_settings(server, index):
    """It gets the policy; ``detach`` gives it back as it was."""
    own = EarlyStopLLM(inside(server), POLICY, max_steps=7, early_stop=False)
    engine = attach(index.as_query_engine(llm=own), OTHER, early_stop=True)
    made = llm_of(engine)
    assert (made.llm, made.policy, made.max_steps, made.early_stop) == (own.llm, OTHER, 7, True)
    assert (own.policy, own.early_stop) == (POLICY, False)
    detach(engine)
    assert llm_of(engine) is own


def test_one_that_cannot_be_stopped_leaves_all_as_they_were(server, index):
    """Nothing is swapped when one of the LLMs gives no logprobs; the error names its class."""
    llm = inside(server)
    engine = router(llm, index)
    engine._selector._llm = MockLLM()
    with pytest.raises(NoLogprobsError, match="MockLLM"):
        attach(engine, POLICY, without_logprobs="error")
    assert engine._query_engines[0]._response_synthesizer._llm is llm
    attach(engine, POLICY, exclude=LLMSingleSelector)
