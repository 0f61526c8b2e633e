"""Trace files are appended to safely: whole lines, after a kill too, and never to a file of something else."""

from __future__ import annotations

import json
import math

import pytest
from contract_traces import CONTRACT, trace
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entropy_chains.core.policy import Policy
from entropy_chains.errors import OutputError, TraceError, WriteError
from entropy_chains.offline.traces import (
    Step,
    Trace,
    TraceWriter,
    append_traces,
    check_appendable,
    open_for_append,
    read_traces,
    recorded,
)


def test_a_bad_trace_writes_nothing(tmp_path):
    """``append_traces`` and the writer leave the file as it was when any trace is bad, NaN in an unknown field included."""
    path = tmp_path / "t.jsonl"
    append_traces(path, [trace("a")])
    before = path.read_bytes()
    with pytest.raises(TraceError):
        append_traces(path, [trace("b"), Trace("c", [Step("1", -1.0, 1)])])
    with pytest.raises(TraceError, match="JSON"):
        append_traces(path, [trace("b", extra={"x": math.nan})])
    with open_for_append(path) as writer, pytest.raises(TraceError):
        writer.write(Trace("d", []))
    assert path.read_bytes() == before


def test_a_failing_disk_leaves_no_half_line(tmp_path, monkeypatch):
    """When the disk refuses in mid-write, what was written of the line is taken back."""
    path = tmp_path / "t.jsonl"
    with open_for_append(path) as writer:
        writer.write(trace("a"))
        before = path.read_bytes()

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            writer.write(trace("b"))
        assert path.read_bytes() == before
        assert writer.ids == {"a"}


@given(cut=st.integers(0, 10_000), again=st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_kill_at_any_byte_loses_at_most_the_last_line(tmp_path, cut, again):
    """Cut a file anywhere, resume it: all whole lines are there, and the file is valid after the next write.

    Only if the cut is so early in the first line that it might be somebody else's JSON is it refused, unchanged.
    """
    path = tmp_path / "t.jsonl"
    path.unlink(missing_ok=True)
    names = ["a", "b", "ü" * 40, "d"]
    append_traces(path, [trace(n) for n in names])
    whole = path.read_bytes()
    cut %= len(whole) + 1
    path.write_bytes(whole[:cut])
    ends = [i for i, byte in enumerate(whole) if byte == 10]
    # a line that lacks nothing but its end is complete
    survivors = names[: sum(end <= cut for end in ends)]
    if 0 < cut < whole.index(b'"signal": "') + len(b'"signal": "'):
        for write in WAYS.values():
            with pytest.raises(TraceError, match="name another file"):
                write(path)
        assert path.read_bytes() == whole[:cut]
        return
    check_appendable(path)
    assert path.read_bytes() == whole[:cut]
    assert {t.id for t in recorded(path)} == set(survivors)
    if again:
        with open_for_append(path) as writer:
            assert writer.ids == set(survivors)
            writer.write(trace("new"))
    else:
        append_traces(path, [trace("new")])
    assert [t.id for t in read_traces(path)] == [*survivors, "new"]


def test_recovery_finds_a_line_longer_than_its_block(tmp_path):
    """A torn line of several blocks is cut off exactly; the line before is untouched."""
    path = tmp_path / "t.jsonl"
    append_traces(path, [trace("a"), trace("b", extra={"x": "y" * 200_000})])
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    with open_for_append(path) as writer:
        assert writer.ids == {"a"}
    assert path.read_bytes() == whole[: whole.index(b"\n") + 1]
    path.write_bytes(whole[:-1])
    open_for_append(path).close()
    assert path.read_bytes() == whole


OTHERS = {
    "minified, without a last line end": b'{"database": "prod", "port": 1}',
    "minified": b'{"database": "prod", "port": 1}\n',
    "broken off": b'{"a": 1}\n{"b": [1, 2, 3',
    "one line, broken off": b'{"id": "a", "b": [1, 2, 3',
    "questions": b'{"id": "a", "question": "1*2=?"}\n',
    "questions, without a last line end": b'{"id": "a", "question": "1*2=?"}',
    "questions, broken off": b'{"id": "a", "question": "1*2=?"}\n{"id": "b", "quest',
    "one question, broken off": b'{"id": "a", "question": "1*2=?", "go',
    "a reply of an API, broken off": b'{"id": "c1", "model": "m", "choices": [{"text": "\\"signal\\": \\"',
    "deeper than a trace's own signal": b'{"id": "a", "meta": {"x": "y", "signal": "red", "z',
    "a policy": json.dumps(Policy("m", (0.5,)).to_dict(), indent=2).encode(),
    "a policy in one line": json.dumps(Policy("m", (0.5,)).to_dict()).encode(),
    "a table": b"id,answer\n1,2\n3,4",
    "a list": b"[1, 2]\n[3, 4",
    "a number": b"1",
    "a brace": b"{",
    "text": b"line one\nline two without an end",
    "empty lines": b"\n\n",
    "bytes": bytes(range(256)) * 3,
    "zeros": b"\0" * 100,
    "nested without an end": b'{"id": "a", "x": ' + b"[" * 100_000,
}
"""Files that are no trace files."""
LINE = json.dumps(CONTRACT).encode() + b"\n"
ENDS = {
    "another object": b'{"a": 1}',
    "a question": b'{"id": "b", "question": "1*2=?"}',
    "notes": b"to be checked",
    "an object broken off": b'{"a": 1, "b',
    "a whole line with NaN": LINE.replace(b"0.41", b"NaN").strip(),
    "a whole line with a wrong value": LINE.replace(b"0.41", b"-1").strip(),
    "a whole line with a typing error": LINE.replace(b'"k": 20', b'"k": 2O').strip(),
    "two lines without an end between": LINE.strip() + LINE.strip(),
}
"""What may stand, without a line end, after a good line of a trace file, but is not what a killed recorder leaves there."""
WAYS = {
    "append_traces": lambda path: append_traces(path, [trace("new")]),
    "TraceWriter": lambda path: TraceWriter(path).close(),
    "check_appendable": lambda path: check_appendable(path),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("content", [*OTHERS.values(), *(LINE + end for end in ENDS.values())], ids=[*OTHERS, *ENDS])
def test_a_file_of_something_else_is_never_changed(tmp_path, way, content):
    """Naming the wrong file as output changes nothing in it; the error names the file and the remedy."""
    path = tmp_path / "mine"
    path.write_bytes(content)
    with pytest.raises(TraceError, match="name another file") as caught:
        WAYS[way](path)
    assert caught.value.file == str(path)
    assert path.read_bytes() == content


@given(content=st.binary(min_size=1, max_size=40) | st.text(min_size=1, max_size=40).map(str.encode))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_other_content_is_ever_changed(tmp_path, content):
    """Whatever stands in a file that is too short for a trace: it is refused and kept."""
    path = tmp_path / "mine"
    for way in WAYS.values():
        path.write_bytes(content)
        with pytest.raises(TraceError):
            way(path)
        assert path.read_bytes() == content


@pytest.mark.parametrize("separators", [(", ", ": "), (",", ":"), (" , ", " : ")])
def test_a_torn_line_of_any_spacing_is_recovered(tmp_path, separators):
    """After a trace, the beginning of another one is cut off at whatever byte it ends, also in a file that was made elsewhere."""
    path = tmp_path / "t.jsonl"
    line = json.dumps(CONTRACT, separators=separators).encode()
    for end in (*range(1, 40), *range(40, len(line), 9)):
        path.write_bytes(line + b"\n" + line[:end])
        with TraceWriter(path) as writer:
            assert writer.ids == {"q17"}
        assert path.read_bytes() == line + b"\n"


def test_a_bad_line_in_the_middle_is_found_before_the_file_is_changed(tmp_path):
    """A recorder reads all lines first; only then is a torn last one cut off."""
    path = tmp_path / "t.jsonl"
    content = LINE + b"{}\n" + LINE[:-20]
    path.write_bytes(content)
    with pytest.raises(TraceError, match="line 2"):
        TraceWriter(path)
    assert path.read_bytes() == content


def test_traces_can_be_sent_to_a_device():
    """Nothing of it can be read back, so no ids are known; a full one is an error of ours."""
    with TraceWriter("/dev/null") as writer:
        assert writer.ids == set()
        writer.write(trace("a"))
        assert writer.ids == {"a"}
    append_traces("/dev/null", [trace("a")])
    assert list(recorded("/dev/null")) == []
    with TraceWriter("/dev/full") as writer, pytest.raises(WriteError, match="/dev/full cannot be written"):
        writer.write(trace("a"))


def test_an_output_that_cannot_be_opened_is_named(tmp_path):
    """A missing folder is bad input, found before anything is recorded."""
    for way in WAYS.values():
        with pytest.raises(OutputError, match=r"missing/t\.jsonl cannot be written"):
            way(tmp_path / "missing" / "t.jsonl")
