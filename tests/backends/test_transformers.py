"""The transformers backend keeps the contract: on a small model with random weights, and on the bundled one."""

from __future__ import annotations

import copy
import importlib.util
import math
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from entropy_chains import demo
from entropy_chains.backends import Probe, Sampling
from entropy_chains.backends.local.generate_hooks import TrialProcessor
from entropy_chains.backends.local.sampling import Draw
from entropy_chains.backends.transformers import TransformersBackend
from entropy_chains.core import answers
from entropy_chains.core.entropy import token_entropy
from entropy_chains.core.policy import Policy
from entropy_chains.core.signals import SIGNALS, MassFloor
from entropy_chains.core.steps import Segmentation
from entropy_chains.demo.train import CHAT_TEMPLATE, ID, VOCAB, save
from entropy_chains.errors import BackendError, BatchError, SettingsError
from entropy_chains.refine import PER_CALL, RefineError, run_refine

_spec = importlib.util.spec_from_file_location("backend_contract", Path(__file__).with_name("contract.py"))
contract = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(contract)

BUNDLED = Path(demo.__file__).parent / "model"
SHORT = "{#- entropy-chains: boundary=line min_tokens=3 -#}" + CHAT_TEMPLATE.split("-#}", 1)[1]
OPENED = SHORT.replace("{{- '<|im_start|>assistant\\n' -}}", "{{- '<|im_start|>assistant\\n<think>\\n' -}}")
"""The demo's template with short steps and, as many families have it, with the thinking opened by the prompt."""
GREEDY = Sampling(temperature=0.0, max_tokens=60)


def ask(text):
    return [{"role": "user", "content": text}]


ASKED = [ask("1+1"), ask("a somewhat longer question: 12*34=?"), ask("2*3=?"), [{"role": "system", "content": "s"}, *ask("9")]]


def small_model(context=512, ends=-4.0):
    """Random weights in the demo's architecture and vocabulary, leaning to line ends, so that there are steps to see."""
    torch.manual_seed(1)
    config = Qwen3Config(
        vocab_size=len(VOCAB), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=context, tie_word_embeddings=False,
        pad_token_id=ID["<pad>"], bos_token_id=None, eos_token_id=ID["<|im_end|>"],
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).eval()
    head = torch.nn.Linear(32, len(VOCAB))
    head.weight.data = model.lm_head.weight.data * 10
    torch.nn.init.zeros_(head.bias)
    for token, bias in {"\n": 2.5, "</think>": 0.5, "<|im_end|>": ends}.items():
        head.bias.data[ID[token]] = bias
    head.bias.data[[ID[t] for t in ("<pad>", "<|im_start|>", "<think>", "<unk>")]] = -50.0
    model.lm_head = head
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint folder as the training script writes it."""
    out = tmp_path_factory.mktemp("small")
    model = Qwen3ForCausalLM(small_model().config)
    model.generation_config.eos_token_id = ID["<|im_end|>"]
    save(model, out)
    return out


@pytest.fixture(scope="module")
def tokenizer(folder):
    found = AutoTokenizer.from_pretrained(str(folder))
    found.chat_template = OPENED
    return found


@pytest.fixture(scope="module")
def small(tokenizer):
    return TransformersBackend(small_model(), tokenizer, name="small")


@pytest.fixture(scope="module")
def bundled():
    return TransformersBackend.from_pretrained(BUNDLED, name="entropy-chains/demo")


def always(backend, **fields):
    """A policy that stops after the first step, whatever it reads."""
    fixed = {"segmentation": backend.segmentation, "template": backend.template, "mass_floor": MassFloor(0.0, 0.0)}
    return Policy(**{"model": backend.model, "thresholds": (99.0,), **fixed, **fields})


def prompt_ids(tokenizer, messages):
    """The conversation's tokens, by the library's own means."""
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False).input_ids


def workers():
    return [t for t in threading.enumerate() if t.name == "entropy-chains-generate"]


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


EASY_AND_HARD = [
    ask(f"{a}*{b}=?") for a, b in ((12, 3), (78, 96), (347, 86), (9, 8), (1234, 567), (55, 44), (7, 6), (98, 765), (31, 3))
]
"""Enough rows that some leave the batch while others go on."""


def trying(backend, threshold, **given):
    """A policy that reads the tried answer's entropy."""
    return always(backend, thresholds=(threshold,), signal="trial_entropy", **given)


def essence(run):
    return run.answer, run.token_ids, run.tokens, run.outcome.step, run.outcome.stopped


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


# --- settings that cannot work


@pytest.mark.parametrize(
    "setting", [{"num_beams": 2}, {"num_return_sequences": 2}, {"prompt_lookup_num_tokens": 3}, {"penalty_alpha": 0.6}]
)
def test_settings_under_which_a_row_is_not_one_stream(small, tokenizer, setting):
    """Refused when the backend is made, from its own settings or from the model's; the message names the setting."""
    name = next(iter(setting))
    with pytest.raises(SettingsError, match=name):
        TransformersBackend(small._model, tokenizer, generate_kwargs=setting)
    model = copy.copy(small._model)
    model.generation_config = copy.deepcopy(model.generation_config)
    setattr(model.generation_config, name, setting[name])
    with pytest.raises(SettingsError, match=name):
        TransformersBackend(model, tokenizer)


def test_assisted_decoding_is_refused(small, tokenizer):
    """A draft model makes several tokens a step."""
    with pytest.raises(SettingsError, match="assistant_model"):
        TransformersBackend(small._model, tokenizer, generate_kwargs={"assistant_model": small._model})


@pytest.mark.parametrize("setting", [{"repetition_penalty": 1.2}, {"no_repeat_ngram_size": 3}])
def test_penalties_warn(small, tokenizer, setting):
    """They change the logits that entropy is read from; without an active policy nobody is bothered."""
    backend = TransformersBackend(small._model, tokenizer, name="small", generate_kwargs=setting)
    with pytest.warns(UserWarning, match=next(iter(setting))):
        backend.generate(ASKED[:1], policy=always(backend), sampling=Sampling(0.0, max_tokens=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        backend.generate(ASKED[:1], sampling=Sampling(0.0, max_tokens=2))


def test_impossible_settings(small, tokenizer):
    """``k`` = 0 and batches of nothing; a tokenizer without a chat template; thinking without tags."""
    with pytest.raises(SettingsError, match="k is 0"):
        TransformersBackend(small._model, tokenizer, k=0)
    with pytest.raises(SettingsError, match="batch_size is 0"):
        TransformersBackend(small._model, tokenizer, batch_size=0)
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(SettingsError, match="no chat template"):
        TransformersBackend(small._model, bare)
    bare.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(SettingsError, match=r"no thinking tags.*refine"):
        TransformersBackend(small._model, bare, name="plain").generate(ASKED[:1])


@pytest.mark.parametrize("missing", ["tokenizer", "everything", "config"])
def test_a_folder_that_is_no_model(folder, tmp_path, missing):
    """An error that names the folder and says what it must hold, not a traceback of a library."""
    if missing != "everything":
        for file in folder.iterdir():
            if not file.name.startswith(missing):
                (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(SettingsError, match=str(tmp_path)):
        TransformersBackend.from_pretrained(tmp_path)


def test_a_prompt_longer_than_the_context(small):
    """The message gives both lengths."""
    with pytest.raises(BackendError, match=r"\d+ tokens.*512"):
        small.generate([ask("x" * 600)])


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


def test_a_worker_that_is_cancelled_ends_at_its_next_token(small):
    """Runs and probes alike; the backend that it was made of goes on."""
    cancelled = threading.Event()
    worker = small.worker(cancelled)
    (run,) = worker.generate([ASKED[0]], sampling=GREEDY)
    assert run.tokens == 60
    (probe,) = worker.probe([(ASKED[0], run, 1)], sampling=GREEDY)
    cancelled.set()
    assert worker.generate([ASKED[0]], sampling=GREEDY)[0].tokens <= 2
    assert worker.probe([(ASKED[0], run, 1)], sampling=GREEDY)[0].tokens < probe.tokens
    assert small.generate([ASKED[0]], sampling=GREEDY)[0].tokens == 60


def test_the_context_is_a_limit(tokenizer):
    """A run ends where the context does; a probe for which no room is left has no answer instead of an error."""
    backend = TransformersBackend(small_model(context=64), tokenizer, name="small")
    runs = [backend.generate(ASKED[:1], sampling=Sampling(1.0, max_tokens=500, seed=seed))[0] for seed in range(11, 21)]
    assert all(run.prompt_tokens + run.tokens <= 64 for run in runs)
    run = next(run for run in runs if run.steps)
    full = replace(run, token_ids=(5,) * (64 - run.prompt_tokens), steps=(replace(run.steps[0], end=64 - run.prompt_tokens - 2),))
    assert backend.probe([(ASKED[0], full, 1)], sampling=GREEDY)[0] == Probe(None, 0, {})


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
