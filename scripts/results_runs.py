"""The recorded and live runs behind ``docs/results.md``; see ``results.py``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from entropy_chains import Policy
from entropy_chains.backends import Sampling
from entropy_chains.backends.transformers import TransformersBackend
from entropy_chains.core import answers
from entropy_chains.demo import MODEL_FOLDER, MODEL_NAME
from entropy_chains.demo.questions import Question, draw_questions
from entropy_chains.offline.traces import TraceWriter
from entropy_chains.recording import conversation, record
from entropy_chains.savings.figures import EnergyMeter, flops, latency

BATCH, MAX_TOKENS = 100, 1600
DRAW, LIVE_DRAW = 21, 22
"""Seeds of the recorded questions, and of those run live."""


def say(text: str) -> None:
    """Progress, apart from the result."""
    print(text, file=sys.stderr, flush=True)


def loaded() -> TransformersBackend:
    """The bundled model."""
    return TransformersBackend.from_pretrained(MODEL_FOLDER, name=MODEL_NAME, batch_size=BATCH)


def recorded(backend: TransformersBackend, count: int, path: Path) -> Path:
    """Full runs of ``count`` questions with all signals; a file that was interrupted is gone on with, a batch at a time."""
    # Questions of like length together: a batch takes as long as its longest run.
    questions = sorted(draw_questions(count, DRAW), key=lambda q: (len(q["question"]), q["id"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    with TraceWriter(path) as writer:
        for start in range(0, count, BATCH):
            part = questions[start : start + BATCH]
            if all(q["id"] in writer.ids for q in part):
                continue
            say(f"recording {start + len(part)} of {count} questions ...")
            sampling = Sampling(max_tokens=MAX_TOKENS, seed=1_000_000 + start)
            for trace in record(backend, part, sampling=sampling, batch=BATCH):
                if trace.id not in writer.ids:
                    writer.write(trace)
    return path


def live(backend: TransformersBackend, policy: Policy, count: int, known: Sequence[str]) -> dict[str, Any]:
    """Fresh questions one at a time, in full and stopped early turn by turn, so that both meet the same machine."""
    fresh: list[Question] = [q for q in draw_questions(count + 50, LIVE_DRAW) if q["id"] not in set(known)][:count]
    sides: dict[str, list[Any]] = {"full": [], "early": []}
    joules: dict[str, Any] = {"full": 0.0, "early": 0.0}
    reason = None
    for n, question in enumerate(fresh):
        if n % 5 == 0:
            say(f"live, one at a time: {n} of {count} questions ...")
        sampling = Sampling(max_tokens=MAX_TOKENS, seed=n)
        for side, stop in (("full", False), ("early", True)):
            with EnergyMeter() as meter:
                (run,) = backend.generate([conversation(question)], policy=policy, sampling=sampling, stop=stop)
            sides[side].append(run)
            spent, used, reason = joules[side], meter.figure, meter.reason
            joules[side] = None if spent is None or used is None else spent + used.value
    found: dict[str, Any] = {
        "questions": len(fresh),
        "policy": policy.to_dict(),
        "energy": joules,
        "energy_reason": reason,
    }
    for side, runs in sides.items():
        tokens = sum(g.tokens for g in runs)
        found[side] = {
            "right": sum(answers.same(g.answer, q["gold"]) for g, q in zip(runs, fresh, strict=True)),
            "stopped": sum(g.outcome.stopped for g in runs),
            "tokens": tokens,
            "flops": flops(backend.parameters, tokens + sum(g.prompt_tokens + g.prefill_tokens for g in runs)).value,
            "latency": latency([g.seconds for g in runs]),
        }
    return found
