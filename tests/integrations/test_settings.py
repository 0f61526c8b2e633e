"""Misspelt settings are refused where they are given, whatever takes them; a policy may be the path of its file everywhere."""

from __future__ import annotations

import pytest
from langchain_core.runnables import RunnableLambda
from langchain_entropy_chains import (
    ChatTransformers,
    EarlyStopChatModel,
    EarlyStopMiddleware,
    EntropyCallbackHandler,
    instrument,
    with_early_stop,
)
from langchain_openai import ChatOpenAI
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.llms.entropy_chains import EarlyStopLLM, EntropyEventHandler, TransformersLLM, attach
from llama_index.llms.entropy_chains.agents import EarlyStopFunctionAgent, EarlyStopReActAgent
from llama_index.llms.openai_like import OpenAILike

from entropy_chains import InputError, Policy, SettingsError
from entropy_chains.backends.scripted import Script, ScriptedBackend

POLICY = Policy("scripted", (0.2,))
ALL = ("mode", "on_mismatch", "without_logprobs", "continuation", "temperature_mode")
ONE = ("on_mismatch",)


def chat():
    return ChatOpenAI(model="scripted", api_key="none")


def local_chat():
    return ChatTransformers(backend=ScriptedBackend(Script()))


def like():
    return OpenAILike(model="scripted", api_key="none", is_chat_model=True, is_function_calling_model=True)


def local_llm():
    return TransformersLLM(backend=ScriptedBackend(Script()))


DOORS = {
    "EarlyStopChatModel": (lambda policy, **given: EarlyStopChatModel(chat(), policy, **given), ALL),
    "with_early_stop": (lambda policy, **given: with_early_stop(chat(), policy, **given), ALL),
    "with_early_stop, local": (lambda policy, **given: with_early_stop(local_chat(), policy, **given), ONE),
    "with_early_stop, chain": (lambda policy, **given: with_early_stop(RunnableLambda(str) | local_chat(), policy, **given), ONE),
    "instrument": (lambda policy, **given: instrument(chat(), policy, **given), ALL),
    "EarlyStopMiddleware": (lambda policy, **given: EarlyStopMiddleware(policy, **given), ALL),
    "ChatTransformers": (lambda policy, **given: ChatTransformers(backend=ScriptedBackend(Script()), policy=policy, **given), ONE),
    "EarlyStopLLM": (lambda policy, **given: EarlyStopLLM(like(), policy, **given), ALL),
    "attach": (lambda policy, **given: attach(SimpleChatEngine.from_defaults(llm=like()), policy, **given), ALL),
    "attach, local": (lambda policy, **given: attach(SimpleChatEngine.from_defaults(llm=local_llm()), policy, **given), ONE),
    "TransformersLLM": (lambda policy, **given: TransformersLLM(policy=policy, backend=ScriptedBackend(Script()), **given), ONE),
    "EarlyStopFunctionAgent": (lambda policy, **given: EarlyStopFunctionAgent(llm=like(), policy=policy, **given), ONE),
    "EarlyStopReActAgent": (lambda policy, **given: EarlyStopReActAgent(llm=like(), policy=policy, **given), ONE),
}
HANDLERS = {
    "EntropyCallbackHandler": (EntropyCallbackHandler, ("on_mismatch", "temperature_mode")),
    "EntropyEventHandler": (EntropyEventHandler, ONE),
}
"""Their settings are arguments by name, of which Python itself knows the misspelt ones."""


@pytest.mark.parametrize("door", DOORS | HANDLERS)
def test_a_misspelt_word_is_refused(door):
    """At once, with the words that there are."""
    make, words = (DOORS | HANDLERS)[door]
    for name in words:
        with pytest.raises(SettingsError, match=rf"{name} is 'Misspelt'; it must be one of \w+, ") as raised:
            make(POLICY, **{name: "Misspelt"})
        assert type(raised.value) is SettingsError  # and none of pydantic's


@pytest.mark.parametrize("door", DOORS)
def test_a_misspelt_name_is_refused(door):
    """It would be taken in silence, and the default hold."""
    with pytest.raises(SettingsError, match="on_mismach") as raised:
        DOORS[door][0](POLICY, on_mismach="warn")
    assert type(raised.value) is SettingsError


@pytest.mark.parametrize("door", DOORS)
def test_a_setting_holds(door):
    """A good word is taken, and of a wrong type pydantic tells."""
    assert DOORS[door][0](POLICY, on_mismatch="warn") is not None
    with pytest.raises(ValueError, match="on_mismatch"):
        DOORS[door][0](POLICY, on_mismatch=3)


@pytest.mark.parametrize("door", DOORS | HANDLERS)
def test_a_policy_may_be_a_path(tmp_path, door):
    """A path works wherever a policy does; what is neither is refused by name."""
    file = tmp_path / "policy.json"
    POLICY.save(file)
    make, _ = (DOORS | HANDLERS)[door]
    for path in (file, str(file)):
        assert make(path) is not None
    with pytest.raises(SettingsError, match="policy is a int; give a Policy, the path of its file, or None"):
        make(3)


def test_an_agents_policy_is_the_files(tmp_path):
    """Read when the agent is made."""
    POLICY.save(tmp_path / "policy.json")
    assert EarlyStopFunctionAgent(llm=like(), policy=str(tmp_path / "policy.json")).policy == POLICY
    assert EarlyStopReActAgent(llm=like()).policy is None


def test_a_local_model_has_what_it_was_given():
    """The copy has policy and settings; its own others stay, and so does the model given."""
    given = ChatTransformers(backend=ScriptedBackend(Script()), max_tokens=7, callbacks=[])
    made = with_early_stop(given, POLICY, on_mismatch="warn", holdout=0.5)
    assert (made.policy, made.on_mismatch, made.holdout, made.max_tokens) == (POLICY, "warn", 0.5, 7)
    assert (given.policy, given.on_mismatch, made.backend) == (None, "error", given.backend)
    with pytest.raises(InputError, match="holdout is 2"):
        with_early_stop(given, POLICY, holdout=2)
