"""A model of Ollama that ignores ``think: false``: it costs one call twice, and is remembered as long as the user's LLM lives.

The server is scripted (a fake, see ``ollama_loopback``): no Ollama was tried.
"""

from __future__ import annotations

import asyncio
import warnings

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.llms.entropy_chains import EarlyStopLLM
from loopback import sums
from ollama_loopback import Ollama as Server

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from scripts import rethinking

Ollama = pytest.importorskip("llama_index.llms.ollama").Ollama

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))
ASKED = [ChatMessage(role="user", content="What is 6*7?")]


def test_only_the_first_call_is_paid_for_twice():
    """Chatted, then awaited: three requests, then one a call; one warning, and the reason on every later response."""
    with Server(rethinking(sums), tags=True, obeys=False) as server, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        llm = EarlyStopLLM(Ollama(model="scripted", base_url=server.url, thinking=True), POLICY)
        responses = [llm.chat(ASKED), asyncio.run(llm.achat(ASKED)), llm.chat(ASKED)]
        assert len(server.bodies) == 3 + 2
    told = [response.additional_kwargs for response in responses]
    assert {response.message.content for response in responses} == {"The answer is 42"}
    assert [(t["early_stop_stopped"], t["early_stop_active"]) for t in told] == [(False, True), (False, False), (False, False)]
    assert all("think again" in t["early_stop_reason"] for t in told)
    (said,) = [str(w.message) for w in caught if w.category is UserWarning]
    assert "scripted: after a stop the model begins to think again" in said
