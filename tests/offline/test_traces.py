"""Trace files: the contract's format, and strict reading."""

from __future__ import annotations

import copy
import json
import math

import pandas as pd
import pytest
from contract_traces import CONTRACT, trace
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entropy_chains.core.finish_reasons import FINISHES
from entropy_chains.errors import TraceError
from entropy_chains.offline.traces import (
    Step,
    Trace,
    append_traces,
    iter_traces,
    read_traces,
)


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
