"""The environment's off switch: a word that it does not know stops nothing, and is told of."""

from __future__ import annotations

import warnings

import pytest

from entropy_chains import stopping_enabled
from entropy_chains.core import policy


@pytest.mark.parametrize("word", ["maybe", "disable", "2", "fasle"])
def test_an_unknown_word_stops_nothing_and_is_told_once(monkeypatch, word):
    """With the value, and the words that there are."""
    monkeypatch.setattr(policy, "_warned", set())
    monkeypatch.setenv("ENTROPY_CHAINS_STOP", word)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert [stopping_enabled() for _ in range(3)] == [False] * 3
    known = "1, true, yes, on (stop) and 0, false, no, off (run in full)"
    assert [str(w.message) for w in caught] == [f"ENTROPY_CHAINS_STOP is {word!r}, which is none of {known}: nothing is stopped"]


@pytest.mark.parametrize("word", ["1", "true", "Yes", " on ", "", " ", "0", "FALSE", "no", "off"])
def test_known_words_are_told_of_nowhere(monkeypatch, word):
    """In any case, and among spaces."""
    monkeypatch.setattr(policy, "_warned", set())
    monkeypatch.setenv("ENTROPY_CHAINS_STOP", word)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert stopping_enabled() is (word.strip().lower() in ("", "1", "true", "yes", "on"))
