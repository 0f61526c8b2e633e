"""One policy, several engines: given the same tokens every engine's list of alternatives leads to the same decisions."""

from __future__ import annotations

import openai
import pytest

from entropy_chains.backends import Sampling
from entropy_chains.backends.openai import OpenAIBackend
from entropy_chains.core.families import detect_tags, template_hash
from entropy_chains.core.monitor import Decision, Monitor
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.core.tokens import Token
from entropy_chains.demo import MODEL_FOLDER, MODEL_NAME
from entropy_chains.demo.questions import draw_questions
from entropy_chains.recording import conversation

pytestmark = pytest.mark.servers

K = 20
LINES = Segmentation("line", 32)
THRESHOLDS = (0.0005, 0.005, 0.05, 0.5)
QUESTIONS = draw_questions(6, 5)


@pytest.fixture(scope="module", params=["vllm", "llama"])
def streams(request):
    """Runs at temperature 1 with the logprobs of many more tokens than a policy reads."""
    engine = request.getfixturevalue(request.param)
    with openai.OpenAI(base_url=engine.base_url, api_key="none") as client:
        backend = OpenAIBackend(client, engine.name, name=MODEL_NAME, segmentation=LINES, k=60, plugin=False)
        sampling = Sampling(temperature=1.0, max_tokens=1000, seed=3)
        return [list(backend.stream(conversation(q), sampling=sampling))[:-1] for q in QUESTIONS]


def ranked(token):
    return sorted(token.alternatives or (), key=lambda a: -a.logprob)


def as_transformers(token):
    """The K likeliest, whichever was sampled."""
    return ranked(token)[:K]


def as_llama(token):
    """The same, without ids."""
    return [a._replace(id=None) for a in as_transformers(token)]


def as_vllm(token):
    """The sampled token first, then the others by rank, K in all."""
    mine = [a for a in token.alternatives or () if a.text == token.text]
    return [*mine[:1], *[a for a in ranked(token) if a not in mine[:1]]][:K]


def as_completions(token):
    """The K likeliest, and the sampled one as the one beyond where it is not among them."""
    top = as_transformers(token)
    return [*top, *[a for a in token.alternatives or () if a.text == token.text and a not in top][:1]]


def decision(chunks, shape, threshold):
    """The step of the stop, or None, and the entropies of the steps."""
    monitor = Monitor(Policy(MODEL_NAME, (threshold,), k=K, segmentation=LINES))
    stopped, entropies = None, []
    for chunk in chunks:
        listed = shape(chunk.token)
        token = Token(chunk.token.text, None, None, chunk.token.logprob, tuple(listed) or None)
        if monitor.feed(token, phase=chunk.phase) is Decision.CLOSE and stopped is None:
            stopped = monitor.last.step
        if monitor.steps > len(entropies):
            entropies.append(monitor.last.entropy)
    return stopped, entropies


@pytest.mark.parametrize("shape", [as_llama, as_vllm, as_completions])
def test_the_same_tokens_give_the_same_decisions(streams, shape):
    """Whatever an engine does with a sampled token outside the likeliest, each policy stops at the same step."""
    stops = 0
    for chunks in streams:
        for threshold in THRESHOLDS:
            (step, entropies), (other, found) = (decision(chunks, s, threshold) for s in (as_transformers, shape))
            assert step == other
            assert found == pytest.approx(entropies, abs=2e-3)
            stops += step is not None
    assert 0 < stops < len(streams) * len(THRESHOLDS)


def test_a_policy_for_the_checkpoint_fits_the_server(llama):
    """llama-server tells its chat template: it is the one that a policy calibrated in this process belongs to."""
    own = (MODEL_FOLDER / "chat_template.jinja").read_text(encoding="utf-8")
    with openai.OpenAI(base_url=llama.base_url, api_key="none") as client:
        backend = OpenAIBackend(client, llama.name, name=MODEL_NAME)
        backend.connect()
        assert backend.template == template_hash(own, detect_tags(own))
