"""Files that commands read and write: an output is never an input, is found to be impossible first, and spoils nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import run
from devices import device

WRITING = {
    "calibrate": ["calibrate", "traces.jsonl", "-o", "{out}"],
    "compare": ["compare", "traces.jsonl", "--transfer", "other.svg", "--plot", "{out}"],
    "report": ["report", "more.jsonl", "traces.jsonl", "--policy", "policy.json", "--out", "{out}"],
    "record": ["record", "--data", "questions.jsonl", "--out", "{out}", "--model", "no/such/folder"],
    "record --resume": ["record", "--data", "questions.jsonl", "--out", "{out}", "--model", "no/such/folder", "--resume"],
    "record from a server": [
        "record",
        "--data",
        "questions.jsonl",
        "--out",
        "{out}",
        "--model",
        "m",
        "--base-url",
        "http://127.0.0.1:9",
    ],
    "langsmith": ["langsmith", "no-such-project", "--traces", "{out}"],
}
"""Every command that writes to a file that the user names; further on it would read, load or ask something that is not there."""


@pytest.fixture
def inputs(traces: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an input for every command, as the working directory."""
    assert run("calibrate", traces, "-o", tmp_path / "policy.json").exit_code == 0
    for name in ("more.jsonl", "other.svg"):  # a name that a plot may have
        (tmp_path / name).write_bytes(traces.read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LANGSMITH_ENDPOINT", "http://127.0.0.1:9")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def used(command: str) -> list[str]:
    """The input files of a command."""
    return [part for part in WRITING[command] if part.endswith((".jsonl", ".json", ".svg"))]


@pytest.mark.parametrize(("command", "source"), [(c, source) for c in WRITING for source in used(c)])
def test_an_output_that_is_an_input_is_refused(command: str, source: str, inputs: Path) -> None:
    """By its own name, another spelling, a link and a hard link: status 2, both are named, and nothing is changed or made."""
    suffix = Path(source).suffix
    (inputs / f"link{suffix}").symlink_to(source)
    (inputs / f"hard{suffix}").hardlink_to(source)
    before = contents(inputs)
    for out in (source, f"./{source}", str(inputs / source), f"link{suffix}", f"hard{suffix}"):
        result = run(*(part.format(out=out) for part in WRITING[command]))
        assert result.exit_code == 2, result.output
        assert f"is the same file as the input {source}" in result.stderr
        assert contents(inputs) == before


@pytest.mark.parametrize("command", WRITING)
def test_an_output_that_cannot_be_written_is_found_first(command: str, inputs: Path) -> None:
    """Before the model is loaded or anybody asked: the message is about the output, which is named with the remedy."""
    for name in ("folder", "taken.svg"):
        (inputs / name).mkdir()
    (inputs / "loop.svg").symlink_to("loop.svg")
    before = contents(inputs)
    for out in ("folder", "taken.svg", "missing/out.svg", "questions.jsonl/out.svg", "loop.svg", "/proc/out.svg"):
        if command == "compare" and out == "folder":
            continue  # refused for its name
        result = run(*(part.format(out=out) for part in WRITING[command]))
        assert result.exit_code == 2, result.output
        assert result.stderr.startswith(f"error: {out} cannot be written (")
        assert "name a file in a folder that exists" in result.stderr
        assert contents(inputs) == before


@pytest.mark.parametrize("command", ["record --resume", "record from a server", "langsmith"])
def test_nothing_is_appended_to_another_file(command: str, inputs: Path) -> None:
    """A file that is no trace file is found before the model is loaded or anybody asked, and kept."""
    (inputs / "notes.txt").write_text('{"my": "notes"}')
    before = contents(inputs)
    for out in ("notes.txt", "policy.json"):
        result = run(*(part.format(out=out) for part in WRITING[command]))
        assert result.exit_code == 2, result.output
        assert result.stderr.startswith(f"error: {out}: is not a trace file")
        assert "name another file" in result.stderr
        assert contents(inputs) == before


def test_outputs_go_to_links_and_devices(inputs: Path) -> None:
    """The target of a link is written and keeps its mode; a device gets the file's content; a full one is status 1 and named."""
    (inputs / "private.json").write_text("{}")
    (inputs / "private.json").chmod(0o600)
    (inputs / "link.json").symlink_to("private.json")
    assert run("calibrate", "traces.jsonl", "-o", "link.json").exit_code == 0
    assert (inputs / "link.json").is_symlink()
    assert (inputs / "private.json").read_bytes() == (inputs / "policy.json").read_bytes()
    assert (inputs / "private.json").stat().st_mode & 0o777 == 0o600
    null, full = device(inputs, "null"), device(inputs, "full")
    for command in (["calibrate", "traces.jsonl", "-o"], ["report", "traces.jsonl", "--out"]):
        assert run(*command, null).exit_code == 0
        result = run(*command, full)
        assert result.exit_code == 1
        assert result.stderr.startswith(f"error: {full} cannot be written (No space left on device)")
        assert null.is_char_device()
        assert full.is_char_device()


def test_a_policy_on_standard_output(inputs: Path) -> None:
    """``-o /dev/stdout``, or another name of it, writes it there, before what is printed, also where that goes to a file."""
    command = [sys.executable, "-m", "entropy_chains", "calibrate", "traces.jsonl", "-o", "/dev/fd/1", "--json"]
    expected = (inputs / "policy.json").read_text()
    with (inputs / "out").open("w") as out:
        subprocess.run(command, check=True, stdout=out)
    assert (inputs / "out").read_text().startswith(expected)
    assert json.loads((inputs / "out").read_text().removeprefix(expected)) == json.loads(expected)


def test_the_demo_replaces_files_of_a_demo_only(inputs: Path) -> None:
    """Named a folder with other people's files, one file for two outputs, or no folder, it ends before its model is loaded."""
    (inputs / "twice").mkdir()
    (inputs / "twice" / "policy.json").symlink_to("demo.json")
    (inputs / "full").mkdir()
    (inputs / "full" / "report.html").mkdir()
    (inputs / "mine").mkdir()
    (inputs / "mine" / "policy.json").write_text('{"model": "entropy-chains/demo"}')  # calibrated by the user, on the demo's model
    (inputs / "pipe").mkdir()
    os.mkfifo(inputs / "pipe" / "calibration.jsonl")
    before = contents(inputs)
    for out, named in (
        (".", "policy.json is not an earlier demo's"),
        ("twice", "is the same file as"),
        ("mine", "mine/policy.json is not an earlier demo's"),
        ("pipe", "pipe/calibration.jsonl is no file"),
        ("full", "full/report.html cannot be written"),
        ("policy.json", "policy.json"),
        ("policy.json/demo", "the folder policy.json/demo cannot be made"),
    ):
        result = run("demo", "--out", out)
        assert result.exit_code == 2, result.output
        assert named in result.stderr
        assert contents(inputs) == before
