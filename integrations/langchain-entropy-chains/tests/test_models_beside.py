"""Models beside the one that the policy is for, a fallback or an alternative: they run in full, and it is said."""

from __future__ import annotations

import asyncio
import warnings

import pytest
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableLambda
from langchain_entropy_chains import with_early_stop
from langchain_openai import ChatOpenAI
from loopback import Loopback, Reply

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import PolicyMismatch

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))
ASKED = "What is 6*7?"
BOTH = "'scripted'.*'another'"


@pytest.fixture
def broken():
    """A server that refuses every call (a fake)."""
    with Loopback(lambda body: Reply(status=500)) as running:
        yield running


def chat(server, name="scripted"):
    return ChatOpenAI(model=name, base_url=server.url, api_key="none", max_retries=0)


def test_a_fallback_to_another_model_answers(server, broken):
    """Invoked, streamed, awaited: the fallback is asked, in full; a warning names both models, at wrapping and at the call."""
    chain = ChatPromptTemplate.from_template("{q}") | chat(broken).with_fallbacks([chat(server, "another")])
    with pytest.warns(UserWarning, match=BOTH) as wrapping:
        stopping = with_early_stop(chain, POLICY)
    assert len(wrapping) == 1
    with pytest.warns(UserWarning, match=BOTH):
        message = stopping.invoke({"q": ASKED})
    assert message.content == "The answer is 42"
    assert (message.response_metadata["early_stop_active"], message.response_metadata["early_stop_stopped"]) == (False, False)
    assert "another" in message.response_metadata["early_stop_reason"]
    with pytest.warns(UserWarning, match=BOTH):
        assert "".join(chunk.text for chunk in stopping.stream({"q": ASKED})) == "The answer is 42"
    with pytest.warns(UserWarning, match=BOTH):
        assert asyncio.run(stopping.ainvoke({"q": ASKED})).content == "The answer is 42"
    assert not any("logprobs" in call.body for call in server.calls)


def test_a_fallback_of_the_policys_model_stops(server, broken):
    """The first model runs in full (and fails here), the policy's own is stopped; it is not asked in place of one that works."""
    with pytest.warns(UserWarning, match=BOTH):
        stopping = with_early_stop(chat(broken, "another").with_fallbacks([chat(server)]), POLICY)
    with pytest.warns(UserWarning, match=BOTH):
        assert stopping.invoke(ASKED).response_metadata["early_stop_stopped"]
    with pytest.warns(UserWarning, match=BOTH):
        healthy = with_early_stop(chat(server, "another").with_fallbacks([chat(broken)]), POLICY)
    with pytest.warns(UserWarning, match=BOTH):
        assert healthy.invoke(ASKED).response_metadata["early_stop_active"] is False
    assert server.calls[-1].body["model"] == "another"


def test_an_alternative_of_another_model_runs_in_full(server):
    """``configurable_alternatives``: the policy's model stops, the other one answers."""
    choices = chat(server).configurable_alternatives(ConfigurableField(id="llm"), default_key="a", b=chat(server, "another"))
    with pytest.warns(UserWarning, match=BOTH):
        stopping = with_early_stop(choices, POLICY)
    assert stopping.invoke(ASKED).response_metadata["early_stop_stopped"]
    with pytest.warns(UserWarning, match=BOTH):
        message = stopping.invoke(ASKED, {"configurable": {"llm": "b"}})
    assert (message.content, message.response_metadata["early_stop_active"]) == ("The answer is 42", False)


def test_a_name_set_by_the_config_runs_in_full(server):
    """The name is known only when it is called: then the warning comes."""
    choices = chat(server).configurable_fields(model_name=ConfigurableField(id="name"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        stopping = with_early_stop(choices, POLICY)
    with pytest.warns(UserWarning, match=BOTH):
        message = stopping.invoke(ASKED, {"configurable": {"name": "another"}})
    assert (message.content, message.response_metadata["early_stop_active"]) == ("The answer is 42", False)


def test_without_the_policys_model_a_mismatch_is_an_error(server):
    """The policy is then for something else: alone, in a sequence, and with a fallback of a third model."""
    alone = chat(server, "another")
    for runnable in (alone, RunnableLambda(str) | alone, alone.with_fallbacks([chat(server, "third")])):
        with pytest.raises(PolicyMismatch, match="for_model"):
            with_early_stop(runnable, POLICY).invoke(ASKED)


def test_where_a_mismatch_is_a_warning_both_stop(server, broken):
    """``on_mismatch="warn"`` and an alias of the policy: the fallback is stopped, and wrapping says nothing."""
    for policy, settings in ((POLICY, {"on_mismatch": "warn"}), (POLICY.for_model("another"), {})):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            stopping = with_early_stop(chat(broken).with_fallbacks([chat(server, "another")]), policy, **settings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            assert stopping.invoke(ASKED).response_metadata["early_stop_stopped"]
