"""The Responses API of a real vLLM, whose thinking stands in the output text: the only thinking there that has logprobs."""

from __future__ import annotations

import engines
import openai
import pytest

from entropy_chains.backends import Sampling
from entropy_chains.backends.openai import OpenAIBackend
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.demo import MODEL_NAME
from entropy_chains.demo.questions import draw_questions
from entropy_chains.recording import conversation

pytestmark = pytest.mark.servers
LINES = Segmentation("line", 32)
POLICY = Policy(MODEL_NAME, (0.005,), segmentation=LINES)
GREEDY = Sampling(temperature=0, max_tokens=1600)
ASKED = [conversation(q) for q in draw_questions(6, 5)]


@pytest.fixture(scope="module")
def inline():
    """A vLLM without a reasoning parser."""
    with engines.start("vllm", reasoning_parser=False) as engine:
        yield engine


@pytest.mark.filterwarnings("ignore:.*think again")
def test_the_responses_api_gives_the_same_runs_as_chat_completions(inline):
    """Greedy, one server: same answers, steps and entropies in full, and the same decisions.

    The answer after a stop can be asked for by a turn only. The bundled model thinks again then, so each run is made in full:
    the first one after a stop, the others without.
    """
    with openai.OpenAI(base_url=inline.base_url, api_key="none") as client:
        given = {"name": MODEL_NAME, "segmentation": LINES, "concurrency": 1, "continuation": "turn"}
        chat, responses = (OpenAIBackend(client, inline.name, api=api, **given) for api in ("chat", "responses"))
        full, same = (b.generate(ASKED, policy=POLICY, sampling=GREEDY, stop=False) for b in (chat, responses))
        assert [(g.answer, g.tokens, g.reasoning) for g in same] == [(g.answer, g.tokens, g.reasoning) for g in full]
        for a, b in zip(full, same, strict=True):
            assert [s.record.entropy for s in b.steps] == pytest.approx([s.record.entropy for s in a.steps], abs=1e-6)
        early, stopped = (b.generate(ASKED, policy=POLICY, sampling=GREEDY) for b in (chat, responses))
    assert [(g.outcome, g.answer) for g in stopped] == [(g.outcome, g.answer) for g in early]
    decided = [g for g in stopped if g.outcome.step is not None]
    assert decided
    assert all("think again" in g.outcome.reason and not g.outcome.stopped for g in decided)
    assert [g.answer for g in stopped] == [g.answer for g in full]
