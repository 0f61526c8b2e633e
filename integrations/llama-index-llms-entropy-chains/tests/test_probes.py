"""Probes: trial answers whose entropy a rule reads. The server is scripted, in the way of llama.cpp's (a fake)."""

from __future__ import annotations

import asyncio

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.llms.entropy_chains import EarlyStopLLM
from llama_index.llms.openai_like import OpenAILike
from loopback import SURE, UNSURE, Loopback, Reply, said, thinking

from entropy_chains import Policy, Segmentation

POLICY = Policy("scripted", (0.1,), signal="trial_entropy", segmentation=Segmentation("line", 32))


def script(body):
    """Six unsure lines; a trial answer after the third is sure."""
    if "prompt" in body:
        return Reply(said("The answer is 42", SURE if "step3" in body["prompt"] else UNSURE))
    return thinking(*[UNSURE] * 6, answer="The answer is 42", pace=0.002)


@pytest.mark.parametrize("how", ["chat", "achat"])
def test_a_probe_by_a_raw_completion_has_its_logprobs(how):
    """It asks for them by a number, as that endpoint wants it; else the rule could read nothing, and nothing was stopped."""
    with Loopback(script, owned_by="llamacpp", rendered="<user>6*7<assistant>") as server:
        inner = OpenAILike(model="scripted", api_base=server.url, api_key="none", is_chat_model=True, context_window=8000)
        llm, asked = EarlyStopLLM(inner, POLICY), [ChatMessage("What is 6*7?")]
        last = asyncio.run(llm.achat(asked)) if how == "achat" else llm.chat(asked)
        probes = [call.body["logprobs"] for call in server.calls if "prompt" in call.body and "logprobs" in call.body]
    assert last.message.content == "The answer is 42"
    assert (last.additional_kwargs["early_stop_stopped"], last.additional_kwargs["early_stop_step"]) == (True, 3)
    assert set(probes) == {20}
