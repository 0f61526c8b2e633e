"""What replay says a policy would have done is what it does live: the same decisions, for the same tokens."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from entropy_chains import demo
from entropy_chains.backends import Sampling
from entropy_chains.backends.transformers import TransformersBackend
from entropy_chains.core import answers
from entropy_chains.core.policy import Policy
from entropy_chains.core.rules import RULES
from entropy_chains.core.signals import SIGNALS
from entropy_chains.demo.questions import draw_questions
from entropy_chains.offline.replay import decisions, replay
from entropy_chains.offline.table import as_table
from entropy_chains.recording import conversation, record

BATCH = 8
QUESTIONS = [q for q in draw_questions(60, 7) if len(q["gold"]) <= 6][: 2 * BATCH]
"""Two batches of questions of at most six digits, so that most runs end by themselves."""
GREEDY = Sampling(temperature=0.0, max_tokens=600)
SAMPLED = Sampling(temperature=0.8, max_tokens=600, seed=3)


@pytest.fixture(scope="module")
def backend():
    return TransformersBackend.from_pretrained(Path(demo.__file__).parent / "model", name="entropy-chains/demo")


@pytest.fixture(scope="module")
def recorded(backend):
    """The full runs of a sampling as a table, each recorded once."""

    @cache
    def table(sampling):
        return as_table(list(record(backend, QUESTIONS, sampling=sampling, batch=BATCH, details=backend.details(sampling))))

    return table


def splitting(values):
    """A threshold in the middle of the widest gap of the values' middle half: it parts the runs, and no rounding decides."""
    values = np.sort(values[~np.isnan(values)])
    middle = values[len(values) // 4 : 3 * len(values) // 4 + 1]
    widest = int(np.argmax(np.diff(middle)))
    return float((middle[widest] + middle[widest + 1]) / 2)


def policy(backend, table, rule, signal="mean_entropy", min_steps=1):
    threshold = float(min_steps) if RULES[rule].sets_step else splitting(table.values(signal))
    fixed = {"model": backend.model, "segmentation": backend.segmentation, "template": backend.template}
    return Policy(thresholds=(threshold,), rule=rule, signal=signal, min_steps=min_steps, **fixed)


def live(backend, sampling, p):
    """The same questions in the same batches with the same seeds."""
    runs = []
    for start in range(0, len(QUESTIONS), BATCH):
        seed = None if sampling.seed is None else sampling.seed + start
        seeded = Sampling(sampling.temperature, max_tokens=sampling.max_tokens, seed=seed)
        runs += backend.generate([conversation(q) for q in QUESTIONS[start : start + BATCH]], policy=p, sampling=seeded)
    return runs


@pytest.mark.parametrize(
    ("sampling", "rule", "signal", "min_steps"),
    [
        *((GREEDY, rule, "mean_entropy", 2) for rule in RULES),
        *((GREEDY, "entropy", s.name, 1) for s in SIGNALS.values() if not s.higher_is_surer),
        (GREEDY, "entropy", "sum_entropy", 2),
        (GREEDY, "entropy", "trial_entropy", 2),
        (SAMPLED, "entropy", "mean_entropy", 1),
        (SAMPLED, "entropy", "sum_entropy", 2),
    ],
    ids=lambda v: {GREEDY: "greedy", SAMPLED: "sampled"}.get(v, str(v)),
)
def test_live_does_what_replay_says(backend, recorded, sampling, rule, signal, min_steps):
    """Every decision is equal; greedy, every run's tokens are too, probes included.

    A rule that probes goes on with other random numbers, so with sampling it is another run: it is compared greedily only.
    """
    table = recorded(sampling)
    p = policy(backend, table, rule, signal, min_steps)
    expected, runs = decisions(table, p), live(backend, sampling, p)
    assert (expected > 0).any(), "the threshold stops nothing: nothing is shown"
    assert RULES[rule].sets_step or len(set(expected.tolist())) > 1, "every run does the same: little is shown"
    assert [g.outcome.step or 0 for g in runs] == expected.tolist()
    if sampling is GREEDY:
        spent = replay(table, p, resamples=100).run_tokens
        roomy = [n for n, g in enumerate(runs) if spent[n] <= sampling.max_tokens and (g.outcome.stopped or not expected[n])]
        assert len(roomy) > len(runs) / 2
        assert [runs[n].tokens for n in roomy] == [int(spent[n]) for n in roomy]


def test_a_stop_gives_the_answer_that_was_recorded_for_it(backend, recorded):
    """Greedy, after the first step: what recording forced afterwards is what the live stop says."""
    table = recorded(GREEDY)
    runs = live(backend, GREEDY, policy(backend, table, "fixed-step"))
    for q, g, offset in zip(QUESTIONS, runs, table.offsets, strict=False):
        if g.outcome.stopped:
            assert answers.same(g.answer, q["gold"]) is bool(table.correct[offset] == 1)
    assert any(g.outcome.stopped for g in runs)
