"""The answer after a stop, asked in a turn: a server that can be told not to think is told so, in every way."""

from __future__ import annotations

import pytest
from frameworks import WAYS, Asker
from loopback import Loopback

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("owner", "told"), [("library", "none"), ("somebody", None)])
def test_ollama_at_v1_is_told_for_the_answer_only(way, owner, told):
    """Its models belong to ``library``; a server of another kind gets no setting that it may not know."""
    with Loopback(owned_by=owner) as server:
        got = Asker(way, server.url, POLICY).ask()
    assert (got.answer, got.stopped) == ("The answer is 42", True)
    assert [call.body.get("reasoning_effort") for call in server.calls] == [None, told]
