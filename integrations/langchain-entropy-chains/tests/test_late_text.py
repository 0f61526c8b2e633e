"""A text that vLLM holds back for a stop string comes after its logprobs: it is measured, also where a tag was taken out before."""

from __future__ import annotations

import pytest
from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk
from langchain_entropy_chains._chunks import ChunkReader
from loopback import UNSURE, Tok
from wire import entry


def chunk(token, text, field="reasoning_content"):
    """A chunk as ``ChatDeepSeek`` makes it: a token's logprob, and what text the server lets go."""
    kwargs = {"additional_kwargs": {field: text}} if text else {}
    info = {"logprobs": {"content": [entry(Tok(token, UNSURE), 20)]}}
    return ChatGenerationChunk(message=AIMessageChunk("", **kwargs), generation_info=info)


@pytest.mark.parametrize("tags", [["<think>"], ["[THINK]"], []], ids=str)
@pytest.mark.parametrize("behind", [1, 2, 5])
def test_a_late_text_gets_its_logprobs(tags, behind):
    """As many characters late as a stop string is long; the opening tag, which a parser takes out, is none of them."""
    letters = list("9*8=72; so it is")
    reader, pieces = ChunkReader(held=behind), []
    for n, token in enumerate([*tags, *letters]):
        at = n - len(tags) - behind
        pieces += reader.feed(chunk(token, letters[at] if at >= 0 else "")).pieces
    pieces += reader.finish().pieces
    measured = [piece.text for piece in pieces if piece.token.logprob is not None and piece.text]
    assert measured[: len(letters) - behind] == letters[: len(letters) - behind]
    assert not [piece for piece in pieces if piece.token.logprob is None]
