"""A token limit that stands in ``extra_body``: it is the whole reply's."""

from __future__ import annotations

import pytest
from langchain_entropy_chains import EarlyStopChatModel
from langchain_openai import ChatOpenAI
from loopback import Loopback

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))
ASKED = "What is 6*7?"


def chat(server, **settings):
    return ChatOpenAI(model="scripted", base_url=server.url, api_key="none", max_retries=0, **settings)


@pytest.mark.parametrize("place", ["model", "bound", "call"])
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_limit_in_the_extra_body_holds_for_the_whole_reply(server, place, name):
    """The answer after a stop gets what is left of it, and the body's other fields."""
    settings = {"extra_body": {name: 500, "top_k": 5}}
    model = EarlyStopChatModel(chat(server, **(settings if place == "model" else {})), POLICY)
    runnable = model.bind(**settings) if place == "bound" else model
    message = runnable.invoke(ASKED, **(settings if place == "call" else {}))
    first, answer = [call.body for call in server.calls]
    spent = message.response_metadata["early_stop_tokens"] - server.calls[1].made
    assert (first[name], answer[name]) == (500, 500 - spent)
    assert first["top_k"] == answer["top_k"] == 5


def test_the_extra_bodys_limit_wins_as_it_does_in_the_request(server):
    """Over the model's own of the same name in the request; one that is no number is passed on as it is."""
    EarlyStopChatModel(chat(server, max_tokens=900, extra_body={"max_completion_tokens": 500}), POLICY).invoke(ASKED)
    assert server.calls[0].body["max_completion_tokens"] == 500
    assert server.calls[1].body["max_completion_tokens"] < 500
    EarlyStopChatModel(chat(server, extra_body={"max_tokens": "many"}), POLICY).invoke(ASKED)
    assert server.calls[3].body["max_tokens"] == "many"


def test_a_raw_completion_has_one_limit():
    """llama.cpp goes on by a raw completion: the answer's own limit is not overwritten by that of the body."""
    with Loopback(owned_by="llamacpp", rendered="<user>What is 6*7?<assistant>") as server:
        EarlyStopChatModel(chat(server, extra_body={"max_tokens": 500, "top_k": 5}), POLICY).invoke(ASKED)
        answer = server.calls[1]
    assert answer.path.endswith("/completions")
    assert not answer.path.endswith("/chat/completions")
    assert answer.body["max_tokens"] < 500
    assert answer.body["top_k"] == 5
