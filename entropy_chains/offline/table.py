"""Recorded runs as columns: what diagnosis, calibration and replay compute on. At most 200 bytes a step.

Rows are steps, runs are contiguous, and every array over steps has the same order. Entropies are in bits, lower = surer;
a missing number is NaN; steps count from 1; the last step of a run is the full run.
"""

from __future__ import annotations

import os
import warnings
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from entropy_chains.core import answers
from entropy_chains.core.answers import Grader
from entropy_chains.core.finish_reasons import run_is_cut
from entropy_chains.core.policy import Policy
from entropy_chains.core.signals import MEAN, Signal
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import InputError, TraceError
from entropy_chains.files import PathLike
from entropy_chains.offline.equality import Equality
from entropy_chains.offline.trace_lines import records
from entropy_chains.offline.traces import Trace, validate

Array = np.ndarray[Any, Any]

ONE_PER_FILE = ("model", "estimator", "k", "mode", "signal", "temperature_mode", "segmentation", "template", "grade")


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Recorded runs as columns.

    Attributes:
        offsets: first row of each run and, last, the number of rows, int64 [runs + 1].
        group: code of each run's group, 0 to groups - 1, int32 [runs]; ids: each run's id.
        cut: the run was cut off, so that nobody knows its full answer, bool [runs].
        run, step: of each row; the run from 0, the step from 1, int32 [rows].
        entropy, mass, seconds: of each row, float64 [rows], NaN = missing.
        tokens, probe_tokens: of each row, int64 [rows]; a probe that is not recorded cost 0.
        correct: the row's answer equals the label, int8 [rows]; answered: it has an answer, bool [rows].
        same_as_previous, same_as_last: the row's answer equals that of the step before, of the full run, bool [rows]; of a run
            that was cut off none equals the full run's.
        signals: further statistics by name, float64 [rows], NaN = missing.
        labels: ``gold`` (judged or compared with the gold answer) or ``agreement`` (with the run's own last answer).
        signal: the name of what ``entropy`` holds; model, estimator, k, mode, temperature_mode, segmentation, template: as in
            the traces, None where they do not say; grade: how their answers are compared, None: ``auto``.
        temperatures: all that occur, ascending; vocab_size: the largest that occurs; max_tokens, max_steps: the smallest limits
            that occur, None where no trace has one.
    """

    offsets: Array
    group: Array
    ids: tuple[str, ...]
    cut: Array
    run: Array
    step: Array
    entropy: Array
    mass: Array
    seconds: Array
    tokens: Array
    probe_tokens: Array
    correct: Array
    answered: Array
    same_as_previous: Array
    same_as_last: Array
    signals: dict[str, Array]
    labels: str
    signal: str
    model: str | None
    estimator: str | None
    k: int | None
    mode: str | None
    temperature_mode: str | None
    segmentation: Mapping[str, Any] | None
    template: str | None
    grade: str | None
    temperatures: tuple[float, ...]
    vocab_size: int | None
    max_tokens: int | None
    max_steps: int | None

    @classmethod
    def from_traces(cls, traces: Iterable[Trace | Mapping[str, Any]], *, grader: Grader | None = None) -> Table:
        """Columns of traces, taken one at a time; ``grader``: the function of traces with a grade ``python:NAME``."""
        builder = _Builder(grader)
        for trace in traces:
            builder.add(trace.to_dict() if isinstance(trace, Trace) else trace)
        return builder.table()

    @classmethod
    def read(cls, *paths: PathLike, grader: Grader | None = None) -> Table:
        """Columns of trace files, read a line at a time; ``grader`` as in :meth:`from_traces`."""
        builder = _Builder(grader)
        for file, line, data in chain.from_iterable(map(records, paths)):
            builder.add(data, file, line)
        return builder.table()

    @property
    def runs(self) -> int:
        """Number of runs (trace lines)."""
        return len(self.group)

    @property
    def groups(self) -> int:
        """Number of groups (questions)."""
        return int(self.group.max()) + 1

    @property
    def last(self) -> Array:
        """Row of each run's last step, int64 [runs]."""
        return self.offsets[1:] - 1

    @property
    def is_last(self) -> Array:
        """Whether a row is its run's last, bool [rows]."""
        is_last = np.zeros(len(self.run), bool)
        is_last[self.last] = True
        return is_last

    def stops_allowed(self, sees_answers: bool) -> Array:
        """Rows after which a run may be stopped, bool [rows].

        The last recorded step is never an early stop; nor is one without an answer, where that is seen (:meth:`Rule.sees_answers`).
        """
        allowed: Array = ~self.is_last & (self.answered | (not sees_answers))
        return allowed

    @property
    def longest(self) -> int:
        """Steps before the last of the run with the most."""
        return int(self.step.max()) - 1

    @property
    def full_right(self) -> Array:
        """Whether a run came to its end with the right answer, bool [runs]."""
        right: Array = (self.correct[self.last] == 1) & ~self.cut
        return right

    @property
    def accuracy_full(self) -> float | None:
        """Share of right answers among the runs that came to their end; None without gold labels or such a run."""
        labelled = self.labels == "gold" and not self.cut.all()
        return float(self.full_right[~self.cut].mean()) if labelled else None

    @property
    def lost(self) -> Array:
        """Whether stopping after this row loses the full run's right answer, bool [rows].

        What a run that was cut off would have answered is not known: there every answer that is not known to be right is lost.
        A run's last row loses nothing.
        """
        lost: Array = (self.correct == 0) & (self.full_right | self.cut)[self.run] & ~self.is_last
        return lost

    def with_cut_as_full(self) -> Table:
        """The same runs, with the end of those that were cut off taken for the full run's."""
        return replace(self, cut=np.zeros_like(self.cut))

    @property
    def nbytes(self) -> int:
        """Bytes that the arrays hold."""
        columns = (getattr(self, name) for name in self.__slots__)
        return sum(c.nbytes for c in (*columns, *self.signals.values()) if isinstance(c, np.ndarray))

    def values(self, signal: str | None = None) -> Array:
        """A signal of each row, bits, NaN where it is missing or the step's entropy is; None: what ``entropy`` holds.

        Raises:
            InputError: the traces do not record it, or higher values of it mean surer.
        """
        if signal is not None and Signal.named(signal).higher_is_surer:
            raise InputError(f"signal is {signal!r}, of which higher means surer; a threshold needs one of which lower means surer")
        if signal is None or signal == self.signal:
            return self.entropy
        if signal not in self.signals:
            recorded = ", ".join([self.signal, *(s for s in self.signals if not Signal.named(s).higher_is_surer)])
            raise InputError(f"signal is {signal!r}, which the traces do not record; they record {recorded}")
        return np.where(np.isnan(self.entropy), np.nan, self.signals[signal])

    def costs(self, every_probe: bool) -> tuple[Array, Array]:
        """Tokens spent when stopping after each row, [rows], and by each run that is not stopped, [runs]; int64.

        Args:
            every_probe: the rule reads answers or probes, and so pays for them after every step it passes; else only for the
                answer it stops with. A run's last step needs no probe: the full run's answer stands in it.
        """
        first = self.offsets[:-1]
        probes = np.where(self.is_last, 0, self.probe_tokens) if every_probe else np.zeros_like(self.tokens)
        total = np.cumsum(self.tokens + probes)
        before = (total - self.tokens - probes)[first]
        upto = total - before[self.run]
        return upto + (0 if every_probe else self.probe_tokens), upto[self.last]

    def subset(self, runs: Array) -> Table:
        """The table of some runs only; ``runs``: bool [runs]."""
        rows = runs[self.run]
        lengths = np.diff(self.offsets)[runs]
        columns = {name: getattr(self, name)[rows] for name in ("step", *_COLUMNS)}
        return replace(
            self,
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            group=np.unique(self.group[runs], return_inverse=True)[1].astype(np.int32),
            ids=tuple(name for name, chosen in zip(self.ids, runs.tolist(), strict=True) if chosen),
            cut=self.cut[runs],
            run=np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
            signals={name: column[rows] for name, column in self.signals.items()},
            **columns,
        )

    def _grade_against(self, policy: Policy) -> str | None:
        """What is compared with a policy's grade: where its rule compares answers, they must do it alike."""
        alike = (self.grade or answers.AUTO) == (policy.grade or answers.AUTO)
        return policy.grade if alike or not policy.stop_rule.compares_answers else self.grade or answers.AUTO

    def check(self, policy: Policy, on_mismatch: str = "error") -> None:
        """Compare a policy with what the traces say they are; what they do not say is not compared."""
        segmentation = None if self.segmentation is None else Segmentation.from_dict(self.segmentation)
        stated = {n: getattr(self, n) for n in ("model", "estimator", "mode", "temperature_mode", "template")}
        stated |= {"segmentation": segmentation, "k": self.k, "grade": self._grade_against(policy)}
        # A stated estimator makes an absent k the full vocabulary's.
        stated = {n: v for n, v in stated.items() if v is not None or (n == "k" and self.estimator is not None)}
        texts = policy.differences(on_mismatch, None, None, stated)
        for temperature in self.temperatures:
            texts += policy.differences(on_mismatch, temperature, None, {})
        for text in dict.fromkeys(texts):
            warnings.warn(text, stacklevel=2)
        if self.max_steps is not None and self.longest >= self.max_steps and policy.may_stop_after(self.max_steps):
            text = f"the traces hold no more than {self.max_steps} steps of a run, and the policy may stop after later ones"
            warnings.warn(f"{text}: live it can save and lose more; record without --steps to see it", stacklevel=3)


_COLUMNS = {
    "entropy": "d",
    "mass": "d",
    "seconds": "d",
    "tokens": "q",
    "probe_tokens": "q",
    "correct": "b",
    "answered": "b",
    "same_as_previous": "b",
    "same_as_last": "b",
}


class _Builder:
    """Takes records one at a time into flat arrays; keeps no object of any step."""

    def __init__(self, grader: Grader | None = None) -> None:
        self._grader = grader
        self._columns: dict[str, array[Any]] = {name: array(code) for name, code in _COLUMNS.items()}
        self._signals: dict[str, array[float]] = {}
        self._probed: set[str] = set()  # of these, the names of those read off an answer
        self._lengths, self._group, self._cut = array("i"), array("i"), array("b")
        self._groups: dict[str, int] = {}
        self._ids: list[str] = []
        self._header: dict[str, Any] | None = None
        self._labels: str | None = None
        self._temperatures: set[float] = set()
        self._vocab_size: int | None = None
        self._limits: dict[str, Any] = dict.fromkeys(("max_tokens", "max_steps"))

    def add(self, data: Any, file: str | None = None, line: int | None = None) -> None:
        validate(data, file, line)
        header = {name: data.get(name) for name in ONE_PER_FILE}
        header["signal"] = header["signal"] or MEAN
        if header != self._header:
            self._check_header(header, file, line)
        steps, get = data["steps"], data.get
        self._ids.append(data["id"])
        group = get("group") or get("question") or data["id"]
        self._group.append(self._groups.setdefault(group, len(self._groups)))
        if (temperature := get("temperature")) is not None:
            self._temperatures.add(float(temperature))
        if (size := get("vocab_size")) is not None:
            self._vocab_size = max(size, self._vocab_size or 0)
        for name, least in self._limits.items():
            if (limit := get(name)) is not None:
                self._limits[name] = min(limit, least or limit)
        self._cut.append(run_is_cut(get("finish"), steps[-1]["answer"]))
        rows = len(self._columns["entropy"])
        for name in ("entropy", "mass", "seconds"):
            self._columns[name].extend([np.nan if (v := s.get(name)) is None else v for s in steps])
        self._columns["tokens"].extend([s["tokens"] for s in steps])
        self._columns["probe_tokens"].extend([s.get("probe_tokens") or 0 for s in steps])
        self._lengths.append(len(steps))
        self._judge(steps, get("gold"), file, line)
        self._add_signals(steps, rows)

    def _check_header(self, header: dict[str, Any], file: str | None, line: int | None) -> None:
        if self._header is None:
            self._equal = Equality(header["grade"] or answers.AUTO, self._grader)
        first = self._header = self._header or header
        for name, value in header.items():
            if value != first[name] and not (name == "grade" and {value, first[name]} == {None, answers.AUTO}):
                message = f"{name} is {value!r}, but the traces before have {first[name]!r}; use files of one {name} together"
                raise TraceError(message, file=file, line=line, field=name)

    def _judge(self, steps: list[dict[str, Any]], gold: str | None, file: str | None, line: int | None) -> None:
        self._columns["answered"].extend([s["answer"] is not None for s in steps])
        run = self._equal.answers(steps)
        same_as_last = [False] * len(steps) if self._cut[-1] else self._equal.to(run, run.texts[-1])
        labels = "gold"
        if gold is not None:
            equal = self._equal.to(run, gold)
            correct = [e if (c := s.get("correct")) is None else c for s, e in zip(steps, equal, strict=True)]
        elif steps[0].get("correct") is not None:  # then all steps have it: validated
            correct = [s["correct"] for s in steps]
        else:
            labels, correct = "agreement", same_as_last
        if labels != (self._labels or labels):
            before, other = ("have", "has none") if self._labels == "gold" else ("have no", "has one")
            message = f"traces before {before} a gold answer or a judged one, this one {other}; use files of one kind together"
            raise TraceError(message, file=file, line=line, field="gold")
        self._labels = labels
        self._columns["correct"].extend(correct)
        self._columns["same_as_last"].extend(same_as_last)
        self._columns["same_as_previous"].extend(self._equal.to_previous(run))

    def _add_signals(self, steps: list[dict[str, Any]], rows: int) -> None:
        recorded = [s.get("signals") or {} for s in steps]
        for name in chain.from_iterable(recorded):
            if name not in self._signals:
                self._signals[name] = array("d", bytes(8 * rows))
                np.frombuffer(self._signals[name])[:] = np.nan
                self._probed |= {name} if Signal.named(name).source == "probe" else set()
        answered = recorded
        if self._probed:  # of no answer nobody is sure: live it is no reason to stop either
            answered = [{} if s["answer"] is None else names for s, names in zip(steps, recorded, strict=True)]
        for name, column in self._signals.items():
            read = answered if name in self._probed else recorded
            column.extend([names.get(name, np.nan) for names in read])

    def table(self) -> Table:
        if self._header is None or self._labels is None:
            raise InputError("there are no traces; give at least one, recorded with `entropy-chains record`")
        if len(self._temperatures) > 1:
            temperatures = ", ".join(map(str, sorted(self._temperatures)))
            warnings.warn(
                f"the traces have several temperatures ({temperatures}); thresholds are fitted over all of them", stacklevel=4
            )
        lengths = np.array(self._lengths, np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        run = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        step = (np.arange(len(run)) - offsets[run] + 1).astype(np.int32)
        columns: dict[str, Any] = {name: np.array(self._columns.pop(name)) for name in _COLUMNS}
        columns |= {name: columns[name].astype(bool) for name in ("answered", "same_as_previous", "same_as_last")}
        return Table(
            offsets=offsets,
            group=np.array(self._group, np.int32),
            ids=tuple(self._ids),
            cut=np.array(self._cut, bool),
            run=run,
            step=step,
            **columns,
            signals={name: np.array(self._signals.pop(name)) for name in list(self._signals)},
            labels=self._labels,
            **self._header,
            temperatures=tuple(sorted(self._temperatures)),
            vocab_size=self._vocab_size,
            **self._limits,
        )


Traces = Table | PathLike | Iterable[Trace | Mapping[str, Any]] | Iterable[PathLike]


def as_table(traces: Traces) -> Table:
    """The columns of a table, a file, several files, or traces in memory."""
    if isinstance(traces, Table):
        return traces
    if isinstance(traces, str | os.PathLike):
        return Table.read(traces)
    if not isinstance(traces, Iterable):
        raise InputError(f"traces is {traces!r}; give a trace file, several, or a list of Trace")
    items: Any = iter(traces)
    first = next(items, None)
    rest: Any = chain([] if first is None else [first], items)
    if isinstance(first, str | os.PathLike):
        return Table.read(*rest)
    return Table.from_traces(rest)
