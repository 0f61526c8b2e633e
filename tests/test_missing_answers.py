"""A recording in which the answers after steps are missing says so, with the remedy; so do the commands that read its traces."""

from __future__ import annotations

import pytest
from commands import run
from loopback import SURE, UNSURE, Loopback, Reply, is_answer_call, line, said, thinking
from recording_servers import LINES, many

from entropy_chains import Script, ScriptedBackend
from entropy_chains.offline.diagnose import NO_ANSWERS
from entropy_chains.offline.no_thinking import ThinkingSeen
from entropy_chains.offline.traces import Step, Trace
from entropy_chains.recording import record

WHOLE = thinking(UNSURE, SURE, answer="The answer is 42")
AGAIN = (
    "4 of 4 answers tried after a step are missing, 4 of them because the model thought again: no stop there has an answer; ask in "
)
AGAIN += "another way (--continuation prefill or completion; doctor tells which the server has)"
NONE = (
    "4 of 4 answers tried after a step are missing: no stop there has an answer; ask for a short form (--system), give more tokens"
)


@pytest.mark.parametrize(
    ("forced", "told"),
    [
        (Reply([*line("so once more"), *said("42")]), AGAIN),
        (Reply(said("<think>\nHmm\n</think>\n\n42")), AGAIN),
        (Reply([]), NONE),
    ],
    ids=["thinks again", "thinks again in its text", "says nothing"],
)
def test_answers_that_do_not_come_are_counted_and_told(tmp_path, forced, told):
    """By record, by which cause; calibrate and diagnose name both causes and ask for no more questions."""
    data, out = tmp_path / "q.jsonl", tmp_path / "t.jsonl"
    data.write_text(
        '{"id": "a", "question": "6*7?", "gold": "42"}\n{"id": "b", "question": "7*6?", "gold": "42"}\n', encoding="utf-8"
    )
    with Loopback(lambda body: forced if is_answer_call(body) else WHOLE) as server:
        options = ["--base-url", server.url, "--model", "scripted", "--boundary", "line", "--min-tokens", 32]
        recorded = run("record", "--data", data, "--out", out, *options)
    assert f"warning: {told}" in recorded.stderr
    for command in (["calibrate", out, "-o", tmp_path / "p.json"], ["diagnose", out]):
        output = " ".join(run(*command).output.split())
        assert NO_ANSWERS in output
        assert "record more" not in output


def test_answers_that_come_are_told_of_nowhere(tmp_path):
    """A few that are missing, for want of room say, are no reason for a warning."""
    data, out = tmp_path / "q.jsonl", tmp_path / "t.jsonl"
    data.write_text('{"id": "a", "question": "6*7?", "gold": "42"}\n', encoding="utf-8")
    with Loopback(lambda body: Reply(said("The answer is 42")) if is_answer_call(body) else WHOLE) as server:
        result = run("record", "--data", data, "--out", out, "--base-url", server.url, "--model", "scripted", "--boundary", "line")
    assert result.exit_code == 0
    assert "missing" not in result.output


def test_a_local_model_is_told_no_way_of_a_server():
    """A script without early answers stands for it."""
    backend = ScriptedBackend(Script([("one ", 1.0), ("\n", 1.0)], "42", early=[""]), segmentation=LINES)
    told = []
    assert len(list(record(backend, many(2), tell=told.append))) == 2
    assert told == [
        "2 of 2 answers tried after a step are missing: no stop there has an answer; "
        + NONE.rpartition("; ")[2]
        + " (--max-tokens)"
    ]


def test_only_answers_that_were_asked_for_count():
    """Not those of a run that broke off, nor of the calls of a loop."""
    seen = ThinkingSeen()
    for mode, finish in (("thinking", "error"), ("refine", "stop")):
        seen.add(Trace("a", [Step(None, 1.0, 9), Step("42", None, 9)], mode=mode, finish=finish))
    assert (seen.tried, seen.missing, seen.of_answers(served=True)) == (0, 0, None)
