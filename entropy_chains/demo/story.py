"""The demo: record, calibrate, run held-out questions live in full and with early stopping, compare, write it all down."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from entropy_chains.backends import Sampling
from entropy_chains.backends.transformers import TransformersBackend
from entropy_chains.core import answers
from entropy_chains.core.policy import Policy
from entropy_chains.demo import MODEL_NAME
from entropy_chains.demo.questions import Question, draw_questions
from entropy_chains.errors import OutputError
from entropy_chains.files import check_outputs, make_folder, write_file
from entropy_chains.offline.calibrate import calibrate
from entropy_chains.offline.diagnose import diagnose
from entropy_chains.offline.replay import judge_live
from entropy_chains.offline.table import Table
from entropy_chains.offline.traces import TraceWriter
from entropy_chains.recording import conversation, record
from entropy_chains.savings.figures import flops, latency
from entropy_chains.show.printing import console
from entropy_chains.show.report import write_report
from entropy_chains.show.terminal import story_table

BATCH = 150
LATENCY_QUESTIONS = 24
MAX_TOKENS = 1600

FILES = ("calibration.jsonl", "held_out.jsonl", "policy.json", "demo.json", "report.html")
"""What is written. Each names the bundled model in its first lines."""

Track = Callable[[str, int], Callable[[int], None]]


def run_story(
    backend: TransformersBackend, *, questions: int, calibration: int, seed: int, out: Path, track: Track
) -> dict[str, Any]:
    """Run it and write :data:`FILES` to ``out``.

    The held-out questions are never used for calibration. Both live runs of a question share seed and batch, so up to the stop
    they are the same run, and the comparison is paired.

    Returns:
        The content of ``demo.json``.
    """
    prepare(out)
    drawn = draw_questions(calibration + questions, seed)
    # Questions of like length together: a batch takes as long as its longest run.
    fitted_on, held_out = (sorted(part, key=lambda q: len(q["question"])) for part in (drawn[:calibration], drawn[calibration:]))
    first = 1_000_000 * (seed + 1)  # seeds of the two parts never meet
    sampling, live = Sampling(max_tokens=MAX_TOKENS, seed=first), Sampling(max_tokens=MAX_TOKENS, seed=first + 500_000)

    recorded = _record(backend, fitted_on, sampling, out / "calibration.jsonl", track("record for calibration", calibration))
    policy = calibrate(recorded, seed=seed)
    policy.save(out / "policy.json")

    full = _record(backend, held_out, live, out / "held_out.jsonl", track("held out, run in full", questions))
    early = []
    advance = track("held out, stopped early", questions)
    for start in range(0, questions, BATCH):
        part = [conversation(q) for q in held_out[start : start + BATCH]]
        early += backend.generate(part, policy=policy, sampling=replace(live, seed=first + 500_000 + start))
        advance(len(part))
    stops = np.array([g.outcome.step if g.outcome.stopped else 0 for g in early])
    right = np.array([answers.same(g.answer, q["gold"]) for g, q in zip(early, held_out, strict=True)])
    result = judge_live(full, stops, np.array([g.tokens for g in early]), right, seed=seed)

    prompt = sum(g.prompt_tokens for g in early)
    again = sum(g.prefill_tokens for g in early)
    slow, fast = _timed(backend, policy, held_out[:: max(1, questions // LATENCY_QUESTIONS)][:LATENCY_QUESTIONS], live, track)
    story = {
        **result.to_dict(),
        "model": backend.model,
        "parameters": backend.parameters,
        "method": policy.method,
        "flops_full": flops(backend.parameters, prompt + result.tokens_full).value,
        "flops": flops(backend.parameters, prompt + again + result.tokens).value,
        "latency_full": latency(slow),
        "latency": latency(fast),
        "latency_questions": len(slow),
        "calibration_questions": calibration,
        "seed": seed,
        "diagnosis": diagnose(full, seed=seed).to_dict(),
        "policy": policy.to_dict(),
    }
    write_story(story, out)
    write_report(out / "report.html", out / "held_out.jsonl", policy, live=story, title=f"{backend.model}: {questions} questions")
    return story


def prepare(out: Path) -> None:
    """Make the folder and look at the files to be written, before anything is spent. They may replace an earlier demo's only.

    A folder is a demo's if it has the ``demo.json`` of one, which is therefore written first.

    Raises:
        OutputError: one of the files cannot be written, or there are some and no earlier demo.
    """
    make_folder(out)
    paths = [out / name for name in FILES]
    check_outputs(paths)
    there = [path for path in paths if path.exists()]
    for path in there:
        if not path.is_file():
            raise OutputError(f"{path} is no file, and the demo reads back what it writes; name another folder with --out")
    if there and not _is_a_demos(out / "demo.json"):
        raise OutputError(f"{there[0]} is not an earlier demo's, and would be lost; name another folder with --out")
    write_story({"model": MODEL_NAME, "finished": False}, out)


def _is_a_demos(path: Path) -> bool:
    """Whether a file is the ``demo.json`` of a demo, finished or not."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and data.get("model") == MODEL_NAME


def write_story(story: dict[str, Any], out: Path) -> None:
    """Write ``demo.json``."""
    write_file(out / "demo.json", json.dumps(story, indent=1, allow_nan=False) + "\n")


def print_story(story: dict[str, Any], out: Path) -> None:
    """The figures as a table for people."""
    console().print(story_table(story, out))


def _record(
    backend: TransformersBackend, questions: list[Question], sampling: Sampling, path: Path, advance: Callable[[int], None]
) -> Table:
    """Record into a fresh file, so that an interrupted demo leaves whole runs behind."""
    write_file(path, "")
    with TraceWriter(path) as writer:
        for trace in record(backend, questions, sampling=sampling, batch=BATCH):
            writer.write(trace)
            advance(1)
    return Table.read(path)


def _timed(
    backend: TransformersBackend, policy: Policy, questions: list[Question], sampling: Sampling, track: Track
) -> tuple[list[float], list[float]]:
    """Wall seconds of each question run alone, in full and stopped early, turn by turn so that both meet the same machine."""
    slow: list[float] = []
    fast: list[float] = []
    advance = track("latency, one at a time", len(questions))
    for n, question in enumerate(questions):
        alone = replace(sampling, seed=n)
        for seconds, stop in ((slow, False), (fast, True)):
            seconds += [g.seconds for g in backend.generate([conversation(question)], policy=policy, sampling=alone, stop=stop)]
        advance(1)
    return slow, fast
