"""An Ollama before 0.12.11 sends no logprobs: what is said of it names the releases that are needed, and what to do.

The server is scripted (a fake, see ``ollama_loopback``): no Ollama was tried.
"""

from __future__ import annotations

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.llms.entropy_chains import EarlyStopLLM
from loopback import Reply, said, sums
from ollama_loopback import Ollama as Server

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import NoLogprobsError

Ollama = pytest.importorskip("llama_index.llms.ollama").Ollama

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))
ASKED = [ChatMessage(role="user", content="What is 6*7?")]
NEEDED = r"need Ollama 0\.12\.11 or later and its Python client 0\.6\.1 or later: update"


@pytest.fixture
def server():
    with Server(sums, tags=True, since=(0, 12, 10)) as running:
        yield running


def test_thinking_without_logprobs(server):
    """One warning with the reply in full, and an error where one was asked for."""
    inner = Ollama(model="scripted", base_url=server.url, thinking=True)
    with pytest.warns(UserWarning, match=NEEDED):
        told = EarlyStopLLM(inner, POLICY).chat(ASKED).additional_kwargs
    assert told["early_stop_active"] is False
    assert "0.12.11" in told["early_stop_reason"]
    with pytest.raises(NoLogprobsError, match=NEEDED):
        EarlyStopLLM(inner, POLICY, without_logprobs="error").chat(ASKED)


def test_an_answer_without_logprobs(server):
    """Without any thinking the same is said."""
    server.script = lambda body: Reply(said("The answer is 42"))
    with pytest.warns(UserWarning, match=NEEDED):
        EarlyStopLLM(Ollama(model="scripted", base_url=server.url), POLICY).chat(ASKED)
