"""``EarlyStopLLM``: bad settings, missing logprobs, secrets and errors, over real HTTP against a scripted server (a fake)."""

from __future__ import annotations

import json

import pytest
from llama_index.core.llms import MockLLM
from llama_index.llms.entropy_chains import EarlyStopLLM
from llama_index.llms.openai import OpenAIResponses
from llms import ANSWER, ASKED, KEY, LOOP, POLICY, Product, ask_all, wrapped
from loopback import Loopback, Reply, thinking

from entropy_chains.core.policy import Policy
from entropy_chains.errors import NoLogprobsError, PolicyError, PolicyMismatch, SettingsError


@pytest.mark.parametrize(
    ("settings", "error", "named"),
    [
        ({"mode": "fast"}, SettingsError, "fast"),
        ({"polcy": POLICY}, SettingsError, "polcy"),
        ({"max_steps": 0}, SettingsError, "max_steps"),
        ({"continuation": "guess"}, SettingsError, "guess"),
        ({"continuation": "control"}, SettingsError, "control"),
        ({"without_logprobs": "hope"}, SettingsError, "hope"),
        ({"holdout": 2}, ValueError, "2"),
        ({"policy": {"thresholds": [1]}}, SettingsError, "dict"),
        ({"policy": "nowhere.json"}, PolicyError, "nowhere.json"),
        ({"policy": LOOP}, PolicyMismatch, "refine"),
        ({"policy": Policy("another", (0.2,))}, PolicyMismatch, "another"),
    ],
)
def test_bad_settings_fail_at_the_door(server, settings, error, named):
    """Each names the value, before any request."""
    with pytest.raises(error, match=named):
        wrapped(server, **settings)
    assert server.calls == []


def test_a_mismatch_may_be_a_warning(server):
    """``on_mismatch="warn"`` goes on."""
    with pytest.warns(UserWarning, match="another"):
        assert wrapped(server, Policy("another", (0.2,)), on_mismatch="warn").llm is not None


def test_an_llm_without_logprobs_is_named():
    """Its calls run in full: a warning names the class and what to do, and each reply says so. ``error`` refuses it."""
    with pytest.raises(NoLogprobsError, match=r"MockLLM.*OpenAILike"):
        EarlyStopLLM(llm=MockLLM(), policy=POLICY, without_logprobs="error")
    with pytest.warns(UserWarning, match=r"MockLLM.*OpenAILike"):
        llm = EarlyStopLLM(llm=MockLLM(), policy=POLICY.for_model("unknown"))
    response = llm.chat(ASKED)
    assert response.message.content == "user: What is 6*7?\nassistant: "
    assert response.additional_kwargs["early_stop_reason"] == "MockLLM takes no logprobs: run in full"


def test_a_wrapper_is_not_wrapped(server):
    """Nor is a structured LLM: both hold the LLM to wrap."""
    llm = wrapped(server)
    for outer in (llm, llm.as_structured_llm(Product)):
        with pytest.raises(SettingsError, match="inside"):
            EarlyStopLLM(llm=outer)


@pytest.mark.parametrize("method", ["chat", "achat"])
def test_a_server_that_sends_no_logprobs_is_told(method):
    """Never a silent full run: it goes on and says so, or, with ``error``, raises after sixteen reasoning tokens."""
    with Loopback(lambda body: thinking(None, None, None)) as server:
        with pytest.raises(NoLogprobsError, match="reasoning"):
            ask_all(wrapped(server, without_logprobs="error"), method)
        with pytest.warns(UserWarning, match="no logprobs"):
            (response,) = ask_all(wrapped(server), method)
    assert response.message.content == "42"
    assert response.additional_kwargs["early_stop_active"] is False


def test_the_responses_api_is_loud_and_never_stops_reasoning():
    """It warns when wrapped; a reply whose reasoning has no logprobs is whole."""
    with Loopback() as server:
        inner = OpenAIResponses(model="gpt-4o", api_base=server.url, api_key=KEY)
        with pytest.warns(UserWarning, match="OpenAIResponses: the Responses API gives no logprobs"):
            llm = EarlyStopLLM(llm=inner, policy=POLICY.for_model("gpt-4o"))
        with pytest.warns(UserWarning, match="gives no logprobs on reasoning"):
            response = llm.chat(ASKED)
        assert [c.gone for c in server.calls] == [False]
        assert server.calls[0].body["include"] == ["message.output_text.logprobs"]
    assert response.message.content == ANSWER
    assert response.additional_kwargs["early_stop_stopped"] is False


def test_no_key_is_shown(server):
    """Not in ``to_dict``, its JSON, the repr, or the string; the inner LLM's own would show it."""
    llm = wrapped(server)
    assert KEY in str(llm.llm.to_dict())
    for shown in (
        str(llm.to_dict()),
        llm.to_json(),
        repr(llm),
        str(llm),
        json.dumps(getattr(llm, "to_payload", llm.to_dict)(), default=str),
    ):
        assert KEY not in shown


def test_the_inner_llms_own_errors_come_through():
    """A refused first request raises what the inner LLM raises."""
    import openai

    with Loopback(lambda body: Reply(status=429, message="slow down")) as server, pytest.raises(openai.RateLimitError):
        wrapped(server, inner={"max_retries": 0}).chat(ASKED)
