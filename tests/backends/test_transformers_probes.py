"""Answers tried after a step by the transformers backend: their cost, their signals, and how the bundled model is stopped."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from small_models import ASKED, GREEDY, always, ask

from entropy_chains.backends import Sampling
from entropy_chains.backends.local.generate_hooks import TrialProcessor
from entropy_chains.backends.local.sampling import Draw
from entropy_chains.core import answers
from entropy_chains.core.signals import SIGNALS
from entropy_chains.core.steps import Segmentation
from entropy_chains.refine import PER_CALL, run_refine

# --- the bundled model


def test_the_bundled_model_thinks_in_lines(bundled):
    """Any decent checkpoint: steps of at least 32 tokens that end with a line end, and a number for an answer."""
    run = bundled.generate([ask("12*3=?")], sampling=Sampling(0.0, max_tokens=500))[0]
    assert bundled.segmentation == Segmentation("line", 32)
    assert len(run.steps) > 1
    assert all(s.text.endswith("\n") and s.record.tokens >= 32 for s in run.steps)
    assert run.finish_reason == "stop"
    assert run.answer.isdigit()
    assert "think>" not in run.reasoning


def test_the_bundled_model_answers_when_it_is_stopped(bundled):
    """Closed after its first step it gives a number at once, for less than the full run."""
    sampling = Sampling(0.0, max_tokens=500)
    full = bundled.generate([ask("12*3=?")], sampling=sampling)[0]
    run = bundled.generate([ask("12*3=?")], policy=always(bundled), sampling=sampling)[0]
    assert run.outcome.stopped
    assert run.answer.isdigit()
    assert run.token_ids[: run.steps[0].end] == full.token_ids[: run.steps[0].end]
    assert run.tokens < full.tokens
    assert bundled.probe([(ask("12*3=?"), full, 1)], sampling=sampling)[0].answer == run.answer


def test_the_bundled_model_in_the_refine_loop(bundled):
    """A call's answer is what stands after its thinking, and every token of the call counts."""
    run = run_refine(bundled, [ask("2*3=?")], steps=2, sampling=Sampling(0.0, max_tokens=600))[0]
    assert answers.normalise(run.answer).isdigit()
    assert len(run.calls) == 2
    assert [c.steps[-1].record.tokens for c in run.calls] == [c.tokens for c in run.calls]
    assert run.outcome.tokens == sum(c.tokens for c in run.calls)
    assert PER_CALL.boundary == "call"


def test_probes_of_a_run_share_their_prefill(bundled):
    """Probes asked for together are those asked for one by one: what comes after a boundary is hidden from its probe."""
    sampling = Sampling(0.0, max_tokens=700)
    asked = [ask("78*96=?"), ask("347*86=?"), ask("12*3=?")]
    runs = bundled.generate(asked, sampling=sampling)
    wanted = [(m, run, step) for m, run in zip(asked, runs, strict=True) for step in range(len(run.steps), 0, -1)]
    assert len(wanted) > 6
    together = bundled.probe(wanted, sampling=sampling)
    alone = [bundled.probe([one], sampling=sampling)[0] for one in wanted]
    assert [(p.answer, p.tokens) for p in together] == [(p.answer, p.tokens) for p in alone]
    for name in (s.name for s in SIGNALS.values() if s.source == "probe"):
        assert [p.signals[name] for p in together] == pytest.approx([p.signals[name] for p in alone], abs=1e-5)
    assert len({p.answer for p in together}) >= 3


def test_a_trial_by_hand():
    """Two rows, three tokens: the first token's entropy, and the chance of each drawn token, whatever is drawn from later."""
    third, half, sure = torch.tensor([[1.0, 1.0, 1.0], [2.0, 2.0, -torch.inf], [-torch.inf, 5.0, -torch.inf]])
    trial, ids = TrialProcessor(None), torch.tensor([[7], [7]])
    assert trial(ids, torch.stack([third, half])) is not None
    ids = torch.cat([ids, torch.tensor([[0], [1]])], dim=-1)
    trial(ids, torch.stack([half, sure]))
    ids = torch.cat([ids, torch.tensor([[1], [1]])], dim=-1)
    trial(ids, torch.stack([sure, third]))
    assert trial.entropies.tolist() == pytest.approx([math.log2(3), 1.0])
    assert torch.tensor(trial.chances(torch.tensor([[1], [2]]))).flatten().tolist() == pytest.approx(
        [1 / 3, 1 / 2, 1.0, 1 / 2, 1.0, 1 / 3]
    )
    assert trial.figures.shape == (2, 3, 5)
    assert trial.figures[..., 0].flatten().tolist() == pytest.approx([math.log2(3), 1.0, 0.0, 1.0, 0.0, math.log2(3)])


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_probe_s_signals_are_the_model_s_own(bundled, temperature):
    """Both from one plain forward pass over the probed text, with torch's own softmax; temperature changes the draw only."""
    sampling = Sampling(temperature, max_tokens=500, seed=4)
    messages = ask("78*96=?")
    run = bundled.generate([messages], sampling=sampling)[0]
    for step in range(1, len(run.steps) + 1):
        probe = bundled.probe([(messages, run, step)], sampling=sampling)[0]
        closed = [*bundled._vocabulary.prompt(messages)[0], *run.token_ids[: run.steps[step - 1].end], *bundled._close_ids]
        answer = bundled._vocabulary.encode(probe.answer)
        assert len(answer) + len(bundled._close_ids) + 1 == probe.tokens
        with torch.inference_mode():
            logits = bundled._model(torch.tensor([[*closed, *answer]])).logits[0, len(closed) - 1 : -1]
        p = logits.softmax(-1)
        assert probe.signals["eat"] == pytest.approx(float(-(p[0] * p[0].log2()).nansum()), abs=1e-4)
        confidence = p[torch.arange(len(answer)), torch.tensor(answer)].mean()
        assert probe.signals["trial_confidence"] == pytest.approx(float(confidence), abs=1e-4)
        top = p.topk(20).values
        top = top / top.sum(-1, keepdim=True)
        entropy = -(top * top.log2()).nansum(-1).mean()
        assert probe.signals["trial_entropy"] == pytest.approx(float(entropy), abs=1e-4)


def test_a_probe_that_is_cut_off_is_no_answer(bundled):
    """Its tokens are counted, and nobody is sure of it."""
    sampling, messages = Sampling(0.0, max_tokens=500), ask("78*96=?")
    run = bundled.generate([messages], sampling=sampling)[0]
    probe = bundled.probe([(messages, run, 1)], sampling=replace(sampling, max_tokens=3))[0]
    assert (probe.answer, list(probe.signals), probe.tokens) == (None, ["eat"], len(bundled._close_ids) + 3)


def test_a_probe_without_an_answer_is_sure_of_nothing(small):
    """A malformed answer has no confidence, whatever its tokens' chances; the entropy after the closing text is there."""
    vocabulary = small._vocabulary
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(vocabulary), "answer", lambda self, ids, phase=None: None)
        run = small.generate([ASKED[0]], sampling=GREEDY, stop=False)[0]
        probe = small.probe([(ASKED[0], run, 1)], sampling=GREEDY)[0]
    assert (probe.answer, list(probe.signals)) == (None, ["eat"])


def test_a_rows_tokens_do_not_depend_on_what_runs_beside_it(bundled):
    """Rows draw numbers of their own, and leave a batch when they are over: ten together are each the one run alone."""
    asked = [ask(f"{n}*{n + 7}=?") for n in range(3, 63, 6)]
    sampling = Sampling(max_tokens=500, seed=3)
    together = bundled.generate(asked, sampling=sampling)
    lengths = [len(run.token_ids) for run in together]
    assert sorted(lengths)[len(lengths) // 2] < max(lengths) - 50  # half of the batch is left behind on the way
    last = bundled.generate([asked[0]] * 9 + asked[9:], sampling=sampling)[9]
    assert last.token_ids == together[9].token_ids
    assert bundled.generate(asked[:1], sampling=sampling)[0].token_ids == together[0].token_ids


def test_draws_follow_the_distribution():
    """Over evenly spread numbers every token comes up as often as it is likely, and one without a share never."""
    scores = torch.tensor([[0.5, 0.25, 0.0, 0.25]]).log()
    counts = [0, 0, 0, 0]
    for n in range(1000):
        drawn = Draw(lambda n=n: [n / 1000])(torch.zeros(1, 1), scores)
        counts[int(drawn.argmax())] += 1
        assert drawn.isfinite().sum() == 1
    assert counts == [500, 250, 0, 250]
    assert int(Draw(lambda: [1.0])(torch.zeros(1, 1), torch.tensor([[0.0, 0.0, -torch.inf]])).argmax()) == 1
