"""Probes: trial answers whose entropy a rule reads. The server is scripted, in the way of llama.cpp's (a fake)."""

from __future__ import annotations

import asyncio

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.llms.entropy_chains import EarlyStopLLM
from llama_index.llms.openai_like import OpenAILike
from loopback import Loopback

from scripts import TRIAL_POLICY, trials


@pytest.mark.parametrize("how", ["chat", "achat"])
def test_a_probe_by_a_raw_completion_has_its_logprobs(how):
    """It asks for them by a number, as that endpoint wants it; else the rule could read nothing, and nothing was stopped."""
    with Loopback(trials, owned_by="llamacpp", rendered="<user>6*7<assistant>") as server:
        inner = OpenAILike(model="scripted", api_base=server.url, api_key="none", is_chat_model=True, context_window=8000)
        llm, asked = EarlyStopLLM(inner, TRIAL_POLICY), [ChatMessage("What is 6*7?")]
        last = asyncio.run(llm.achat(asked)) if how == "achat" else llm.chat(asked)
        probes = [call.body["logprobs"] for call in server.calls if "prompt" in call.body and "logprobs" in call.body]
    assert last.message.content == "The answer is 42"
    assert (last.additional_kwargs["early_stop_stopped"], last.additional_kwargs["early_stop_step"]) == (True, 3)
    assert set(probes) == {20}
