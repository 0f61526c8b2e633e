"""Train the bundled reasoner from nothing: ``python -m entropy_chains.demo.train OUT``; about an hour on two CPU cores.

The task is multiplication. A reasoning step is one line: an attempt by partial products, then its own check by
casting out nines, digit by digit, so that every token is a small table look-up::

    347*86 347*80=27760;347*6=2082;27760+2082=29842;so 29842. 347?375 86?85 5*5=7 29842?22157 ok

The next line starts with ``Wait`` and works the other way round (86*347), whatever the check said: the model
overthinks. How surely it multiplies is left to the model: nothing random is planted in an attempt. A quarter of the
attempts in the training data are corrupted at a random place; the corrupted part is masked out of the loss (the model
never learns to err), the check after it fails, and the answer comes from an attempt that is right: the model learns to
notice and to repair.

Two phases: attempts without checks, then attempts with checks. A tenth of the rows wrap the question as real callers do: a system
prompt, a question-answering prompt with context, earlier turns, the loop of :mod:`entropy_chains.refine`.
"""

from __future__ import annotations

import argparse
import json
import random
import string
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from entropy_chains.demo.questions import draw_factors
from entropy_chains.refine import AGAIN

SPECIAL = ["<pad>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<unk>"]
VOCAB = [*SPECIAL, "\n", *(chr(c) for c in range(32, 127))]
ID = {token: i for i, token in enumerate(VOCAB)}
IGNORED = -100

SYSTEM_PROMPTS = [
    "You are a helpful assistant.",
    "You are a careful calculator. Answer with the number only.",
    "Answer the question.",
    "You are an expert in arithmetic. Think step by step.",
    "Think first, then answer with a number and nothing else.",
]
QA_SYSTEM = (
    "You are an expert Q&A system that is trusted around the world.\n"
    "Always answer the query using the provided context information, and not prior knowledge.\n"
    "Some rules to follow:\n"
    "1. Never directly reference the given context in your answer.\n"
    "2. Avoid statements like 'Based on the context, ...' or 'The context information ...' or anything along those lines."
)
QA_USER = (
    "Context information is below.\n---------------------\n{context}\n---------------------\n"
    "Given the context information and not prior knowledge, answer the query.\nQuery: {question}\nAnswer: "
)
WORDS = [
    "the",
    "a",
    "of",
    "and",
    "to",
    "in",
    "is",
    "for",
    "with",
    "on",
    "by",
    "as",
    "at",
    "from",
    "this",
    "that",
    "each",
    "every",
    "product",
    "factor",
    "number",
    "table",
    "price",
    "order",
    "item",
    "box",
    "shop",
    "report",
    "page",
    "line",
    "total",
    "sum",
    "digit",
    "count",
    "report",
    "file",
    "note",
    "rule",
    "list",
    "store",
    "value",
    "times",
    "multiply",
    "area",
    "width",
    "height",
    "length",
    "row",
    "column",
    "unit",
    "cost",
    "stock",
    "Context",
    "Notes",
    "Arithmetic",
    "Facts",
]

CHAT_TEMPLATE = """{#- entropy-chains: boundary=line min_tokens=32 -#}
{%- set ns = namespace(last=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
{%- set content = m.content if m.content is string else (m.content | map(attribute='text') | join('') if m.content else '') -%}
{{- '<|im_start|>' + m.role + '\\n' -}}
{%- if m.role == 'assistant' -%}
{%- set reasoning = m.reasoning_content if m.reasoning_content is defined and m.reasoning_content is string else '' -%}
{%- if not reasoning and '</think>' in content -%}
{%- set reasoning = content.split('</think>')[0].split('<think>')[-1] -%}
{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{%- if reasoning and loop.index0 > ns.last -%}
{{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' -}}
{%- endif -%}
{%- endif -%}
{{- content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if enable_thinking is defined and enable_thinking is false -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}
{%- endif -%}
"""


def encode(text: str) -> list[int]:
    """Characters to ids; special tokens are not looked for in the text."""
    return [ID.get(c, ID["<unk>"]) for c in text]


def turn(role: str, text: str) -> list[int]:
    """One finished turn as the chat template renders it."""
    return [ID["<|im_start|>"], *encode(f"{role}\n{text}"), ID["<|im_end|>"], ID["\n"]]


def corrupted(n: int, rng: random.Random) -> int:
    """``n`` with one digit changed."""
    digits = list(str(n))
    i = rng.randrange(len(digits))
    barred = {digits[i]} | ({"0"} if i == 0 and len(digits) > 1 else set())
    digits[i] = rng.choice([d for d in string.digits if d not in barred])
    return int("".join(digits))


def attempt(x: int, y: int, rng: random.Random, corrupt: bool) -> tuple[list[int], list[int], int]:
    """x·y by partial products: token ids, loss mask (0 from the corrupted place on) and the value reached."""
    s = str(y)
    factors = [int(c) * 10 ** (len(s) - 1 - i) for i, c in enumerate(s) if c != "0"]
    at = rng.randrange(2 * len(factors) - 1) if corrupt else -1
    ids = encode(f"{x}*{y} ")
    mask = [1] * len(ids)
    total, place, bad = 0, 0, False

    def say(text: str) -> None:
        ids.extend(encode(text))
        mask.extend([0 if bad else 1] * len(text))

    for n, factor in enumerate(factors):
        value = x * factor
        if place == at:
            value, bad = corrupted(value, rng), True
        place += 1
        say(f"{x}*{factor}={value};")
        if n == 0:
            total = value
            continue
        summed = total + value
        if place == at:
            summed, bad = corrupted(summed, rng), True
        place += 1
        say(f"{total}+{value}={summed};")
        total = summed
    say(f"so {total}.")
    return ids, mask, total


def residues(n: int) -> str:
    """The running digit sum of ``n`` modulo 9, one digit of output for each digit of ``n``."""
    r, out = 0, ""
    for c in str(n):
        r = (r + int(c)) % 9
        out += str(r)
    return out


def check(a: int, b: int, c: int) -> tuple[str, bool]:
    """Casting out nines: the line's tail and whether a·b ≡ c (mod 9)."""
    x, y, z = residues(a), residues(b), residues(c)
    product = int(x[-1]) * int(y[-1]) % 9
    passed = product == int(z[-1])
    return f" {a}?{x} {b}?{y} {x[-1]}*{y[-1]}={product} {c}?{z} {'ok' if passed else 'no'}", passed


def prompt(a: int, b: int, rng: random.Random) -> list[int]:
    """The turns before the answer: nine in ten the bare question, else wrapped as callers do."""
    question = f"{a}*{b}=?"
    if rng.random() < 0.9:
        return turn("user", question)
    if rng.random() < 0.3:
        question = rng.choice(
            [
                f"What is {a}*{b}?",
                f"What is {a} * {b}?",
                f"{a} * {b} = ?",
                f"{a}*{b}",
                f"Compute {a}*{b}.",
                f"What is {a} times {b}?",
            ]
        )
    kind = rng.randrange(6)
    if kind == 0:
        return turn("system", rng.choice(SYSTEM_PROMPTS)) + turn("user", question)
    if kind == 1:
        sentence = " ".join(rng.choices(WORDS, k=rng.randrange(3, 20)))
        return turn("user", rng.choice([f"{sentence}.\n\n{question}", f"{sentence}: {question}", f"Question: {question}\nAnswer:"]))
    if kind == 2:
        context = ". ".join(" ".join(rng.choices(WORDS, k=rng.randrange(3, 12))) for _ in range(rng.randrange(1, 4)))
        if rng.random() < 0.3:
            context += f" {rng.randrange(2, 9999)}"
        system = turn("system", QA_SYSTEM) if rng.random() < 0.7 else []
        return system + turn("user", QA_USER.format(context=context, question=question))
    if kind == 3:
        earlier: list[int] = []
        for _ in range(rng.randrange(1, 3)):
            c, d = draw_factors(rng)
            earlier += turn("user", f"{c}*{d}=?") + turn("assistant", str(c * d))
        return earlier + turn("user", question)
    answer = a * b if rng.random() < 0.7 else corrupted(a * b, rng)
    again = turn("user", question)
    for _ in range(rng.randrange(1, 3)):
        again += turn("assistant", str(answer)) + turn("user", AGAIN)
    return again


def example(rng: random.Random, checks: bool) -> tuple[list[int], list[int]]:
    """One training example: token ids and loss mask."""
    a, b = draw_factors(rng)
    ids = [*prompt(a, b, rng), ID["<|im_start|>"], *encode("assistant\n")]
    mask = [0] * len(ids)
    if len(f"{a}{b}") <= 3 and rng.random() < 0.1:
        ids += [ID["<think>"], *encode("\n\n"), ID["</think>"], *encode("\n\n")]  # the template's form of no thinking
        mask += [0] * 6
    else:
        ids += [ID["<think>"], *encode("\n")]
        mask += [1, 1]
        rounds, done, right = rng.choice([2, 3, 4, 5]), 0, 0
        while done < rounds or not right:
            x, y = (a, b) if done % 2 == 0 else (b, a)
            if done:
                ids += encode("Wait ")
                mask += [1] * 5
            tokens, seen, value = attempt(x, y, rng, rng.random() < 0.25)
            ids += tokens
            mask += seen
            text, passed = check(x, y, value) if checks else ("", True)
            ids += encode(text + "\n")
            mask += [1] * (len(text) + 1)
            done += 1
            right += passed and value == a * b
        ids += [ID["</think>"], *encode("\n\n")]
        mask += [1, 1, 1]
    end = [*encode(str(a * b)), ID["<|im_end|>"]]
    return ids + end, mask + [1] * len(end)


def batches(rng: random.Random, tokens: int, checks: bool) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches of at most ``tokens`` ids, rows of like length together: ids and targets, both [rows, length]."""
    while True:
        pool = sorted((example(rng, checks) for _ in range(256)), key=lambda e: len(e[0]))
        groups: list[list[tuple[list[int], list[int]]]] = [[]]
        for e in pool:
            if (len(groups[-1]) + 1) * len(e[0]) > tokens:
                groups.append([])
            groups[-1].append(e)
        rng.shuffle(groups)
        for group in groups:
            length = len(group[-1][0])
            x = torch.full((len(group), length), ID["<pad>"])
            y = torch.full((len(group), length), IGNORED)
            for i, (ids, mask) in enumerate(group):
                x[i, : len(ids)] = torch.tensor(ids)
                y[i, : len(ids)] = torch.tensor([t if m else IGNORED for t, m in zip(ids, mask, strict=True)])
            yield x, y


def build() -> Any:
    """The untrained model: Qwen3 architecture, 1.2 M parameters."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(VOCAB),
        hidden_size=160,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=ID["<pad>"],
        bos_token_id=None,
        eos_token_id=ID["<|im_end|>"],
        dtype="float32",
    )
    return Qwen3ForCausalLM(config)


def save(model: Any, out: Path) -> None:
    """Write the checkpoint folder: weights, tokenizer, chat template, generation defaults."""
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(vocab=ID, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL if "think" not in t])
    tokenizer.add_tokens([AddedToken(t, special=False) for t in SPECIAL if "think" in t])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        unk_token="<unk>",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    model.generation_config.update(do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
    model.save_pretrained(out)
    fast.save_pretrained(out)
    settings = out / "tokenizer_config.json"
    # The name that transformers 4 knows too; 5 writes one of its own.
    fields = json.loads(settings.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings.write_text(json.dumps(fields, indent=2) + "\n")
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def learning_rate(update: int, total: int, peak: float = 2e-3) -> float:
    """Warm-up over 50 updates, a plateau, and a linear fall to a hundredth over the last quarter."""
    return peak * min(1.0, (update + 1) / 50, max(0.01, (total - update) / (0.25 * total)))


def train(out: Path, first: int, second: int, tokens: int = 4096) -> None:
    """``first`` updates on bare attempts, then ``second`` on attempts with checks; the log is kept beside the weights.

    Muon for the matrices learns this in about a third of the updates that AdamW needs.
    """
    model, rng, start = build(), random.Random(0), time.time()
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    total = first + second
    phases = [batches(rng, tokens, checks=False), batches(rng, tokens, checks=True)]
    out.mkdir(parents=True, exist_ok=True)
    with (out / "training.jsonl").open("w") as log:
        for update in range(total):
            x, y = next(phases[update >= first])
            hidden = model.model(input_ids=x).last_hidden_state[:, :-1]
            wanted = y[:, 1:] != IGNORED  # the vocabulary is only applied where there is a loss
            loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[wanted]), y[:, 1:][wanted])
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(update, total)
                optimizer.step()
                optimizer.zero_grad()
            if (update + 1) % 50 == 0:
                line = {"update": update + 1, "loss": round(loss.item(), 4), "seconds": round(time.time() - start)}
                print(json.dumps(line), file=log, flush=True)
                print(line, flush=True)
            if (update + 1) % 250 == 0:
                save(model, out / f"checkpoint-{update + 1}")
    save(model, out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--first", type=int, default=900, help="updates on bare attempts")
    parser.add_argument("--second", type=int, default=2700, help="updates on attempts with checks")
    arguments = parser.parse_args()
    train(arguments.out, arguments.first, arguments.second)
