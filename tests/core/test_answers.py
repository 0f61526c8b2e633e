"""Comparing answers, with each grade."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_chains.core.answers import comparer, normalise, same
from entropy_chains.errors import SettingsError

FORMS = [json.loads(line) for line in Path(__file__).with_name("answers.jsonl").read_text(encoding="utf-8").splitlines()]
"""Answers as people write them, the gold answer, and whether they are equal."""


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


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form['answer'][:40]!r} for {form['gold']}")
def test_answers_as_people_write_them(form):
    """What is equal is seen to be equal; what could mean something else is not taken for it."""
    assert same(form["answer"], form["gold"]) is form["equal"]


@pytest.mark.parametrize("form", [form for form in FORMS if form["equal"]], ids=lambda form: f"{form['answer'][:40]!r}")
def test_what_equals_the_same_answer_agrees(form):
    """The order does not matter to words, numbers and letters."""
    assert same(form["gold"], form["answer"])


@pytest.mark.parametrize(
    ("grade", "a", "b", "equal"),
    [
        ("exact", " 7 ", "7", True),
        ("exact", "7.0", "7", False),
        ("exact", "The answer is 7", "7", False),
        ("number", "The answer is 7.", "7", True),
        ("number", "some dogs", "some dogs", False),
        ("choice", "(B) Paris", "B", True),
        ("choice", "Paris", "Paris", False),
        ("regex:<a>(.*?)</a>", "<a>6</a> no <a>7</a>", "<a>7.0</a>", True),
        ("regex:<a>(.*?)</a>", "7", "7", False),
        ("regex:\\d+", "first 6, then 7", "7", True),
        ("auto", "first 6, then 7", "7", False),
    ],
)
def test_each_grade(grade, a, b, equal):
    """One comparer a grade; a number's knows numbers only, a letter's letters only."""
    compared = comparer(grade)
    assert compared.same(a, b) is equal
    assert not compared.same(None, b)
    assert not compared.same(a, None)


def test_a_grader_of_the_user():
    """It is asked with the answer first; a missing answer equals nothing without asking."""
    asked = []
    compared = comparer("python:mine", lambda answer, gold: asked.append((answer, gold)) is None and answer[0] == gold[0])
    assert compared.same("yellow", "yes")
    assert not compared.same("no", "yes")
    assert not compared.same(None, "yes")
    assert asked == [("yellow", "yes"), ("no", "yes")]


@pytest.mark.parametrize("grade", ["", "numbers", "regex", "regex:", "regex:(", "python:", "python", None, 7, "AUTO"])
def test_a_grade_that_is_none_is_refused(grade):
    """The message names what there is."""
    with pytest.raises(SettingsError, match="grade is"):
        comparer(grade)


def test_a_grader_that_is_only_named_is_not_imported():
    """The name alone is an error that says what to give."""
    with pytest.raises(SettingsError, match="give its function"):
        comparer("python:json:loads")
