"""``--timeout`` is the user's: a silent server is given up after it, and the SDK's retries are for what passes by itself."""

from __future__ import annotations

import json
import time

import openai
import pytest
from click.testing import CliRunner
from hostile import Act, Hostile, begin, end, events, whole
from loopback import SURE, UNSURE, Reply, is_answer_call, said, thinking

from entropy_chains.cli import main
from entropy_chains.cli_backends import client_of

MADE = thinking(UNSURE, SURE, answer="The answer is 42")
SECONDS = 0.4


def reply(request):
    made = Reply(said("The answer is 42")) if is_answer_call(request.body) else MADE
    return [*begin(), *events(made, request.body), *end(len(made.tokens))]


def run(tmp_path, server, *options):
    data, out = tmp_path / "q.jsonl", tmp_path / "t.jsonl"
    data.write_text(json.dumps({"id": "q", "question": "6*7?"}) + "\n")
    command = ["record", "--data", data, "--out", out, "--base-url", server.url, "--model", "scripted", "--boundary", "line"]
    started = time.monotonic()
    done = CliRunner().invoke(main, [str(part) for part in [*command, "--timeout", SECONDS, *options]])
    return done, time.monotonic() - started, out.exists() and len(out.read_text().splitlines())


@pytest.mark.parametrize(
    "acts", [[Act.SILENCE], [*begin(), Act.SILENCE], [*begin(), *events(Reply(MADE.tokens[:3]), {}), Act.SILENCE]],
    ids=["at once", "after the head", "in the stream"],
)  # fmt: skip
def test_a_silent_server_is_asked_once(tmp_path, acts):
    """However much of a reply has come: one request, and about the timeout."""
    with Hostile(lambda request: acts) as server:
        done, seconds, _ = run(tmp_path, server)
        asked = len(server.requests)
    assert (done.exit_code, asked) == (1, 1), done.output
    assert "was silent for longer than the client's timeout" in done.output
    assert seconds < 2 * SECONDS + 4  # the machine may be busy


def test_what_passes_by_itself_is_asked_again(tmp_path):
    """A server that is busy at first: the question is recorded."""
    busy = iter([429, 503])

    def script(request):
        status = next(busy, None)
        return [whole(status, {"error": {"message": "later"}}, headers="Retry-After: 0\r\n")] if status else reply(request)

    with Hostile(script) as server:
        done, _, written = run(tmp_path, server)
    assert (done.exit_code, written) == (0, 1), done.output


def test_without_the_option_the_client_is_the_sdks():
    """Its timeout and its retries."""
    with client_of("http://127.0.0.1:9/v1") as client, openai.OpenAI(api_key="none") as usual:
        assert (client.timeout, client.max_retries) == (usual.timeout, usual.max_retries)
    with client_of("http://127.0.0.1:9/v1", 7.0) as client:
        assert (client.timeout, client.max_retries) == (7.0, usual.max_retries)
