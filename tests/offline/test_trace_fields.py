"""What calibration writes into a policy is checked where a trace is read, as the policy's own fields are, with file and line."""

from __future__ import annotations

import json

import pytest
from commands import run, trace

from entropy_chains import Policy
from entropy_chains.core.policy_fields import FIELDS
from entropy_chains.errors import PolicyError, TraceError
from entropy_chains.offline.traces import TRACE_FIELDS, read_traces

BAD = [
    ("temperature_mode", "foo", "temperature_mode is 'foo'; it must be one of raw, scaled"),
    (
        "template",
        "",
        "template is ''; it must be a text that is not empty and can be written as UTF-8, or null where it is not known",
    ),
    ("model", "", "model is ''; it must be a text that is not empty and can be written as UTF-8"),
    ("signal", "", "signal is ''; it must be a text that is not empty and can be written as UTF-8"),
    ("mode", "think", "mode is 'think'; it must be one of thinking, refine"),
    (
        "k",
        10**18,
        "k is 1000000000000000000; it must be a whole number of at least 1, at most 2^53, or null for the full vocabulary",
    ),
    ("max_tokens", 0, "max_tokens is 0; it must be a whole number of at least 1, at most 2^53"),
    ("grade", "regex:(", "grade is 'regex:(', which is no regular expression (missing ), unterminated subpattern at position 0)"),
    ("grade", "numbers", "grade is 'numbers'; it must be one of auto, exact, number, choice, math, regex:PATTERN or python:NAME"),
]
COMMANDS = {
    "diagnose": lambda traces, folder: ["diagnose", traces],
    "calibrate": lambda traces, folder: ["calibrate", traces, "-o", folder / "p.json"],
    "compare": lambda traces, folder: ["compare", traces],
    "report": lambda traces, folder: ["report", traces, "--out", folder / "r.html"],
}


def written(path, **fields):
    """A trace file of which the third line has these fields."""
    rows = [trace(n, first_right=True, entropy=0.1) for n in range(4)]
    rows[2] |= fields
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(("name", "value", "told"), BAD)
def test_reading_names_file_line_and_field(tmp_path, name, value, told):
    """And what it must be; of a pattern what is wrong with it, as ``record --grade`` says."""
    path = written(tmp_path / "t.jsonl", **{name: value})
    with pytest.raises(TraceError) as raised:
        read_traces(path)
    assert str(raised.value) == f"{path}, line 3: {told}"
    assert raised.value.field == name


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_the_same(tmp_path, command):
    """Not only those that make a policy."""
    path = written(tmp_path / "t.jsonl", temperature_mode="foo")
    result = run(*COMMANDS[command](path, tmp_path))
    assert (result.exit_code, result.output) == (2, f"error: {path}, line 3: {BAD[0][2]}\n")


def test_what_is_not_known_may_be_null(tmp_path):
    """As before."""
    assert len(read_traces(written(tmp_path / "t.jsonl", **{name: None for name, *_ in BAD}))) == 4


def test_a_policy_refuses_what_its_traces_may_not_hold():
    """By the same checks: whatever stands in both is one fact."""
    both = {"model", "mode", "signal", "estimator", "k", "temperature_mode", "template", "grade"}
    assert {name for name in both if TRACE_FIELDS[name].good is not FIELDS[name].good} == set()
    with pytest.raises(PolicyError, match="grade is 'regex:\\(', which is no regular expression"):
        Policy("m", (0.1,), grade="regex:(")
    with pytest.raises(PolicyError, match=r"at most 2\^53"):
        Policy("m", (0.1,), k=10**18)
