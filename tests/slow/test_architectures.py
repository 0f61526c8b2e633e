"""Forty architectures of transformers: tokens as plain ``generate()`` gives them, alone and in a batch; entropies as in float64.

The models are tiny and random; each is what its class is, caches, windows, experts and recurrent layers included.
"""

from __future__ import annotations

import math

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from entropy_chains.backends import Sampling
from entropy_chains.backends.transformers import TransformersBackend
from entropy_chains.core.steps import Segmentation
from entropy_chains.demo import MODEL_FOLDER

pytestmark = pytest.mark.slow

TOKENIZER = AutoTokenizer.from_pretrained(str(MODEL_FOLDER))
TOKENIZER.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
SMALL = {
    "vocab_size": len(TOKENIZER), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
}  # fmt: skip
EXPERTS = {"num_local_experts": 2, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32, "n_routed_experts": 2}
PLAIN = (
    "llama",
    "qwen2",
    "qwen3",
    "gemma",
    "phi",
    "olmo",
    "olmo2",
    "cohere",
    "granite",
    "starcoder2",
    "stablelm",
    "gpt_neox",
    "biogpt",
    "persimmon",
    "helium",
    "ernie4_5",
    "seed_oss",
    "arcee",
    "hunyuan_v1_dense",
    "nemotron",
    "bitnet",
    "lfm2",
)
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4}
WINDOW, PAD = {"sliding_window": 16}, {"pad_token_id": 0}
ARCHITECTURES = {
    **{kind: {} for kind in PLAIN},
    "mistral": WINDOW,
    "gemma2": WINDOW,
    "gemma3_text": WINDOW,
    "phi3": PAD,
    "olmo3": WINDOW,
    "cohere2": WINDOW,
    "gpt2": GPT,
    "gptj": {**GPT, "rotary_dim": 8},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 16},
    "gpt_bigcode": GPT,
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "bloom": {"n_layer": 2, "n_head": 4},
    "falcon": {"head_dim": None},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256},
    "codegen": {**GPT, "rotary_dim": 8},
    "smollm3": PAD,
    "glm": PAD,
    "glm4": PAD,
    "exaone4": {"sliding_window": 16, "sliding_window_pattern": 2},
    "mixtral": EXPERTS,
    "qwen3_moe": EXPERTS,
    "olmoe": EXPERTS,
    "gpt_oss": {**EXPERTS, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "mamba": {"state_size": 8},
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 16},  # only the third one attends
}
"""Each with the settings that it needs besides."""
ASKED = [[{"role": "user", "content": text}] for text in ("12*34=?", "a question that is longer: 5*6=?", "7")]
KEPT_STATE = {"recurrent_gemma"}
"""Architectures of which a prompt of one token is not asked for.

transformers keeps the state of their convolutions in the model instead of the cache, and clears it for longer prompts only: a
prompt of one token goes on from whatever was generated before, with plain ``generate()`` as well.
"""
LENGTH = 24
SAMPLING = Sampling(temperature=0, max_tokens=LENGTH)
CALL = Segmentation("call")


def made(kind):
    """A tiny random model of an architecture; its logits are spread so that greedy choices are clear."""
    torch.manual_seed(3)
    if kind not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {kind}")
    settings = {**SMALL, "bos_token_id": None, "eos_token_id": None, **ARCHITECTURES[kind]}
    if settings["head_dim"] is None:  # computed, and refused
        del settings["head_dim"]
    config = CONFIG_MAPPING[kind](**settings)
    model = AutoModelForCausalLM.from_config(config).to(torch.float32).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data.mul_(4.0)
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=TOKENIZER.eos_token_id, pad_token_id=TOKENIZER.pad_token_id
    )
    return model


def exact_entropy(logits):
    """Bits, in float64, of each row of logits."""
    chances = logits.double().log_softmax(-1)
    return (-(chances.exp() * chances).sum(-1) / math.log(2)).tolist()


@pytest.mark.parametrize("kind", sorted(KEPT_STATE))
def test_a_prompt_of_one_token_is_at_fault_in_transformers_itself(kind):
    """Plain ``generate()`` gives other tokens for it after another call; once it does not, it is to be asked like all others."""
    model, one, other = made(kind), torch.tensor([[9]]), torch.tensor([[5, 6, 7]])
    call = {"max_new_tokens": LENGTH}
    first, _, again = [model.generate(p, attention_mask=torch.ones_like(p), **call).tolist() for p in (one, other, one)]
    assert first != again


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_an_architecture(kind):
    """Greedy tokens are plain ``generate()``'s, a batch's are those of each row alone, entropies float64's within 1e-5 bits."""
    model = made(kind)
    backend = TransformersBackend(model, TOKENIZER, name=kind, k=None)
    questions = ASKED[:2] if kind in KEPT_STATE else ASKED
    alone = [backend.generate([asked], sampling=SAMPLING, segmentation=CALL)[0] for asked in questions]
    for asked, run in zip(questions, alone, strict=True):
        ids = torch.tensor([backend.vocabulary.prompt(asked)[0]])
        plain = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=LENGTH, output_logits=True, return_dict_in_generate=True
        )
        assert plain.sequences[0, ids.shape[1] :].tolist() == list(run.token_ids)
        bits = exact_entropy(torch.cat(plain.logits))
        counted = bits[:-1] if run.finish_reason == "stop" else bits  # the end token is no part of a step
        if counted:
            assert run.steps[0].record.entropy == pytest.approx(sum(counted) / len(counted), abs=1e-5)
        *chunks, _ = backend.stream(asked, sampling=SAMPLING, segmentation=CALL)
        assert [chunk.bounds.entropy for chunk in chunks] == pytest.approx(bits, abs=1e-5)
    together = backend.generate(questions, sampling=SAMPLING, segmentation=CALL)
    assert [run.token_ids for run in together] == [run.token_ids for run in alone]


def test_there_are_forty():
    """And more; what this transformers lacks is skipped."""
    assert len(ARCHITECTURES) >= 40
