"""Tokens that a server counts for a reply, against those that came: a count that cannot be true is left aside, and said once."""

from __future__ import annotations

import warnings

import pytest
from frameworks import WAYS, Asker
from hostile import Hostile, begin, end, events
from loopback import SURE, UNSURE, Reply, said, thinking

from entropy_chains.backends import Sampling
from entropy_chains.backends.remote.readers import ChatReader, Update, Usage
from entropy_chains.backends.remote.token_count import MOST_TOKENS, TokenCount
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 8))
WHOLE = thinking(UNSURE, UNSURE, words=10, answer="The answer is 42")
CAME = len(WHOLE.tokens)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("counted", [3, 10**9])
def test_a_count_that_cannot_be_true_is_left_aside(way, counted):
    """Far fewer than came with logprobs, or more than any reply has: those that came are counted, and one warning says so."""
    with Hostile(lambda request: [*begin(), *events(WHOLE, request.body), *end(counted)]) as server:
        asker = Asker(way, server.url, POLICY)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            told = [asker.ask().told["early_stop_tokens"] for _ in range(2)]
    assert told == [CAME, CAME]
    about = [str(w.message) for w in caught if "the server counts" in str(w.message)]
    assert len(about) == 1


@pytest.mark.parametrize("way", WAYS)
def test_a_count_of_hidden_tokens_is_the_servers(way):
    """More than came, and possible: reasoning that the server does not show was computed all the same."""
    made = Reply(said("The answer is 42"))
    with Hostile(lambda request: [*begin(), *events(made, request.body), *end(3000)]) as server, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Asker(way, server.url, POLICY).ask().told["early_stop_tokens"] == 3000


def test_no_reply_has_more_tokens_than_it_was_allowed():
    """3,000 tokens where 100 were asked for at most."""
    made = Reply(said("The answer is 42"))
    told = pytest.warns(UserWarning, match=r"the server counts 3,000 tokens for a reply of which 4 came")
    with Hostile(lambda request: [*begin(), *events(made, request.body), *end(3000)]) as server, told:
        got = Asker("core", server.url, POLICY).ask(sampling=Sampling(max_tokens=100))
    assert got.told["early_stop_tokens"] == 4


def test_a_stop_and_a_full_run_are_counted_alike():
    """A stopped run's stream is closed before the server counts: against a full one of 10^9 it would have saved all of it."""
    sure = thinking(UNSURE, *[SURE] * 5, words=10, answer="The answer is 42")
    tokens = {}
    for stop in (True, False):
        with Hostile(lambda request: [*begin(), *events(sure, request.body), *end(10**9)]) as server, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokens[stop] = Asker("core", server.url, POLICY).ask(stop=stop).told["early_stop_tokens"]
    assert tokens[False] == len(sure.tokens)
    assert tokens[True] < 2 * len(sure.tokens)


def count(text: str, entries: int, counted: int | None, limit: int | None = None) -> TokenCount:
    """Of a text in one chunk, after tokens with logprobs."""
    made, reader = TokenCount(limit=limit), ChatReader()
    listed = [{"token": "a", "logprob": -0.1, "top_logprobs": [{"token": "a", "logprob": -0.1}]}]
    for _ in range(entries):
        made.take(reader.feed({"choices": [{"index": 0, "delta": {"content": "a"}, "logprobs": {"content": listed}}]}))
    made.take(reader.feed({"choices": [{"index": 0, "delta": {"content": text}}]}))
    made.take(reader.finish())
    made.take(Update(usage=Usage(5, counted)))
    return made


@pytest.mark.parametrize(
    ("text", "entries", "counted", "limit", "tokens"),
    [
        ("", 100, 100, None, 100),
        ("", 100, 98, None, 100),  # without those that end a reply: no doubt, but no fewer than came
        ("", 100, 0, None, 100),
        ("", 100, None, None, 100),
        ("word " * 300, 0, 300, None, 300),  # without logprobs the server knows better than the text
        ("", 10, MOST_TOKENS, None, MOST_TOKENS),
        ("", 10, MOST_TOKENS + 1, None, 10),
        ("", 10, 2**80, None, 10),
        ("", 10, 500, 500, 500),
        ("", 10, 501, 500, 10),
        ("", 300, 550, 200, 550),  # a limit that the server does not keep
    ],
)
def test_what_is_believed(text, entries, counted, limit, tokens):
    """From the least that came to what the reply was allowed."""
    assert count(text, entries, counted, limit).tokens == tokens


def test_three_tokens_hold_no_page():
    """300 chunks without logprobs: a few tokens cannot be as long as that."""
    made = count("word " * 300, 0, 3)
    assert (made.tokens == made.pieces, made.doubt is not None) == (True, True)
