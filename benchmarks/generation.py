"""The transformers backend against plain ``model.generate()``: what watching every token costs.

Both sides do what a user does: chat template, tokens, generation, text. Nothing is stopped, so both draw the same tokens from
the same seed, which is checked.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from measure import Paired, Row, turn_by_turn

import entropy_chains


class Sides:
    """One batch of questions, run by the backend and by plain ``generate()``."""

    def __init__(self, backend: Any, model: Any, tokenizer: Any, conversations: list, tokens: int):
        from entropy_chains.backends import Sampling

        self._backend, self._model, self._tokenizer, self._conversations = backend, model, tokenizer, conversations
        self._sampling = Sampling(temperature=0.0, max_tokens=tokens)  # the backend's rows each draw numbers of their own
        self._tokens = tokens

    def ours(self) -> list[tuple[int, ...]]:
        return [g.token_ids for g in self._backend.generate(self._conversations, sampling=self._sampling)]

    def plain(self, cache: Callable[[Any], Any] | None = None) -> list[list[int]]:
        import torch

        tokenizer, model = self._tokenizer, self._model
        texts = [tokenizer.apply_chat_template(c, add_generation_prompt=True, tokenize=False) for c in self._conversations]
        given = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
        ids, mask = given.input_ids.to(model.device), given.attention_mask.to(model.device)
        extra = {"past_key_values": made} if cache and (made := cache(model)) is not None else {}
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=self._tokens, pad_token_id=tokenizer.pad_token_id,
                do_sample=False, temperature=None, top_p=None, top_k=None, **extra,
            )  # fmt: skip
        rows = out[:, ids.shape[1] :].tolist()
        tokenizer.batch_decode(rows, skip_special_tokens=True)
        return rows

    def steps(self) -> int:
        """Tokens of the longest row, after checking that both sides draw the same ones."""
        ours, plain = self.ours(), self.plain()
        if any(list(a) != b[: len(a)] for a, b in zip(ours, plain, strict=True)):
            raise AssertionError("the backend and plain generate() drew different tokens: they cannot be compared")
        return max(map(len, ours))


def bundled(quick: bool) -> list[Row]:
    """Benchmark 1: the bundled model on the CPU, one thread."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from entropy_chains.backends.local.kv_cache import growing_cache
    from entropy_chains.backends.transformers import TransformersBackend
    from entropy_chains.demo.questions import draw_questions
    from entropy_chains.recording import conversation

    logging.disable_progress_bar()
    torch.set_num_threads(1)
    folder = Path(entropy_chains.__file__).parent / "demo" / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    backend = TransformersBackend(model, tokenizer, name="entropy-chains/demo")
    rows = []
    for batch in (8, 1, 64):
        conversations = [conversation(q) for q in draw_questions(batch, 3)]
        sides = Sides(backend, model, tokenizer, conversations, 16 if quick else 300)
        steps = sides.steps()
        rounds = 2 if quick else 11 if batch < 64 else 7
        ours, same, default = turn_by_turn(rounds, sides.ours, lambda s=sides: s.plain(growing_cache), sides.plain)
        given = {"per": steps, "scale": "ms", "over": " a token of all rows"}
        goal = 1.10 if batch == 8 else None
        rows.append(Paired(ours, same).row("generate", f"batch {batch}, same KV cache", goal=goal, **given))
        rows.append(Paired(ours, default).row("generate", f"batch {batch}, plain side with its default cache", **given))
    return rows


# --- GPU: a model of real size made on the spot

LARGE = {
    "vocab_size": 151_936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True, "max_position_embeddings": 4096,
}  # fmt: skip
"""The shape of Qwen3-1.7B."""

TINY = LARGE | {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}
"""The same code in seconds on a CPU, with ``--quick``."""


def random_model(shape: dict, device: str) -> tuple[Any, Any]:
    """A Qwen3 with random weights and a tokenizer of as many made-up words, every 40th of them the end of a paragraph."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    words = ["<pad>", "<think>", "</think>", "\n\n"]
    words += [f"w{n}.\n\n" if n % 40 == 0 else f"w{n} " for n in range(shape["vocab_size"] - len(words))]
    inner = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="<pad>"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.WhitespaceSplit(), decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", additional_special_tokens=["<think>", "</think>"]
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}<think>"
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with torch.device(device):
        model = Qwen3ForCausalLM(Qwen3Config(**shape, eos_token_id=None, pad_token_id=0)).to(dtype).eval()
    model.generation_config.update(do_sample=True, temperature=1.0, eos_token_id=None, pad_token_id=0)
    return model, tokenizer


def gpu(quick: bool) -> list[Row]:
    """Benchmark 7: the same on a GPU, with energy a token."""
    import torch

    available = torch.cuda.is_available()
    if not available and not quick:
        return [Row("gpu", "overhead on a GPU", None, "×", goal=1.02, note="not run: torch finds no CUDA device")]
    from entropy_chains.backends.transformers import TransformersBackend
    from entropy_chains.savings.figures import EnergyMeter

    model, tokenizer = random_model(LARGE if available and not quick else TINY, "cuda" if available else "cpu")
    backend = TransformersBackend(model, tokenizer, name="random")
    size = sum(p.numel() for p in model.parameters())
    what = f"{torch.cuda.get_device_name()}, {size / 1e9:.2f} B parameters" if available else "tiny model on the CPU: code check"
    tokens = 16 if quick else 256
    rows = []
    for batch in (1, 32):
        conversations = [[{"role": "user", "content": f"w{n + 1} w{n + 2}"}] for n in range(batch)]
        sides = Sides(backend, model, tokenizer, conversations, tokens)
        steps = sides.steps()
        joules: dict[str, list[float]] = {"ours": [], "plain": []}

        def metered(work: Callable[[], object], side: str, kept: dict = joules) -> None:
            with EnergyMeter() if available else nullcontext() as meter:
                work()
                if available:
                    torch.cuda.synchronize()
            if meter is not None and meter.figure is not None:
                kept[side].append(float(meter.figure.value))

        taken = turn_by_turn(
            2 if quick else 9, lambda s=sides, m=metered: m(s.ours, "ours"), lambda s=sides, m=metered: m(s.plain, "plain")
        )
        goal = None if quick else 1.02
        given = {"per": steps, "scale": "ms", "over": " a token of all rows", "note": what}
        rows.append(Paired(*taken).row("gpu", f"batch {batch}", goal=goal, **given))
        if joules["ours"] and joules["plain"]:
            energy = Paired(joules["ours"], joules["plain"])
            each = (sorted(side)[len(side) // 2] / (steps * batch) for side in (energy.a, energy.b))
            rows.append(energy.row("gpu", f"batch {batch}, energy", note=f"{' against '.join(f'{j:.3g}' for j in each)} J a token"))
        elif available:
            rows.append(Row("gpu", f"batch {batch}, energy", None, "×", note=str(EnergyMeter.__name__) + " found no counter"))
    return rows
