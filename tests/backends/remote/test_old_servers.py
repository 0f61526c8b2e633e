"""A server whose older releases send no logprobs is named with the release that does. The servers are scripted (fakes)."""

from __future__ import annotations

from dataclasses import replace

import openai
import pytest
from loopback import Loopback, sums

from entropy_chains.backends.openai import OpenAIBackend
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import NoLogprobsError

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))
ASKED = [[{"role": "user", "content": "What is 6*7?"}]]


def silent(body):
    """The default script of a server that takes the wish for logprobs and sends none."""
    made = sums(body)
    return replace(made, tokens=[replace(token, entropy=None) for token in made.tokens])


@pytest.mark.parametrize(("owner", "needed"), [("library", True), ("vllm", False)])
def test_an_old_ollama_is_named_with_the_release_to_have(owner, needed):
    """At ``/v1``, known by who owns its models; of other servers no release is known."""
    with (
        Loopback(silent, owned_by=owner) as server,
        openai.OpenAI(base_url=server.url, api_key="none") as client,
        pytest.raises(NoLogprobsError, match="no logprobs on reasoning tokens") as error,
    ):
        OpenAIBackend(client, "scripted").generate(ASKED, policy=POLICY)
    assert ("logprobs need Ollama 0.12.11 or later: update" in str(error.value)) is needed
