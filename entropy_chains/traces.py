"""Recorded runs: one question, one run, one JSON line. Reading, appending, resuming.

Entropies are in bits and lower = surer; steps count from 1; the last recorded step is the full run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, BinaryIO

from entropy_chains.errors import InputError, TraceError
from entropy_chains.finish_reasons import FINISHES, run_is_cut
from entropy_chains.policy import ESTIMATORS
from entropy_chains.steps import MODES, Segmentation

PathLike = str | os.PathLike[str]

NOT_FINITE = "NaN and Infinity are not JSON; write null where a number is missing"


@dataclass(slots=True)
class Step:
    """One reasoning step of a recorded run.

    Attributes:
        answer: what the user would get if reasoning stopped after this step; None if there was none.
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


STEP_ORDER = ("answer", "correct", "entropy", "tokens", "seconds", "mass", "probe_tokens", "lower", "upper", "text")


@dataclass(slots=True)
class Trace:
    """One recorded run of one question.

    Attributes:
        id: names the run; ``group``: shared by runs of the same question (default: the question, else the id).
        steps: at least one; the last is the full run.
        gold: the right answer, compared with :func:`entropy_chains.answers.same`.
        mode: ``thinking`` or ``refine``; estimator: ``renormalised`` or ``full``; k: None = full vocabulary.
        signal: the name of what ``entropy`` holds.
        finish: how it ended, one of :data:`FINISHES`; finish_raw: the server's own word; max_tokens: the limit it ran under.
        extra: unknown fields, kept.
    """

    id: str
    steps: list[Step]
    group: str | None = None
    question: str | None = None
    gold: str | None = None
    model: str | None = None
    mode: str | None = None
    signal: str = "mean_entropy"
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
        known = {n: v for n, v in data.items() if n in TRACE_FIELDS and v is not None}
        known["steps"] = [_step(s) for s in data["steps"]]
        return cls(**known, extra={n: v for n, v in data.items() if n not in TRACE_FIELDS})


TRACE_ORDER = tuple(f.name for f in fields(Trace) if f.name not in ("steps", "extra"))


def _step(data: Mapping[str, Any]) -> Step:
    known = {n: v for n, v in data.items() if n in STEP_FIELDS and v is not None}
    return Step(
        **{"answer": None, "entropy": None} | known,
        extra={n: v for n, v in data.items() if n not in STEP_FIELDS},
    )


# --- validation: one table a record, shared by Trace.from_dict and the columnar form; a bool is not a number


def _text(v: object) -> bool:
    return isinstance(v, str)


def _amount(v: Any) -> bool:
    return (type(v) is float or type(v) is int or isinstance(v, float)) and 0 <= v <= 1e300


def _count(v: Any) -> bool:
    return type(v) is int and 0 <= v <= 2**53


def _whole(v: Any) -> bool:
    return type(v) is int and 1 <= v <= 2**53


def _share(v: Any) -> bool:
    return (isinstance(v, float) or type(v) is int) and 0 <= v <= 1.01  # rounding may push a mass above 1


def _numbers(v: Any) -> bool:
    if type(v) is not dict:
        return False
    for name, x in v.items():  # a plain loop: this is most of the work of checking a rich trace
        if not ((type(x) is float or type(x) is int or isinstance(x, float)) and -1e300 <= x <= 1e300 and isinstance(name, str)):
            return False
    return True


def _segmentation(v: Any) -> bool:
    try:
        return isinstance(v, dict) and Segmentation.from_dict(v) is not None
    except (InputError, TypeError):
        return False


_AMOUNT = "a finite number of at least 0"
_Check = tuple[Callable[[Any], bool], str, bool]  # the check, what is allowed, whether null means absent

STEP_FIELDS: dict[str, _Check] = {
    "answer": (_text, "a string, or null where there is none", True),
    "entropy": (_amount, _AMOUNT + ", in bits, or null where it is missing", True),
    "tokens": (_count, "a whole number of at least 0", False),
    "correct": (lambda v: v is True or v is False, "true or false", True),
    "seconds": (_amount, _AMOUNT, True),
    "probe_tokens": (_count, "a whole number of at least 0", True),
    "mass": (_share, "a probability, 0 to 1", True),
    "lower": (_amount, _AMOUNT + ", in bits", True),
    "upper": (_amount, _AMOUNT + ", in bits", True),
    "text": (_text, "a string", True),
    "signals": (_numbers, "an object of finite numbers by name", True),
}
TRACE_FIELDS: dict[str, _Check] = {
    "id": (_text, "a string", False),
    "steps": (lambda v: isinstance(v, list) and len(v) > 0, "a list of at least one step", False),
    **dict.fromkeys(("group", "question", "gold", "model", "signal", "temperature_mode", "template"), (_text, "a string", True)),
    "finish": (lambda v: v in FINISHES, " or ".join(FINISHES) + "; the server's own word belongs in finish_raw", True),
    "finish_raw": (_text, "a string", True),
    "mode": (lambda v: v in MODES, " or ".join(MODES), True),
    "estimator": (lambda v: v in ESTIMATORS, " or ".join(ESTIMATORS), True),
    "k": (_whole, "a whole number of at least 1, or null for the full vocabulary", True),
    "temperature": (_amount, _AMOUNT, True),
    "segmentation": (_segmentation, 'an object such as {"boundary": "line", "min_tokens": 32}', True),
    **dict.fromkeys(("vocab_size", "max_tokens"), (_whole, "a whole number of at least 1", True)),
    "batch": (_count, "a whole number of at least 0", True),
    "seed": (lambda v: type(v) is int, "a whole number", True),
}


def _fault(record: Any, checks: dict[str, _Check], needed: tuple[str, ...], name: str) -> tuple[str, str] | None:
    """The first field at fault and what is wrong with it, or None."""
    if type(record) is not dict:
        return "", f"{name} is {_short(record)}; it must be a JSON object"
    for key, value in record.items():
        check = checks.get(key)
        if check is not None and not ((value is None and check[2]) or check[0](value)):
            return key, f"{key} is {_short(value)}; it must be {check[1]}"
    for key in needed:
        if key not in record:
            return key, f"{name} has no {key!r}; it must be {checks[key][1]}"
    return None


_LARGEST: dict[str, float] = {"mass": 1.01, **dict.fromkeys(("entropy", "seconds", "lower", "upper"), 1e300)}
_MOST: dict[str, float] = dict.fromkeys(("tokens", "probe_tokens"), 2**53)


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
            plain = key in ("answer", "text")
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
        for number, step in enumerate(data["steps"]):
            if not _is_plain(step):
                fault = _fault(step, STEP_FIELDS, ("answer", "entropy", "tokens"), "the step")
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


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} found: {NOT_FINITE}")


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def _parse(raw: bytes) -> Any:
    """A line's JSON. Raises ValueError (JSON, UTF-8, NaN) or RecursionError."""
    return _DECODER.decode(raw.decode("utf-8"))


# --- reading


def records(path: PathLike, recover: bool = False) -> Iterator[tuple[str, int, Any]]:
    """File, line number and parsed, not yet validated, object of each line, one at a time."""
    name, found = os.fspath(path), False
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed by the with below; only opening is inside the try
    except OSError as error:
        raise TraceError(f"{name} cannot be read ({error.strerror}); make traces with `entropy-chains record`") from error
    with file:
        for number, raw in enumerate(file, 1):
            if raw.isspace():
                continue
            try:
                data = _parse(raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw)
            except (ValueError, RecursionError) as error:
                if raw.endswith(b"\n"):
                    raise TraceError(f"not a line of JSON ({error})", file=name, line=number) from error
                if recover:
                    break
                remedy = "recording it with --resume, or recover=True, drops that line"
                raise TraceError(f"the last line is torn ({error}); {remedy}", file=name, line=number) from error
            found = True
            yield name, number, data
    if not found:
        raise TraceError("holds no traces; record some with `entropy-chains record`", file=name)


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
    except (ValueError, TypeError) as error:
        raise TraceError(f"trace {trace.id!r} cannot be written as JSON ({error}); {NOT_FINITE}") from error


def _open_recovered(path: PathLike) -> BinaryIO:
    """Open for appending after a possible kill: a partial last line is cut off, a missing last newline is added."""
    name = os.fspath(path)
    try:
        # unbuffered: a line is one write, or is cut off again
        file = open(path, "ab+", buffering=0)  # noqa: SIM115 - the caller closes it
    except OSError as error:
        raise TraceError(f"{name} cannot be written ({error.strerror}); name a file in a folder you can write to") from error
    start = end = file.seek(0, os.SEEK_END)
    tail = b""
    while start and b"\n" not in tail:
        block = min(65536, start)
        start = file.seek(start - block)
        tail = file.read(block) + tail
    tail = tail[tail.rfind(b"\n") + 1 :]
    if not tail:
        return file
    if not tail.startswith(b"{"):  # not what a killed recorder leaves: never change somebody's other file
        file.close()
        raise TraceError("ends in something that is not a trace; name another file", file=name)
    try:
        _parse(tail)
        file.write(b"\n")
    except (ValueError, RecursionError):
        file.truncate(end - len(tail))
    return file


def _append(file: BinaryIO, lines: bytes) -> None:
    start = file.seek(0, os.SEEK_END)
    try:
        rest = memoryview(lines)
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
    except BaseException:
        file.truncate(start)
        raise


def append_traces(path: PathLike, traces: Iterable[Trace]) -> None:
    """Append traces to a file, a line each, and wait until they are on the disk. If one is bad, nothing is written."""
    lines = b"".join(map(_line, traces))
    with _open_recovered(path) as file:
        _append(file, lines)


class TraceWriter:
    """A recorder's open file. Each trace is on the disk when :meth:`write` returns; a kill loses at most the one being written.

    Attributes:
        ids: ids of the traces in the file, for resuming.
    """

    def __init__(self, path: PathLike) -> None:
        self._file = _open_recovered(path)
        try:
            held = self._file.seek(0, os.SEEK_END) > 0
            self.ids: set[str] = {t.id for t in iter_traces(path)} if held else set()
        except BaseException:
            self._file.close()
            raise

    def write(self, trace: Trace) -> None:
        """Append one trace. Raises TraceError, and writes nothing, if it is not valid."""
        _append(self._file, _line(trace))
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
