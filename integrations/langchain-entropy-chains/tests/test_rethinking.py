"""A model of Ollama that ignores ``think: false``: it costs one call twice, and is remembered as long as the user's model lives.

The server is scripted (a fake, see ``ollama_loopback``): no Ollama was tried.
"""

from __future__ import annotations

import asyncio
import warnings

import pytest
from langchain_entropy_chains import EarlyStopChatModel, instrument, with_early_stop
from langchain_ollama import ChatOllama
from loopback import sums
from ollama_loopback import Ollama

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from scripts import rethinking

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))
ASKED = "What is 6*7?"


@pytest.mark.parametrize("around", [EarlyStopChatModel, with_early_stop, instrument])
def test_only_the_first_call_is_paid_for_twice(around):
    """Invoked, then awaited: three requests, then one a call; one warning, and the reason on every later reply."""
    with Ollama(rethinking(sums), tags=True, obeys=False) as server, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        model = around(ChatOllama(model="scripted", base_url=server.url, reasoning=True), POLICY)
        messages = [model.invoke(ASKED), asyncio.run(model.ainvoke(ASKED)), model.invoke(ASKED)]
        assert len(server.bodies) == 3 + 2
    told = [message.response_metadata for message in messages]
    assert {message.content for message in messages} == {"The answer is 42"}
    assert [(t["early_stop_stopped"], t["early_stop_active"]) for t in told] == [(False, True), (False, False), (False, False)]
    assert all("think again" in t["early_stop_reason"] for t in told)
    (said,) = [str(w.message) for w in caught if w.category is UserWarning]
    assert "scripted: after a stop the model begins to think again" in said
