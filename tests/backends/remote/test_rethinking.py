"""A model that thinks again where it is asked for the answer: it costs one run twice, and is remembered.

The servers are scripted (fakes). A new turn makes most thinking models think again; some ignore that they are told not to.
"""

from __future__ import annotations

import asyncio
import warnings

import openai
import pytest
from loopback import Loopback, is_answer_call, sums

from entropy_chains.backends.openai import AsyncOpenAIBackend, OpenAIBackend
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from scripts import rethinking, trials

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))
TRIALS = Policy("scripted", (0.1,), signal="trial_entropy", segmentation=Segmentation("line", 32))
ASKED = [[{"role": "user", "content": "What is 6*7?"}]]


@pytest.fixture
def server():
    with Loopback(rethinking(sums), owned_by="library") as running:
        yield running


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=server.url, api_key="none") as made:
        yield made


def outcomes(backend, count=3, policy=POLICY):
    """Of so many runs, and what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = [backend.generate(ASKED, policy=policy)[0].outcome for _ in range(count)]
    return made, [str(w.message) for w in caught if "think again" in str(w.message)]


def test_only_the_first_run_is_paid_for_twice(server, client):
    """Three requests for it, then one a run; said once, and every later run is told as not active, with the reason."""
    runs, said = outcomes(OpenAIBackend(client, "scripted"))
    assert [(run.stopped, run.active) for run in runs] == [(False, True), (False, False), (False, False)]
    assert len(server.calls) == 3 + 2
    assert len(said) == 1
    assert "scripted" in said[0]
    assert "vLLM" in said[0]
    assert runs[2].reason.startswith("after a stop the model begins to think again")


def test_it_is_remembered_of_the_model_and_the_way(server, client):
    """By another backend on the same client, and not of another model, another client or another way to the answer."""
    outcomes(OpenAIBackend(client, "scripted"), 1)
    assert outcomes(OpenAIBackend(client, "scripted"), 1)[0][0].active is False
    with openai.OpenAI(base_url=server.url, api_key="none") as other:
        assert outcomes(OpenAIBackend(other, "scripted"), 1)[0][0].active is True
    assert outcomes(OpenAIBackend(client, "another"), 1, POLICY.for_model("another"))[0][0].active is True
    assert outcomes(OpenAIBackend(client, "scripted", continuation="prefill"), 1)[0][0].active is True


def test_asyncio_remembers_it_as_well(server):
    """The same client, one run after the other."""

    async def run():
        async with openai.AsyncOpenAI(base_url=server.url, api_key="none") as client:
            backend = AsyncOpenAIBackend(client, "scripted")
            return [(await backend.agenerate(ASKED, policy=POLICY))[0].outcome.active for _ in range(2)]

    with pytest.warns(UserWarning, match="think again"):
        assert asyncio.run(run()) == [True, False]


def test_a_model_that_goes_on_from_its_own_thinking_may_do_so_once(server):
    """After a prefill it read its own tokens only: that it began anew says nothing of the next run."""
    server.owned_by = "vllm"
    with openai.OpenAI(base_url=server.url, api_key="none") as client:
        runs, said = outcomes(OpenAIBackend(client, "scripted"), 2)
    assert [(run.stopped, run.active) for run in runs] == [(False, True)] * 2
    assert said == []


def test_trial_answers_are_not_asked_for_again_and_again():
    """A rule that reads the answer after every step: the first one that begins to think ends the trials of this model."""
    with Loopback(rethinking(trials), owned_by="") as server, openai.OpenAI(base_url=server.url, api_key="none") as client:
        runs, said = outcomes(OpenAIBackend(client, "scripted"), 2, TRIALS)
        asked = [is_answer_call(call.body) for call in server.calls]
    assert asked == [False, True, False]
    assert [(run.stopped, run.active) for run in runs] == [(False, True), (False, False)]
    assert (len(said), "think again" in runs[0].reason) == (1, True)
