"""Full reasoning runs written down as traces: what calibration, diagnosis and replay read."""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Callable, Container, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, groupby, islice
from typing import Any, TypeVar

from entropy_chains import grading
from entropy_chains.backends import Backend, Generation, Message, Probe, Sampling
from entropy_chains.core import answers
from entropy_chains.core.finish_reasons import finish_of, is_cut
from entropy_chains.core.signals import StepRecord
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import (
    BackendError,
    BatchError,
    MissingExtraError,
    NoLogprobsError,
    SettingsError,
    UnreachableError,
    outcome,
    outcomes,
    reason,
)
from entropy_chains.offline import cut_runs
from entropy_chains.offline.no_thinking import ThinkingSeen
from entropy_chains.offline.traces import Step, Trace, validate
from entropy_chains.options import Mode, check_counts, check_options
from entropy_chains.questions import Question, checked, together
from entropy_chains.refine import PER_CALL, RefineRun, run_refine
from entropy_chains.workers import in_threads, in_turn

T = TypeVar("T")


Part = Sequence[tuple[int, Question]]
"""Questions that are asked together, each with its place in the whole list."""

BEFALLS_ALL = (NoLogprobsError, UnreachableError, SettingsError, MissingExtraError)
"""Errors that say nothing of the question: the next one would fail alike."""

MOST_FAILURES = 5
"""After so many of these in a row no more questions are asked."""

GIVEN_UP = "more were given up: each would have failed alike"
"""What is said of the questions that are left then, after their number."""

NOT_ASKED = "more were not asked: no step of any thinking ended"
"""The same where that is the reason."""


class RecordError(BatchError):
    """Some questions were not recorded. Every finished trace was yielded before: ``runs`` is empty.

    Attributes:
        errors: what each question failed with, in order; None where it did not fail.
        failed: the same for those that failed, by id.
        given_up: how many more were not asked, or not to the end, because each would have failed alike.
        why: why they were not asked, where that is that no run had a step, and what to do; None otherwise.
        left: how many were not asked, and why, in words; None where all were asked.
    """

    def __init__(self, questions: Sequence[Question], failed: Mapping[int, Exception], given_up: int, why: str | None = None):
        super().__init__((), [failed.get(place) for place in range(len(questions))])
        self.failed, self.given_up = {questions[place]["id"]: error for place, error in sorted(failed.items())}, given_up
        self.why = why
        texts = [why] if why else []
        if self.failed:
            name, first = next(iter(self.failed.items()))
            texts.insert(0, f"{len(failed)} of {len(questions)} questions failed, the first ({name}) with {reason(first)}")
        self.args = ("; ".join(texts),)
        self.left = f"{given_up} {NOT_ASKED if why else GIVEN_UP}" if given_up else None
        if self.left:
            self.add_note(self.left)


def record(
    backend: Backend,
    questions: Sequence[Question],
    *,
    mode: Mode = "thinking",
    steps: int | None = None,
    sampling: Sampling = Sampling(),
    segmentation: Segmentation | None = None,
    batch: int = 64,
    system: str | None = None,
    grade: str = answers.AUTO,
    grader: answers.Grader | None = None,
    details: Mapping[str, Any] | None = None,
    done: Container[str] = (),
    on_failure: Callable[[Question, Exception], None] | None = None,
    cancelled: threading.Event | None = None,
    tell: Callable[[str], object] | None = None,
) -> Generator[Trace, None, None]:
    """Run every question in full and yield its trace, with the answer that a stop after each step would have given.

    A trace is yielded as soon as its question is done. A server is asked several questions at a time, and a slow one keeps no other
    waiting. A local model runs a batch, whose traces come together. A question that fails costs itself alone. A run that was cut
    off has no full answer: its last answer is None, and its ``finish`` says why. A run whose stream broke is one of them if a step
    had ended, and a failure otherwise. In thinking mode nothing more is asked after :data:`.no_thinking.HANDFUL` whole runs, none
    of which has a step.

    Args:
        backend: the model.
        questions: what to ask.
        mode: ``thinking`` (one stream; the answer after a step is forced with the live closing text and settings) or
            ``refine`` (the paper's loop; every call answers by itself).
        steps: calls of the loop (default 4) in ``refine`` mode, the largest number of recorded boundaries in ``thinking`` mode.
        sampling: settings of the runs; a seed is advanced by the place in ``questions`` of the first question of a batch, and for
            a server by that of the question.
        segmentation: how the stream is cut; the model's own by default.
        batch: questions run together; of a server never more than its ``concurrency``.
        system: a system prompt for every question.
        grade: how answers are compared with gold, see :func:`entropy_chains.core.answers.comparer`.
        grader: the function of a grade ``python:NAME``; what it raises fails the question.
        details: further trace fields, or other values than the backend's own details (k, estimator, temperature, template, …).
        done: ids that are recorded already. They are not asked; they keep their places, which the seeds go by.
        on_failure: called with each question that fails, and with what.
        cancelled: once set, nothing more is asked. What is finished is still yielded, what is not is given up.
        tell: is told at the end how many runs were cut off, and which limit to raise, if any were; and, where no step of any
            thinking ended, or answers after steps are missing, what may be wrong. None: a warning.

    Raises:
        RecordError: at the end, where some questions failed. Earlier after :data:`MOST_FAILURES` failures in a row that would
            befall every question (no logprobs, no connection, a key that is refused); if none was recorded, the first one's own
            error.
            Also where questions were given up because nobody thinks.
    """
    check_options({"mode": mode})
    check_counts({"steps": steps, "batch": batch})
    places = [f"question {n}" for n in range(1, len(questions) + 1)]
    questions = together([(place, checked(dict(q), place)) for place, q in zip(places, questions, strict=True)])
    grading.check_gold(questions, grade)
    cancelled = cancelled or threading.Event()
    threads = min(batch, backend.concurrency or 0)
    left = [(place, q) for place, q in enumerate(questions) if q["id"] not in done]
    parts = [list(part) for _, part in groupby(left, key=lambda placed: placed[0] // (1 if threads else batch))]
    over, hopeless = threading.Event() if threads else cancelled, threading.Event()

    def stopped() -> bool:
        return cancelled.is_set() or hopeless.is_set()

    seen = ThinkingSeen(stepped=mode != "thinking")  # in the loop every call is a step
    work = _Recorder(
        backend.worker(over), mode, steps, sampling, segmentation, system, details or {}, answers.comparer(grade, grader), seen
    ).record
    finished = in_threads(work, parts, threads, stopped, over) if threads else in_turn(work, parts, stopped)
    failed: dict[int, Exception] = {}
    finishes, broken, alike = Counter[str](), list[str](), 0
    with closing(finished):
        for (place, question), result in chain.from_iterable(zip(part, results, strict=True) for part, results in finished):
            if isinstance(result, Trace):
                finishes[result.finish or ""] += 1
                broken += [result.id] if result.finish == "error" else []
                alike = 0
                seen.add(result)
                if seen.is_hopeless:
                    hopeless.set()
                yield result
                continue
            failed[place], alike = result, alike + 1 if isinstance(result, BEFALLS_ALL) else 0
            if on_failure:
                on_failure(question, result)
            if alike == MOST_FAILURES:
                hopeless.set()
    recorded = finishes.total()
    given_up = len(left) - recorded - len(failed) if hopeless.is_set() else 0
    why = None
    if seen.lacks_steps:  # else the tags are not asked for: a model for the loop may have none
        why = seen.advice(backend.tags, segmentation or backend.segmentation, served=backend.concurrency is not None)
    lacking = seen.of_answers(served=backend.concurrency is not None)
    for text in filter(None, (cut_runs.of_recording(finishes, sampling.max_tokens, broken), why, lacking)):
        tell(text) if tell else warnings.warn(text, stacklevel=2)
    if failed or given_up:
        raise _failure(questions, failed, recorded, given_up, why if seen.is_hopeless else None)


def _failure(
    questions: Sequence[Question], failed: Mapping[int, Exception], recorded: int, given_up: int, why: str | None
) -> Exception:
    """What ends a recording in which some questions failed: where nothing works at all, what is the matter itself."""
    if not failed:
        return RecordError(questions, failed, given_up, why)
    first = failed[min(failed)]
    if recorded or not all(isinstance(error, BEFALLS_ALL) for error in failed.values()):
        error = RecordError(questions, failed, given_up, why)
        error.__cause__ = first
        return error
    if given_up:
        first.add_note(f"{given_up} {GIVEN_UP}")
    return first


@dataclass(frozen=True, slots=True)
class _Recorder:
    """Records questions that are asked together; the fields are the arguments of :func:`record`."""

    backend: Backend
    mode: str
    steps: int | None
    sampling: Sampling
    segmentation: Segmentation | None
    system: str | None
    details: Mapping[str, Any]
    compared: answers.Comparer
    seen: ThinkingSeen

    def record(self, part: Part) -> list[Trace | Exception]:
        """The trace of each question, or what it fails with. A batch that fails as a whole is halved until one question is left."""
        results = outcome(self._refine if self.mode == "refine" else self._think, part)
        if not isinstance(results, Exception):
            return results
        if len(part) < 2 or isinstance(results, BEFALLS_ALL):
            return [results] * len(part)
        del results  # and with it the memory that the batch took
        return [*self.record(part[: len(part) // 2]), *self.record(part[len(part) // 2 :])]

    def _think(self, part: Part) -> list[Trace | Exception]:
        conversations, drawn = self._conversations(part), self._drawn(part)
        settings: dict[str, Any] = {"sampling": drawn, "segmentation": self.segmentation, "stop": False}
        results = self._each(part, partial(self.backend.generate, conversations, **settings))
        runs = [
            (messages, run) for messages, result in zip(conversations, results, strict=True) if (run := _ran(result)) is not None
        ]
        boundaries = [(messages, run, step) for messages, run in runs for step in range(1, len(run.steps[: self.steps]) + 1)]
        tried = iter(self._each(part, partial(self.backend.probe, boundaries, sampling=drawn), len(boundaries)))
        fields = self._fields(part, self.segmentation)

        def trace(question: Question, run: Generation, broke: Exception | None) -> Trace:
            self.seen.thought = self.seen.thought or run.reasoning_tokens > 0
            probes = list(islice(tried, len(run.steps[: self.steps])))
            answered = [_probe_of(probe, or_none=broke is not None) for probe in probes]
            steps = thinking_steps(run, answered)
            self.seen.again.extend([question["id"]] * sum(probe.again for probe in answered))  # whole: threads do so at once
            return _trace(question, grading.graded(question, steps, self.compared), fields | _ending(run, self.sampling, broke))

        return self._traces(part, results, trace)

    def _refine(self, part: Part) -> list[Trace | Exception]:
        conversations, drawn = self._conversations(part), self._drawn(part)
        results = self._each(part, partial(run_refine, self.backend, conversations, steps=self.steps or 4, sampling=drawn))
        fields = self._fields(part, None) | {"segmentation": PER_CALL.to_dict()}

        def trace(question: Question, run: RefineRun, broke: Exception | None) -> Trace:
            lacking = [Step(answer=None, entropy=None, tokens=0, seconds=0.0, probe_tokens=0)] if broke else []
            steps = grading.graded(question, _loop_steps(run) + lacking, self.compared)
            return _trace(question, steps, fields | _ending(run.calls[-1], drawn, broke))

        return self._traces(part, results, trace)

    def _each(self, part: Part, ask: Callable[[], Sequence[T]], count: int | None = None) -> list[T | Exception]:
        """What a call makes of each of ``count`` things (None: of each question), or what each fails with.

        Raises where it fails as a whole for several questions: they are asked again.
        """
        results = outcome(outcomes, ask)
        if not isinstance(results, Exception):
            return results
        if len(part) > 1:
            raise results
        return [results] * (len(part) if count is None else count)

    def _traces(
        self, part: Part, results: Sequence[Any], trace: Callable[[Question, Any, Exception | None], Trace]
    ) -> list[Trace | Exception]:
        """The trace of each question's run, whole or broken off (then ``trace`` is told by what), or what it failed with."""
        return [
            result if (run := _ran(result)) is None else outcome(trace, question, run, None if run is result else result)
            for result, (_, question) in zip(results, part, strict=True)
        ]

    def _conversations(self, part: Part) -> list[list[Message]]:
        return [conversation(question, self.system) for _, question in part]

    def _drawn(self, part: Part) -> Sampling:
        seed = self.sampling.seed
        return self.sampling if seed is None else replace(self.sampling, seed=seed + part[0][0])

    def _fields(self, part: Part, segmentation: Segmentation | None) -> dict[str, Any]:
        """What the traces of a part have in common."""
        fields = {
            "mode": self.mode,
            "model": self.backend.model,
            "grade": self.compared.grade,
            "seed": self._drawn(part).seed,
            "batch": len(part),
        }
        limit = {} if self.mode == "refine" else {"max_steps": self.steps}  # there it is the schedule: every step is recorded
        prompt = {"system": self.system} if self.system else {}
        return fields | limit | prompt | self.backend.details(self.sampling, segmentation) | dict(self.details)


def conversation(question: Question, system: str | None = None) -> list[Message]:
    """The messages that ask one question."""
    messages: list[Message] = [{"role": "user", "content": question["question"]}]
    return [{"role": "system", "content": system}, *messages] if system else messages


def thinking_steps(run: Generation, probes: Iterable[Probe]) -> list[Step]:
    """A thinking run's trace steps: one for each probed boundary, and last the rest with the answer."""
    probes = list(probes)
    steps = [_step(s.record, p, s.seconds, s.text) for s, p in zip(run.steps[: len(probes)], probes, strict=True)]
    end = run.steps[len(probes) - 1].end if probes else 0
    seconds = run.seconds - sum(s.seconds for s in run.steps[: len(probes)])
    return [
        *steps,
        Step(answer=_whole_answer(run), entropy=None, tokens=max(0, run.tokens - end), seconds=max(0.0, seconds), probe_tokens=0),
    ]


def _ran(result: Any) -> Any:
    """A question's run, or what came of it before its stream broke; None where nothing of it is to be recorded."""
    if isinstance(result, BackendError) and not isinstance(result, BEFALLS_ALL):
        return result.run
    return None if isinstance(result, Exception) else result


def _probe_of(probe: Probe | Exception, *, or_none: bool) -> Probe:
    """A probe; raises what it failed with, or, of a run that broke off, is none where that says nothing of the next question."""
    if not isinstance(probe, Exception):
        return probe
    if or_none and not isinstance(probe, BEFALLS_ALL):
        return Probe(None, 0)
    raise probe


def _loop_steps(run: RefineRun) -> list[Step]:
    """A loop's trace steps: one for each call, with the answer that it gave by itself."""
    calls = zip(run.calls, run.records, strict=True)
    return [_step(r, Probe(_whole_answer(c), 0), c.seconds, c.reasoning or c.answer or "") for c, r in calls]


def _whole_answer(run: Generation) -> str | None:
    """The answer of a run that ended by itself; what one that was cut off had written is no answer."""
    return None if is_cut(run.finish_reason) else run.answer


def _ending(run: Generation, sampling: Sampling, broke: Exception | None) -> dict[str, Any]:
    """The trace fields that say how a run ended; ``broke``: what ended it on the way."""
    word = reason(broke) if broke else run.finish_raw
    finish = "error" if broke else finish_of(word or run.finish_reason)
    return {"finish": finish, "finish_raw": word, "max_tokens": sampling.max_tokens}


def _step(record: StepRecord, probe: Probe, seconds: float, text: str) -> Step:
    return Step(
        answer=probe.answer,
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
    """A trace that can be written. Raises TraceError where a value of the question or of the run is none of a trace's."""
    field_names = Trace.__dataclass_fields__.keys()
    trace = Trace(
        id=question["id"],
        steps=steps,
        group=question.get("group"),
        question=question["question"],
        gold=question.get("gold"),
        **{name: value for name, value in fields.items() if name in field_names},
        extra={name: value for name, value in fields.items() if name not in field_names},
    )
    validate(trace.to_dict(), None, None)
    return trace
