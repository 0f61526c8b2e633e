"""Probes: trial answers whose entropy a rule reads. The server is scripted, in the way of llama.cpp's (a fake)."""

from __future__ import annotations

import asyncio

import pytest
from langchain_entropy_chains import EarlyStopChatModel
from langchain_openai import ChatOpenAI
from loopback import Loopback

from scripts import TRIAL_POLICY, trials


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
def test_a_probe_by_a_raw_completion_has_its_logprobs(how):
    """It asks for them, and they are read; else the rule could read nothing, and nothing was stopped."""
    with Loopback(trials, owned_by="llamacpp", rendered="<user>6*7<assistant>") as server:
        model = EarlyStopChatModel(ChatOpenAI(model="scripted", base_url=server.url, api_key="none"), TRIAL_POLICY)
        last = asyncio.run(model.ainvoke("What is 6*7?")) if how == "ainvoke" else model.invoke("What is 6*7?")
        probes = [call.body["logprobs"] for call in server.calls if "prompt" in call.body and "logprobs" in call.body]
    assert last.content == "The answer is 42"
    assert (last.response_metadata["early_stop_stopped"], last.response_metadata["early_stop_step"]) == (True, 3)
    assert set(probes) == {20}
