"""What ``doctor`` says of real engines."""

from __future__ import annotations

import json

import engines
import pytest
from click.testing import CliRunner

from entropy_chains.cli import main
from entropy_chains.doctor.findings import WORKS

pytestmark = pytest.mark.servers

EXPECTED = {
    "vllm": (True, {"server": "vllm", "plugin": None, "logprobs": True, "reasoning": "field", "reasoning_logprobs": True,
                    "missing_entries": 0, "k": 102, "temperature_mode": "raw", "prefill": "exact", "completion": None,
                    "answer": "prefill", "close_stops": True, "usage_on_close": False}),
    "vllm_plugin": (True, {"server": "vllm", "plugin": "0.1.0", "prefill": "exact"}),
    "llama": (True, {"server": "llama.cpp", "logprobs": True, "reasoning": "field", "reasoning_logprobs": True,
                     "missing_entries": 1, "k": 102, "temperature_mode": "raw", "prefill": "inexact", "completion": "exact",
                     "control": True, "answer": "completion", "close_stops": True, "usage_on_close": False}),
    "transformers_serve": (False, {"server": "unknown", "logprobs": False, "reasoning": "field", "prefill": "refused",
                                   "completion": None, "answer": None, "close_stops": None}),  # asked in a turn it thinks again
}  # fmt: skip
"""By fixture: whether stopping works, and what is found."""


def examined(engine, *options):
    result = CliRunner().invoke(main, ["doctor", "--base-url", engine.base_url, "--model", engine.name, "--json", *options])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    return found, {f["name"]: f["value"] for f in found["findings"]}


@pytest.mark.parametrize("name", EXPECTED)
def test_what_an_engine_can_do(request, name):
    """Each is seen as what it is; what the examination took is what the engine itself counted."""
    engine = request.getfixturevalue(name)
    before = engine.counters()
    found, values = examined(engine)
    stopping, expected = EXPECTED[name]
    assert {k: values.get(k) for k in expected} == expected
    assert found["stopping"] is stopping
    assert (found["verdict"] == WORKS) is stopping
    if before is not None:
        assert found["completion_tokens"] == engine.counters()["generated"] - before["generated"]
        assert 0 <= values["overshoot"] < 900
    else:
        assert "gives no logprobs" in found["reason"]


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("llama", {"reasoning_parser": False}, {"reasoning": "inline", "reasoning_logprobs": True, "completion": "exact"}),
        (
            "vllm",
            {"reasoning_parser": False, "extra": ["--max-logprobs", "5", "--logprobs-mode", "processed_logprobs"]},
            {"reasoning": "inline", "k": 5, "temperature_mode": "scaled", "prefill": "exact"},
        ),
    ],
)
def test_how_an_engine_was_started_is_seen(kind, settings, expected):
    """Inline tags, a low limit of alternatives (refused in the stream) and logprobs after temperature, each on a real engine."""
    if engines.installed(kind) is None:
        pytest.skip(f"{kind} is not installed; `make test-servers` installs it")
    with engines.start(kind, parallel=4, **settings) as engine:
        found, values = examined(engine)
    assert {k: values[k] for k in expected} == expected
    assert found["stopping"]
    assert ("k=5" in found["verdict"]) == ("k" in expected)


def test_a_wrong_model_is_named(llama, transformers_serve):
    """``transformers serve`` knows one path only; llama.cpp answers to any name."""
    command = ["doctor", "--model", "nobody", "--json", "--base-url"]
    refused = CliRunner().invoke(main, [*command, transformers_serve.base_url])
    assert refused.exit_code == 2
    assert "'nobody'" in refused.stderr
    assert CliRunner().invoke(main, [*command, llama.base_url]).exit_code == 0
