"""The commands: results, exit statuses, and what a wrong value meets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from devices import device

from entropy_chains.cli import main
from entropy_chains.demo.questions import draw_questions
from entropy_chains.offline.traces import Step, Trace, append_traces


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def trace(n: int, *, first_right: bool, entropy: float, model: str = "m") -> dict:
    steps = [
        {"answer": "1" if first_right else "2", "entropy": entropy, "tokens": 100, "probe_tokens": 5, "mass": 1.0},
        {"answer": "1", "entropy": 0.1, "tokens": 100, "probe_tokens": 5, "mass": 1.0},
        {"answer": "1" if n % 7 else "3", "entropy": None, "tokens": 10},
    ]
    return {"id": f"q{n}", "question": f"question {n}", "gold": "1", "model": model, "k": 20, "steps": steps}


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    """120 runs in which a wrong first answer mostly has the higher entropy."""
    path = tmp_path / "traces.jsonl"
    rows = [trace(n, first_right=n % 4 > 0, entropy=0.2 + 0.6 * (n % 4 == 0) + n / 1000) for n in range(120)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(q) + "\n" for q in draw_questions(6, 3)))
    return path


def test_offline_commands_work_together(traces: Path, tmp_path: Path) -> None:
    """diagnose, calibrate, replay and report run one after the other, for people and as JSON, with exit status 0."""
    policy, page = tmp_path / "policy.json", tmp_path / "report.html"
    found = json.loads(run("diagnose", traces, "--json").stdout)
    assert found["signal"] is True
    assert found["steps"][0]["step"] == 1
    written = json.loads(run("calibrate", traces, "-o", policy, "--json").stdout)
    assert written == json.loads(policy.read_text())
    assert written["active"] is True
    replayed = json.loads(run("replay", traces, "--policy", policy, "--json").stdout)
    assert replayed["questions"] == 120
    assert replayed["tokens"] < replayed["tokens_full"]
    for command in (["diagnose", traces], ["calibrate", traces, "-o", policy], ["replay", traces, "--policy", policy]):
        result = run(*command)
        assert result.exit_code == 0
        assert "%" in result.stdout
    assert run("report", traces, "--policy", policy, "--out", page).exit_code == 0
    assert page.read_text().startswith("<!DOCTYPE html>") or page.read_text().startswith("<!doctype html>")


def test_calibrate_says_what_it_gives(traces: Path, tmp_path: Path) -> None:
    """The saving with its interval, on the part kept back where one is, what it may lose, and where it runs."""
    policy = tmp_path / "policy.json"
    told = " ".join(run("calibrate", traces, "-o", policy, "--hold-out", "0.3").stdout.replace("│", " ").split())
    for words in ("% of the tokens (", "on 36 questions that calibration never saw", "may lose at most 5 % of all", "runs in"):
        assert words in told
    assert json.loads(policy.read_text())["calibration"]["judged"]["on"] == "held_out"


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (["calibrate", "{traces}", "-o", "{out}", "--hold-out", "1.5"], "hold_out"),
        (["diagnose", "missing.jsonl"], "missing.jsonl"),
        (["calibrate", "{traces}", "-o", "{out}", "--method", "magic"], "magic"),
        (["calibrate", "{traces}", "-o", "{out}", "--rule", "magic"], "magic"),
        (["calibrate", "{traces}", "-o", "{out}", "--signal", "magic"], "magic"),
        (["calibrate", "{traces}", "-o", "{out}", "--max-loss", "0"], "max_loss"),
        (["calibrate", "{traces}", "-o", "{out}", "--confidence", "1.5"], "confidence"),
        (["calibrate", "{traces}", "-o", "{out}", "--min-steps", "0"], "min_steps"),
        (["calibrate", "{traces}", "-o", "{out}", "--examples", "0"], "examples"),
        (["replay", "{traces}", "--policy", "missing.json"], "missing.json"),
        (["report", "missing.jsonl", "--out", "{out}"], "missing.jsonl"),
        (["record", "--data", "missing.jsonl", "--out", "{out}", "--model", "demo"], "missing.jsonl"),
        (["record", "--data", "{questions}", "--out", "{out}", "--model", "demo", "--top-logprobs", "0"], "--top-logprobs"),
        (["record", "--data", "{questions}", "--out", "{out}", "--model", "demo", "--temperature", "-1"], "temperature"),
        (["record", "--data", "{questions}", "--out", "{out}", "--model", "demo", "--max-tokens", "0"], "max_tokens"),
        (["record", "--data", "{questions}", "--out", "{out}", "--model", "demo", "--steps", "0"], "--steps"),
        (["record", "--data", "{questions}", "--out", "{out}", "--model", "no/such/folder"], "no/such/folder"),
        (["record", "--data", "{questions}", "--out", "{out}"], "--model"),
        (["record", "--data", "{questions}", "--out", "{traces}", "--model", "demo"], "--resume"),
        (["demo", "--questions", "0"], "--questions"),
        (["nonsense"], "nonsense"),
    ],
)
def test_bad_values_are_named_with_exit_status_2(
    command: list[str], named: str, traces: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong value ends with status 2 and a message that names it, without a traceback, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out.json"
    before = traces.read_bytes()
    result = run(*(part.format(traces=traces, questions=questions, out=out) for part in command))
    assert result.exit_code == 2, result.output
    assert named in result.stderr
    assert "Traceback" not in result.output
    assert not out.exists()
    assert traces.read_bytes() == before


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


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("{", "JSON"),
        ('{"id": "a"}', "steps"),
        ('{"id": "a", "steps": []}', "steps"),
        ('{"id": "a", "steps": [{"answer": "1", "entropy": -1, "tokens": 3}]}', "entropy"),
        ('{"id": "a", "steps": [{"answer": "1", "entropy": NaN, "tokens": 3}]}', "NaN"),
        ('{"id": "a", "steps": [{"answer": "1", "entropy": 1, "tokens": true}]}', "tokens"),
    ],
)
def test_a_bad_trace_line_is_named(line: str, field: str, traces: Path, tmp_path: Path) -> None:
    """The message of a bad line names file, line number and field, and no policy is written."""
    traces.write_text(traces.read_text() + line + "\n")
    result = run("calibrate", traces, "-o", tmp_path / "p.json")
    assert result.exit_code == 2
    assert "line 121" in result.stderr
    assert traces.name in result.stderr
    assert field in result.stderr
    assert not (tmp_path / "p.json").exists()


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_an_error(content: str, tmp_path: Path) -> None:
    """An empty trace or question file ends with status 2 and says what to do."""
    empty = tmp_path / "empty.jsonl"
    empty.write_text(content)
    for command in (["diagnose", empty], ["record", "--data", empty, "--out", tmp_path / "o.jsonl", "--model", "demo"]):
        result = run(*command)
        assert result.exit_code == 2
        assert "empty.jsonl" in result.stderr


def test_policy_of_another_model_is_refused_by_replay(traces: Path, tmp_path: Path) -> None:
    """Replaying with another model's policy ends with status 2 naming both; --on-mismatch warn goes on."""
    policy = tmp_path / "policy.json"
    assert run("calibrate", traces, "-o", policy).exit_code == 0
    other = tmp_path / "other.jsonl"
    rows = [trace(n, first_right=True, entropy=0.1, model="other") for n in range(4)]
    other.write_text("".join(json.dumps(r) + "\n" for r in rows))
    result = run("replay", other, "--policy", policy)
    assert result.exit_code == 2
    assert "'other'" in result.stderr
    assert "'m'" in result.stderr
    with pytest.warns(UserWarning, match="other"):
        assert run("replay", other, "--policy", policy, "--on-mismatch", "warn").exit_code == 0


@pytest.mark.parametrize(("name", "value"), [("thresholds", [float("nan")]), ("thresholds", []), ("k", 0), ("method", "magic")])
def test_a_broken_policy_is_named(name: str, value: object, traces: Path, tmp_path: Path) -> None:
    """A policy file with an impossible value ends with status 2 and names the field."""
    policy = tmp_path / "policy.json"
    run("calibrate", traces, "-o", policy)
    policy.write_text(json.dumps(json.loads(policy.read_text()) | {name: value}))
    result = run("replay", traces, "--policy", policy)
    assert result.exit_code == 2
    assert name in result.stderr


def test_questions_without_gold_calibrate_on_agreement(traces: Path, tmp_path: Path) -> None:
    """Without gold answers the last answer stands in: the risk is called disagreement and accuracy is null."""
    rows = [json.loads(line) for line in traces.read_text().splitlines()]
    for row in rows:
        del row["gold"]
    traces.write_text("".join(json.dumps(r) + "\n" for r in rows))
    policy = json.loads(run("calibrate", traces, "-o", tmp_path / "p.json", "--json").stdout)
    assert policy["calibration"]["labels"] == "agreement"
    assert policy["calibration"]["accuracy_full"] is None
    assert run("diagnose", traces).exit_code == 0


def test_record_writes_traces_and_resume_repeats_nothing(questions: Path, tmp_path: Path) -> None:
    """Record writes one trace a question with each step's answer; --resume runs only what is missing."""
    out = tmp_path / "t.jsonl"
    settings = ["--model", "demo", "--max-tokens", "300", "--concurrency", "4", "--out", out]
    first = json.loads(run("record", "--data", questions, *settings, "--limit", "2", "--json").stdout)
    cut = sum(json.loads(line)["finish"] == "length" for line in out.read_text().splitlines())
    assert first == {"recorded": 2, "skipped": 0, "cut": cut, "traces": 2, "out": str(out)}
    before = out.read_bytes()
    again = json.loads(run("record", "--data", questions, *settings, "--resume", "--json").stdout)
    assert again["recorded"] == 4
    assert again["skipped"] == 2
    assert out.read_bytes().startswith(before)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [r["id"] for r in rows] == [json.loads(q)["id"] for q in questions.read_text().splitlines()]
    for row in rows:
        assert row["model"] == "entropy-chains/demo"
        assert row["segmentation"] == {"boundary": "line", "min_tokens": 32}
        assert all(step["probe_tokens"] >= 3 for step in row["steps"][:-1])
    other = run("record", "--data", questions, *settings, "--resume", "--top-logprobs", "5")
    assert other.exit_code == 2
    assert "k 20" in other.stderr


def test_cut_runs_are_told_from_the_recording_to_the_replay(questions: Path, tmp_path: Path) -> None:
    """Every run ends at the limit: record counts them and names it, calibrate does not stop, replay and report judge none."""
    out, policy, page = tmp_path / "t.jsonl", tmp_path / "p.json", tmp_path / "r.html"
    command = [sys.executable, "-m", "entropy_chains", "record", "--data", str(questions), "--out", str(out), "--model", "demo"]
    recorded = subprocess.run(
        [*command, "--max-tokens", "50"], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True
    )
    assert "warning: 6 of 6 runs were cut off (length: 6)" in recorded.stderr
    assert "--max-tokens; it was 50" in recorded.stderr
    assert "6 recorded, 6 of them cut off" in recorded.stdout
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {(r["finish"], r["finish_raw"], r["max_tokens"], r["steps"][-1]["answer"]) for r in rows} == {
        ("length", "length", 50, None)
    }
    for mode in ("lost", "wrong"):
        result = run("calibrate", out, "-o", policy, "--cut-runs", mode)
        assert result.exit_code == 0
        assert "All 6 calibration runs were cut off" in " ".join(result.stdout.split())
        written = json.loads(policy.read_text())
        assert (written["active"], written["calibration"]["cut_runs"], written["calibration"]["max_tokens"]) == (False, mode, 50)
    replayed = json.loads(run("replay", out, "--policy", policy, "--json").stdout)
    assert (replayed["judged"], replayed["cut"], replayed["accuracy"]) == (0, 6, None)
    for command in (["diagnose", out], ["replay", out, "--policy", policy], ["compare", out, "--folds", "2"]):
        assert "6 runs were cut off" in " ".join(run(*command).stdout.split())
    assert run("report", out, "--policy", policy, "--out", page).exit_code == 0
    assert "6 runs were cut off" in page.read_text()


def test_replay_says_what_cut_runs_were_taken_for_and_calls_nothing_a_limit(tmp_path: Path) -> None:
    """A policy that took cut runs for full ones is said to; a saving above the oracle's is told as one with other answers."""
    traces, policy = tmp_path / "t.jsonl", tmp_path / "p.json"
    whole = [Trace(f"w{n}", [Step("1", 0.1, 50), Step("1", None, 50)], gold="1", finish="stop") for n in range(100)]
    wrong = [Trace(f"x{n}", [Step("0", 1.0, 50), Step("1", None, 50)], gold="1", finish="stop") for n in range(20)]
    cut = [Trace(f"c{n}", [Step("0", 0.1, 50), Step(None, None, 50)], gold="1", finish="length", max_tokens=100) for n in range(40)]
    append_traces(traces, [*whole, *wrong, *cut])
    assert run("calibrate", traces, "-o", policy, "--cut-runs", "wrong").exit_code == 0
    told = " ".join(run("replay", traces, "--policy", policy).stdout.split())
    assert "40 of the 160 calibration runs were cut off and taken for full runs (--cut-runs wrong)" in told
    assert "would save 31.2 %. More can be saved only by giving other answers" in told
    assert "reached" not in told
    assert run("calibrate", traces, "-o", policy, "--rule", "entropy").exit_code == 0
    assert "taken for full runs" not in " ".join(run("replay", traces, "--policy", policy).stdout.split())


def test_ctrl_c_keeps_what_was_recorded(tmp_path: Path) -> None:
    """Ctrl-C in the middle of a recording ends with status 1 and without a traceback; whole traces stay, and --resume goes on."""
    data, out = tmp_path / "q.jsonl", tmp_path / "t.jsonl"
    data.write_text("".join(json.dumps(q) + "\n" for q in draw_questions(400, 3)))
    command = [sys.executable, "-m", "entropy_chains", "record", "--data", str(data), "--out", str(out), "--model", "demo"]
    command += ["--max-tokens", "120", "--concurrency", "4"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.time() + 240
    while time.time() < deadline and (not out.exists() or out.read_bytes().count(b"\n") < 4):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    assert "Traceback" not in errors
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert 4 <= len(rows) < 400
    limit = len(rows) + 2
    result = run(
        "record", "--data", data, "--out", out, "--model", "demo", "--max-tokens", "120", "--resume", "--limit", limit, "--json"
    )
    assert json.loads(result.stdout)["recorded"] == 2


def test_the_bundled_model_runs_on_one_core() -> None:
    """Threads of a model of 1.2 M parameters wait for each other when the machine has other work; one is as fast alone."""
    code = (
        "import torch; torch.set_num_threads(2); from entropy_chains.cli import bundled; bundled(); print(torch.get_num_threads())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "1"
