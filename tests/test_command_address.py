"""No command prints what is secret in ``--base-url``: who asks, and the values of the query."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from hostile import Hostile, whole

from entropy_chains.backends.remote.redaction import shown_address
from entropy_chains.cli import main

SECRET = "sk-SECRETab12"
ADDRESSES = {
    f"http://user:{SECRET}@HOST/v1": "http://[key]@HOST/v1",
    f"http://{SECRET}@HOST/v1": "http://[key]@HOST/v1",
    f"http://HOST/v1?api-key={SECRET}&api-version=2": "http://HOST/v1?api-key=[key]&api-version=2",
}


def run(*words):
    """What the command printed."""
    result = CliRunner().invoke(main, [str(word) for word in words], env={"OPENAI_API_KEY": "none"})
    assert "Traceback" not in result.output
    return result.output


@pytest.mark.parametrize("address", ADDRESSES)
def test_the_line_to_go_on_with_holds_no_secret(tmp_path, address):
    """Where questions fail, although the server repeats what it was sent; it says that the URL is to be put in."""
    data, out = tmp_path / "q.jsonl", tmp_path / "t.jsonl"
    data.write_text(json.dumps({"id": "q0", "question": "6*7?"}) + "\n", encoding="utf-8")

    def refuse(request):
        return [whole(400, {"error": {"message": f"not for {request.headers.get('authorization')}, nor for {SECRET}"}})]

    with Hostile(refuse) as server:
        host = server.url.removeprefix("http://").removesuffix("/v1")
        url = ["--base-url", address.replace("HOST", host), "--model", "scripted"]
        recorded = run("record", "--data", data, "--out", out, *url)
        told = recorded + run("doctor", *url)
    assert f"--base-url '{ADDRESSES[address].replace('HOST', host)}'" in recorded
    assert "put in the same --base-url: [key] stands for what is not shown of it" in recorded
    assert SECRET not in told
    assert "dXNlc" not in told  # "user:" as it is sent
    assert "c2stU0VDUkV" not in told  # and the key in its place


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (f"htp://user:{SECRET}@host/v1", "htp://[key]@host/v1"),
        (f"http://user:{SECRET}@host:999999/v1", "http://[key]@host:999999/v1"),
        (f"http://user:{SECRET}@[::1/v1", "http://[key]@[::1/v1"),
        (f"http://user:{SECRET}@/v1", "http://[key]@/v1"),
        (f"http://user:a/b@{SECRET}@host/v1", "http://[key]@host/v1"),
        (f"host/v1?{SECRET}", "host/v1?[key]"),
    ],
)
@pytest.mark.parametrize("command", [["record", "--data", "q.jsonl", "--out", "t.jsonl"], ["doctor"]], ids=lambda words: words[0])
def test_an_address_that_is_none_is_refused_without_its_secret(tmp_path, monkeypatch, command, address, shown):
    """Before anything is asked, and in one line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "q.jsonl").write_text(json.dumps({"id": "q0", "question": "6*7?"}) + "\n", encoding="utf-8")
    told = run(*command, "--base-url", address, "--model", "m")
    assert told == f"error: --base-url is {shown!r}; it must be an address such as http://127.0.0.1:8000/v1\n"


@pytest.mark.parametrize(
    "address", ["http://localhost:8000/v1", "https://x.azure.com/openai?api-version=2024-10-21", "", "http://h/v1?"]
)
def test_an_address_without_secrets_is_shown_as_it_is(address):
    """Whole."""
    assert shown_address(address) == address
