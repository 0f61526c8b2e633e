"""Replies without thinking and replies that were cut off, of real engines, by the core and both frameworks in every way."""

from __future__ import annotations

import pytest
from frameworks import WAYS, Asker

from entropy_chains.backends import Sampling
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.demo import MODEL_NAME

pytestmark = pytest.mark.servers
POLICY = Policy(MODEL_NAME, (0.005,), segmentation=Segmentation("line", 32))
QUESTION = "4821*93=?"
OFF = {"temperature": 0, "extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}


@pytest.fixture(params=["vllm", "llama"])
def engine(request):
    return request.getfixturevalue(request.param)


def asked(engine, way, body, limit=1500):
    """The reply, under a limit of tokens."""
    given = {"sampling": Sampling(max_tokens=limit)} if way.startswith("core") else {}
    body = body if given else {**body, "max_tokens": limit}
    return Asker(way, engine.base_url, POLICY, body, model=engine.name, question=QUESTION, name=MODEL_NAME).ask(**given)


def test_an_answer_at_once_is_the_answer(engine):
    """With the thinking switched off by the template's setting: the same whole answer in all ways, and nothing was stopped."""
    got = {way: asked(engine, way, OFF) for way in WAYS}
    assert {g.answer for g in got.values()} == {got["core"].answer}
    assert got["core"].answer
    assert {(g.finish, g.stopped) for g in got.values()} == {("stop", False)}


@pytest.mark.parametrize("way", WAYS)
def test_a_reply_that_was_cut_off_says_so(engine, way):
    """The finish reason is the server's, no answer is made up, and no saving is told."""
    got = asked(engine, way, {"temperature": 0}, limit=20)
    assert (got.answer, got.finish, got.stopped) == (None, "length", False)
