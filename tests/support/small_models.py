"""A small random model and the bundled one, for tests of the transformers backend."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from entropy_chains import demo
from entropy_chains.backends import Sampling
from entropy_chains.core.policy import Policy
from entropy_chains.core.signals import MassFloor
from entropy_chains.demo.train import CHAT_TEMPLATE, ID, VOCAB

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


EASY_AND_HARD = [
    ask(f"{a}*{b}=?") for a, b in ((12, 3), (78, 96), (347, 86), (9, 8), (1234, 567), (55, 44), (7, 6), (98, 765), (31, 3))
]
"""Enough rows that some leave the batch while others go on."""


def trying(backend, threshold, **given):
    """A policy that reads the tried answer's entropy."""
    return always(backend, thresholds=(threshold,), signal="trial_entropy", **given)


def essence(run):
    return run.answer, run.token_ids, run.tokens, run.outcome.step, run.outcome.stopped
