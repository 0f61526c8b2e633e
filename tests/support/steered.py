"""Tiny random models around real tokenizers, steered so that they write a script (a fake in this alone: what they say is given)."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "max_position_embeddings": 4096,
}  # fmt: skip
LEAN = 30.0
"""Added to the logit of the token that the script says."""


def real_tokenizer(name: str, template: str) -> PreTrainedTokenizerFast:
    """One that ``scripts/install_tokenizers.py`` fetches, with a template of ours. Without it a test is skipped, but not in CI."""
    import install_tokenizers  # tests/servers/conftest.py puts scripts/ on the path

    folder = install_tokenizers.installed(name)
    if folder is None:
        if not os.environ.get("CI"):
            pytest.skip(f"no tokenizer {name}; `python scripts/install_tokenizers.py` fetches it")
        folder = install_tokenizers.install(name)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    special = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        if value := config.get(name):
            special[name] = value["content"] if isinstance(value, dict) else value
    made = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), padding_side="left", **special)
    made.chat_template = template
    return made


def tiny(
    tokenizer: PreTrainedTokenizerFast, kind: str = "qwen3", *, eos: Sequence[int] = (), **settings: object
) -> torch.nn.Module:
    """A tiny random model for a tokenizer."""
    torch.manual_seed(0)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": list(eos) or tokenizer.eos_token_id}
    config = CONFIG_MAPPING[kind](**{**SMALL, "vocab_size": (len(tokenizer) + 63) // 64 * 64, **ids, **settings})
    made = AutoModelForCausalLM.from_config(config).to(torch.float32).eval()
    made.generation_config = GenerationConfig(do_sample=False, pad_token_id=tokenizer.pad_token_id, **ids)
    return made


class Script:
    """Lets a model write given texts. To a prompt that holds a mark it writes that mark's text.

    Attributes:
        texts: by mark, what it writes.
        closes: text after which it writes ``answer``: the closing text of a stop.
    """

    def __init__(self, model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast):
        self._tokenizer = tokenizer
        self.texts: dict[str, str] = {}
        self.closes = self.answer = ""
        prepare, forward, seen = model.prepare_inputs_for_generation, model.forward, {}

        @functools.wraps(prepare)
        def remember(input_ids, *arguments, **named):
            seen["ids"] = input_ids
            return prepare(input_ids, *arguments, **named)

        @functools.wraps(forward)
        def steered(*arguments, **named):
            out = forward(*arguments, **named)
            ids, logits = seen.get("ids"), out.logits
            if ids is not None and logits.shape[0] == ids.shape[0]:
                for n, row in enumerate(ids.tolist()):
                    if (wanted := self.next(row)) is not None:
                        logits[n, -1, wanted] += LEAN
            return out

        model.prepare_inputs_for_generation, model.forward = remember, steered

    def ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)

    def set(self, texts: dict[str, str], closes: str, answer: str) -> None:
        """What to write from here on."""
        self.texts, self.closes, self.answer = texts, closes, answer
        self._texts = {mark: self.ids(text) for mark, text in texts.items()}
        self._close, self._answer = self.ids(closes), self.ids(answer)
        self._begun: dict[tuple[int, ...], int] = {}

    def next(self, row: list[int]) -> int | None:
        """The token that the script says."""
        text = next((ids for mark, ids in self._texts.items() if _find(row, self.ids(mark)) >= 0), None)
        if text is None:
            return None
        for n in range(min(len(text), len(row)), 0, -1):
            if row[-n:] == text[:n]:
                return text[n] if n < len(text) else None
        if self._close and (at := _find(row, self._close)) >= 0:
            said = row[at + len(self._close) :]
            if said == self._answer[: len(said)] and len(said) < len(self._answer):
                return self._answer[len(said)]
        return text[0]


def _find(row: list[int], part: list[int]) -> int:
    """Where a part stands last, or -1."""
    return next((n for n in range(len(row) - len(part), -1, -1) if row[n : n + len(part)] == part), -1)
