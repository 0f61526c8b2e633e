"""A limit on the reply's tokens holds for a stopped run as a whole. The server is scripted (a fake: it thinks nothing)."""

from __future__ import annotations

import pytest
from llms import ANSWER, ASKED, ask_all, wrapped
from loopback import SURE, UNSURE, Loopback, Reply, is_answer_call, said, thinking

from entropy_chains.adapters import forms

LIMIT = 200

PLACES = {
    "the LLM": ({"max_tokens": LIMIT}, {}, "max_tokens"),
    "the call": ({}, {"max_tokens": LIMIT}, "max_tokens"),
    "the call's body": ({}, {"extra_body": {"max_tokens": LIMIT}}, "max_tokens"),
    "the LLM's body, over its own": (
        {"max_tokens": 900, "additional_kwargs": {"extra_body": {"max_tokens": LIMIT}}}, {}, "max_tokens"
    ),
    "the name that wins": (
        {"max_tokens": 900, "additional_kwargs": {"max_completion_tokens": LIMIT}}, {}, "max_completion_tokens"
    ),
    "the call, by the name that wins": ({"max_tokens": 900}, {"max_completion_tokens": LIMIT}, "max_completion_tokens"),
    **{name: ({"additional_kwargs": {"extra_body": {name: LIMIT}}}, {}, name) for name in forms.LIMITS},
}  # fmt: skip


def short(body):
    """Three short lines of thinking, unsure of the first, then the answer; of a stopped run the answer only."""
    return Reply(said(ANSWER)) if is_answer_call(body) else thinking(UNSURE, SURE, SURE, words=34, answer=ANSWER)


@pytest.fixture
def server():
    with Loopback(short) as running:
        yield running


@pytest.mark.parametrize("place", PLACES)
def test_the_answer_gets_what_is_left_of_the_limit(server, place):
    """Wherever it stands, and whatever it is called; nothing else of the request changes by it."""
    inner, kwargs, name = PLACES[place]
    response = ask_all(wrapped(server, inner=inner), "chat", **kwargs)[-1]
    first, second = [call.body for call in server.calls]
    assert response.additional_kwargs["early_stop_stopped"]
    assert (first[name], second[name]) == (LIMIT, LIMIT - 68)
    limits = set(first) & set(forms.LIMITS)
    assert {other: second.get(other) for other in limits - {name}} == {other: first[other] for other in limits - {name}}


@pytest.mark.parametrize(
    ("name", "settings"), [("max_tokens", {"max_tokens": -1}), ("n_predict", {"extra_body": {"n_predict": -1}})]
)
def test_a_limit_below_one_is_none(server, name, settings):
    """So llama.cpp writes it: the answer after a stop is not cut after its first token."""
    response = wrapped(server, inner={"additional_kwargs": settings}).chat(ASKED)
    assert response.message.content == ANSWER
    assert [call.body[name] for call in server.calls] == [-1, -1]
