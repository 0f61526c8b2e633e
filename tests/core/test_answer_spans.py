"""Where in a reply its answer stands."""

from __future__ import annotations

import time

import pytest

from entropy_chains.core.answers import extract, same


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
    "text",
    [
        " ", "$", "{", r"\boxed{", "answer is ", "1,", "(A) ", "** ", "I hope this ", "= ", "is the ", "- ", r"\frac", "5/",
        "a. ", "1 ", "1", "1.", "x^2+", "-", "((", "and ", "\n", "option B ", "%",
    ],
)  # fmt: skip
def test_long_and_odd_texts_cost_little(text):
    """Neither seconds nor an error, whatever a model repeats for ever."""
    text *= 20_000
    began = time.process_time()
    for gold in ("7", "B", "yes", "Paris", r"\sqrt{2}", "50%"):
        assert same(text, gold) in (True, False)
    assert time.process_time() - began < 3


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("sqrt(2)", "2"),
        ("The answer is sqrt(2).", "2"),
        ("√2", "2"),
        ("ln 2", "2"),
        ("log(8)", "8"),
        ("f(2)", "2"),
        ("the cube root of 8", "8"),
        ("x**2", "2"),
        ("half of 10", "10"),
        ("It is twice 5.", "5"),
        ("≥ 5", "5"),
        ("1010_2", "1010"),
    ],
)
def test_a_number_that_something_is_done_to_is_not_the_answer(answer, gold):
    """The argument of a function, a part of a product, a bound or a number of another base, unless gold is the same."""
    assert not same(answer, gold)
    assert same(answer, answer)


@pytest.mark.parametrize(("answer", "gold"), [("sqrt(4) = 2", "2"), ("The answer is **2**.", "2"), ("x = 2**3 = 8", "8")])
def test_what_comes_of_it_is(answer, gold):
    """The result behind the last equals sign, and bold numbers, which look alike."""
    assert same(answer, gold)
