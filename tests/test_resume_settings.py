"""``record --resume`` under other settings that no field of a trace's own holds: refused by name, before anything is asked."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from hostile import Hostile, begin, end, events
from loopback import SURE, UNSURE, Reply, is_answer_call, said, thinking

from entropy_chains import TraceError, read_traces
from entropy_chains.cli import main

MADE = thinking(UNSURE, SURE, answer="The answer is 42")


def script(request):
    made = Reply(said("The answer is 42")) if is_answer_call(request.body) else MADE
    return [*begin(), *events(made, request.body), *end(len(made.tokens))]


def record(folder, *options, count=2):
    data = folder / "q.jsonl"
    data.write_text("".join(json.dumps({"id": f"q{n}", "question": f"{n}+40=?"}) + "\n" for n in range(count)))
    command = ["record", "--data", data, "--out", folder / "t.jsonl", "--boundary", "line", *options]
    return CliRunner().invoke(main, [str(part) for part in command])


def without_the_field(path):
    """As files were that were recorded before there was one."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "recorded_with"}) + "\n" for row in rows))


SERVED = [
    (["--continuation", "turn"], "--continuation ['auto'], this run has ['turn']; name another --out, or set --continuation as"),
    (["--continuation", "prefill", "--continuation", "turn"], "--continuation ['auto'], this run has ['prefill', 'turn']"),
    (["--without-logprobs", "full"], "--without-logprobs 'error', this run has 'full'"),
    (["--opened"], "--opened False, this run has True"),
    (["--think-tags", "[A]", "[B]", ""], r"--think-tags ['<think>', '</think>', '\n\n'], this run has ['[A]', '[B]', '']"),
]


@pytest.mark.parametrize(("options", "told"), SERVED)
def test_a_served_models_settings(tmp_path, options, told):
    """Each is named with both values; nothing is asked; the same settings go on, be they said or left out."""
    with Hostile(script) as server:
        served = ["--base-url", server.url, "--model", "scripted"]
        assert record(tmp_path, *served, count=1).exit_code == 0
        asked = len(server.requests)
        refused = record(tmp_path, *served, "--resume", *options)
        assert (refused.exit_code, told in refused.output, len(server.requests)) == (2, True, asked), refused.output
        assert record(tmp_path, *served, "--resume", "--continuation", "auto", "--without-logprobs", "error").exit_code == 0
    assert len(read_traces(tmp_path / "t.jsonl")) == 2


def test_an_older_file_goes_on(tmp_path):
    """What it does not tell is not compared; what the lines added to it tell is."""
    with Hostile(script) as server:
        served = ["--base-url", server.url, "--model", "scripted"]
        assert record(tmp_path, *served, count=1).exit_code == 0
        without_the_field(tmp_path / "t.jsonl")
        assert record(tmp_path, *served, "--resume", "--continuation", "turn").exit_code == 0
        refused = record(tmp_path, *served, "--resume", count=3)
    assert (refused.exit_code, "--continuation ['turn'], this run has ['auto']" in refused.output) == (2, True)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--template-kwargs", '{"enable_thinking": false}'], "--template-kwargs {}, this run has {'enable_thinking': False}"),
        (["--dtype", "bfloat16"], "--dtype 'float32', this run has 'bfloat16'"),
        (["--think-tags", "<a>", "</a>", ""], r"--think-tags ['<think>', '</think>', '\n\n'], this run has ['<a>', '</a>', '']"),
    ],
)
def test_a_local_models_settings(tmp_path, options, told):
    """As a served model's. The type of the weights is that which they have: said or not, the same one goes on."""
    pytest.importorskip("transformers")
    local = ["--model", "demo", "--max-tokens", "40"]
    assert record(tmp_path, *local, count=1).exit_code == 0
    refused = record(tmp_path, *local, "--resume", *options)
    assert (refused.exit_code, told in refused.output) == (2, True), refused.output
    assert record(tmp_path, *local, "--resume", "--dtype", "float32").exit_code == 0


def test_the_field_is_an_object(tmp_path):
    """Of whatever names; anything else is refused by the field's name."""
    line = {"id": "a", "steps": [{"answer": "1", "entropy": None, "tokens": 1}]}
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({**line, "recorded_with": {"of one's own": [1]}}) + "\n")
    assert read_traces(path)[0].recorded_with == {"of one's own": [1]}
    path.write_text(json.dumps({**line, "recorded_with": 3}) + "\n")
    with pytest.raises(TraceError, match="recorded_with is 3"):
        read_traces(path)
