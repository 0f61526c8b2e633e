"""LLM classes that pass no wish for logprobs on: in every way in they say what runs the same model and is stopped.

The classes themselves where they are installed; else a class of the same name (a fake).
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from llama_index.core import SummaryIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import MockLLM
from llama_index.core.schema import TextNode
from llama_index.llms.entropy_chains import EarlyStopLLM, EntropyEventHandler, attach

from entropy_chains import Policy, Segmentation
from entropy_chains.errors import EntropyChainsError, NoLogprobsError, SettingsError

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))
INSTEAD = {"LlamaCPP": "llama-server with OpenAILike", "HuggingFaceLLM": "TransformersLLM"}
HOMES = {"LlamaCPP": "llama_index.llms.llama_cpp", "HuggingFaceLLM": "llama_index.llms.huggingface"}


def like(name: str) -> Any:
    """An LLM of that class, as it is before its model is loaded."""
    try:
        kind = getattr(importlib.import_module(HOMES[name]), name)
    except ImportError:
        return type(name, (MockLLM,), {})()
    plain = {field: getattr(MockLLM(), field) for field in MockLLM.model_fields if field in kind.model_fields}
    return kind.model_construct(**plain, model_name="scripted", context_window=2048, max_new_tokens=64, generate_kwargs={})


def engine_of(llm: Any) -> Any:
    return SummaryIndex([TextNode(text="x")]).as_query_engine(llm=llm)


WAYS = {
    "EarlyStopLLM": lambda llm, **settings: EarlyStopLLM(llm, POLICY, **settings),
    "EarlyStopLLM with ask": lambda llm, **settings: EarlyStopLLM(llm, POLICY, ask={"logprobs": True}, **settings),
    "attach, an engine": lambda llm, **settings: attach(engine_of(llm), POLICY, **settings),
    "attach, an agent": lambda llm, **settings: attach(FunctionAgent(tools=[], llm=llm), POLICY, **settings),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", INSTEAD)
def test_each_way_in_says_what_to_use(name, way):
    """A warning when it is made, since the app goes on in full; an error where that is wanted."""
    with pytest.warns(UserWarning, match=f"{name} .*run in full: use {INSTEAD[name]}"):
        WAYS[way](like(name), on_mismatch="warn")
    with pytest.raises(NoLogprobsError, match=f"{name} .*use {INSTEAD[name]}"):
        WAYS[way](like(name), without_logprobs="error")


@pytest.mark.parametrize("name", INSTEAD)
def test_the_handler_says_it_too(name):
    """It can end no stream of theirs, and a wrapper could not either."""
    with pytest.raises(SettingsError, match=f"{name} cannot be ended from outside; use {INSTEAD[name]}") as told:
        EntropyEventHandler(POLICY, stop=True).prepare(like(name))
    assert isinstance(told.value, EntropyChainsError)
    assert "EarlyStopLLM" not in str(told.value)
