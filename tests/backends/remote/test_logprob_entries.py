"""Logprob entries to tokens, in every shape that servers send."""

from __future__ import annotations

import math

import pytest
from chat_chunks import CHAT, COMPLETION, chunk, entry, read
from openai._models import construct_type
from openai.types.chat import ChatCompletionChunk

from entropy_chains import token_entropy
from entropy_chains.backends.remote.readers import (
    tokens_of,
)
from entropy_chains.core.tokens import Alternative, Token

SHAPES = {
    "chat": CHAT,
    "deepseek": {"reasoning_content": [entry("a")], "content": [entry("b")]},
    "flat": [entry("a"), entry("b")],
    "completion": COMPLETION,
    "choice": {**CHAT, "refusal": [entry("no")]},
    "sdk": construct_type(value=chunk("ab", CHAT["content"]), type_=ChatCompletionChunk).choices[0].logprobs,
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_gives_the_same_tokens(shape):
    """Chat, DeepSeek's second list, flat, completions, SDK objects; a refusal's list is not part of the answer."""
    found = tokens_of(SHAPES[shape])
    assert [(t.text, t.logprob) for t in found] == [("a", -0.5), ("b", -0.5)]
    assert [[(a.text, a.logprob) for a in t.alternatives] for t in found] == [
        [("a", -0.5), ("other", -1.5)], [("b", -0.5), ("other", -1.5)],
    ]  # fmt: skip


@pytest.mark.parametrize("nothing", [None, {}, [], {"content": None}, {"content": []}, {"content": "x"}, "x", 3, [None, 1, {}]])
def test_nothing_is_no_tokens(nothing):
    """What is missing, empty or unreadable gives no token."""
    assert tokens_of(nothing) == []


def test_values_go_through():
    """Impossible, NaN and missing logprobs are handed on; entropy.py knows what they mean."""
    for value in (-9999.0, -3.4028e38, -math.inf, 0):
        (token,) = tokens_of([entry("a", -0.1, rest=value)])
        assert token.alternatives[1].logprob == value
        assert token_entropy(token) is not None
    for value in (math.nan, None, "-1", 10**400, True, [], {}):
        (token,) = tokens_of([entry("a", -0.1, rest=value)])
        assert math.isnan(token.alternatives[1].logprob)
        assert token_entropy(token) is None
    assert tokens_of([entry("a", None)])[0].logprob is None
    assert math.isnan(tokens_of([entry("a", math.nan)])[0].logprob)


@pytest.mark.parametrize(
    "top", [None, "x", {}, [None], [{"token": "a"}], [{"logprob": -1.0}], [{"token": 3, "logprob": -1.0}], [3]]
)
def test_an_unreadable_alternative_makes_all_missing(top):
    """Part of a distribution is not a distribution; the token itself stays."""
    (token,) = tokens_of([{"token": "a", "logprob": -0.1, "top_logprobs": top}])
    assert (token.text, token.logprob, token.alternatives) == ("a", -0.1, None)


def test_empty_alternatives_and_texts_are_allowed():
    """An empty list is a list; an alternative may have no text and no bytes."""
    (token,) = tokens_of([{"token": "", "logprob": -0.1, "bytes": None, "top_logprobs": []}])
    assert token == Token("", None, None, -0.1, ())


def test_token_ids_instead_of_texts():
    """An entry ``token_id:374`` of vLLM: the id is read, and the bytes of that string are not taken for the token's."""
    top = [{"token": "token_id:374", "logprob": -0.1, "bytes": [116]}, {"token": "token_id:9", "logprob": -2.0, "bytes": [116]}]
    (token,) = tokens_of([{**top[0], "top_logprobs": top}])
    assert token == Token("", 374, None, -0.1, (Alternative("", -0.1, 374), Alternative("", -2.0, 9)))
    (token,) = tokens_of({"tokens": ["token_id:374"], "token_logprobs": [-0.1], "top_logprobs": [{"token_id:374": -0.1}]})
    assert token == Token("", 374, None, -0.1, (Alternative("", -0.1, 374),))


def test_llama_cpp_tells_ids():
    """Its entries and alternatives have ``id``, in dicts and in SDK objects, where the SDK knows no such field."""
    made = entry("a", id=7)
    made["top_logprobs"] = [{**t, "id": n} for n, t in enumerate(made["top_logprobs"], 7)]
    for sdk in (None, ChatCompletionChunk):
        (piece,) = read([chunk("a", [made])], sdk=sdk)
        assert (piece.token.id, [a.id for a in piece.token.alternatives]) == (7, [7, 8])
