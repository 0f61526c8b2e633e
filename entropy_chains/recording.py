"""Full reasoning runs written down as traces: what calibration, diagnosis and replay read."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from entropy_chains import answers, cut_runs
from entropy_chains.backends import Backend, Generation, Message, Probe, Sampling
from entropy_chains.errors import InputError, SettingsError
from entropy_chains.finish_reasons import finish_of, is_cut
from entropy_chains.records import StepRecord
from entropy_chains.refine import PER_CALL, run_refine
from entropy_chains.steps import MODES, Segmentation
from entropy_chains.traces import Step, Trace

Question = Mapping[str, Any]
"""``id``, ``question`` and, where it is known, ``gold``."""


def read_questions(path: str | Path, limit: int | None = None) -> list[dict[str, Any]]:
    """Read a JSONL file of questions.

    Raises:
        InputError: the file is missing or empty, or a line is not an object with ``id`` and ``question``, or repeats an id.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    wanted = '{"id": "q1", "question": "…", "gold": "…"}'
    questions: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: not JSON ({error}); each line must look like {wanted}") from error
        for name in ("id", "question"):
            value = found.get(name) if isinstance(found, dict) else None
            if name == "id" and isinstance(value, int) and not isinstance(value, bool):
                value = found["id"] = str(value)
            if not isinstance(value, str) or not value:
                raise InputError(f"{path}, line {number}: {name!r} is {value!r}; each line must look like {wanted}")
        if found.get("gold") is not None and not isinstance(found["gold"], str):
            found["gold"] = str(found["gold"])
        if found["id"] in questions:
            raise InputError(f"{path}, line {number}: id {found['id']!r} stands twice; ids must be unique")
        questions[found["id"]] = found
    if not questions:
        raise InputError(f"{path} holds no questions; each line must look like {wanted}")
    return list(questions.values())[:limit]


def record(
    backend: Backend,
    questions: Sequence[Question],
    *,
    mode: str = "thinking",
    steps: int | None = None,
    sampling: Sampling = Sampling(),
    segmentation: Segmentation | None = None,
    batch: int = 64,
    system: str | None = None,
    details: Mapping[str, Any] | None = None,
    tell: Callable[[str], object] | None = None,
) -> Iterator[Trace]:
    """Run every question in full and yield its trace, with the answer that a stop after each step would have given.

    A run that was cut off has no full answer: its last answer is None, and its ``finish`` says why.

    Args:
        backend: the model.
        questions: what to ask.
        mode: ``thinking`` (one stream; the answer after a step is forced with the live closing text and settings) or
            ``refine`` (the paper's loop; every call answers by itself).
        steps: calls of the loop (default 4) in ``refine`` mode, the largest number of recorded boundaries in ``thinking`` mode.
        sampling: settings of the runs; a seed is advanced by the number of questions before the batch.
        segmentation: how the stream is cut; the model's own by default.
        batch: questions run together.
        system: a system prompt for every question.
        details: further trace fields, or other values than the backend's own details (k, estimator, temperature, template, …).
        tell: is told at the end how many runs were cut off, and which limit to raise, if any were; None: a warning.
    """
    if mode not in MODES:
        raise SettingsError(f"mode is {mode!r}; it must be one of {', '.join(MODES)}")
    if steps is not None and steps < 1:
        raise SettingsError(f"steps is {steps}; it must be at least 1")
    finishes = Counter[str]()
    for start in range(0, len(questions), batch):
        part = questions[start : start + batch]
        seeded = sampling if sampling.seed is None else _reseeded(sampling, sampling.seed + start)
        conversations = [conversation(q, system) for q in part]
        common = {"mode": mode, "model": backend.model, "seed": seeded.seed, "batch": len(part)}
        if mode == "refine":
            runs = run_refine(backend, conversations, steps=steps or 4, sampling=seeded)
            common |= {**backend.details(sampling), **(details or {})}
            for q, run in zip(part, runs, strict=True):
                ending = _ending(run.calls[-1], sampling)
                finishes[ending["finish"]] += 1
                done = zip(run.calls, run.records, strict=False)
                found = [_step(r, Probe(_whole_answer(c), 0), c.seconds, c.reasoning or c.answer or "") for c, r in done]
                yield _trace(q, found, common | {"segmentation": PER_CALL.to_dict()} | ending)
            continue
        full = backend.generate(conversations, sampling=seeded, segmentation=segmentation, stop=False)
        common |= {**backend.details(sampling, segmentation), **(details or {})}  # a server's are known once it was asked
        boundaries = [(n, step) for n, g in enumerate(full) for step in range(1, len(g.steps[:steps]) + 1)]
        probes = backend.probe([(conversations[n], full[n], step) for n, step in boundaries], sampling=seeded)
        after = dict(zip(boundaries, probes, strict=True))
        for n, (q, g) in enumerate(zip(part, full, strict=True)):
            kept = [after[n, step] for step in range(1, len(g.steps[:steps]) + 1)]
            ending = _ending(g, sampling)
            finishes[ending["finish"]] += 1
            yield _trace(q, thinking_steps(g, kept), common | ending)
    message = cut_runs.of_recording(finishes, sampling.max_tokens)
    if message and tell:
        tell(message)
    elif message:
        warnings.warn(message, stacklevel=2)


def conversation(question: Question, system: str | None = None) -> list[Message]:
    """The messages that ask one question."""
    asked: list[Message] = [{"role": "user", "content": question["question"]}]
    return [{"role": "system", "content": system}, *asked] if system else asked


def thinking_steps(run: Generation, probes: Iterable[Probe]) -> list[Step]:
    """A thinking run's trace steps: one for each probed boundary, and last the rest with the answer."""
    probes = list(probes)
    found = [_step(s.record, p, s.seconds, s.text) for s, p in zip(run.steps[: len(probes)], probes, strict=True)]
    end = run.steps[len(probes) - 1].end if probes else 0
    seconds = run.seconds - sum(s.seconds for s in run.steps[: len(probes)])
    answer = answers.extract(_whole_answer(run))
    return [*found, Step(answer=answer, entropy=None, tokens=run.tokens - end, seconds=max(0.0, seconds), probe_tokens=0)]


def _whole_answer(run: Generation) -> str | None:
    """The answer of a run that ended by itself; what one that was cut off had written is no answer."""
    return None if is_cut(run.finish_reason) else run.answer


def _ending(run: Generation, sampling: Sampling) -> dict[str, Any]:
    """The trace fields that say how a run ended."""
    word = run.finish_raw or run.finish_reason
    return {"finish": finish_of(word), "finish_raw": word, "max_tokens": sampling.max_tokens}


def _step(record: StepRecord, probe: Probe, seconds: float, text: str) -> Step:
    return Step(
        answer=answers.extract(probe.answer),
        entropy=record.entropy,
        tokens=record.tokens,
        seconds=seconds,
        probe_tokens=probe.tokens,
        mass=record.mass,
        lower=record.lower,
        upper=record.upper,
        text=text,
        signals={**record.signals, **probe.signals},
    )


def _trace(question: Question, steps: list[Step], fields: Mapping[str, Any]) -> Trace:
    return Trace(
        id=question["id"],
        steps=steps,
        group=question.get("group"),
        question=question["question"],
        gold=question.get("gold"),
        **fields,
    )


def _reseeded(sampling: Sampling, seed: int) -> Sampling:
    return Sampling(sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_tokens, seed)
