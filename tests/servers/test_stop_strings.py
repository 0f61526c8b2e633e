"""Requests with stop strings on real engines, by the core and both frameworks: measured and stopped as without any."""

from __future__ import annotations

import pytest
from frameworks import Asker

from entropy_chains.backends import Sampling
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.demo import MODEL_NAME

pytestmark = pytest.mark.servers
POLICY = Policy(MODEL_NAME, (0.005,), segmentation=Segmentation("line", 32))
STOPS = (None, ["@@"], ["#####"], ["<|im_end|>"], ["\nObservation:"], ["a stop string of which not one word will ever come"])


@pytest.fixture(params=["vllm", "llama"])
def engine(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("way", ["core", "core stream async", "langchain", "llama index"])
def test_a_run_is_stopped_as_without_stop_strings(engine, way):
    """At the same step, by the same entropy, with the same answer, however long the text is held back.

    A line end that may begin a stop string comes from llama.cpp joined with the token after it: there a step is a token longer.
    """
    seen, given = [], {"sampling": Sampling(max_tokens=1500)} if way.startswith("core") else {}
    stops = [stop for stop in STOPS if engine.kind == "vllm" or not (stop and stop[0].startswith("\n"))]
    for stop in stops:
        body = {"temperature": 0, **({"stop": stop} if stop else {})}
        asker = Asker(way, engine.base_url, POLICY, body, model=engine.name, question="4821*93=?", name=MODEL_NAME)
        got = asker.ask(**given)
        told = got.told
        seen.append((got.stopped, told.get("early_stop_step"), round(told.get("early_stop_entropy") or -1, 4), got.answer.strip()))
    assert seen == [seen[0]] * len(stops)
    assert seen[0][0]
