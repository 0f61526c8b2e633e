"""How a reply ended: the words of servers in one table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entropy_chains.core.finish_reasons import FINISHES, finish_of, finish_reason, is_cut, run_is_cut

WORDS = [
    *[(word, "stop") for word in ("stop", "eos", "end_turn", "stop_sequence", "tool_calls", "function_call", "STOP", " Stop ")],
    *[(word, "length") for word in ("length", "max_tokens", "max_output_tokens", "MAX_TOKENS", "model_length")],
    *[(word, "content_filter") for word in ("content_filter", "SAFETY", "refusal", "guardrail_intervened", "sensitive")],
    *[(word, "error") for word in ("error", "abort", "network_error", "insufficient_system_resource")],
    *[(word, "other") for word in ("repetition", "cancelled", "a word of tomorrow", "")],
]


@pytest.mark.parametrize(("word", "finish"), WORDS)
def test_the_words_of_servers(word, finish):
    """Each means one of five; what is not known is ``other``, and only ``stop`` is an end of its own."""
    assert finish_of(word) == finish
    assert is_cut(word) == (finish != "stop")


def test_no_word_is_a_proper_end():
    """A stream that ended as it should without a word ended by itself."""
    assert (finish_of(None), finish_reason(None), is_cut(None)) == ("stop", "stop", False)


@given(st.one_of(st.sampled_from(FINISHES), st.text()))
def test_normalising_twice_changes_nothing(word):
    """The five mean themselves, in capitals too."""
    assert finish_of(finish_of(word)) == finish_of(finish_of(word).upper()) == finish_of(word)
    assert finish_reason(word) == (finish_of(word) if finish_of(word) in ("stop", "length") else word)


@pytest.mark.parametrize(
    ("finish", "answer", "cut"),
    [(None, "4", False), (None, None, True), ("stop", "4", False), ("stop", None, False), ("length", "4", True)]
    + [(finish, answer, True) for finish in FINISHES[1:] for answer in ("4", None)],
)
def test_when_a_recorded_run_was_cut(finish, answer, cut):
    """``finish`` decides; an old trace without it is told by its missing last answer."""
    assert run_is_cut(finish, answer) == cut
