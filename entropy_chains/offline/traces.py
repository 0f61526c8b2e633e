"""Recorded runs: one question, one run, one JSON line. Reading, appending, resuming.

Entropies are in bits and lower = surer; steps count from 1; the last recorded step is the full run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from entropy_chains.core.finish_reasons import FINISHES, run_is_cut
from entropy_chains.core.policy_fields import FIELDS, MOST_BITS_A_TOKEN, NOT_BY_TOKEN
from entropy_chains.core.signals import MEAN, Signal
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import InputError, TraceError
from entropy_chains.files import AppendedFile, PathLike, check_outputs, holds_data
from entropy_chains.offline.trace_lines import is_torn, parse, records
from entropy_chains.validation import (
    COUNT,
    LARGEST_COUNT,
    LARGEST_NUMBER,
    NOT_FINITE,
    WHOLE,
    Check,
    first_fault,
    is_amount,
    is_count,
    is_share,
    is_text,
    is_whole,
    short,
)  # fmt: skip


@dataclass(slots=True)
class Step:
    """One reasoning step of a recorded run.

    Attributes:
        answer: what the user would get if reasoning stopped after this step; None if there was none.
        read: what grading read in it.
        entropy: the trace's signal over the step's tokens, bits, lower = surer; None where logprobs are missing.
        tokens: tokens computed in this step.
        correct: the answer is right, where that was judged; wins over the trace's gold answer.
        seconds: wall time of the step.
        probe_tokens: what asking for the answer here cost, in tokens.
        mass: mean probability the top-k entries hold, 0 to 1.
        lower, upper: means of the bounds of the true entropy, bits.
        signals: further statistics by name, as ``sum_entropy`` (bits).
        extra: unknown fields, kept.
    """

    answer: str | None
    entropy: float | None
    tokens: int
    correct: bool | None = None
    read: str | None = None
    seconds: float | None = None
    probe_tokens: int | None = None
    mass: float | None = None
    lower: float | None = None
    upper: float | None = None
    text: str | None = None
    signals: dict[str, float] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The form in a trace file; absent fields are left out."""
        written = {n: v for n in STEP_ORDER if (v := getattr(self, n)) is not None or n in ("answer", "entropy")}
        return written | ({"signals": dict(self.signals)} if self.signals else {}) | self.extra


STEP_ORDER = ("answer", "read", "correct", "entropy", "tokens", "seconds", "mass", "probe_tokens", "lower", "upper", "text")


@dataclass(slots=True)
class Trace:
    """One recorded run of one question.

    Attributes:
        id: names the run; ``group``: shared by runs of the same question (default: the question, else the id).
        steps: at least one; the last is the full run.
        gold: the right answer; grade: how it is compared with the steps' answers, and they with each other
            (:func:`entropy_chains.core.answers.comparer`; None: ``auto``).
        mode: ``thinking`` or ``refine``; estimator: ``renormalised`` or ``full``; k: None = full vocabulary.
        signal: the name of what ``entropy`` holds.
        finish: how it ended, one of :data:`FINISHES`; finish_raw: the server's own word; max_tokens: the limit it ran under.
        max_steps: so many boundaries of a thinking run were recorded at most; later steps are part of the last one. None: all.
        recorded_with: settings of the backend that shaped the run and stand in no field of their own, by name; what they may be is
            the backend's affair.
        extra: unknown fields, kept.
    """

    id: str
    steps: list[Step]
    group: str | None = None
    question: str | None = None
    gold: str | None = None
    grade: str | None = None
    model: str | None = None
    mode: str | None = None
    signal: str = MEAN
    estimator: str | None = None
    k: int | None = None
    temperature: float | None = None
    temperature_mode: str | None = None
    segmentation: dict[str, Any] | None = None
    template: str | None = None
    vocab_size: int | None = None
    batch: int | None = None
    seed: int | None = None
    finish: str | None = None
    finish_raw: str | None = None
    max_tokens: int | None = None
    max_steps: int | None = None
    recorded_with: dict[str, Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def is_cut(self) -> bool:
        """Whether the run was cut off, so that nobody knows its full answer."""
        return run_is_cut(self.finish, self.steps[-1].answer)

    def to_dict(self) -> dict[str, Any]:
        """The form in a trace file; absent fields are left out, ``steps`` come last."""
        written = {n: v for n in TRACE_ORDER if (v := getattr(self, n)) is not None}
        return written | self.extra | {"steps": [s.to_dict() for s in self.steps]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], file: str | None = None, line: int | None = None) -> Trace:
        """Read a trace file's object. Raises TraceError that names file, line, field and remedy."""
        validate(data, file, line)
        values = {n: v for n, v in data.items() if n in TRACE_FIELDS and v is not None}
        values["steps"] = [_step(s) for s in data["steps"]]
        return cls(**values, extra={n: v for n, v in data.items() if n not in TRACE_FIELDS})


TRACE_ORDER = tuple(f.name for f in fields(Trace) if f.name not in ("steps", "extra"))


def _step(data: Mapping[str, Any]) -> Step:
    values = {n: v for n, v in data.items() if n in STEP_FIELDS and v is not None}
    return Step(
        **{"answer": None, "entropy": None} | values,
        extra={n: v for n, v in data.items() if n not in STEP_FIELDS},
    )


# --- validation: one table a record, shared by Trace.from_dict and the columnar form; a bool is not a number


def _numbers(v: Any) -> bool:
    if type(v) is not dict:
        return False
    for name, x in v.items():  # a plain loop: this is most of the work of checking a rich trace
        if not (
            (type(x) is float or type(x) is int or isinstance(x, float))
            and -LARGEST_NUMBER <= x <= LARGEST_NUMBER
            and isinstance(name, str)
        ):
            return False
    return True


def _segmentation(v: Any) -> bool:
    try:
        return isinstance(v, dict) and Segmentation.from_dict(v) is not None
    except (InputError, TypeError):
        return False


_AMOUNT = f"a finite number of at least 0, at most {LARGEST_NUMBER:g}"

STEP_FIELDS: dict[str, Check] = {
    "answer": Check(is_text, "a string, or null where there is none", nullable=True),
    "entropy": Check(is_amount, _AMOUNT + ", in bits, or null where it is missing", nullable=True),
    "tokens": Check(is_count, COUNT),
    "read": Check(is_text, "a string", nullable=True),
    "correct": Check(lambda v: v is True or v is False, "true or false", nullable=True),
    "seconds": Check(is_amount, _AMOUNT, nullable=True),
    "probe_tokens": Check(is_count, COUNT, nullable=True),
    "mass": Check(is_share, "a probability, 0 to 1", nullable=True),
    "lower": Check(is_amount, _AMOUNT + ", in bits", nullable=True),
    "upper": Check(is_amount, _AMOUNT + ", in bits", nullable=True),
    "text": Check(is_text, "a string", nullable=True),
    "signals": Check(_numbers, f"an object of finite numbers by name, of size {LARGEST_NUMBER:g} at most", nullable=True),
}
TRACE_FIELDS: dict[str, Check] = {
    "id": Check(is_text, "a string"),
    "steps": Check(lambda v: isinstance(v, list) and len(v) > 0, "a list of at least one step"),
    **dict.fromkeys(
        ("group", "question", "gold", "finish_raw"),
        Check(is_text, "a string", nullable=True),
    ),
    **{
        name: FIELDS[name]._replace(nullable=True)  # calibration writes them into the policy
        for name in ("model", "mode", "signal", "estimator", "k", "temperature_mode", "template", "grade")
    },
    "finish": Check(
        lambda v: v in FINISHES, " or ".join(FINISHES) + "; the server's own word belongs in finish_raw", nullable=True
    ),
    "temperature": Check(is_amount, _AMOUNT, nullable=True),
    "segmentation": Check(_segmentation, 'an object such as {"boundary": "line", "min_tokens": 32}', nullable=True),
    **dict.fromkeys(("vocab_size", "max_tokens", "max_steps"), Check(is_whole, WHOLE, nullable=True)),
    "recorded_with": Check(lambda v: isinstance(v, dict), "an object of settings by name", nullable=True),
    "batch": Check(is_count, COUNT, nullable=True),
    "seed": Check(lambda v: type(v) is int, "a whole number", nullable=True),
}


def _fault(record: Any, checks: dict[str, Check], needed: tuple[str, ...], name: str) -> tuple[str, str] | None:
    """The first field at fault or missing and what is wrong with it, or None."""
    if type(record) is not dict:
        return "", f"{name} is {short(record)}; it must be a JSON object"
    missing = ((key, f"{name} has no {key!r}; it must be {checks[key].wanted}") for key in needed if key not in record)
    return first_fault(record, checks) or next(missing, None)


_LARGEST: dict[str, float] = {"mass": 1.01, **dict.fromkeys(("entropy", "seconds", "lower", "upper"), LARGEST_NUMBER)}
_MOST: dict[str, float] = dict.fromkeys(("tokens", "probe_tokens"), LARGEST_COUNT)


def _is_plain(step: Any) -> bool:
    """Whether a step surely has no fault: the common forms, in a third of the time of :func:`_fault`, which knows all."""
    if type(step) is not dict or "answer" not in step or "entropy" not in step or "tokens" not in step:
        return False
    for key, value in step.items():
        kind = type(value)
        if kind is float:
            plain = 0 <= value <= _LARGEST.get(key, -1)
        elif kind is int:
            plain = 0 <= value <= _MOST.get(key, -1)
        elif kind is str:
            plain = key in ("answer", "text", "read")
        elif kind is dict:
            plain = key == "signals" and _numbers(value)
        else:
            plain = key == "correct" if kind is bool else value is None and key != "tokens"
        if not plain:
            return False
    return True


def validate(data: Any, file: str | None, line: int | None) -> None:
    """Raise TraceError, naming file, line, field and remedy, unless ``data`` is a trace file's object."""
    fault = _fault(data, TRACE_FIELDS, ("id", "steps"), "the trace")
    if fault is None:
        judged = 0
        by_token = Signal.named(data.get("signal") or MEAN).bits_a_token
        for number, step in enumerate(data["steps"]):
            if not _is_plain(step):
                fault = _fault(step, STEP_FIELDS, ("answer", "entropy", "tokens"), "the step")
            if fault is None and by_token and (step["entropy"] or 0) > MOST_BITS_A_TOKEN:
                fault = "entropy", f"entropy is {step['entropy']:g}; {NOT_BY_TOKEN}"
            if fault is not None:
                at = f"steps[{number}]"
                fault = (f"{at}.{fault[0]}" if fault[0] else at), f"{at}: {fault[1]}"
                break
            judged += step.get("correct") is not None
        else:
            if judged and judged < len(data["steps"]) and data.get("gold") is None:
                fault = "correct", f"correct is given for {judged} of {len(data['steps'])} steps; give it for all, or give gold"
    if fault is not None:
        raise TraceError(fault[1], file=file, line=line, field=fault[0] or None)


# --- reading


def iter_traces(*paths: PathLike, recover: bool = False) -> Iterator[Trace]:
    """The traces of files, read as they are asked for. ``recover`` leaves out a torn last line instead of refusing it."""
    for path in paths:
        for file, line, data in records(path, recover):
            yield Trace.from_dict(data, file, line)


def read_traces(*paths: PathLike, recover: bool = False) -> list[Trace]:
    """All traces of files. Raises TraceError that names file, line and field of the first bad one."""
    return list(iter_traces(*paths, recover=recover))


# --- appending


def _line(trace: Trace) -> bytes:
    data = trace.to_dict()
    validate(data, None, None)
    try:
        return json.dumps(data, allow_nan=False).encode() + b"\n"
    except (ValueError, TypeError, RecursionError) as error:
        why = "it is nested too deep" if isinstance(error, RecursionError) else f"{error}; {NOT_FINITE}"
        raise TraceError(f"trace {short(trace.id)} cannot be written as JSON ({why})") from error


def _torn_line(file: AppendedFile) -> bytes:
    """What a kill left of the last line of a trace file; empty if that line is whole.

    Raises:
        TraceError: it is not certain that this is a trace file, so it must not be changed.
    """
    if not holds_data(file.path):
        return b""
    name, last = os.fspath(file.path), b""
    try:
        before = next(iter_traces(name, recover=True), None)
        if last := file.last_line():
            validate(parse(last), name, None)
        return b""
    except TraceError as error:
        raise TraceError(f"is not a trace file, so nothing is appended ({error}); name another file", file=name) from error
    except ValueError as error:
        if is_torn(last, first=before is None):
            return last
        raise TraceError(f"ends in something that is not a trace ({error}); name another file", file=name) from error


def _recover(file: AppendedFile, torn: bytes) -> None:
    """Make a file ready for the next line after a possible kill: without the torn line, and with the last line's end."""
    if torn:
        file.cut(len(torn))
    elif file.last_line():
        file.append(b"\n")


def recorded(path: PathLike) -> Iterator[Trace]:
    """The traces of a file that is to be appended to: none where it is missing or empty; a torn last line is left out."""
    return iter_traces(path, recover=True) if holds_data(path) else iter(())


def check_appendable(path: PathLike) -> None:
    """Raise OutputError or TraceError unless traces can be appended to this file. Nothing is changed."""
    check_outputs((), appended=[path])
    if holds_data(path):
        with AppendedFile(path) as file:
            _torn_line(file)


def append_traces(path: PathLike, traces: Iterable[Trace]) -> None:
    """Append traces to a file, a line each, and wait until they are on the disk. If one is bad, nothing is written."""
    lines = b"".join(map(_line, traces))
    with AppendedFile(path) as file:
        _recover(file, _torn_line(file))
        file.append(lines)


class TraceWriter:
    """A recorder's open file. Each trace is on the disk when :meth:`write` returns; a kill loses at most the one being written.

    Opening raises OutputError where nothing can be written, and TraceError where it is not certain that a file is a trace file.

    Attributes:
        ids: ids of the traces in the file, for resuming.
        cut: those of them whose runs were cut off.
    """

    def __init__(self, path: PathLike) -> None:
        self._file = AppendedFile(path)
        try:
            torn = _torn_line(self._file)
            there = [(t.id, t.is_cut) for t in recorded(path)]  # all lines are read before the file is changed
            self.ids: set[str] = {name for name, _ in there}
            self.cut: set[str] = {name for name, is_cut in there if is_cut}
            _recover(self._file, torn)
        except BaseException:
            self.close()
            raise

    def write(self, trace: Trace) -> None:
        """Append one trace, or put it in the place of the one with its id. Raises TraceError, and writes nothing, if it is bad."""
        line = _line(trace)
        if trace.id in self.ids:
            with open(self._file.path, "rb") as file:
                others = [one for one in file if parse(one)["id"] != trace.id]
            self._file.replace(b"".join([*others, line]))
        else:
            self._file.append(line)
        self.ids.add(trace.id)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_for_append(path: PathLike) -> TraceWriter:
    """Open a trace file for a recorder, new or to be resumed; a torn last line of it is recovered."""
    return TraceWriter(path)
