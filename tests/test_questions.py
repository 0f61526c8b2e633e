"""Questions are read as they were written, and what cannot be recorded is named before anything is spent."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import InputError
from entropy_chains.questions import read_questions

LINES = Segmentation("line", 1)
STEPS = [("one ", 1.0), ("\n", 1.0), ("two ", 0.5), ("\n", 0.5), ("three ", 0.0), ("\n", 0.0)]
QUESTIONS = [{"id": f"q{n}", "question": f"{n}?", "gold": "4"} for n in range(3)]


def write(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_questions_are_read(tmp_path):
    """Blank lines are skipped, a number becomes a text, other fields stay, ``limit`` takes the first."""
    second = {"id": "b", "question": "x", "gold": ""}
    path = write(tmp_path / "q.jsonl", {"id": 1, "question": "1+1", "gold": 2, "group": "g"}, "", second)
    first = {"id": "1", "question": "1+1", "gold": "2", "group": "g"}
    assert read_questions(path) == [first, second]
    assert read_questions(path, limit=1) == [first]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["{"], "line 1: not JSON"),
        ([{"id": "a", "question": "x"}, "[1]"], "line 2: 'id' is None"),
        ([{"question": "x"}], "line 1: 'id' is None"),
        ([{"id": "a"}], "line 1: 'question' is None"),
        ([{"id": "", "question": "x"}], "line 1: 'id' is ''"),
        ([{"id": True, "question": "x"}], "line 1: 'id' is True"),
        ([{"id": "a", "question": 5}], "line 1: 'question' is 5"),
        ([{"id": "a", "question": "\ud800?"}], "line 1: 'question' is '\\ud800?'"),
        ([{"id": "a\ud800", "question": "x"}], "line 1: 'id' is 'a\\ud800'"),
        ([{"id": "a", "question": "x", "gold": ["2"]}], "line 1: 'gold' is ['2']"),
        ([{"id": "a", "question": "x", "gold": {}}], "line 1: 'gold' is {}"),
        (['{"id": "a", "question": "x", "gold": NaN}'], "line 1: 'gold' is nan"),
        (['{"id": "a", "question": "x", "gold": -Infinity}'], "line 1: 'gold' is -inf"),
        ([{"id": "a", "question": "x"}, {"id": "b", "question": "x", "group": 5}], "line 2: 'group' is 5"),
        (['{"id": "a", "m": ' + "[" * 200_000 + "]" * 200_000 + "}"], "line 1: not JSON that can be read: it is nested too deep;"),
        (['{"id": "a", "question": ' + "[" * 900 + "]" * 900 + "}"], "line 1: 'question' is [[[["),
        (['{"id": ' + "9" * 5000 + "}"], "line 1: not JSON (it holds a whole number of thousands of digits);"),
        ([{"id": "a", "question": "x"}, {"id": "a", "question": "y"}], "line 2: id 'a' stands twice"),
        ([], "holds no questions"),
        (["", "  "], "holds no questions"),
    ],
)
def test_a_bad_line_is_named(tmp_path, lines, told):
    """File, line, field and what a line must look like."""
    path = write(tmp_path / "q.jsonl", *lines)
    with pytest.raises(InputError, match=r"q\.jsonl") as error:
        read_questions(path)
    assert told in str(error.value)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
QUESTION = st.fixed_dictionaries({"id": TEXTS, "question": TEXTS}, optional={"group": TEXTS, "more": st.none() | st.integers()})
GOLD = st.text(st.characters(exclude_categories=["Cs"]))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(QUESTION, min_size=1, unique_by=lambda q: q["id"]),
    GOLD | st.none(),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["", "\ufeff"]),
)
def test_questions_come_in_as_they_went_out(tmp_path_factory, questions, gold, newline, mark):
    """Whatever the texts hold, other line separators among it, with either line end, with or without a byte order mark."""
    questions = [q | {"gold": gold} for q in questions]
    path = tmp_path_factory.mktemp("q") / "q.jsonl"
    lines = newline.join(json.dumps(q, ensure_ascii=False) for q in questions)
    path.write_bytes((mark + lines).encode())
    assert read_questions(path) == questions


def test_numbers_of_any_size_become_texts(tmp_path):
    """Also one that no float can hold."""
    rows = [{"id": n, "question": "x", "gold": gold} for n, gold in enumerate([2, 2.5, 10**400, True])]
    assert [q["gold"] for q in read_questions(write(tmp_path / "q.jsonl", *rows))] == ["2", "2.5", str(10**400), "True"]


def test_files_that_cannot_be_read(tmp_path):
    """Missing, a folder, or not UTF-8; UTF-16, as some editors save it, is named."""
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "a", "question": "\xe9"}')
    for name in ("utf-16", "utf-16-le", "utf-16-be"):
        mark = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}.get(name, b"")
        (tmp_path / f"{name}.jsonl").write_bytes(mark + '{"id": "a", "question": "x"}'.encode(name))
    cases = [("missing.jsonl", "cannot be read"), (".", "cannot be read"), ("latin.jsonl", "not UTF-8")]
    for name, told in [*cases, *((f"{n}.jsonl", "it is UTF-16") for n in ("utf-16", "utf-16-le", "utf-16-be"))]:
        with pytest.raises(InputError, match=told):
            read_questions(tmp_path / name)
