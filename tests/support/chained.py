"""A checkpoint that any engine loads and that says a given text: each token is followed by one other, whatever came before it.

It is a fake in this alone: what it says stands in its weights. One layer that adds nothing to the token's own embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from entropy_chains.demo import MODEL_FOLDER

WIDTH = 160
"""Size of an embedding, of which every token has a place of its own."""


def save_chained(folder: Path, after: Mapping[str, str], template: str) -> None:
    """Write such a checkpoint.

    Args:
        folder: is made.
        after: a token's text to that of the one that follows. Texts of more than a character become tokens.
        template: the chat template.
    """
    tokenizer = AutoTokenizer.from_pretrained(str(MODEL_FOLDER))
    tokenizer.add_tokens([text for text in {**after, **dict.fromkeys(after.values())} if len(tokenizer.tokenize(text)) > 1])
    tokenizer.chat_template = template
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=2048, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    model.model.embed_tokens.weight.data = torch.eye(len(tokenizer), WIDTH)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    model.lm_head.weight.data.zero_()
    for text, following in after.items():
        (at,), (then,) = (tokenizer(t, add_special_tokens=False).input_ids for t in (text, following))
        model.lm_head.weight.data[then, at] = 2.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
