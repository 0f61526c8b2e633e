"""The client beside the real plug-in in a real vLLM, on the bundled model."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from unittest import mock

import engines
import openai
import pytest

from entropy_chains.backends import Sampling
from entropy_chains.backends.openai import AsyncOpenAIBackend, OpenAIBackend
from entropy_chains.backends.remote.attempt import NOT_CLOSED
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.demo import MODEL_NAME
from entropy_chains.demo.questions import draw_questions
from entropy_chains.errors import BackendError
from entropy_chains.recording import conversation

pytestmark = pytest.mark.servers
LINES = Segmentation("line", 32)
POLICY = Policy(MODEL_NAME, (0.005,), segmentation=LINES)
FIXED = replace(POLICY, rule="fixed-step", thresholds=(2.0,), min_steps=2)
GREEDY = Sampling(temperature=0, max_tokens=1600)
ASKED = [conversation(q) for q in draw_questions(12, 5)]


def backend_of(engine, **settings):
    client = openai.OpenAI(base_url=engine.base_url, api_key="none")
    return OpenAIBackend(client, engine.name, name=MODEL_NAME, segmentation=LINES, concurrency=4, **settings)


def told(runs):
    """All that a reader learns of the runs but for the tokens that they took."""
    return [(g.answer, g.reasoning, [s.record for s in g.steps], replace(g.outcome, tokens=0)) for g in runs]


@pytest.mark.parametrize("policy", [POLICY, FIXED], ids=["entropy", "fixed-step"])
def test_a_close_inside_is_told_as_a_close_from_outside(vllm_plugin, policy):
    """Same answers, steps, entropies and metadata; one request a run, nothing read twice, and the engine made what is counted.

    A rule that reads no entropy asks for no logprobs: then two tokens that come in one chunk are counted as one, and a step may
    end a little later.
    """
    inside, outside = backend_of(vllm_plugin), backend_of(vllm_plugin, plugin=False)
    before = vllm_plugin.counters()["generated"]
    runs = inside.generate(ASKED, policy=policy, sampling=GREEDY)
    made = vllm_plugin.counters()["generated"] - before
    assert (inside.server.plugin, outside.server) == ("0.1.0", None)
    other = outside.generate(ASKED, policy=policy, sampling=GREEDY)
    if policy.stop_rule.reads_signal:
        assert told(runs) == told(other)
    else:
        assert sum(
            a.answer == b.answer and a.outcome.step == b.outcome.step for a, b in zip(runs, other, strict=True)
        ) >= 0.9 * len(runs)
    assert sum(g.outcome.stopped for g in runs) >= 10
    assert all(g.prefill_tokens == 0 for g in runs)
    assert made == sum(g.tokens for g in runs)


def test_async_is_the_same(vllm_plugin):
    """The other shell finds the plug-in too, and its runs are the same."""

    async def run():
        async with openai.AsyncOpenAI(base_url=vllm_plugin.base_url, api_key="none") as client:
            backend = AsyncOpenAIBackend(client, vllm_plugin.name, name=MODEL_NAME, segmentation=LINES)
            return await backend.agenerate(ASKED[:4], policy=POLICY, sampling=GREEDY)

    assert told(asyncio.run(run())) == told(backend_of(vllm_plugin).generate(ASKED[:4], policy=POLICY, sampling=GREEDY))


def test_sampled_runs_close_at_the_boundary(vllm_plugin):
    """At temperature 1 the client's monitor and the engine's decide alike: a stop is followed by the forced tag, or closed."""
    chunks = [
        list(backend_of(vllm_plugin).stream(a, policy=POLICY, sampling=Sampling(1.0, max_tokens=1600, seed=3))) for a in ASKED
    ]
    stopped = [c for c in chunks if c[-1].final.outcome.stopped and NOT_CLOSED not in c[-1].final.outcome.reason]
    assert len(stopped) >= 8
    assert all([x.token.text for x in c[:-1] if x.forced] == ["</think>", "\n", "\n"] for c in stopped)


def test_without_the_plugin_the_client_closes(vllm, vllm_plugin):
    """A plain vLLM is seen to have none, no token is made to find out, and the runs are told the same."""
    plain = backend_of(vllm)
    before = vllm.counters()["generated"]
    plain.connect()
    assert (plain.server.plugin, vllm.counters()["generated"]) == (None, before)
    assert told(plain.generate(ASKED[:4], policy=POLICY, sampling=GREEDY)) == told(
        backend_of(vllm_plugin).generate(ASKED[:4], policy=POLICY, sampling=GREEDY)
    )


def test_a_policy_for_another_template_is_refused(vllm_plugin):
    """The server knows its chat template: its message is passed on."""
    with pytest.raises(BackendError, match="sha256:0"):
        backend_of(vllm_plugin).generate(ASKED[:1], policy=replace(POLICY, template="sha256:0"), sampling=GREEDY)


def test_a_plugin_that_is_switched_off_is_noticed():
    """``ENTROPY_CHAINS_STOP=0`` on the server: it says hello and does not close; the client does, and says so."""
    if engines.installed("vllm") is None:
        pytest.skip("vllm is not installed; `make test-servers` installs it")
    with mock.patch.dict(os.environ, {"ENTROPY_CHAINS_STOP": "0"}):
        started = engines.start("vllm", plugin=True, parallel=8)
        engine = started.__enter__()
    try:
        runs = backend_of(engine).generate(ASKED[:4], policy=POLICY, sampling=GREEDY)
        outside = backend_of(engine, plugin=False).generate(ASKED[:4], policy=POLICY, sampling=GREEDY)
    finally:
        started.__exit__(None, None, None)
    assert all(g.outcome.reason.endswith(NOT_CLOSED) for g in runs if g.outcome.stopped)
    assert sum(g.outcome.stopped for g in runs) >= 3
    assert [(g.answer, g.reasoning, g.outcome.step) for g in runs] == [(g.answer, g.reasoning, g.outcome.step) for g in outside]
