"""Tool calls in the forms that model families write them in; the texts are written for these tests."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tool_forms import FORMS

from entropy_chains.core.tool_calls import CallText, ToolCall, calls_in


def read(text, cuts=()):
    """The text that shows, and the calls, of a text that comes in pieces."""
    reader, at, shown = CallText(), 0, ""
    for length in [*cuts, len(text)]:
        shown += reader.take(text[at : at + length])
        at += length
    return shown + reader.rest, reader.calls


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_read(name):
    """Its name and its arguments; the text before it shows, and nothing of the call."""
    shown, (call,) = read(f"Let me see.\n{FORMS[name]}")
    assert (shown.strip(), call.name, json.loads(call.arguments)) == ("Let me see.", "add", {"a": 1, "b": "x"})


@pytest.mark.parametrize("name", [name for name in FORMS if name not in ("Mistral, before", "Llama 3.1")])
def test_two_calls_are_two(name):
    """One after the other, as each family writes them."""
    assert [call.name for call in calls_in(f"{FORMS[name]}\n{FORMS[name]}")] == ["add", "add"]


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(sorted(FORMS)), st.lists(st.integers(1, 9), max_size=60))
def test_the_cut_makes_no_difference(name, cuts):
    """However the text is cut into tokens."""
    text = f"a < b [1]. {FORMS[name]}"
    assert read(text, cuts) == read(text)


@pytest.mark.parametrize("body", ["no call", '{"arguments": {}}', '["a"]', "7", '{"name": "add", "arguments": {"a":'])
def test_what_is_no_call_keeps_its_text(body):
    """It has no name, so nobody calls it."""
    assert calls_in(f"<tool_call>{body}</tool_call>") == [ToolCall(None, body)]


def test_text_that_begins_like_a_marker_shows():
    """Once it is known to be none, or nothing more comes."""
    assert read("a <tool", [1, 2, 2]) == ("a <tool", [])
    assert read("<tool_box> [TOOL] <functional>", [3] * 12) == ("<tool_box> [TOOL] <functional>", [])
