"""Answers as they are typed: mathematics without LaTeX, objects of JSON, other languages, brackets and repeated letters."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_chains.core import answer_maths
from entropy_chains.core.answers import same

with_library = pytest.mark.skipif(not answer_maths.installed(), reason="needs math-verify (the extra math)")


@with_library
@pytest.mark.parametrize(
    ("typed", "latex"),
    [
        ("cos(t)**2 + sin(t)**2", "1"),
        ("y**3", "y^{3}"),
        ("y³-2", "-2+y^3"),
        ("4√7", r"4\sqrt{7}"),
        ("√(y+2)", r"\sqrt{y+2}"),
        ("atan(y)", r"\arctan y"),
        ("5·2^n", r"5 \cdot 2^n"),
        ("3*pi/4", r"\frac{3\pi}{4}"),
        ("5+1/3", "5 1/3"),
        (r"RTn \ln(b/a)", r"\boxed{nRT\ln\left(\frac{b}{a}\right)}"),
    ],
)
def test_mathematics_typed_without_latex(typed, latex):
    """Functions by their bare names, roots and powers as signs, products of several letters equal the same in LaTeX."""
    assert same(typed, latex)
    assert same(latex, typed)


@with_library
@pytest.mark.parametrize(
    ("a", "b"),
    [("y³", "y^2"), ("2√3", r"2\sqrt{2}"), ("sin(t)", "cos(t)"), ("2**y", "y^2"), ("3 1/2", "3*1/2"), ("pi/2", r"\frac{p}{2}")],
)
def test_typed_mathematics_that_differs(a, b):
    """What is typed without LaTeX is read, not taken for something else."""
    assert not same(a, b)
    assert not same(b, a)


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 9), st.integers(2, 9))
def test_powers_are_equal_without_the_library(base, exponent):
    """Two stars are a power, wherever the library is missing too."""
    assert same(f"y**{exponent}+{base}", f"y^{exponent}+{base}")
    assert not same(f"y**{exponent}+{base}", f"y^{exponent + 1}+{base}")


@pytest.mark.parametrize(
    "text",
    [
        '{"answer": "Lyon"}',
        'After some thought: {"answer": "Lyon"}',
        '```json\n{"steps": "3 or 4", "answer": "Lyon", "sure": 0.8}\n```',
        "{'final_answer': 'Lyon', 'unit': 'none'}",
        '{"final answer": "Lyon"}',
    ],
)
def test_the_value_of_a_key_of_json(text):
    """An object of JSON may stand behind other words and hold other keys; the answer is the value of the key of that name alone."""
    assert same(text, "Lyon")
    assert not same(text, "Paris")


def test_numbers_and_several_values_in_json():
    """A number is read; an answer that names two is none of them, nor is another key's value."""
    assert same('Here it is: {"answer": 42, "unit": "km"}', "42")
    assert not same('{"answer": "5 or 6"}', "5")
    assert not same('{"answer": "Lyon", "not": "Paris"}', "Paris")


@pytest.mark.parametrize(
    "text",
    [
        "उत्तर है (D)",
        "الإجابة: D",
        "Jawabannya adalah D.",
        "คำตอบคือ D",
        "Đáp án là D",
        "Cevap: D",
        "Odpowiedź: D",
        "Відповідь: D",
        "Η απάντηση είναι D.",
    ],
)
def test_the_answer_is_in_other_languages(text):
    """The word for "answer" marks it in the languages that benchmarks are translated into."""
    assert same(text, "D")
    assert same(text.replace("D", "I"), "I")
    assert not same(text, "B")


@settings(deadline=None)
@given(st.integers(0, 10**9))
def test_a_number_alone_in_brackets(number):
    """Brackets around all of an answer say nothing, whatever stands behind its box."""
    assert same(rf"So it is \boxed{{\textbf{{({number})}}}}. Written by K. (no. 7)", str(number))


def test_brackets_around_two_numbers():
    """They are a pair, and none of its numbers."""
    assert not same("(19, 20)", "19")
    assert not same("(19, 20)", "20")


@pytest.mark.parametrize("text", ["D/D", "Answer: D / D"])
def test_one_letter_named_twice(text):
    """The same letter twice is that letter; two letters are none."""
    assert same(text, "D")
    assert not same(f"{text}/B", "D")
    assert not same(f"{text}/B", "B")
