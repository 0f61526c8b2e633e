"""An Ollama before 0.12.11 sends no logprobs: what is said of it names the releases that are needed, and what to do.

The server is scripted (a fake, see ``ollama_loopback``): no Ollama was tried.
"""

from __future__ import annotations

import logging

import pytest
from langchain_entropy_chains import EarlyStopChatModel, EntropyCallbackHandler
from langchain_ollama import ChatOllama
from loopback import Reply, said, sums
from ollama_loopback import Ollama

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import NoLogprobsError

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))
NEEDED = r"need Ollama 0\.12\.11 or later and langchain-ollama 1\.1 or later: update"


@pytest.fixture
def server():
    with Ollama(sums, tags=True, since=(0, 12, 10)) as running:
        yield running


@pytest.mark.parametrize("reasoning", [True, None])
def test_thinking_without_logprobs(server, reasoning):
    """Whether the class passes on the thinking's text or drops it: one warning, and an error where one was asked for."""
    chat = ChatOllama(model="scripted", base_url=server.url, reasoning=reasoning)
    with pytest.warns(UserWarning, match=NEEDED):
        told = EarlyStopChatModel(chat, POLICY).invoke("6*7?").response_metadata
    assert told["early_stop_active"] is False
    assert "0.12.11" in told["early_stop_reason"]
    with pytest.raises(NoLogprobsError, match=NEEDED):
        EarlyStopChatModel(chat, POLICY, without_logprobs="error").invoke("6*7?")


def test_an_answer_without_logprobs(server):
    """Without any thinking the same is said."""
    server.script = lambda body: Reply(said("The answer is 42"))
    with pytest.warns(UserWarning, match=NEEDED):
        EarlyStopChatModel(ChatOllama(model="scripted", base_url=server.url), POLICY).invoke("6*7?")


def test_a_handler_names_the_release_as_well(server, caplog):
    """It does not know which server is asked."""
    model = ChatOllama(model="scripted", base_url=server.url, logprobs=True, top_logprobs=20)
    with caplog.at_level(logging.WARNING):
        model.invoke("6*7?", {"callbacks": [EntropyCallbackHandler(POLICY)]})
    assert "Ollama 0.12.11 or later" in caplog.text
