"""What an answer is by its kind: numbers, however they are written."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_chains.core.answers import normalise, same


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
