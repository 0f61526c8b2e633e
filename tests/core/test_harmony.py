"""Replies in channels, as gpt-oss writes them: which text is thinking, which is answer, which is a tool call; however it is cut."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_chains.backends.text.markup import Markup, clean_answer, text_in
from entropy_chains.core.families import FAMILIES
from entropy_chains.core.harmony import Channels
from entropy_chains.core.steps import Phase, Scanner
from entropy_chains.core.tool_calls import ToolCall

HARMONY = next(tags for tags in FAMILIES if tags.in_channels)
NEXT = "<|end|><|start|>assistant"
THOUGHT = "<|channel|>analysis<|message|>We add.\n\n"
FINAL = "<|channel|>final<|message|>It is 42."
CALL = '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1}'
REPLIES = {
    "analysis and final": (THOUGHT + NEXT + FINAL, "We add.\n\n", "It is 42.", []),
    "final at once": (FINAL, "", "It is 42.", []),
    "final at once, with its end": (FINAL + "<|return|>", "", "It is 42.", []),
    "several messages of analysis": (
        f"{THOUGHT}{NEXT}<|channel|>analysis<|message|>Check.{NEXT}{FINAL}",
        "We add.\n\n\n\nCheck.",
        "It is 42.",
        [],
    ),
    "a preamble": (
        f"{THOUGHT}{NEXT}<|channel|>commentary<|message|>I shall look it up.{NEXT}{FINAL}",
        "We add.\n\n",
        "I shall look it up.\n\nIt is 42.",
        [],
    ),
    "a call": (f"{THOUGHT}{NEXT}{CALL}<|call|>", "We add.\n\n", "", [ToolCall("add", '{"a": 1}')]),
    "a call whose end is not shown": (f"{THOUGHT}{NEXT}{CALL}", "We add.\n\n", "", [ToolCall("add", '{"a": 1}')]),
    "a call with its recipient first": (
        THOUGHT + NEXT + ' to=functions.add<|channel|>commentary json<|message|>{"a": 1}<|call|>',
        "We add.\n\n",
        "",
        [ToolCall("add", '{"a": 1}')],
    ),
    "a call at once": (
        ' to=functions.add<|channel|>commentary json<|message|>{"a": 1}<|call|>',
        "",
        "",
        [ToolCall("add", '{"a": 1}')],
    ),
    "a preamble and a call": (
        f"{THOUGHT}{NEXT}<|channel|>commentary<|message|>Wait.{NEXT}{CALL}<|call|>",
        "We add.\n\n",
        "Wait.",
        [ToolCall("add", '{"a": 1}')],
    ),
    "a tool of the model's own": (
        f"{THOUGHT}{NEXT}<|channel|>analysis to=python code<|message|>1+1<|call|>",
        "We add.\n\n",
        "",
        [ToolCall("python", "1+1")],
    ),
    "cut in its thinking": (THOUGHT + "And", "We add.\n\nAnd", "", []),
    "cut in a header": (THOUGHT + "<|end|><|start|>assi", "We add.\n\n", "", []),
    "no channel": ("It is 42.", "", "It is 42.", []),
    "an answer that speaks of tags": (
        THOUGHT + NEXT + FINAL + " A message ends with <|end|>, and <|channel|> comes before.",
        "We add.\n\n",
        "It is 42. A message ends with <|end|>, and <|channel|> comes before.",
        [],
    ),
}
CUTS = st.lists(st.integers(1, 9), max_size=80)


def pieces(text, cuts):
    at, found = 0, []
    for length in [*cuts, len(text)]:
        found.append(text[at : at + length])
        at += length
    return [piece for piece in found if piece]


@pytest.mark.parametrize("name", REPLIES)
def test_replies(name):
    """Worked by hand."""
    text, reasoning, answer, calls = REPLIES[name]
    markup = Markup(HARMONY)
    spans = [*markup.take(text), *markup.rest]
    assert (text_in(spans, Phase.THINKING), text_in(spans, Phase.ANSWER), markup.calls) == (reasoning, answer, calls)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(sorted(REPLIES)), CUTS)
def test_the_cut_makes_no_difference(name, cuts):
    """Whatever the tokens are; and what is measured as thinking is what is shown as thinking."""
    text, reasoning, answer, calls = REPLIES[name]
    markup, scanner, spans = Markup(HARMONY), Scanner(HARMONY), []
    for piece in pieces(text, cuts):
        spans += markup.take(piece)
        assert scanner.feed(piece) is markup.phase
    spans += markup.rest
    assert (text_in(spans, Phase.THINKING), text_in(spans, Phase.ANSWER), markup.calls) == (reasoning, answer, calls)


def test_steps_go_on_in_a_second_message():
    """Its first step has nothing of the header between; in a header nothing ends."""
    scanner, ends = Scanner(HARMONY, "line"), []
    for n, character in enumerate(text := f"{THOUGHT}{NEXT}<|channel|>analysis<|message|>More.\nAnd{NEXT}{FINAL}\nx\n"):
        scanner.feed(character)
        if scanner.at_boundary:
            ends.append(text[: n + 1][-6:])
    assert ends == [" add.\n", "add.\n\n", "More.\n"]


@pytest.mark.parametrize(
    ("left", "answer"),
    [
        ("It is 42.", "It is 42."),
        (HARMONY.close + HARMONY.after + "It is 42.", "It is 42."),
        (HARMONY.after + "It is 42.<|end|>", "It is 42."),
        (f"{NEXT}<|channel|>analysis<|message|>Hm{NEXT}{FINAL}", None),
        ("", None),
    ],
)
def test_what_a_close_by_force_leaves_behind(left, answer):
    """A second final header is no answer; thinking begun again gives none."""
    assert clean_answer(left, HARMONY) == answer
    markup = Markup(HARMONY, Phase.THINKING)
    markup.force()
    spans = [*markup.take(HARMONY.close + HARMONY.after), *markup.take(left), *markup.rest]
    assert (None if markup.again else text_in(spans, Phase.ANSWER).strip() or None) == answer


def test_a_prompt_may_have_a_whole_header():
    """Then its message has begun."""
    for phase in (Phase.THINKING, Phase.ANSWER):
        channels = Channels(phase)
        assert channels.take("\nHello") == [(phase, "Hello")]
