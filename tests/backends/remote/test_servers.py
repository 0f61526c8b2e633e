"""What each kind of server can do stands in one table, and nobody else knows their names."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import entropy_chains
from entropy_chains.backends.remote.continuations import WAYS
from entropy_chains.backends.remote.servers import SERVERS, UNKNOWN, Server, identify

ROOT = Path(entropy_chains.__file__).parents[1]
TABLE = ROOT / "entropy_chains" / "backends" / "remote" / "servers.py"


def told(owner, *, props=None):
    """The server that says so of itself, and the addresses asked for."""
    asking, asked, answers = identify("http://s:1/v1/", "m"), [], {}
    answers["http://s:1/v1/models"] = {"data": [{"id": "other", "owned_by": "x"}, {"id": "m", "owned_by": owner}]}
    answers["http://s:1/props"] = props
    told = None
    try:
        while True:
            asked.append(asking.send(told))
            told = answers[asked[-1]]
    except StopIteration as done:
        return done.value, asked


@pytest.mark.parametrize(
    ("owner", "kind"),
    [
        ("vllm", "vllm"),
        ("llamacpp", "llama.cpp"),
        ("sglang", "sglang"),
        ("openai", "openai"),
        ("system", "openai"),
        ("library", "ollama"),
        ("me", UNKNOWN),
    ],
)
def test_a_server_is_known_by_the_owner_of_its_model(owner, kind):
    """The model's own entry says it; a template is asked for only where there is one to be had."""
    server, asked = told(owner, props={"chat_template": "{{ x }}"})
    assert (server.kind, server.root, server.can) == (kind, "http://s:1", SERVERS[kind])
    template = kind == "llama.cpp"
    assert (server.chat_template, len(asked)) == ("{{ x }}" if template else None, 2 if template else 1)


@pytest.mark.parametrize("props", [None, [], {"chat_template": 5}, {"chat_template": ""}])
def test_a_template_that_is_none_is_left_out(props):
    """Whatever the server says in its place."""
    assert told("llamacpp", props=props)[0].chat_template is None


def test_whoever_asks_in_another_form_gets_the_same_server():
    """The doctor's requests are objects of its own."""

    def get(address):
        return (yield ("GET", address))["json"]

    asking = identify("http://s:1/v1", "m", get)
    assert next(asking) == ("GET", "http://s:1/v1/models")
    with pytest.raises(StopIteration) as done:
        asking.send({"json": {"data": [{"id": "m", "owned_by": "vllm"}]}})
    assert done.value.value == Server("vllm", "http://s:1")


def test_every_kind_has_a_way_to_the_answer():
    """Ways by their names; the last one serves any chat API."""
    for can in SERVERS.values():
        assert set(can.ways) <= set(WAYS)
        assert can.ways[-1] == "turn"


def test_why_a_call_with_tools_has_no_logprobs():
    """Only where the kind of server is known for it, and only with tools."""
    assert Server("llama.cpp").no_logprobs(tools=True) == "llama.cpp sends no logprobs on a streamed call with tools"
    assert Server("llama.cpp").no_logprobs(tools=False) is None
    assert Server("vllm").no_logprobs(tools=True) is None


def names_compared(path):
    """Lines of a file that compare something with a server's name, or look at a server's kind."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        parts = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        parts += [case for case in [getattr(node, "value", None)] if isinstance(node, ast.MatchValue)]
        for part in parts:
            constants = {c.value for c in ast.walk(part) if isinstance(c, ast.Constant) and isinstance(c.value, str)}
            if constants & set(SERVERS):
                yield node.lineno


def test_nobody_else_compares_the_names_of_servers(tmp_path):
    """In the package and the integrations; a planted comparison is found."""
    files = [p for p in (*ROOT.glob("entropy_chains/**/*.py"), *ROOT.glob("integrations/*/[!t]*/**/*.py")) if p != TABLE]
    assert len(files) > 100
    assert {str(p.relative_to(ROOT)): lines for p in files if (lines := list(names_compared(p)))} == {}
    planted = tmp_path / "planted.py"
    planted.write_text('if server.kind == "vllm" or kind in ("sglang", "x"):\n    pass\n')
    assert list(names_compared(planted)) == [1, 1]


def test_which_models_think_again_whatever_they_are_told():
    """Ollama's gpt-oss, however it is tagged; a server that has no such setting is told nothing."""
    for kind in ("ollama", "ollama-native"):
        assert "gpt-oss:20b" in (Server(kind).always_thinks("gpt-oss:20b") or "")
        assert Server(kind).always_thinks("library/gpt-oss") is not None
        assert Server(kind).always_thinks("qwen3:8b") is None
    assert Server("vllm").always_thinks("gpt-oss-20b") is None
