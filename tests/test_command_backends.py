"""The options by which ``record`` and ``doctor`` are told of a model reach the backend, or are refused by name."""

from __future__ import annotations

import json
import shlex

import pytest
from click.testing import CliRunner

from entropy_chains.cli import main
from tests.support.loopback import Loopback, Reply, is_answer_call, said, thinking

pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.fixture
def questions(tmp_path):
    """Two questions in a file."""
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps({"id": str(n), "question": q}) + "\n" for n, q in enumerate(("34*7=?", "12+9=?"))))
    return path


def run(*command):
    return CliRunner().invoke(main, [str(part) for part in command])


def recorded(tmp_path, questions, *options):
    """The traces of both questions, recorded with these options."""
    out = tmp_path / "t.jsonl"
    done = run("record", "--data", questions, "--out", out, "--max-tokens", 300, "--temperature", 0, *options)
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_settings_of_a_local_model_reach_it(tmp_path, questions):
    """Type of the weights, device, tags and template: with the thinking switched off no step is seen."""
    given = ("--model", "demo", "--dtype", "float32", "--device", "cpu")
    assert all(len(trace["steps"]) > 1 for trace in recorded(tmp_path, questions, *given))
    (tmp_path / "t.jsonl").unlink()
    off = recorded(tmp_path, questions, *given, "--template-kwargs", '{"enable_thinking": false}')
    assert all(len(trace["steps"]) == 1 for trace in off)


def test_tags_of_a_local_model(tmp_path, questions):
    """Tags that the model never writes: nothing is thinking. Line ends may be written as in a program."""
    found = recorded(tmp_path, questions, "--model", "demo", "--think-tags", "<a>", "</a>", r"\n")
    assert all(len(trace["steps"]) == 1 for trace in found)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--model", "demo", "--dtype", "nonsense"), "dtype='nonsense'"),
        (("--model", "demo", "--device", "nowhere"), "device='nowhere'"),
        (("--model", "demo", "--template-kwargs", "{"), "--template-kwargs: not JSON"),
        (("--model", "demo", "--template-kwargs", "[1]"), "must be an object"),
        (("--model", "demo", "--timeout", "5"), "--timeout is for served models"),
        (("--model", "m", "--base-url", "http://127.0.0.1:9/v1", "--device", "cuda"), "--device is for local models"),
        (("--model", "m", "--base-url", "http://127.0.0.1:9/v1", "--timeout", "-1"), "--timeout is -1"),
        (("--model", "m", "--base-url", "http://127.0.0.1:9/v1", "--timeout", "inf"), "--timeout is inf"),
    ],
)
def test_an_option_that_cannot_be_followed_is_refused(tmp_path, questions, options, told):
    """By ``record`` and ``doctor`` alike, with exit status 2, before anything is written."""
    for command in (("record", "--data", questions, "--out", tmp_path / "t.jsonl"), ("doctor",)):
        done = run(*command, *options)
        assert (done.exit_code, told in done.output) == (2, True), done.output
    assert not (tmp_path / "t.jsonl").exists()


@pytest.mark.filterwarnings("ignore:.*gives no logprobs")
def test_settings_of_a_served_model_reach_it(tmp_path, questions):
    """A server whose thinking has no logprobs: an error by default, recorded in full where that is asked for."""
    with Loopback(lambda body: Reply(said("42")) if is_answer_call(body) else thinking(None, None)) as server:
        given = ("--model", "scripted", "--base-url", server.url)
        settings = ("--timeout", "30", "--continuation", "turn", "--without-logprobs", "full", "--temperature-mode", "scaled")
        found = recorded(tmp_path, questions, *given, *settings)
        assert [trace["temperature_mode"] for trace in found] == ["scaled"] * 2
        refused = run("record", "--data", questions, "--out", tmp_path / "u.jsonl", *given)
        assert (refused.exit_code, "logprobs" in refused.output) == (1, True), refused.output


def test_the_line_to_go_on_with_holds_every_option(tmp_path, questions):
    """Also those that are given twice, or with several values: typed as it stands, it is the same command."""
    options = ("--continuation", "prefill", "--continuation", "turn", "--think-tags", "<a>", "</a>", "", "--timeout", "7.0")
    with Loopback(lambda body: Reply(status=400, message="no")) as server:
        given = ("--model", "scripted", "--base-url", server.url, *options)
        done = run("record", "--data", questions, "--out", tmp_path / "t.jsonl", *given)
    words = shlex.split(done.output.partition("go on with: ")[2])
    at = words.index("--continuation")
    assert words[at : at + 4] == ["--continuation", "prefill", "--continuation", "turn"]
    at = words.index("--think-tags")
    assert words[at : at + 4] == ["--think-tags", "<a>", "</a>", ""]
