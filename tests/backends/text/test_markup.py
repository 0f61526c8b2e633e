"""Tags taken out of a reply's text: what is reasoning and what is answer, however the text is cut; all else letter for letter."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from entropy_chains.backends.text.markup import AnswerMarkup, Markup, clean_answer, text_in
from entropy_chains.core.families import FAMILIES, ThinkTags
from entropy_chains.core.phases import Phase, phase_after_prompt, phase_at_start
from entropy_chains.core.steps import Scanner

BEFORE, THINKING, ANSWER = Phase.BEFORE, Phase.THINKING, Phase.ANSWER
QWEN = ThinkTags()
HARMONY = next(tags for tags in FAMILIES if tags.in_channels)
COMMAND = next(tags for tags in FAMILIES if tags.open == "<|START_THINKING|>")
MENTIONS = st.sampled_from([t for tags in FAMILIES for t in (tags.open, tags.close, tags.after) if t] + ["`<think>`", "<", "</th"])
TEXT = st.lists(MENTIONS | st.text("ab .\n<>/`[]|é", max_size=6), max_size=8).map("".join)
CUTS = st.lists(st.integers(1, 7), max_size=60)


def parts(text, cuts):
    """The text in pieces of these lengths, the last one repeated."""
    at, lengths, found = 0, list(cuts) or [len(text) or 1], []
    while at < len(text):
        length = lengths.pop(0) if len(lengths) > 1 else lengths[0]
        found.append(text[at : at + length])
        at += length
    return found


def streamed(markup, text, cuts):
    """Reasoning and answer of a text that comes in pieces."""
    spans = [span for part in parts(text, cuts) for span in markup.take(part)] + markup.rest
    return text_in(spans, THINKING), text_in(spans, ANSWER)


def divided(text, tags, phase=BEFORE):
    """Reasoning and answer of a text that comes whole."""
    return streamed(Markup(tags, phase), text, [])


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("<think>\nSix times seven.\n</think>\n\nIt is 42.", "Six times seven.\n", "It is 42."),
        ("\n<think>a</think>b", "a", "b"),
        ("<think></think>b", "", "b"),
        ("<think>never closed", "never closed", ""),
        ("The answer is 42.", "", "The answer is 42."),
        ("  42", "", "  42"),
        ("Wrap it in <think> and </think>.", "", "Wrap it in <think> and </think>."),
        ("`<think>` opens it.", "", "`<think>` opens it."),
        ("Thinking ends with </think> there.", "", "Thinking ends with </think> there."),
        ("<think>x</think>It ends with </think>, begins with <think>.", "x", "It ends with </think>, begins with <think>."),
        ("<thinking>is another tag", "", "<thinking>is another tag"),
        ("<think", "", "<think"),
        ("<", "", "<"),
        ("<think>a <b> c</think>d", "a <b> c", "d"),
        ("", "", ""),
    ],
)
def test_what_is_reasoning_and_what_is_answer(text, reasoning, answer):
    """Worked by hand: thinking begins at the start only, ends at the first closing tag, and every other tag is text."""
    assert divided(text, QWEN) == (reasoning, answer)


@settings(deadline=None, max_examples=300)
@given(TEXT, CUTS)
def test_an_answer_without_thinking_comes_out_as_it_went_in(text, cuts):
    """Every text that does not begin with the opening tag, whatever tags it mentions, in pieces of any length."""
    if text.lstrip().startswith(QWEN.open):
        text = "x" + text
    assert streamed(Markup(QWEN), text, cuts) == ("", text)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(FAMILIES), TEXT, TEXT, CUTS, st.booleans())
def test_reasoning_and_answer_come_out_as_they_went_in(tags, reasoning, answer, cuts, opened):
    """In every family; blanks around the tags belong to them. Reasoning cannot hold a closing tag: it would end there."""
    reasoning = reasoning.replace(tags.close, "").strip()
    assume(tags.close not in reasoning + tags.close[:-1])
    assume(not (opened and reasoning.startswith(tags.open)))  # the tag once more, which is no reasoning
    assume(not (tags.after.strip() and answer.lstrip().startswith(tags.after.strip())))
    assume(not (tags.in_channels and tags.close in answer + tags.close[:-1]))  # another message would follow
    assume(not (tags.end and answer.rstrip().endswith(tags.end)))
    text = ("" if opened else tags.open + "\n") + reasoning + tags.close + tags.after + answer
    found = streamed(Markup(tags, THINKING if opened else BEFORE), text, cuts)
    assert found == (reasoning, answer.lstrip())


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(FAMILIES), TEXT, CUTS, st.sampled_from([BEFORE, THINKING, ANSWER]))
def test_the_cut_makes_no_difference(tags, text, cuts, phase):
    """The pieces of a stream together are what the whole text gives; nothing is shown twice or lost."""
    assert streamed(Markup(tags, phase), text, cuts) == divided(text, tags, phase)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(FAMILIES), TEXT, CUTS, st.booleans())
def test_the_scanner_agrees(tags, text, cuts, opened):
    """What is shown as thinking is what is measured as thinking."""
    scanner, markup = Scanner(tags, thinking=opened), Markup(tags, THINKING if opened else BEFORE)
    for part in parts(text, cuts):
        markup.take(part)
        assert scanner.feed(part) is markup.phase


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.sampled_from([THINKING, ANSWER]), TEXT), max_size=8))
def test_a_field_of_its_own_is_taken_at_its_word(told):
    """Where the server says which text is reasoning, tags in it are text; a token that is nothing but a tag is a tag left over."""
    told = [(phase, text) for phase, text in told if text and text.strip() not in (QWEN.open, QWEN.close)]
    markup = Markup(QWEN)
    spans = [span for phase, text in told for span in markup.take(text, phase)] + markup.rest
    for phase in (THINKING, ANSWER):
        assert text_in(spans, phase) == "".join(text for where, text in told if where is phase)


@pytest.mark.parametrize(("first", "then"), [("<think>", THINKING), ("</think>", BEFORE), ("<|im_start|>", BEFORE)])
def test_a_token_without_visible_text(first, then):
    """Only the tag that may stand there says something."""
    markup = Markup(QWEN)
    assert (markup.silent(first), markup.phase) == ([], then)


@pytest.mark.parametrize("cuts", [[], [1], [3]])
def test_a_model_may_write_the_tag_that_the_prompt_has(cuts):
    """It is no reasoning; text that only begins as the tag does is."""
    assert streamed(Markup(QWEN, THINKING), "<think>\nhm</think>42", cuts) == ("hm", "42")
    assert streamed(Markup(QWEN, THINKING), "<thinking hard</think>42", cuts) == ("<thinking hard", "42")


def test_what_was_kept_back_comes_out_when_a_silent_tag_ends_the_thinking():
    """It looked like the beginning of a closing tag."""
    markup = Markup(QWEN, THINKING)
    assert markup.take("a <") == [(THINKING, "a ")]
    assert markup.silent("</think>") == [(THINKING, "<")]
    assert markup.take("\n\nb") == [(ANSWER, "\n\nb")]


def test_a_model_without_tags_answers_only():
    """Letter for letter."""
    assert divided("<think>a</think>b", None) == ("", "<think>a</think>b")


@pytest.mark.parametrize(
    ("left", "answer"),
    [
        ("</think>\n\n42", "42"),
        ("\n\n42", "42"),
        ("<think>\n\n</think>\n\n42", "42"),
        ("</think>\n<think>once more</think>42", None),
        ("<think> opens it, </think> ends it.", None),
        ("42 </think> and <think>", "42 </think> and <think>"),
        ("<think>once more, and never closed", None),
        (" \n", None),
        ("", None),
        ("<", "<"),
    ],
)
def test_what_a_close_by_force_leaves_behind(left, answer):
    """A second closing tag, blanks and empty thinking are left out at the beginning; thinking begun again gives no answer at all.

    Later on a tag is text.
    """
    assert clean_answer(left, QWEN) == answer
    markup = AnswerMarkup(QWEN)
    assert "".join(map(markup.take, left)) + markup.rest == (answer or "")


def test_harmony_leaves_a_channel_behind():
    """The whole text after the closing tag may be written a second time."""
    assert clean_answer(HARMONY.close + HARMONY.after + "42", HARMONY) == "42"


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(FAMILIES), TEXT, CUTS)
def test_a_forced_answer_is_the_same_in_pieces(tags, text, cuts):
    """Shown as it comes, or cleaned as a whole."""
    markup = AnswerMarkup(tags)
    shown = "".join(map(markup.take, parts(text, cuts))) + markup.rest
    assert (shown.strip() or None) == clean_answer(text, tags)


@pytest.mark.parametrize("tags", FAMILIES, ids=lambda t: t.open)
def test_where_an_output_begins_after_its_prompt(tags):
    """The template's last tag tells, alone or with text after it; a tag in a question says nothing."""
    asked = f"user: what does {tags.open} mean? assistant:"
    assert phase_after_prompt(asked, tags) is BEFORE
    assert phase_after_prompt(f"{asked}{tags.open}\n", tags) is THINKING
    assert phase_after_prompt(f"{asked}{tags.open}\n\n{tags.close}{tags.after}", tags) is ANSWER
    assert phase_after_prompt(f"{asked}{tags.open}\nOkay, ", tags) is BEFORE  # it may be the question's
    assert phase_after_prompt(f"{asked}{tags.open}\nOkay, ", tags, asked) is THINKING
    assert phase_after_prompt(f"{asked}{tags.open}{tags.close}{tags.after}Sure: ", tags, asked) is ANSWER
    assert phase_after_prompt(asked, tags, asked) is BEFORE


@pytest.mark.parametrize(
    ("tags", "text", "answer"),
    [
        (HARMONY, "<|channel|>final<|message|>It is 42.", "It is 42."),
        (HARMONY, "<|start|>assistant<|channel|>final<|message|>It is 42.", "It is 42."),
        (HARMONY, "<|message|>It is 42.", "It is 42."),
        (HARMONY, "It begins with <|message|>.", "It begins with <|message|>."),
        (HARMONY, "<|channel|>fin", "<|channel|>fin"),
        (HARMONY, "  <|m> is no tag", "  <|m> is no tag"),
        (COMMAND, "<|START_RESPONSE|>It is 42.", "It is 42."),
        (COMMAND, "It is 42.", "It is 42."),
        (QWEN, "\n\n42", "\n\n42"),
    ],
)
@given(cuts=CUTS)
def test_what_begins_an_answer_at_once_is_no_part_of_it(tags, text, answer, cuts):
    """What stands between thinking and answer may begin an answer without thinking, whole or from a tag of it on."""
    assert streamed(Markup(tags), text, cuts) == ("", answer)


@pytest.mark.parametrize(
    ("said", "phase"), [("", BEFORE), ("<thi", BEFORE), ("<think>a", THINKING), ("<thanks", ANSWER), ("a", ANSWER)]
)
def test_where_an_output_is_by_its_first_text(said, phase):
    """Undecided while it may still become the opening tag."""
    assert phase_at_start(said, QWEN) is phase
