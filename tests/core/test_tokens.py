"""A token is a small frozen value."""

from __future__ import annotations

import dataclasses

import pytest

from entropy_chains.core.tokens import Alternative, Token


def test_missing_is_none_and_never_zero():
    """A token of which only the text is known has no logprob and no alternatives."""
    token = Token("a")
    assert (token.id, token.bytes, token.logprob, token.alternatives) == (None, None, None, None)


def test_a_token_is_a_value():
    """Equal fields are equal tokens, usable in a set; none can be changed."""
    one = Token("a", 1, b"a", -0.5, (Alternative("a", -0.5, 1), Alternative("b", -0.9, 2)))
    assert {one, dataclasses.replace(one)} == {one}
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.text = "b"
