"""A recording in which nobody thinks, or no step ends, says so at its end, and after a handful of runs asks no more."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from loopback import SURE, UNSURE, Loopback, Reply, is_answer_call, said, thinking

from entropy_chains import Script, ScriptedBackend
from entropy_chains.cli import main
from entropy_chains.offline.no_thinking import HANDFUL
from entropy_chains.recording import RecordError, record

THOUGHT = thinking(UNSURE, SURE, answer="The answer is 42")
QUESTIONS = [{"id": f"q{n}", "question": f"{n}?", "gold": "42"} for n in range(20)]


def script(body):
    return Reply(said("The answer is 42")) if is_answer_call(body) else THOUGHT


def run(tmp_path, server, *options, count=20):
    data, out = tmp_path / "q.jsonl", tmp_path / "t.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS[:count]))
    command = ["record", "--data", data, "--out", out, "--base-url", server.url, "--model", "scripted", "--concurrency", "1"]
    done = CliRunner().invoke(main, [str(part) for part in [*command, "--boundary", "line", *options]])
    return done, len(out.read_text().splitlines()) if out.exists() else 0


WRONG = ["--think-tags", "[[", "]]", ""]


def test_wrong_tags_of_a_served_model(tmp_path):
    """The thinking stands in the text between other tags: after five runs no more are asked, and the right tags are named."""
    with Loopback(script, field_name="") as server:
        done, written = run(tmp_path, server, *WRONG)
        asked = len(server.calls)
    assert (done.exit_code, written, asked) == (1, HANDFUL, HANDFUL)
    assert f"warning: no thinking was found in any of {HANDFUL} runs: it was looked for between '[[' and ']]'" in done.stderr
    assert "'<think>' stands in an answer: set think_tags (--think-tags) to that and '</think>'" in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error, not recorded: 15 of 20 questions (15 more were not asked: no step of any thinking ended)")
    assert "; with other settings name another --out; as it is, go on with: entropy-chains record" in last


def test_a_few_questions_are_all_asked(tmp_path):
    """Fewer than a handful: all are recorded, and it is said at the end."""
    with Loopback(script, field_name="") as server:
        done, written = run(tmp_path, server, *WRONG, count=3)
    assert (done.exit_code, written) == (0, 3)
    assert "no thinking was found in any of 3 runs" in done.stderr


def test_a_thinking_that_the_prompt_opens(tmp_path):
    """A closing tag in the answer that nothing opens names the setting."""
    tokens = [*said("so it is"), *said("</think>"), *said("42")]
    with Loopback(lambda body: Reply(said("42") if is_answer_call(body) else tokens)) as server:
        done, _ = run(tmp_path, server, count=2)
        assert "'</think>' stands in an answer, and nothing opens it: set opened=True (--opened)" in done.stderr
        (tmp_path / "t.jsonl").unlink()
        done, written = run(tmp_path, server, "--opened", "--min-tokens", "2", count=2)
    assert (done.exit_code, written, "no thinking" in done.stderr) == (0, 2, False)


def test_steps_that_never_end(tmp_path):
    """There is thinking, in a field of its own, and every step would be too short: said with what a step is."""
    with Loopback(lambda body: Reply(said("42")) if is_answer_call(body) else thinking(UNSURE, words=5)) as server:
        done, written = run(tmp_path, server)
    assert (done.exit_code, written) == (1, HANDFUL)
    assert "no step of the thinking ended in any of 5 runs: a step ends with a line, and has 32 tokens or more" in done.stderr
    assert "--min-tokens" in done.stderr


@pytest.mark.parametrize("options", [[], ["--mode", "refine", "--steps", "1", *WRONG]])
def test_a_recording_with_steps_says_nothing_of_it(tmp_path, options):
    """One run that thinks is enough; in the loop every call is a step."""
    quick = iter(range(100))
    with Loopback(lambda body: script(body) if is_answer_call(body) or next(quick) < 1 else Reply(said("42"))) as server:
        done, written = run(tmp_path, server, *options)
    assert (done.exit_code, written, "thinking" in done.stderr) == (0, 20, False)


def test_runs_that_were_cut_off_prove_nothing(tmp_path):
    """The limit ended them before a step could: that is what is said."""
    cut = Reply(thinking(UNSURE, words=5).tokens[:3], finish="length")
    with Loopback(lambda body: cut) as server:
        done, written = run(tmp_path, server, "--max-tokens", "3")
    assert (done.exit_code, written) == (0, 20)
    assert ("20 of 20 runs were cut off" in done.stderr, "step of the thinking" in done.stderr) == (True, False)


def test_in_python():
    """The traces come first, then the error, with what is wrong and how many were not asked."""
    backend, found = ScriptedBackend({q["question"]: Script(answer="42") for q in QUESTIONS}), []
    traces = record(backend, QUESTIONS, batch=1)
    with pytest.warns(UserWarning, match="no thinking was found"), pytest.raises(RecordError, match="no thinking was") as error:
        found.extend(trace.id for trace in traces)
    assert (len(found), error.value.given_up, error.value.failed) == (HANDFUL, 15, {})
