"""Extracting and comparing answers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_chains.core.answers import extract, normalise, same


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (None, None),
        ("", None),
        ("  \n", None),
        ("42", "42"),
        ("The answer is 42", "42"),
        ("Answer: 42", "42"),
        ("the final answer is: x", "x"),
        (r"So \boxed{41}, no: \boxed{42}.", "42"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    ],
)
def test_extract(text, answer):
    """The last boxed answer, else the text without its lead; None where there is nothing."""
    assert extract(text) == answer


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("42", "42.0"),
        ("1,234,567", "1234567"),
        ("$42$", "42"),
        ("Paris.", "paris"),
        ("  two   words ", "Two words"),
        ("The answer is 7", r"\boxed{7}"),
        ("1e3", "1000"),
        ("-0.50", "-0.5"),
    ],
)
def test_equal_answers(a, b):
    """Case, spaces, dollars, full stops, commas of thousands and the form of a number do not matter."""
    assert same(a, b)
    assert same(b, a)


@pytest.mark.parametrize(
    ("a", "b"), [("42", "43"), ("1,23", "123"), ("4 2", "42"), (None, None), (None, "4"), ("", ""), ("a", "b")]
)
def test_different_answers(a, b):
    """A missing answer equals nothing, not even another one."""
    assert not same(a, b)
    assert not same(b, a)


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_text_equals_itself_or_is_missing(text):
    """No text crashes; normalising twice changes nothing; what has a form equals itself."""
    form = normalise(text)
    assert same(text, text) is (form is not None)


@settings(deadline=None)
@given(st.integers(-(10**15), 10**15))
def test_numbers_with_thousands_commas(number):
    """Every whole number equals itself written with commas and with a decimal point."""
    assert same(str(number), f"{number:,}")
    assert same(str(number), f"{number}.0")


@pytest.mark.parametrize("text", ["1e999999999", "-1e-999999999", "9" * 5000, "nan", "inf", "1" + "0" * 350])
def test_enormous_numbers_are_harmless(text):
    """Neither an error nor gigabytes of digits."""
    assert same(text, text)
    assert len(normalise(text)) <= 6000
