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
from commands import run, trace

from entropy_chains.demo.questions import draw_questions
from entropy_chains.offline.traces import Step, Trace, append_traces


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
