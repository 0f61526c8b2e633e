"""A local model's tokens as thinking and answer: tags that are spelled or special, and prompts that open or close the thinking."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from entropy_chains.backends.text.vocabulary import Vocabulary
from entropy_chains.core.steps import Phase
from entropy_chains.demo import MODEL_FOLDER

TOKENIZER = AutoTokenizer.from_pretrained(str(MODEL_FOLDER))
WORDS = Vocabulary(TOKENIZER, "demo")
(END,) = WORDS.eos
(PAD,) = WORDS.encode("<pad>")
THOUGHT = WORDS.encode("<think>\n3*4=12\n</think>\n\n")


def spelled(text):
    """Ids of a text, letter by letter: no tag is one token."""
    return [i for letter in text for i in WORDS.encode(letter)]


def thinking(ids, phase):
    """How many tokens of an output are thinking, and its text."""
    return WORDS.reasoned(ids, phase), WORDS.read(ids, phase).reasoning.strip("\n")


@pytest.mark.parametrize("write", [spelled, WORDS.encode], ids=["spelled", "as tokens"])
@pytest.mark.parametrize("text", ["The tag <think> opens it.", "It ends with </think>, here.", "<", "12", "a < b </thi"])
def test_an_answer_that_mentions_a_tag_is_whole(write, text):
    """After thinking, and without: thinking can begin at the start only."""
    assert WORDS.answer([*THOUGHT, *write(text), END], Phase.BEFORE) == text
    assert thinking([*THOUGHT, *write(text), END], Phase.BEFORE) == (len(THOUGHT) - len(WORDS.encode("\n\n")), "3*4=12")
    assert WORDS.answer([*write(text), END], Phase.BEFORE) == text
    assert thinking([*write(text), END], Phase.BEFORE) == (0, "")
    assert WORDS.answer(write(text)) == text


def test_special_tokens_show_no_text_in_an_answer():
    """The same letters spelled do."""
    assert WORDS.answer([*THOUGHT, *spelled("1<pad>2"), PAD, END], Phase.BEFORE) == "1<pad>2"


def test_thinking_that_never_ended_has_no_answer():
    """Whether the model opened it, or its prompt."""
    assert WORDS.answer(WORDS.encode("<think>\n3*4"), Phase.BEFORE) is None
    assert WORDS.answer(WORDS.encode("3*4"), Phase.THINKING) is None
    assert thinking(WORDS.encode("3*4"), Phase.THINKING) == (3, "3*4")


def test_what_a_close_by_force_leaves_behind_is_no_answer():
    """A second closing tag, or empty thinking. Thinking begun again gives no answer: the run is made in full."""
    assert WORDS.answer(WORDS.encode("</think>\n\n12")) == "12"
    assert WORDS.answer(WORDS.encode("<think>\n</think>\n12")) == "12"
    assert WORDS.answer(WORDS.encode("<think>\n3*4\n</think>\n12")) is None
    assert WORDS.answer(WORDS.encode("<think>\n3*4")) is None


@settings(deadline=None, max_examples=200)
@given(st.lists(st.sampled_from(["<think>", "</think>", "<", "/", "a", "1", " ", "\n", "think>"]), min_size=1), st.booleans())
def test_any_answer_comes_out_as_it_went_in(parts, by_letter):
    """Whatever it says, in whatever tokens."""
    text = "".join(parts)
    ids = spelled(text) if by_letter else WORDS.encode(text)
    assert WORDS.answer([*THOUGHT, *ids], Phase.BEFORE) == (text.strip() or None)


ASKED = [{"role": "user", "content": "What does <think> mean? It ends with <think>"}]


@pytest.mark.parametrize(
    ("ending", "phase"),
    [
        ("", Phase.BEFORE),
        ("<think>\n", Phase.THINKING),
        ("<think>\n12 is ", Phase.THINKING),
        ("<think>\n\n</think>\n\n", Phase.ANSWER),
        ("<think>\n</think>\nIt is ", Phase.ANSWER),
    ],
)
def test_the_prompt_tells_where_the_output_begins(ending, phase):
    """By what the template puts after the conversation; a tag in a question says nothing."""
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}A:" + ending + "{% endif %}"
    words = Vocabulary(TOKENIZER, "demo", WORDS.tags)
    words._template_kwargs = {"chat_template": template}
    assert words.prompt(ASKED)[1] is phase
