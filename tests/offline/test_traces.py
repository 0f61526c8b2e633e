"""Trace files: the contract's format, strict reading, safe appending."""

from __future__ import annotations

import copy
import json
import math

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entropy_chains.core.finish_reasons import FINISHES
from entropy_chains.core.policy import Policy
from entropy_chains.errors import OutputError, TraceError, WriteError
from entropy_chains.offline.traces import (
    Step,
    Trace,
    TraceWriter,
    append_traces,
    check_appendable,
    iter_traces,
    open_for_append,
    read_traces,
    recorded,
)

CONTRACT = {
    "id": "q17",
    "group": "q17",
    "question": "347*86=?",
    "gold": "29842",
    "model": "entropy-chains/demo",
    "mode": "thinking",
    "signal": "mean_entropy",
    "estimator": "renormalised",
    "k": 20,
    "temperature": 0.6,
    "temperature_mode": "raw",
    "segmentation": {"boundary": "line", "min_tokens": 32},
    "template": "sha256:…",
    "steps": [
        {"answer": "29842", "correct": True, "entropy": 0.41, "tokens": 212, "seconds": 3.1, "mass": 0.999},
        {"answer": "29842", "correct": True, "entropy": 0.18, "tokens": 198, "seconds": 2.9, "mass": 0.999},
    ],
}


def trace(name: str, **given) -> Trace:
    return Trace(name, [Step("1", 0.5, 10), Step(None, None, 0)], gold="1", **given)


def test_the_contract_s_example_is_read_and_written_in_its_own_order():
    """The example of the contract round-trips to the letter, key order included."""
    read = Trace.from_dict(CONTRACT)
    assert (read.k, read.steps[0].entropy, read.steps[1].tokens) == (20, 0.41, 198)
    assert json.dumps(read.to_dict()) == json.dumps(CONTRACT)


def test_unknown_fields_are_kept_and_absent_ones_are_not_invented():
    """Fields that this release does not know survive a round trip; a minimal trace gains only the name of its signal."""
    data = {"id": "a", "mine": [1], "steps": [{"answer": None, "entropy": None, "tokens": 3, "yours": {"x": 1}}]}
    assert Trace.from_dict(data).to_dict() == data | {"signal": "mean_entropy"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("entropy", -0.1),
        ("entropy", True),
        ("entropy", "0.1"),
        ("entropy", math.nan),
        ("entropy", math.inf),
        ("entropy", 10**400),
        ("tokens", -1),
        ("tokens", 1.0),
        ("tokens", True),
        ("tokens", None),
        ("answer", 7),
        ("correct", 1),
        ("mass", 1.5),
        ("probe_tokens", 2.5),
        ("seconds", -1.0),
        ("lower", "a"),
        ("text", 1),
        ("signals", {"sum_entropy": None}),
        ("signals", [1.0]),
    ],
)
def test_a_wrong_step_field_is_named(field, value):
    """Each wrong value of a step is refused, and the error names step and field."""
    data = {"id": "a", "gold": "1", "steps": [{"answer": "1", "entropy": 0.1, "tokens": 1}] * 2}
    data["steps"][1:] = [data["steps"][0] | {field: value}]
    with pytest.raises(TraceError, match=field) as caught:
        Trace.from_dict(data, "t.jsonl", 4)
    assert (caught.value.file, caught.value.line, caught.value.field) == ("t.jsonl", 4, f"steps[1].{field}")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", 3),
        ("steps", []),
        ("steps", {}),
        ("steps", [3]),
        ("mode", "agent"),
        ("estimator", "top"),
        ("k", 0),
        ("k", True),
        ("temperature", -1),
        ("segmentation", {"boundary": "word"}),
        ("segmentation", "line"),
        ("gold", 5),
        ("vocab_size", 0),
        ("seed", 1.5),
        ("finish", "eos"),
        ("finish", ["stop"]),
        ("finish_raw", 5),
        ("max_tokens", 0),
    ],
)
def test_a_wrong_trace_field_is_named(field, value):
    """Each wrong value of a trace is refused, and the error names the field."""
    data = {"id": "a", "steps": [{"answer": "1", "entropy": 0.1, "tokens": 1}]} | {field: value}
    with pytest.raises(TraceError) as caught:
        Trace.from_dict(data)
    assert caught.value.field.startswith(field)


@given(
    st.sampled_from([None, *FINISHES]), st.one_of(st.none(), st.text()), st.one_of(st.none(), st.integers(1, 2**53)), st.booleans()
)
def test_how_a_run_ended_comes_out_as_it_went_in(finish, word, limit, answered):
    """The three fields of its end survive the file's form; absent ones stay absent, and decide whether the run was cut."""
    made = Trace("a", [Step("1" if answered else None, None, 1)], finish=finish, finish_raw=word, max_tokens=limit)
    written = json.loads(json.dumps(made.to_dict()))
    assert Trace.from_dict(written) == made
    assert {"finish", "finish_raw", "max_tokens"} - written.keys() == {
        n for n in ("finish", "finish_raw", "max_tokens") if getattr(made, n) is None
    }
    assert made.is_cut == (not answered if finish is None else finish != "stop")


@pytest.mark.parametrize("missing", ["id", "steps", "answer", "entropy", "tokens"])
def test_a_missing_needed_field_is_named(missing):
    """Without one of the five needed fields a trace is refused by that field's name."""
    data = {"id": "a", "steps": [{"answer": "1", "entropy": 0.1, "tokens": 1}]}
    (data if missing in data else data["steps"][0]).pop(missing)
    with pytest.raises(TraceError, match=missing):
        Trace.from_dict(data)


def test_correct_on_some_steps_only_is_refused_without_gold():
    """A step without a label is an unknown loss: refused, unless gold can stand in."""
    steps = [{"answer": "1", "entropy": 0.1, "tokens": 1, "correct": True}, {"answer": "1", "entropy": 0.1, "tokens": 1}]
    with pytest.raises(TraceError, match="1 of 2 steps"):
        Trace.from_dict({"id": "a", "steps": steps})
    assert Trace.from_dict({"id": "a", "gold": "1", "steps": steps}).steps[1].correct is None


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", None, "no traces"),
        ("\n \n", None, "no traces"),
        ('{"id": "a"}\n', 1, "steps"),
        ("[1]\n", 1, "object"),
        ('{"id": "a", "steps": [{"answer": "1", "entropy": NaN, "tokens": 1}]}\n', 1, "NaN"),
        ('{"id": "a", "steps": [{"answer": "1", "entropy": 1e999, "tokens": 1}]}\n', 1, "entropy"),
        ('{"id": "a", "steps": [{"answer": "1", "entropy": 1, "tokens": 1}]}\n{"id"\n', 2, "JSON"),
        ('{"id": "a", "steps": [{"answer": "1", "entropy": 1, "tokens": 1}]}\n{"id"', 2, "torn"),
    ],
)
def test_a_bad_file_is_refused_by_file_and_line(tmp_path, text, line, words):
    """Empty, half and wrong files raise an error that names the file and the line."""
    path = tmp_path / "t.jsonl"
    path.write_text(text)
    with pytest.raises(TraceError, match=words) as caught:
        read_traces(path)
    assert (caught.value.file, caught.value.line) == (str(path), line)


def test_a_file_that_does_not_exist_is_named(tmp_path):
    """A missing file is bad input, not a traceback of the operating system."""
    with pytest.raises(TraceError, match=r"nowhere.*cannot be read"):
        read_traces(tmp_path / "nowhere.jsonl")


def test_recover_leaves_out_a_torn_last_line_only(tmp_path):
    """``recover`` drops a last line without an end; a bad line before it stays an error."""
    path = tmp_path / "t.jsonl"
    append_traces(path, [trace("a"), trace("b")])
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert [t.id for t in read_traces(path, recover=True)] == ["a"]
    path.write_bytes(whole[:20] + b"\n" + whole)
    with pytest.raises(TraceError, match="line 1"):
        read_traces(path, recover=True)


def test_traces_are_read_lazily(tmp_path):
    """The first trace is there before the second line is looked at."""
    path = tmp_path / "t.jsonl"
    append_traces(path, [trace("a")])
    path.write_bytes(path.read_bytes() + b"broken\n")
    assert next(iter_traces(path)).id == "a"


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


@given(at=st.integers(0, 10_000), byte=st.integers(0, 255))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_changed_byte_gives_an_error_or_valid_traces(tmp_path, at, byte):
    """Whatever one byte becomes, reading raises TraceError or gives traces that are valid and can be written again."""
    path = tmp_path / "t.jsonl"
    good = b"".join(json.dumps(CONTRACT | {"id": n}).encode() + b"\n" for n in "ab")
    changed = bytearray(good)
    changed[at % len(good)] = byte
    path.write_bytes(changed)
    try:
        traces = read_traces(path)
    except TraceError:
        return
    assert 1 <= len(traces) <= 2
    for read in traces:
        assert Trace.from_dict(json.loads(json.dumps(read.to_dict()))) == read
    if bytes(changed) == good:
        assert [t.id for t in traces] == ["a", "b"]


def test_pandas_reads_what_is_written(tmp_path):
    """One row a step by two pandas calls: every number, text and null of the file, signals as columns; and back again."""
    path = tmp_path / "t.jsonl"
    steps = [
        Step("1", 0.5, 10, probe_tokens=3, mass=0.99, text="a\n", signals={"sum_entropy": 5.0, "eat": 0.1}),
        Step(None, None, 4, correct=False),
    ]
    written = [Trace(f"q{n}", copy.deepcopy(steps), question=f"{n}?", gold="1", k=20) for n in range(3)]
    append_traces(path, written)
    runs = pd.read_json(path, lines=True, dtype=False)
    rows = runs.explode("steps", ignore_index=True)
    frame = rows.drop(columns="steps").join(pd.json_normalize(rows["steps"].tolist()))
    assert frame["id"].tolist() == ["q0", "q0", "q1", "q1", "q2", "q2"]
    assert frame["tokens"].tolist() == [10, 4] * 3
    assert frame["entropy"].isna().tolist() == [False, True] * 3
    assert frame.loc[::2, "signals.sum_entropy"].tolist() == [5.0] * 3
    assert frame.loc[::2, "answer"].tolist() == ["1"] * 3
    runs.to_json(tmp_path / "back.jsonl", orient="records", lines=True)
    assert read_traces(tmp_path / "back.jsonl") == written
