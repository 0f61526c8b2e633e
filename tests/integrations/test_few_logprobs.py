"""Logprobs that stop coming, or come for some tokens only: where no step has an entropy the reply says so when it is over, once."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
from frameworks import QUESTION, WAYS, Asker
from langchain_entropy_chains import EntropyCallbackHandler
from langchain_openai import ChatOpenAI
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.instrumentation import get_dispatcher
from llama_index.llms.entropy_chains import EntropyEventHandler
from llama_index.llms.openai_like import OpenAILike
from loopback import SURE, Loopback, Reply, thinking

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 8))
WHOLE = thinking(SURE, SURE, SURE, words=20, answer="The answer is 42")


def with_logprobs(keep) -> Reply:
    """The reply, with logprobs of the tokens whose number ``keep`` holds for."""
    tokens = [token if keep(n) else replace(token, entropy=None) for n, token in enumerate(WHOLE.tokens)]
    return replace(WHOLE, tokens=tokens)


LACKING = {
    "after the first": lambda n: n == 0,
    "of every second token": lambda n: n % 2 == 0,
    "in the answer alone but for one": lambda n: n in (0, len(WHOLE.tokens) - 1),
}
TOLD = "gives logprobs for fewer than 90% of the tokens, so no step has an entropy, nothing was measured"


def told(caught):
    return [str(w.message) for w in caught if "logprobs" in str(w.message)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("keep", LACKING.values(), ids=LACKING)
def test_a_policy_that_is_never_asked(way, keep):
    """The reply is whole, its outcome is not active and says why, and one warning comes, however many replies there are."""
    with Loopback(lambda body: with_logprobs(keep)) as server:
        asker = Asker(way, server.url, POLICY)
        with pytest.warns(UserWarning, match=TOLD) as caught:
            both = [asker.ask() for _ in range(2)]
    assert len(told(caught)) == 1
    assert {(got.answer, got.stopped, got.told["early_stop_active"]) for got in both} == {("The answer is 42", False, False)}
    assert all("fewer than 90% of the tokens: run in full" in got.reason for got in both)


@pytest.mark.parametrize("way", WAYS)
def test_a_step_that_could_be_judged_is_enough(way):
    """The policy was asked, and did not stop: nothing is wrong with that."""
    never = Policy("scripted", (0.0,), segmentation=Segmentation("line", 8))
    with Loopback(lambda body: with_logprobs(lambda n: n < 20)) as server, warnings.catch_warnings():
        warnings.simplefilter("error")
        got = Asker(way, server.url, never).ask()
    assert (got.stopped, got.told["early_stop_active"]) == (False, True)


@pytest.mark.parametrize("policy", [None, Policy("scripted", (None,), rule="fixed-step", min_steps=99)])
def test_who_reads_no_entropy_is_not_bothered(policy):
    """Without a policy, or with a rule that needs none."""
    policy = policy and replace(policy, segmentation=POLICY.segmentation)
    with Loopback(lambda body: with_logprobs(lambda n: n == 0)) as server, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Asker("core", server.url, policy).ask().answer == "The answer is 42"


def test_a_callback_says_so():
    """It only watches, and could not: the same warning, and an outcome that is not active."""
    with Loopback(lambda body: with_logprobs(lambda n: n % 2 == 0), field_name="") as server:
        handler = EntropyCallbackHandler(POLICY, stop=True)
        model = ChatOpenAI(model="scripted", base_url=server.url, api_key="none", logprobs=True, top_logprobs=20)
        with pytest.warns(UserWarning, match="fewer than 90% of the tokens"):
            [*model.stream(QUESTION, config={"callbacks": [handler]})]
    assert [row.metadata["early_stop_active"] for row in handler.summary().rows] == [False]


def test_an_event_handler_says_so():
    """As the callback does."""
    with Loopback(lambda body: with_logprobs(lambda n: n % 2 == 0)) as server:
        handler, dispatcher = EntropyEventHandler(POLICY, stop=True), get_dispatcher()
        given = {"logprobs": True, "top_logprobs": 20}
        llm = OpenAILike(model="scripted", api_base=server.url, api_key="none", is_chat_model=True, additional_kwargs=given)
        handler.prepare(llm)
        dispatcher.add_event_handler(handler)
        try:
            with pytest.warns(UserWarning, match="fewer than 90% of the tokens"):
                [*llm.stream_chat([ChatMessage(QUESTION)])]
        finally:
            dispatcher.event_handlers.remove(handler)
    assert [row.outcome.active for row in handler.summary().rows] == [False]
