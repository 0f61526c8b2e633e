"""The transformers backend keeps the contract: on a small model with random weights, and on the bundled one."""

from __future__ import annotations

import importlib.util
import threading
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from small_models import (
    ASKED,
    EASY_AND_HARD,
    GREEDY,
    always,
    ask,
    essence,
    prompt_ids,
    small_model,
    trying,
    workers,
)

from entropy_chains.backends import Sampling
from entropy_chains.backends.transformers import TransformersBackend
from entropy_chains.core.entropy import token_entropy
from entropy_chains.demo.train import ID, VOCAB
from entropy_chains.errors import BackendError, BatchError
from entropy_chains.refine import RefineError, run_refine

_spec = importlib.util.spec_from_file_location("backend_contract", Path(__file__).with_name("contract.py"))
contract = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(contract)


class TestContract(contract.BackendContract):
    """On random weights."""

    @pytest.fixture
    def backend(self, small):
        return small

    @pytest.fixture
    def conversations(self):
        return ASKED

    def idle(self, backend):
        return not workers()

    def offered(self, backend):
        return backend._vocabulary._template_kwargs


class TestBundledContract(TestContract):
    """On the model that comes with the package."""

    sampling = Sampling(temperature=0.6, max_tokens=130, seed=5)

    @pytest.fixture
    def backend(self, bundled):
        return bundled

    @pytest.fixture
    def conversations(self):
        return [ask(text) for text in ("12*3=?", "7*8=?", "9*4=?", "8*6=?")]


# --- entropy


@pytest.mark.parametrize("k", [20, 5, None])
@pytest.mark.parametrize("temperature", [0.0, 0.5, 2.0])
def test_entropies_are_those_of_the_models_own_logits(small, tokenizer, k, temperature):
    """Before temperature: equal to the same top-k of a plain forward pass, and to the exact entropy for k = None."""
    policy = always(small, thresholds=(None,), k=k, estimator="full" if k is None else "renormalised")
    chunks = list(small.stream(ASKED[1], policy=policy, sampling=Sampling(temperature=temperature, max_tokens=30, seed=3)))
    run = chunks[-1].final
    prompt = prompt_ids(tokenizer, ASKED[1])
    with torch.inference_mode():
        logits = small._model(torch.tensor([prompt + list(run.token_ids)])).logits[0, len(prompt) - 1 :].double()
    logprobs = torch.log_softmax(logits, -1)
    read = [n for n, c in enumerate(chunks[:-1]) if c.bounds]
    assert len(read) > 3
    for n in read:
        expected = token_entropy(logprobs[n].topk(k or len(VOCAB)).values.tolist(), vocab_size=len(VOCAB))
        assert chunks[n].bounds == pytest.approx(expected, abs=2e-4)


def test_seeds_and_temperature(small):
    """Another seed is another run; greedy needs no seed; the temperature told is the one used."""
    one, two = (small.generate(ASKED[:1], sampling=Sampling(1.0, max_tokens=40, seed=s))[0].token_ids for s in (1, 2))
    assert one != two
    assert small.generate(ASKED[:1], sampling=GREEDY)[0].token_ids == small.generate(ASKED[:1], sampling=GREEDY)[0].token_ids
    assert small.temperature(GREEDY) == 0.0
    assert small.temperature(Sampling(0.7)) == 0.7


def test_a_seed_leaves_the_callers_random_numbers_alone(small):
    """The state of torch's generator is what it was."""
    before = torch.random.get_rng_state()
    small.generate(ASKED[:1], sampling=Sampling(1.0, max_tokens=5, seed=1))
    assert torch.equal(before, torch.random.get_rng_state())


# --- batches and the cache


def test_left_padding_changes_no_row(small):
    """Greedy: each conversation of a batch of unequal prompts is what it is alone, entropies included."""
    together = small.generate(ASKED, sampling=GREEDY)
    for messages, run in zip(ASKED, together, strict=True):
        alone = small.generate([messages], sampling=GREEDY)[0]
        assert alone.token_ids == run.token_ids
        for a, b in zip(alone.steps, run.steps, strict=True):
            assert a.record.entropy == pytest.approx(b.record.entropy, abs=1e-4)


def test_the_growing_cache_is_used(small, monkeypatch):
    """On a CPU every ``generate()`` gets the cache that grows in place: an empty cache is falsy, and was once left out."""
    caches, plain = [], small._model.generate
    monkeypatch.setattr(small._model, "generate", lambda **kw: (caches.append(kw.get("past_key_values")), plain(**kw))[1])
    small.generate([ASKED[1]], sampling=replace(GREEDY, max_tokens=3))
    assert [type(layer).__name__ for layer in caches[0].layers] == ["GrowingLayer"] * small._model.config.num_hidden_layers


def test_the_growing_cache_changes_no_token(small, tokenizer):
    """Greedy, beyond its first block of 256 tokens: the ids of plain ``generate()`` with the default cache."""
    prompt = prompt_ids(tokenizer, ASKED[1])
    with torch.inference_mode():
        out = small._model.generate(
            input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
            max_new_tokens=300, eos_token_id=ID["<|im_end|>"], pad_token_id=0,
        )  # fmt: skip
    ids = out[0, len(prompt) :].tolist()
    assert small.generate([ASKED[1]], sampling=replace(GREEDY, max_tokens=300))[0].token_ids == tuple(ids)


def test_batches_are_cut_to_size(small, tokenizer):
    """Four conversations two by two are four runs in order."""
    by_two = TransformersBackend(small._model, tokenizer, name="small", batch_size=2)
    runs = by_two.generate(ASKED, sampling=GREEDY, holdout=[False, True, False, True], policy=always(small))
    assert [g.outcome.holdout for g in runs] == [False, True, False, True]
    assert [g.prompt_tokens for g in runs] == [len(prompt_ids(tokenizer, m)) for m in ASKED]


def test_a_row_that_ended_is_not_counted_further(tokenizer):
    """Rows of a batch end at different times: each is counted up to its end token, and no padding after it."""
    backend = TransformersBackend(small_model(ends=1.5), tokenizer, name="small")
    runs = backend.generate(ASKED, sampling=Sampling(1.0, max_tokens=200, seed=2))
    lengths = [len(g.token_ids) for g in runs]
    assert len(set(lengths)) > 1
    for run in runs:
        assert run.finish_reason == "stop"
        assert run.token_ids.index(ID["<|im_end|>"]) == len(run.token_ids) - 1
        assert run.tokens == len(run.token_ids)
        assert "<|im_end|>" not in run.reasoning + (run.answer or "")


def test_a_row_that_waited_for_a_probe_keeps_its_own_limit(small):
    """Rows go on after probes with different lengths behind them; none makes more than ``max_tokens``."""
    policy = always(small, thresholds=(-1.0,), rule="entropy+agreement", min_steps=2)
    sampling = Sampling(1.0, max_tokens=50, seed=4)
    runs = small.generate(ASKED, policy=policy, sampling=sampling)
    assert max(len(g.token_ids) for g in runs) <= 50
    assert len({s.end for g in runs for s in g.steps}) > 2


@pytest.mark.parametrize("threshold", [-1.0, 0.002])
def test_probes_in_a_batch_disturb_nobody(bundled, monkeypatch, threshold):
    """Greedy: alone, in a batch whose cache is taken apart, and in one that prefills for every probe, a run is the same."""
    sampling, policy = Sampling(0.0, max_tokens=700), trying(bundled, threshold)
    together = bundled.generate(EASY_AND_HARD, policy=policy, sampling=sampling)
    alone = [bundled.generate([m], policy=policy, sampling=sampling)[0] for m in EASY_AND_HARD]
    assert list(map(essence, together)) == list(map(essence, alone))
    assert any(g.outcome.stopped for g in together) is (threshold > 0)
    assert {g.outcome.step for g in together} >= ({1, 2} if threshold > 0 else {None})
    full = bundled.generate(EASY_AND_HARD, sampling=sampling)
    assert all(g.token_ids == f.token_ids[: len(g.token_ids)] for g, f in zip(together, full, strict=True))
    monkeypatch.setattr("entropy_chains.backends.transformers.growing_cache", lambda model: None)
    prefilled = bundled.generate(EASY_AND_HARD, policy=policy, sampling=sampling)
    assert list(map(essence, prefilled)) == list(map(essence, together))
    assert all(0 < a.prefill_tokens <= len(a.steps) < b.prefill_tokens for a, b in zip(together, prefilled, strict=True))


def test_a_probe_computes_little_twice(bundled):
    """Forward passes of a run that is probed at each step: its prompt, every token once, and one more for each probe."""
    passes = []
    hook = bundled._model.model.register_forward_hook(lambda module, args, out: passes.append(out.last_hidden_state.shape[1]))
    try:
        run = bundled.generate([ask("78*96=?")], policy=trying(bundled, 0.0001), sampling=Sampling(0.0, max_tokens=700))[0]
    finally:
        hook.remove()
    assert run.prefill_tokens == len(run.steps) > 1
    # The last token of a stream and of an answer is drawn and never read again.
    unread = len(run.steps) + (not run.outcome.stopped)
    assert sum(passes) == run.prompt_tokens + run.tokens + run.prefill_tokens - unread


# --- a stop in place


def test_a_stop_computes_nothing_in_vain(small):
    """Forward passes of a stopped run: one for the prompt and one for each further token; none past its end."""
    passes = []
    hook = small._model.model.register_forward_hook(lambda module, args, out: passes.append(out.last_hidden_state.shape[1]))
    try:
        for seed in range(5, 15):  # random weights, others in each version of transformers: some answers are malformed
            passes.clear()
            run = small.generate([ASKED[1]], policy=always(small), sampling=Sampling(1.0, max_tokens=100, seed=seed))[0]
            if run.outcome.stopped:
                break
    finally:
        hook.remove()
    assert run.outcome.stopped
    assert passes[0] == run.prompt_tokens
    assert passes[1:] == [1] * (run.tokens - 1)


def test_closing_a_stream_ends_generate_within_two_tokens(small):
    """Passes after ``close()`` returns: none; before it: at most two more than were read."""
    passes = []
    hook = small._model.model.register_forward_hook(lambda *_: passes.append(1))
    try:
        stream = small.stream(ASKED[0], sampling=Sampling(1.0, max_tokens=400, seed=5))
        for _ in range(5):
            next(stream)
        stream.close()
        done = len(passes)
        assert not workers()
        assert 5 <= done <= 5 + 2
    finally:
        hook.remove()
    assert len(passes) == done


def test_closing_a_stream_ends_a_probe_too(small):
    """Closed from another thread's point of view while a probe runs: no thread is left, and no long answer is waited for."""
    policy = always(small, thresholds=(-1.0,), rule="entropy+agreement", min_steps=2)
    stream = small.stream(ASKED[1], policy=policy, sampling=Sampling(1.0, max_tokens=400, seed=5))
    for chunk in stream:
        if chunk.text.endswith("\n"):
            break
    stream.close()
    assert not workers()


def test_a_stream_nobody_reads_does_not_run_ahead(small):
    """The model waits for the reader: at most two tokens more than were read."""
    passes = []
    hook = small._model.model.register_forward_hook(lambda *_: passes.append(1))
    stream = small.stream(ASKED[0], sampling=Sampling(1.0, max_tokens=400, seed=5))
    try:
        next(stream)
        threading.Event().wait(0.5)
        assert len(passes) <= 1 + 2
    finally:
        stream.close()
        hook.remove()


def test_an_error_in_the_worker_reaches_the_reader(small):
    """And leaves no thread behind."""
    with pytest.raises(BackendError, match="512"):
        list(small.stream(ask("x" * 600)))
    assert not workers()


def test_a_conversation_that_cannot_run_costs_itself_alone(small):
    """Too long, or no prompt: the others of the call have the runs that they have without it, each failed one its own reason."""
    bad = [ask("9" * 600), ask("\ud800"), ask("9" * 700)]
    settings = {"sampling": Sampling(temperature=1.0, max_tokens=40, seed=3)}
    fine = small.generate([*ASKED, *ASKED], **settings)
    with pytest.raises(BatchError, match="3 of 8") as caught:
        small.generate([ASKED[0], bad[0], ASKED[2], ASKED[3], bad[1], ASKED[1], bad[2], ASKED[3]], **settings)
    assert [run is None for run in caught.value.runs] == [n in (1, 4, 6) for n in range(8)]
    assert all(contract.same_run(run, fine[n]) for n, run in enumerate(caught.value.runs) if run)
    told = [str(error) for error in caught.value.errors if error]
    assert "leaves no room in the model's 512" in told[0]
    assert told[1].startswith("no prompt can be made of the conversation")
    assert told[0] != told[2]
    with pytest.raises(RefineError, match="1 of 2") as refined:
        run_refine(small, [ASKED[0], bad[0]], steps=2, sampling=GREEDY)
    assert len(refined.value.runs[0].calls) == 2
