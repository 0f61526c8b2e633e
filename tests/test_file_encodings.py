"""Questions, traces and policies as editors save them: a byte order mark is read over, and UTF-16 is named with the remedy."""

from __future__ import annotations

import json

import pytest
from commands import run, trace

from entropy_chains import Policy
from entropy_chains.errors import InputError, PolicyError, TraceError
from entropy_chains.offline.traces import append_traces, read_traces
from entropy_chains.questions import read_questions

POLICY = Policy("m", (0.2,))
FILES = {
    "questions": (json.dumps({"id": "a", "question": "6*7?"}) + "\n", read_questions, InputError),
    "traces": ("".join(json.dumps(trace(n, first_right=True, entropy=0.1)) + "\n" for n in range(3)), read_traces, TraceError),
    "one trace": (json.dumps(trace(1, first_right=True, entropy=0.1)), read_traces, TraceError),
    "policy": (json.dumps(POLICY.to_dict(), indent=2), Policy.load, PolicyError),
}
UTF_16 = {"utf-16": b"", "utf-16-le": b"", "utf-16-be": b"", "utf-16-le, marked": b"\xff\xfe", "utf-16-be, marked": b"\xfe\xff"}


@pytest.mark.parametrize("kind", FILES)
def test_a_byte_order_mark_is_read_over(tmp_path, kind):
    """The same is read as without it."""
    text, read, _ = FILES[kind]
    plain, marked = tmp_path / "plain", tmp_path / "marked"
    plain.write_text(text, encoding="utf-8")
    marked.write_text(text, encoding="utf-8-sig")
    assert read(marked) == read(plain)


@pytest.mark.parametrize("encoding", UTF_16)
@pytest.mark.parametrize("kind", FILES)
def test_utf_16_is_named(tmp_path, kind, encoding):
    """With the file and the remedy."""
    text, read, error = FILES[kind]
    path = tmp_path / "file"
    path.write_bytes(UTF_16[encoding] + text.encode(encoding.partition(",")[0]))
    with pytest.raises(error) as raised:
        read(path)
    assert str(path) in str(raised.value)
    assert str(raised.value).endswith("is not UTF-8 text (it is UTF-16); save it as UTF-8")


@pytest.mark.parametrize("kind", ["questions", "policy"])
def test_other_text_is_told_of_by_its_place(tmp_path, kind):
    """A byte that UTF-8 does not have."""
    text, read, error = FILES[kind]
    path = tmp_path / "file"
    path.write_bytes(text.encode()[:3] + b"\xe9" + text.encode()[3:])
    with pytest.raises(error, match=r"is not UTF-8 text .* at byte 3\); save it as UTF-8"):
        read(path)


def test_nothing_is_appended_to_utf_16(tmp_path):
    """It is left as it is."""
    path = tmp_path / "t.jsonl"
    path.write_text(FILES["one trace"][0], encoding="utf-16")
    before = path.read_bytes()
    with pytest.raises(TraceError, match="UTF-16"):
        append_traces(path, [])
    assert path.read_bytes() == before


def test_a_command_says_it_in_one_line(tmp_path):
    """And ends with the status of bad input."""
    traces, policy = tmp_path / "t.jsonl", tmp_path / "p.json"
    traces.write_text(FILES["traces"][0], encoding="utf-8-sig")
    policy.write_text(FILES["policy"][0], encoding="utf-16")
    result = run("replay", traces, "--policy", policy)
    assert (result.exit_code, result.output) == (
        2,
        f"error: policy {policy} is not UTF-8 text (it is UTF-16); save it as UTF-8\n",
    )
