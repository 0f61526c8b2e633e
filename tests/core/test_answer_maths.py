"""Formulas: the library that compares them, in a process of its own, and the limits around it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from entropy_chains.core import answer_maths as maths
from entropy_chains.core.answers import comparer, same
from entropy_chains.errors import MissingExtraError

needs_library = pytest.mark.skipif(not maths.installed(), reason="needs math-verify (the extra math)")

ENDLESS = [
    "9**9**9**9",
    "9^{9^{9^9}}",
    "(10^{9})!",
    r"\sum_{k=1}^{10^{12}} k^7",
    r"2^{100000}",
    "1" * 500,
    "(" * 400 + "x" + ")" * 400,
]
"""Formulas that would keep a computer busy for ever, or fill its memory."""


@needs_library
@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (r"\boxed{\frac{\sqrt{3}}{2}}", r"$\sqrt{3}/2$"),
        (r"The answer is $2\sqrt{2}$.", r"\sqrt{8}"),
        ("$x = 4$ or $x = -2$, so the solutions are $\\{-2, 4\\}$", r"\{4, -2\}"),
        (r"$x^2 + 2x + 1$", "$(x+1)^2$"),
        (r"$\boxed{[0, \infty)}$", r"$[0,\infty)$"),
        (r"\sqrt[3]{8}", "2"),
        ("10^6", "1,000,000"),
        (r"\boxed{1} and \boxed{2}", r"\{1,2\}"),
        (r"$C_n = \sum_{i=0}^{n} C_i C_{n-i}$", r"$C_n = \sum_{i=0}^{n} C_{n-i} C_i$"),
    ],
)
def test_equal_formulas(answer, gold):
    """Written in another way, they are equal, whichever is the gold answer."""
    assert same(answer, gold)
    assert same(gold, answer)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (r"\frac{\sqrt{3}}{2}", r"\frac{\sqrt{2}}{2}"),
        ("x^2 + 1", "(x+1)^2"),
        ("[0,1)", "[0,1]"),
        ("(1,2)", "(2,1)"),
        ("x > 5", "5"),
        ("1,2", "1"),
        ("12x", "12"),
        (r"\frac{\pi}{2^{99}}", r"\frac{\pi}{2^{98}}"),
        ("x=2,y=3", "3,2"),
        ("10^{400}", "10^{401}"),
    ],
)
def test_different_formulas(answer, gold):
    """What looks alike is not equal, with the library or without."""
    assert not same(answer, gold)
    assert not same(gold, answer)


@pytest.mark.parametrize("formula", ENDLESS)
def test_what_would_take_for_ever_is_not_asked(formula):
    """It is not equal to anything but itself, at once."""
    began = time.monotonic()
    assert not same(formula, "387420489")
    assert not same(formula, r"\sqrt{x}")
    assert same(formula, formula)
    assert time.monotonic() - began < 1


@needs_library
def test_three_hundred_threads_neither_hang_nor_fail():
    """Each gets its own answer, from one process, among formulas that are beyond the limits."""
    pairs = [(rf"\frac{{{n}x}}{{2}}", f"{n}*x/2", True) if n % 3 else (ENDLESS[n % 7], f"x^{n}+1", False) for n in range(300)]
    began = time.monotonic()
    with ThreadPoolExecutor(300) as pool:
        found = list(pool.map(lambda pair: same(pair[0], pair[1]), pairs))
    assert found == [equal for *_, equal in pairs]
    assert time.monotonic() - began < 120


@needs_library
def test_a_question_that_takes_too_long_ends_the_process_and_nothing_else():
    """The verdict is "not known to be equal", and the next question is answered."""
    worker = maths._Worker()
    try:
        began = time.monotonic()
        assert not worker.equal("(10^9)!", "(10^9+1)!")  # beyond the limits, but asked all the same
        assert time.monotonic() - began < 60
        assert worker.equal("x+x", "2*x")
    finally:
        worker.close()


@needs_library
def test_a_process_that_was_killed_is_started_again():
    """Whoever killed it, the next question is answered."""
    worker = maths._Worker()
    try:
        assert worker.equal("x+x", "2*x")
        worker._process.kill()
        worker._process.wait()
        assert worker.equal("y+y", "2*y")
    finally:
        worker.close()


def test_without_the_library_math_says_what_to_install():
    """Numbers, letters, percentages and yes are read all the same; formulas are equal where they are written alike."""
    code = """
import json, sys
sys.modules["math_verify"] = None
import importlib.util as u
find = u.find_spec
u.find_spec = lambda name, package=None: None if name == "math_verify" else find(name, package)
from entropy_chains.core.answers import comparer, same
pairs = [("The answer is 7.", "7"), ("1/2", "0.5"), ("50%", "0.5"), ("(B) Paris", "B"), ("yes, it is", "yes"),
         (r"\\boxed{\\sqrt{2}}", r"$\\sqrt{2}$"), (r"\\sqrt{8}", r"2\\sqrt{2}")]
found = [same(*p) for p in pairs]
try:
    comparer("math")
except ImportError as error:
    found.append(str(error))
print(json.dumps(found))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *found, message = json.loads(done.stdout)
    assert found == [True] * 6 + [False]
    assert "pip install 'entropy-chains[math]'" in message


@needs_library
def test_grade_math_with_the_library():
    """It is the comparison of ``auto``, and an error at the door where the library is missing."""
    assert comparer("math").same(r"\frac{2}{4}x", "x/2")


@pytest.mark.skipif(maths.installed(), reason="math-verify is installed")
def test_grade_math_without_the_library():
    """See above."""
    with pytest.raises(MissingExtraError, match="math"):
        comparer("math")
