"""``record`` as a user runs it, against servers that fail: what is finished is on the disk, the rest is named and asked again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
from click.testing import CliRunner
from hostile import Act, Hostile, begin, end, events, whole
from loopback import SURE, UNSURE, Reply, is_answer_call, said, thinking

from entropy_chains.cli import main

KEY = "sk-verysecret123"
THOUGHT = thinking(UNSURE, UNSURE, SURE, answer="The answer is 42")
ANSWER = Reply(said("The answer is 42"))


def reply(request):
    """Three steps and an answer; of a stopped run the answer only."""
    said_now = ANSWER if is_answer_call(request.body) else THOUGHT
    return [*begin(), *events(said_now, request.body), *end(len(said_now.tokens))]


def number(request):
    """Of the question."""
    return int(request.body["messages"][0]["content"].split()[1])


def runs_of(server, n):
    """How often question ``n`` was asked, its probes left out."""
    return sum(number(r) == n and not is_answer_call(r.body) for r in server.requests)


class Recording:
    """A questions file, a trace file, and the command between them in a process of its own."""

    def __init__(self, folder: Path, count: int):
        self.data, self.out = folder / "q.jsonl", folder / "t.jsonl"
        rows = [{"id": f"q{n}", "question": f"question {n} of many", "gold": "42"} for n in range(count)]
        self.data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def start(self, url: str, *options: str, stderr: int = subprocess.PIPE) -> subprocess.Popen:
        command = [sys.executable, "-m", "entropy_chains", "record", "--data", self.data, "--out", self.out]
        command += ["--base-url", url, "--model", "scripted", "--boundary", "line", *options]
        env = os.environ | {"OPENAI_API_KEY": KEY}
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=env)

    def run(self, url: str, *options: str) -> tuple[int, str, str]:
        """Exit status, standard output and standard error."""
        process = self.start(url, *options)
        out, errors = process.communicate(timeout=60)
        assert "Traceback" not in errors
        assert KEY not in out + errors
        return process.returncode, out, errors

    def resume(self, url: str, *options: str) -> dict:
        """What ``--resume`` says that it did; in this process, which is quicker."""
        command = ["record", "--data", str(self.data), "--out", str(self.out), "--base-url", url, "--model", "scripted"]
        command += ["--boundary", "line", "--resume", "--json", *options]
        result = CliRunner().invoke(main, command, env={"OPENAI_API_KEY": KEY})
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def rows(self) -> list[dict]:
        return [json.loads(line) for line in self.out.read_text().splitlines()] if self.out.exists() else []

    def wait_for(self, count: int) -> None:
        """Until so many traces are on the disk."""
        deadline = time.monotonic() + 30
        while len(self.rows()) < count:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.parametrize(
    ("count", "failing", "status", "told", "options"),
    [
        (20, 18, 429, "rate limit", []),
        (7, 0, 400, f"maximum context length of {KEY}", ["--mode", "refine", "--steps", "2", "--concurrency", "3"]),
    ],
)
def test_a_question_that_fails_costs_itself_alone(tmp_path, count, failing, status, told, options):
    """The others are written, it is named with the reason and without the key, and --resume asks it alone, with its own seed."""
    recording, refusing = Recording(tmp_path, count), True

    def script(request):
        if refusing and number(request) == failing:
            return [whole(status, {"error": {"message": told}}, headers="Retry-After: 0\r\n")]
        return reply(request)

    with Hostile(script) as server:
        code, out, errors = recording.run(server.url, *options, "--json")
        assert (code, len(recording.rows())) == (1, count - 1)
        found = json.loads(out)
        assert (found["recorded"], found["traces"], list(found["failed"])) == (count - 1, count - 1, [f"q{failing}"])
        last = errors.strip().splitlines()[-1]
        assert f"q{failing} failed: the server refused the request ({status}): {told.replace(KEY, '[key]')}" in errors
        assert last.startswith(
            f"error, not recorded: 1 of {count} questions (q{failing} failed); go on with: entropy-chains record"
        )
        assert last.endswith("--resume")
        refusing = False
        before = [runs_of(server, n) for n in range(count)]
        done = recording.resume(server.url, *options)
        assert (done["recorded"], done["skipped"]) == (1, count - 1)
        again = [runs_of(server, n) - before[n] > 0 for n in range(count)]
    assert again == [n == failing for n in range(count)]
    assert {row["id"]: row["seed"] for row in recording.rows()} == {f"q{n}": n for n in range(count)}


@pytest.mark.parametrize("number_of_signal", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_recording_keeps_what_is_finished(tmp_path, number_of_signal):
    """Every fifth question gets no answer at all: the others are written before the signal, and nobody waits for these."""
    recording, silent = Recording(tmp_path, 20), True

    def script(request):
        return [Act.SILENCE] if silent and number(request) % 5 == 0 else reply(request)

    with Hostile(script) as server:
        process = recording.start(server.url)
        recording.wait_for(16)
        process.send_signal(number_of_signal)
        told = time.monotonic()
        out, errors = process.communicate(timeout=60)
        assert time.monotonic() - told < 5
        assert process.returncode == 1
        assert "Traceback" not in errors
        assert out.startswith("16 recorded, 0 of them cut off, 0 skipped")
        assert "16/20" in errors
        last = errors.strip().splitlines()[-1]
        assert last.startswith("interrupted, not recorded: 4 of 20 questions; go on with: entropy-chains record")
        silent = False
        done = recording.resume(server.url)
    assert (done["recorded"], done["skipped"]) == (4, 16)
    assert sorted(row["seed"] for row in recording.rows()) == list(range(20))


def test_a_server_that_dies_half_way_ends_the_recording(tmp_path):
    """What was recorded is kept, and the questions that are left are not all tried against nobody."""
    recording = Recording(tmp_path, 60)
    with Hostile(lambda r: reply(r) if number(r) < 10 else [Act.SILENCE]) as server:
        process = recording.start(server.url, "--concurrency", "8")
        recording.wait_for(10)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert len(recording.rows()) == 10
    assert out.startswith("10 recorded")
    assert "Connection refused" in errors
    assert errors.count("failed:") < 30
    assert "more were given up: each would have failed alike" in errors
    assert "not recorded: 50 of 60 questions" in errors


@pytest.mark.parametrize(
    ("acts", "told"),
    [
        (lambda r: [whole(401, {"error": {"message": f"wrong key {KEY}"}})], "(401): wrong key [key]; check the client's api_key"),
        (lambda r: [*begin(), *events(thinking(None, None), r.body), *end()], "the server gives no logprobs"),
    ],
    ids=["key", "logprobs"],
)
def test_what_would_befall_all_ends_the_recording(tmp_path, acts, told):
    """A refused key, or no logprobs: after a handful of questions no more are asked, and the last line tells the reason."""
    recording = Recording(tmp_path, 40)
    with Hostile(acts) as server:
        code, _, errors = recording.run(server.url, "--concurrency", "2")
        assert len(server.requests) < 10
    last = errors.strip().splitlines()[-1]
    assert code == 1
    assert told in last
    assert "more were given up: each would have failed alike" in last
    assert recording.rows() == []


@pytest.mark.parametrize("mode", ["thinking", "refine"])
def test_a_question_too_long_for_a_local_model_costs_itself_alone(tmp_path, mode):
    """In one batch with others: these are written, with the draws that they have without it, and it is named."""
    rows = [{"id": f"q{n}", "question": f"{n}4*7=?"} for n in range(1, 5)]
    whole, data, out = tmp_path / "whole.jsonl", tmp_path / "q.jsonl", tmp_path / "t.jsonl"
    command = ["record", "--model", "demo", "--max-tokens", "60", "--mode", mode, "--steps", "1", "--json"]
    steps = []
    for path, file, long in ((data, whole, "9*9=?"), (data, out, "9*9=" * 1500)):
        path.write_text("".join(json.dumps(row) + "\n" for row in [*rows[:1], {"id": "long", "question": long}, *rows[1:]]))
        result = CliRunner().invoke(main, [*command, "--data", str(data), "--out", str(file)])
        traces = {row["id"]: row for row in map(json.loads, file.read_text().splitlines())}
        steps.append([[(s["text"], s["tokens"]) for s in traces[f"q{n}"]["steps"][:1]] for n in range(1, 5)])
    assert (result.exit_code, len(traces)) == (1, 4)
    assert list(json.loads(result.stdout)["failed"]) == ["long"]
    assert "long failed: a prompt of 6019 tokens leaves no room in the model's 2048" in result.stderr
    assert mode == "refine" or steps[0] == steps[1]


def test_a_log_gets_a_line_now_and_then(tmp_path, monkeypatch):
    """Where standard error is no terminal each question may bring a line, if the last one is old enough; with --json none does."""
    monkeypatch.setattr("entropy_chains.progress.LOG_EVERY", 0.0)
    for options, lines in (["--concurrency", "1"], 5), (["--json"], 0):
        folder = tmp_path / options[0]
        folder.mkdir()
        recording = Recording(folder, 5)
        with Hostile(reply) as server:
            command = ["record", "--data", str(recording.data), "--out", str(recording.out), "--base-url", server.url]
            result = CliRunner().invoke(main, [*command, "--model", "scripted", *options])
        assert result.exit_code == 0
        assert [line for line in result.stderr.splitlines() if line.startswith("recording: ")] == [
            f"recording: {n}/5" for n in range(1, lines + 1)
        ]


def test_the_bar_moves_with_every_question(tmp_path):
    """On a terminal it shows each number of questions done while the recording goes on, failures among them."""
    pty = pytest.importorskip("pty")
    recording, free = Recording(tmp_path, 4), Event()

    async def waiting(request):
        while not free.is_set():
            yield b""
        for act in reply(request):
            yield act

    def script(request):
        if number(request) == 1:
            return [whole(400, {"error": {"message": "too long"}})]
        return waiting(request) if number(request) == 3 else reply(request)

    master, slave = pty.openpty()
    with Hostile(script) as server:
        process = recording.start(server.url, stderr=slave)
        os.close(slave)
        seen = b""
        while b"3/4" not in seen:
            seen += os.read(master, 65536)
        assert process.poll() is None
        free.set()
        with suppress(OSError):  # how the end of a terminal is told
            while more := os.read(master, 65536):
                seen += more
    assert process.wait(30) == 1
    os.close(master)
    process.stdout.close()
    assert b"q1 failed: the server refused the request (400): too long" in seen
    assert b"4/4" in seen


def test_a_run_that_breaks_off_is_written_and_one_without_a_step_is_left_out(tmp_path):
    """The first is counted as cut off and named, the second is counted in the last line; ``--resume`` asks the second only."""

    def script(request):
        cut = {1: 50, 2: 5}.get(number(request))
        if cut is None or is_answer_call(request.body):
            return reply(request)
        return [*begin(), *events(replace(THOUGHT, tokens=THOUGHT.tokens[:cut]), request.body), Act.CLOSE]

    recording = Recording(tmp_path, 4)
    with Hostile(script) as server:
        status, out, errors = recording.run(server.url)
    assert (status, out.startswith("3 recorded, 1 of them cut off, 0 skipped")) == (1, True)
    assert "1 of 3 runs were cut off (error: 1)" in errors
    assert "an error ended q1" in errors
    assert errors.splitlines()[-1].startswith("error, not recorded: 1 of 4 questions (q2 failed); go on with:")
    assert {row["id"]: row["finish"] for row in recording.rows()} == {"q0": "stop", "q1": "error", "q3": "stop"}
    with Hostile(reply) as server:
        done = recording.resume(server.url)
        assert {number(r) for r in server.requests} == {2}
    assert (done["recorded"], done["traces"], "left_out" in done) == (1, 4, False)


def test_another_number_of_steps_is_another_recording(tmp_path):
    """``--resume`` with another ``--steps`` is refused by its name and values: a policy stops after no step that one part lacks."""
    recording = Recording(tmp_path, 2)
    with Hostile(reply) as server:
        assert recording.run(server.url, "--steps", "1")[0] == 0
        assert {row["max_steps"] for row in recording.rows()} == {1}
        status, _, errors = recording.run(server.url, "--steps", "2", "--resume")
        assert (status, "max_steps 1, this run has 2" in errors) == (2, True)
        assert recording.resume(server.url, "--steps", "1")["skipped"] == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--temperature", "0.5"], "temperature 0.7, this run has 0.5"),
        (["--temperature", "0.7", "--max-tokens", "500"], "max_tokens 4096, this run has 500"),
        (["--temperature", "0.7", "--system", "Be short."], "system None, this run has 'Be short.'"),
        (["--temperature", "0.7", "--top-logprobs", "5"], "k 20, this run has 5"),
        (["--temperature", "0.7", "--mode", "refine"], "mode 'thinking', this run has 'refine'"),
    ],
)
def test_other_settings_are_another_recording(tmp_path, options, told):
    """``--resume`` with another limit, temperature, system prompt, k or mode is refused: one file is one way of asking."""
    recording = Recording(tmp_path, 2)
    with Hostile(reply) as server:
        assert recording.run(server.url, "--temperature", "0.7")[0] == 0
        status, _, errors = recording.run(server.url, "--resume", *options)
        assert (status, told in errors) == (2, True)
        assert recording.resume(server.url, "--temperature", "0.7")["skipped"] == 2


def test_runs_that_were_cut_off_are_recorded_again(tmp_path):
    """``--redo-cut`` asks them again, with a higher limit and their own seeds, and each new line takes the old one's place."""
    recording, limited = Recording(tmp_path, 4), True

    def script(request):
        if limited and number(request) in (1, 2) and not is_answer_call(request.body):
            return [*begin(), *events(THOUGHT, request.body), *end(len(THOUGHT.tokens), reason="length")]
        return reply(request)

    with Hostile(script) as server:
        assert recording.run(server.url, "--max-tokens", "1000")[0] == 0
        before = {row["id"]: row for row in recording.rows()}
        assert {name for name, row in before.items() if row["finish"] == "length"} == {"q1", "q2"}
        status, _, errors = recording.run(server.url, "--max-tokens", "2000", "--resume")
        assert (status, "--redo-cut takes a higher one" in errors) == (2, True)
        status, _, errors = recording.run(server.url, "--max-tokens", "500", "--resume", "--redo-cut")
        assert (status, "max_tokens 1000, this run has 500" in errors) == (2, True)
        status, _, errors = recording.run(server.url, "--redo-cut")
        assert (status, "add --resume" in errors) == (2, True)
        limited = False
        done = recording.resume(server.url, "--max-tokens", "2000", "--redo-cut")
        assert (done["recorded"], done["skipped"], done["cut"], done["traces"]) == (2, 2, 0, 4)
    after = {row["id"]: row for row in recording.rows()}
    assert len(recording.rows()) == 4
    assert [after[f"q{n}"]["finish"] for n in range(4)] == ["stop"] * 4
    assert [after[f"q{n}"]["seed"] for n in range(4)] == [0, 1, 2, 3]
    assert (after["q0"], after["q3"]) == (before["q0"], before["q3"])


def test_a_run_that_fails_when_it_is_recorded_again_keeps_its_line(tmp_path):
    """Of two cut runs one is recorded anew and one fails: the file still holds every question once."""
    recording, first = Recording(tmp_path, 3), True

    def script(request):
        if is_answer_call(request.body):
            return reply(request)
        if first:
            return [*begin(), *events(THOUGHT, request.body), *end(len(THOUGHT.tokens), reason="length")]
        return [whole(400, {"error": {"message": "no"}})] if number(request) == 1 else reply(request)

    with Hostile(script) as server:
        assert recording.run(server.url)[0] == 0
        first = False
        status, _, errors = recording.run(server.url, "--resume", "--redo-cut")
    assert (status, "q1 failed" in errors) == (1, True)
    assert {row["id"]: row["finish"] for row in recording.rows()} == {"q0": "stop", "q1": "length", "q2": "stop"}
