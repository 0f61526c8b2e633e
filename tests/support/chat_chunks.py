"""Chunks of a chat stream with their logprob entries, and what a reader makes of them."""

from __future__ import annotations

from openai._models import construct_type

from entropy_chains.backends.remote.readers import (
    ChatReader,
)
from entropy_chains.core.steps import Phase

THINKING, ANSWER = Phase.THINKING, Phase.ANSWER


def entry(text, logprob=-0.5, *, rest=-1.5, sent: object = True, **more):
    """A chat entry with two alternatives; ``sent``: its bytes, or True for those of its text."""
    data = list(text.encode()) if sent is True else sent
    top = [{"token": text, "logprob": logprob, "bytes": data}, {"token": "other", "logprob": rest, "bytes": None}]
    return {"token": text, "logprob": logprob, "bytes": data, "top_logprobs": top, **more}


def chunk(content=None, entries=None, *, reasoning=None, name="reasoning_content", index=0, logprobs=None, **delta):
    """A chat chunk as it comes over the wire."""
    logprobs = logprobs or (None if entries is None else {"content": entries})
    delta = {"content": content, name: reasoning, **delta}
    return {"id": "c", "model": "m", "choices": [{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}]}


def read(chunks, reader=None, *, sdk=None):
    """All pieces of a stream."""
    reader = reader or ChatReader()
    objects = [construct_type(value=c, type_=sdk) for c in chunks] if sdk else chunks
    return [piece for update in [*map(reader.feed, objects), reader.finish()] for piece in update.pieces]


def shown(pieces):
    """Text, phase, and the sampled token's logprob."""
    return [(p.text, p.phase, p.token.logprob) for p in pieces]


def words(texts, *, first=1):
    """Entries that can be told apart by their logprobs, -0.001, -0.002, …."""
    return [entry(t, -n / 1000) for n, t in enumerate(texts, first)]


CHAT = {"content": [entry("a"), entry("b")]}


COMPLETION = {
    "tokens": ["a", "b"],
    "token_logprobs": [-0.5, -0.5],
    "top_logprobs": [{"a": -0.5, "other": -1.5}, {"b": -0.5, "other": -1.5}],
}
