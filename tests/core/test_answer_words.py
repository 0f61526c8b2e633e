"""Numbers as people say them, and what they put around them: words, "minus", notes on rounding, currencies, brackets."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_chains.core.answers import same

SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def spelled(number: int) -> str:
    """A number below a million in English words."""
    if number >= 1000:
        return f"{spelled(number // 1000)} thousand" + (f" {spelled(number % 1000)}" if number % 1000 else "")
    if number >= 100:
        return f"{SMALL[number // 100]} hundred" + (f" and {spelled(number % 100)}" if number % 100 else "")
    if number >= 20:
        return TENS[number // 10 - 2] + (f"-{SMALL[number % 10]}" if number % 10 else "")
    return SMALL[number]


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 999_999), st.booleans())
def test_numbers_in_words(number, below_zero):
    """A whole number in words is that number, and its negative with "minus" before it; with another number it is none."""
    words = f"minus {spelled(number)}" if below_zero else spelled(number)
    assert same(words, str(-number if below_zero else number))
    assert not same(words, str(number + 1))
    assert not same(f"{words} or {spelled(number + 1)}", str(number))


@pytest.mark.parametrize(
    ("words", "number"),
    [
        ("four pears", "4"),
        ("six point two five", "6.25"),
        ("three quarters", "0.75"),
        ("a third", "1/3"),
        ("two and a half hours", "2.5"),
        ("half", "1/2"),
        ("forty percent", "0.4"),
        ("two dozen", "24"),
        ("negative seven", "-7"),
        ("minus 7", "-7"),
        ("The answer is minus $7.", "-7"),
        ("The temperature is minus 7 degrees.", "-7"),
        ("6.2 (1 dp)", "6.2"),
        ("x = 6.25 (to 2 d.p.)", "6.25"),
        ("6.2 correct to one decimal place", "6.2"),
        ("It is 6.25, rounded to the nearest hundredth.", "6.25"),
        ("3400 to 2 significant figures", "3400"),
        ("USD 12.50", "12.5"),
        ("Rs80", "80"),
        ("AUD7.50", "7.5"),
        ("A$80", "80"),
        ("80 m^(-1)", "80"),
        ("-0", "0"),
        ("No. of edges = 12", "12"),
        ("No, it is 12.", "12"),
    ],
)
def test_numbers_with_words(words, number):
    """A unit, a currency before it, a note that it is rounded, a "no" to something else: the number is what was meant."""
    assert same(words, number)
    assert same(number, words)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("minus 7", "7"),
        ("The answer is minus 7.", "7"),
        ("8 minus 7", "-7"),
        ("plus or minus 7", "-7"),
        ("7 (or 8)", "7"),
        ("7 (not 8)", "8"),
        ("no 7 or 8", "7"),
        ("nine nine", "9"),
        ("twenty twelve", "32"),
        ("Seven Sisters", "7"),
        ("one of them", "1"),
        ("half of ten", "1/2"),
        ("third", "1/3"),
        ("5 to 6 decimal places", "5"),
        ("6.2 (2 dp)", "6.25"),
        ("to 3 decimal places", "3.0001"),
        ("80 m(2)", "80"),
    ],
)
def test_what_is_no_such_number(text, number):
    """Differences, alternatives, ranks, names and ranges are not the number that stands in them."""
    assert not same(text, number)
    assert not same(number, text)


@pytest.mark.parametrize(
    "text", ["Choose D. for this one.", "It must be [D]", "the option is (d)", "So [D] it is.", "Therefore D is it."]
)
def test_letters_chosen_in_prose(text):
    """A letter in square brackets, a small one behind "option is", and one behind a verb that begins the sentence."""
    assert same(text, "D")
    assert not same(text, "A")
