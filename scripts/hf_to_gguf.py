"""Write a small Qwen3 checkpoint with a character-level vocabulary as GGUF: ``python scripts/hf_to_gguf.py MODEL_FOLDER OUT.gguf``.

For the bundled model, whose tokenizer llama.cpp's own converter does not know (it recognises vocabularies by their merges, and
this one has none). Weights stay float32, so that logprobs can be compared with transformers; the chat template goes along.
Needs ``gguf`` and ``safetensors`` (requirements-dev.txt).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
from safetensors.numpy import load_file

GPT2_ALPHABET = str.maketrans({" ": "\u0120", "\n": "\u010a"})
"""How a GPT-2 vocabulary spells the two invisible characters that the vocabulary has."""

WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
IN_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def convert(model: Path, out: Path) -> None:
    """Write ``out`` from a checkpoint folder (config, tokenizer, template, ``model.safetensors``).

    Raises:
        ValueError: the model is not a Qwen3, or its tokenizer merges characters.
    """
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    if config["model_type"] != "qwen3":
        raise ValueError(
            f"{model} is a {config['model_type']!r}; only qwen3 is converted here: use llama.cpp's convert_hf_to_gguf.py"
        )
    if tokenizer["model"]["merges"]:
        raise ValueError(f"{model} has a tokenizer with merges; use llama.cpp's convert_hf_to_gguf.py")
    writer = gguf.GGUFWriter(out, "qwen3")
    write_shape(writer, config)
    write_vocabulary(writer, config, tokenizer)
    writer.add_chat_template((model / "chat_template.jinja").read_text(encoding="utf-8"))
    for name, tensor in load_file(model / "model.safetensors").items():
        writer.add_tensor(tensor_name(name), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_shape(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    """The architecture's figures."""
    writer.add_name("entropy-chains/demo")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])


def write_vocabulary(writer: gguf.GGUFWriter, config: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> None:
    """The tokens in the order of their ids, as a GPT-2 vocabulary whose only merge can never apply."""
    texts = {number: text.translate(GPT2_ALPHABET) for text, number in tokenizer["model"]["vocab"].items()}
    types = dict.fromkeys(texts, gguf.TokenType.NORMAL)
    for added in tokenizer["added_tokens"]:  # special ones do not show in text; the thinking tags must
        texts[added["id"]] = added["content"]
        types[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([texts[i] for i in range(config["vocab_size"])])
    writer.add_token_types([types[i] for i in range(config["vocab_size"])])
    writer.add_token_merges(["\u0120 \u0101"])  # llama.cpp refuses an empty list; byte 1 stands in no token
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(False)


def tensor_name(name: str) -> str:
    """``model.layers.0.mlp.up_proj.weight`` is ``blk.0.ffn_up.weight`` there."""
    part, _, kind = name.rpartition(".")
    if part in WHOLE:
        return f"{WHOLE[part]}.{kind}"
    number, _, part = part.removeprefix("model.layers.").partition(".")
    return f"blk.{number}.{IN_LAYER[part]}.{kind}"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python scripts/hf_to_gguf.py MODEL_FOLDER OUT.gguf")
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
    print(f"written: {sys.argv[2]}")
