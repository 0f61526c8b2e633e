"""Checks of values from outside: they never raise, whatever they are given, and JSON comes out as it went in."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entropy_chains import validation
from entropy_chains.errors import InputError
from entropy_chains.validation import Check, first_fault, is_number, list_of, not_json, one_of, short, strict_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(-1e300, 1e300) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
LOOP: list = []
LOOP.append(LOOP)
HOSTILE = [10**400, 10**5000, float("nan"), float("inf"), "\ud800", b"", object(), {1: 2}, {(): []}, LOOP, [[set()]], 1j]
KINDS = [value for name, value in vars(validation).items() if name.startswith("is_") and name != "is_writable"]


@given(JSON)
def test_json_comes_out_as_it_went_in(value):
    """What can be written is read back the same, and said to be writable."""
    assert not_json(value) is None
    assert strict_json(json.dumps(value)) == value


@pytest.mark.parametrize("value", HOSTILE, ids=lambda v: type(v).__name__)
def test_what_cannot_be_written_is_told_in_words(value):
    """With the reason; also what holds itself."""
    assert isinstance(not_json(value), str)


def test_a_value_that_would_be_endless_is_not_walked_to_its_end():
    """Forty lists, each of which holds the next one twice, would be a million million values."""
    value: list = []
    for _ in range(40):
        value = [value, value]
    assert "values" in (not_json(value) or "")


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
@pytest.mark.parametrize("value", [None, True, [], {}, 0, 1, -1, 0.5, "", "x", *HOSTILE], ids=lambda v: type(v).__name__)
def test_a_check_never_raises(kind, value):
    """It answers yes or no; a message about the value can be made."""
    assert kind(value) in (True, False)
    assert len(short(value)) <= 60


@pytest.mark.parametrize(
    "text", ["", "{", "[1,]", "[" * 100_000, '{"a": 1, "a": 1}', '[{"b": {"a": 1, "a": 2}}]', "9" * 5000, "\ud800"]
)
def test_what_is_no_json_is_one_kind_of_error(text):
    """Nested too deep, a key that stands twice, a number too long: InputError."""
    with pytest.raises(InputError):
        strict_json(text)


def test_the_first_fault_is_named_with_its_place():
    """Fields of an object within are named by their path; fields without a check are not looked at."""
    inner = {"low": Check(is_number, "a number"), "kind": one_of(("a", "b"))}
    checks = {
        "name": Check(validation.is_name, "a text", nullable=True),
        "inner": Check(lambda v: True, "", nullable=True, fields=inner),
    }
    assert first_fault({"name": None, "inner": None, "more": object()}, checks) is None
    assert first_fault({"inner": {"low": 1, "kind": "c"}}, checks) == ("inner.kind", "inner.kind is 'c'; it must be one of a, b")
    assert first_fault({"name": "", "inner": {"low": "1"}}, checks) == ("name", "name is ''; it must be a text")


def test_a_list_of_so_many():
    """Kind, length and every element count."""
    pair = list_of(is_number, length=2)
    assert [pair(v) for v in ([1, 2], (1, 2.5), [1], [1, "2"], "12", None)] == [True, True, False, False, False, False]
