"""The part of ``record`` between asking and telling: every trace to its file, and what is said of a recording that lacks some."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from entropy_chains import grading
from entropy_chains.backends.remote.redaction import HIDDEN, shown_address
from entropy_chains.core.answers import AUTO
from entropy_chains.errors import SettingsError, reason
from entropy_chains.offline.traces import Trace, TraceWriter, recorded
from entropy_chains.progress import interrupts, progress
from entropy_chains.questions import Question
from entropy_chains.recording import RecordError


def write_traces(
    run: Callable[..., Generator[Trace, None, None]],
    questions: Sequence[Question],
    out: Path,
    *,
    quiet: bool = False,
    redo_cut: bool = False,
) -> tuple[dict[str, Any], str | None]:
    """Write each trace of ``run`` (a :func:`record` that lacks its last arguments) as it comes.

    Args:
        run: given ``done``, ``cancelled``, ``on_failure`` and ``tell``.
        questions: all that it asks, recorded or not.
        out: the trace file.
        quiet: no progress where standard error is no terminal.
        redo_cut: runs of the file that were cut off are asked again, and replaced.

    Returns:
        What ``--json`` prints, and what is to be told where questions are left out.
    """
    failed: dict[str, str] = {}
    cut = count = 0
    given_up: str | None = None
    then = "go on with"
    tally = grading.GradeTally()
    with TraceWriter(out) as writer, progress(quiet) as track, interrupts() as interrupted:
        before = set(writer.ids) - (writer.cut if redo_cut else set())
        skipped = sum(q["id"] in before for q in questions)
        advance = track("recording", len(questions) - skipped)

        def fail(question: Question, error: Exception) -> None:
            failed[question["id"]] = reason(error)
            track.say(f"{question['id']} failed: {reason(error)}")
            advance(1)

        try:
            hooks = {"on_failure": fail, "tell": lambda text: track.say(f"warning: {text}")}
            with closing(run(done=before, cancelled=interrupted, **hooks)) as traces:
                for trace in traces:
                    writer.write(trace)
                    count += 1
                    cut += trace.is_cut
                    tally.add(trace)
                    advance(1)
        except RecordError as error:
            given_up = error.left
            then = "with other settings name another --out; as it is, go on with" if error.why else then
        total = len(writer.ids)
    result = {"recorded": count, "skipped": skipped, "cut": cut, "traces": total, "out": str(out)}
    result |= tally.to_dict()
    lacking = len(questions) - skipped - count
    if not lacking:
        return result, None
    what = "interrupted" if interrupted.is_set() else "error"
    message = f"{what}, not recorded: {lacking} of {len(questions)} questions{_reasons(list(failed), given_up)}"
    result["left_out"] = lacking
    return result | ({"failed": failed} if failed else {}), f"{message}; {then}{line_again('--resume')}"


COMPARED = (
    "model",
    "mode",
    "estimator",
    "k",
    "temperature",
    "temperature_mode",
    "segmentation",
    "system",
    "max_tokens",
    "max_steps",
    "grade",
)
"""Trace fields that all runs of one recording share, besides ``recorded_with`` and the template, which follows from that."""


def check_same_recording(out: Path, running: Mapping[str, Any], *, redo_cut: bool = False) -> None:
    """Raise SettingsError where a file was recorded with other settings than the running ones, naming the first that differs.

    Older files do not tell all settings: what they do not tell is not compared. With ``redo_cut`` the limit may be raised: a run
    that ended by itself is the same under any higher one.
    """
    first = next(recorded(out), None)
    if first is None:
        return
    was = {**first.extra, **{f.name: getattr(first, f.name) for f in fields(first)}}
    was["grade"] = was["grade"] or AUTO  # older files do not say
    shaped = next((trace.recorded_with for trace in recorded(out) if trace.recorded_with), {})
    options = {name: f"--{name.replace('_', '-')}" for name in running.get("recorded_with") or () if name in shaped}
    compared = {name: (was.get(name), running.get(name), "") for name in COMPARED}
    compared |= {option: (shaped[n], running["recorded_with"][n], f", or set {option} as it was") for n, option in options.items()}
    compared["template"] = was["template"], running.get("template"), ""
    for name, (before, now, remedy) in compared.items():
        if name == "max_tokens":
            if redo_cut and before is not None and now is not None and now >= before:
                continue
            remedy = "; --redo-cut takes a higher one for the runs that were cut off"
        if before != now:
            raise SettingsError(f"{out} was recorded with {name} {before!r}, this run has {now!r}; name another --out{remedy}")


def _reasons(failed: Sequence[str], given_up: str | None) -> str:
    named = ", ".join(failed[:10]) + (f" and {len(failed) - 10} more" if len(failed) > 10 else "")
    why = [f"{named} failed"] if failed else []
    why += [given_up] if given_up else []
    return f" ({'; '.join(why)})" if why else ""


def line_again(*more: str) -> str:
    """A colon and the running command as it was typed, with further options; before it, what to put in for secrets left out."""
    context = click.get_current_context()
    words, hint = ["entropy-chains", str(context.info_name)], ""
    for option in context.command.params:
        name = str(option.name)
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            value = context.params[name]
            if name == "base_url" and shown_address(value) != value:
                value, hint = shown_address(value), f" (put in the same --base-url: {HIDDEN} stands for what is not shown of it)"
            for each in value if option.multiple else [value]:
                values = each if isinstance(each, tuple) else () if each is True else (each,)
                words += [option.opts[-1], *map(str, values)]
    return f"{hint}: {shlex.join([*words, *(word for word in more if word not in words)])}"
