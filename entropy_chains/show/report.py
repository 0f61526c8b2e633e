"""One self-contained page about recorded runs, a policy and, where there was one, a live run: no script, no outside resource.

All text from models, questions and files goes through jinja2's autoescaping; the plots hold no such text but the signal's name.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from entropy_chains.core.policy import Policy
from entropy_chains.core.policy_fields import BY_HAND
from entropy_chains.core.signals import Signal
from entropy_chains.errors import InputError, MissingExtraError, one_line
from entropy_chains.files import PathLike, check_outputs, write_file
from entropy_chains.offline import cut_runs
from entropy_chains.offline.diagnose import diagnose, judged_rows
from entropy_chains.offline.published import oracle_stops
from entropy_chains.offline.replay import ReplayResult, decisions, judge, replay
from entropy_chains.offline.table import Array, Table, Traces, as_table
from entropy_chains.offline.trace_lines import records
from entropy_chains.offline.traces import Trace
from entropy_chains.options import OnMismatch
from entropy_chains.savings.figures import latency
from entropy_chains.show import advice, plots, wording

TEMPLATE = Path(__file__).with_name("report.html.j2")

CURVE_ROWS = 60_000
"""Steps that the curve over thresholds is computed on at most; above it a seeded part of the runs."""

CURVE_POINTS = 60
LONGEST_TEXT = 1500
"""Characters shown of a step's text; longer ones lose their middle."""


def write_report(path: PathLike, traces: Traces, policy: Policy | None = None, **settings: Any) -> None:
    """Write :func:`build_report`'s page to a file, as UTF-8. Raises OutputError if that is one of the files the traces are in."""
    source = _at_hand(traces)
    sources = source if isinstance(source, list) else [source]
    check_outputs([path], [t for t in sources if isinstance(t, str | os.PathLike)])
    write_file(path, build_report(source, policy, **settings))


def build_report(
    traces: Traces,
    policy: Policy | None = None,
    *,
    live: Mapping[str, Any] | None = None,
    title: str = "entropy-chains",
    on_mismatch: OnMismatch = "error",
    seed: int = 0,
) -> str:
    """The page as a string of HTML.

    Args:
        traces: recorded full runs: a table, a file, several, or traces in memory. A table has no texts, so no examples are shown.
        policy: replayed on the runs; None: the page says what stopping could save.
        live: what a live run gave, with the keys of ``demo.json``; its figures then stand in the headline instead of replayed ones.
        title: heading of the page.
        on_mismatch: ``error`` or ``warn`` where the traces are of another model or other settings than the policy.
        seed: of the bootstrap and of every draw.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
        InputError: bad traces, or a policy for something else.
    """
    try:
        import jinja2
    except ImportError as error:
        raise MissingExtraError("jinja2", "report") from error
    source = _at_hand(traces)
    table = as_table(source)
    signal = table.signal if policy is None or not policy.stop_rule.reads_signal else policy.signal
    if policy is None:
        replayed = judge(table, np.zeros(table.runs, np.int64), every_probe=False, seed=seed)
    else:
        replayed = replay(table, policy, seed=seed, on_mismatch=on_mismatch)
    diagnosis = diagnose(table, signal=signal, seed=seed)
    stopping = policy is not None and policy.active
    figures = dict(live) if live is not None else replayed.to_dict() if stopping else None
    oracle = replayed.oracle_tokens_saved if figures is None else figures.get("oracle_tokens_saved")
    words = wording.Words(table.labels, live=live is not None)
    # What is no text in a page (NUL, escapes of a terminal) is shown by a sign; line ends stay.
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, finalize=_printable)
    page: str = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=title,
        subtitle=words.subtitle(table, figures),
        lead=f"{words.lead(figures, policy, oracle)} {cut_runs.of_figures(figures or diagnosis.to_dict())}".strip(),
        cards=words.cards(figures, diagnosis, oracle, table),
        stopping=words.stopping(policy, "" if policy is None else f"{advice.evidence(policy)} {advice.next_step(policy)}".strip()),
        verdict=words.verdict(diagnosis, signal),
        plots=[
            {"title": name, "svg": _safe(svg), "caption": caption}
            for name, svg, caption in _plots(table, policy, replayed if stopping else None, signal, live, words, seed)
        ],
        rows=words.rows(figures, diagnosis, table),
        judged=words.judged,
        steps=words.steps(diagnosis),
        facts=[] if policy is None else words.facts(policy),
        examples=[] if isinstance(source, Table) else _examples(source, table, policy, replayed if stopping else None, signal),
        footer="Made by entropy-chains. Entropies in bits, lower = surer; steps count from 1; the last step is the full run.",
    )
    return page.encode("utf-8", "replace").decode("utf-8") + "\n"  # a lone surrogate in a model's text cannot be written


def _printable(value: object) -> object:
    if not isinstance(value, str) or hasattr(value, "__html__") or value.isprintable():
        return value
    return "\n".join(map(one_line, value.split("\n")))


def _safe(svg: str) -> Any:
    """Our own drawing, not to be escaped again."""
    from markupsafe import Markup

    return Markup(svg)  # noqa: S704  matplotlib escapes the text it writes, plots.drawn the alternative text


def _reading(table: Table, policy: Policy | None) -> Policy:
    """A policy that reads the signal as this one does, to walk thresholds with; the entropy rule where it reads none."""
    if policy is not None and policy.stop_rule.reads_signal:
        return replace(policy, active=True, method=BY_HAND, reason="uncertified")
    return Policy(table.model or "unknown", (None,), signal=table.signal)


# --- plots


def _plots(
    table: Table, policy: Policy | None, replayed: ReplayResult | None, signal: str, live: Mapping[str, Any] | None,
    words: wording.Words, seed: int,
) -> list[tuple[str, str, str]]:  # fmt: skip
    """Title, drawing and caption of each plot that the data allow."""
    label = Signal.named(signal).title
    drawn = []
    if not table.cut.all():  # else there is no accuracy to draw
        tradeoff = _tradeoff(table, policy, replayed, words, seed)
        drawn.append(("What stopping costs and saves", tradeoff, words.tradeoff_caption(table)))
    values, first = table.values(signal), table.step == 1
    measured = first & ~np.isnan(values) & judged_rows(table)
    right, wrong = values[measured & (table.correct == 1)], values[measured & (table.correct == 0)]
    threshold = policy.stop_rule.threshold(1) if policy is not None and policy.active else None
    if len(right) or len(wrong):
        names = words.classes
        caption = f"{label[:1].upper()}{label[1:]} after step 1, answers {names[0]} and {names[1]}, each as shares of its group."
        if policy is not None and threshold is not None and policy.min_steps > 1:
            caption += f" This policy first stops after step {policy.min_steps}."
        drawn.append((words.signal_title, plots.right_and_wrong(right, wrong, threshold, label, names), caption))
    if replayed is not None:
        counts = list((live or {}).get("stops_at_step") or replayed.stops_at_step)
        total = int((live or {}).get("questions") or sum(counts)) if live else replayed.questions
        where = "Live runs." if live else "Replayed on the recorded runs."
        drawn.append(("Where runs stopped", plots.stops(counts, max(0, total - sum(counts))), where))
        lost, gained = words.lost_and_gained(table, replayed)
        full = np.add.reduceat(table.tokens, table.offsets[:-1])
        caption = "Each dot is a recorded run, replayed; below the diagonal it was stopped, and the distance is what was saved."
        if table.runs > plots.MOST_DOTS:
            caption += f" {plots.MOST_DOTS:,} of {table.runs:,} runs, drawn at random."
        drawn.append(
            ("Tokens a question", plots.tokens_a_question(full, replayed.run_tokens, lost, gained, words.changes), caption)
        )
        drawn += _latency_plots(table, replayed, live)
    return drawn


def _latency_plots(table: Table, replayed: ReplayResult, live: Mapping[str, Any] | None) -> list[tuple[str, str, str]]:
    full, stopped = ((live or {}).get(name) for name in ("latency_full", "latency"))
    meaning = "Bar: median (thick) to 95th percentile; dot and whiskers: mean ± standard deviation."
    if full and stopped:
        return [("Latency", plots.durations(full, stopped, "measured live"), f"{meaning} Measured live, one question at a time.")]
    if live is not None or np.isnan(table.seconds).any():
        return []
    upto = np.cumsum(table.seconds)
    spent = upto - (upto - table.seconds)[table.offsets[:-1]][table.run]
    row = np.where(replayed.stop_step > 0, table.offsets[:-1] + replayed.stop_step - 1, table.last)
    whole, early = (latency(np.maximum(spent[r], 0.0).tolist()) for r in (table.last, row))
    caption = f"{meaning} Full runs as recorded; with stopping estimated: the recorded seconds up to the stop."
    return [("Latency", plots.durations(whole, early, "recorded; stopping estimated"), caption)]


def _tradeoff(table: Table, policy: Policy | None, replayed: ReplayResult | None, words: wording.Words, seed: int) -> str:
    """The curve over thresholds, fixed steps, full and oracle on (a part of) the runs; the policy's own point on all."""
    part = table
    if len(table.step) > CURVE_ROWS:
        chosen = np.zeros(table.runs, bool)
        chosen[plots.part_of(table.runs, max(1, CURVE_ROWS * table.runs // len(table.step)), seed)] = True
        part = table.subset(chosen)
    reading = _reading(part, policy)
    values = part.values(reading.signal)
    finite = values[~np.isnan(values) & ~part.is_last]
    every = reading.stop_rule.reads_answers
    thresholds = np.unique(np.quantile(finite, np.linspace(0, 1, CURVE_POINTS))) if len(finite) else np.zeros(0)
    points = [_point(part, np.zeros(part.runs, np.int64), every)]
    points += [_point(part, decisions(part, replace(reading, thresholds=(float(t),))), every) for t in thresholds]
    lengths = np.diff(part.offsets)
    fixed = [_point(part, np.where(lengths > s, s, 0), False) for s in range(1, int(lengths.max()) + 1)]
    full = _point(part, np.zeros(part.runs, np.int64), False)
    oracle = _point(part, oracle_stops(part), False)
    policy_point = None
    if replayed is not None:
        mean_full = replayed.tokens_full / replayed.questions
        share = float(replayed.run_correct[~table.cut].mean())
        policy_point = {
            "tokens": replayed.tokens / replayed.questions,
            "accuracy": share,
            "tokens_error": wording.distances(replayed.tokens_saved_interval, replayed.tokens_saved, mean_full, flipped=True),
            "accuracy_error": wording.distances(replayed.accuracy_change_interval, replayed.accuracy_change or 0.0, 1.0),
        }
    return plots.accuracy_against_tokens(
        np.array(points), np.array(fixed), [("full", *full), ("oracle", *oracle)], policy_point, words.judged
    )


def _point(table: Table, stops: Array, every_probe: bool) -> tuple[float, float]:
    """Mean tokens a run, and of those not cut off the share judged right, when each stops after the given step, 0 = in full."""
    row = np.where(stops > 0, table.offsets[:-1] + stops - 1, table.last)
    stop_cost, full_cost = table.costs(every_probe)
    return float(np.where(stops > 0, stop_cost[row], full_cost).mean()), float(table.correct[row][~table.cut].mean())


# --- examples


def _examples(source: Any, table: Table, policy: Policy | None, replayed: ReplayResult | None, signal: str) -> list[dict[str, Any]]:
    """A few runs with their texts, each kind of outcome once or twice."""
    right_full = table.full_right
    if replayed is not None:
        stops, right = replayed.stop_step, replayed.run_correct
        kinds = [
            (stops > 0) & right & right_full,
            right_full & ~right,
            right & ~right_full,
            (stops == 0) & right,
            (stops > 0) & ~right & ~right_full,
            (stops == 0) & ~right,
        ]
        most = [2, 2, 1, 1, 1, 1]
    else:
        stops = np.zeros(table.runs, np.int64)
        kinds, most = [right_full, ~right_full], [2, 2]
    chosen: list[int] = []
    for kind, count in zip(kinds, most, strict=True):
        chosen += [int(i) for i in np.flatnonzero(kind)[:count]]
    values = table.values(signal)
    name, stopping = signal or table.signal, replayed is not None
    return [_example(_load(source, run), run, table, policy, name, values, int(stops[run]), stopping) for run in chosen]


def _at_hand(traces: Traces) -> Any:
    """The same traces, so that they can be read twice: for the columns, and for a few texts."""
    return list(traces) if isinstance(traces, Iterable) and not isinstance(traces, Table | str) else traces


def _load(source: Any, run: int) -> Mapping[str, Any]:
    """The run's record, from memory or from its file."""
    if isinstance(source, str | os.PathLike):
        source = [source]
    if isinstance(source[0], Trace | Mapping):
        item = source[run]
        return item.to_dict() if isinstance(item, Trace) else item
    at = 0
    for path in source:
        for _, _, data in records(path):
            if at == run:
                return data  # type: ignore[no-any-return]
            at += 1
    raise InputError("the trace files changed while the report was made; make it again")


def _example(
    data: Mapping[str, Any], run: int, table: Table, policy: Policy | None, signal: str, values: Array, stop: int, stopping: bool
) -> dict[str, Any]:
    first, last, cut = int(table.offsets[run]), int(table.last[run]), bool(table.cut[run])
    judged = judged_rows(table)
    end = first + stop - 1 if stop else last
    steps = []
    for number, (row, step) in enumerate(zip(range(first, last + 1), data["steps"], strict=True), 1):
        state = "stop" if stop and row == end else "unread" if row > end else "read"
        steps.append(
            {
                "step": number,
                "value": wording.value_text(values[row], signal, policy if stopping else None, number),
                "tokens": step["tokens"],
                "answer": step["answer"],
                "tone": "right" if table.correct[row] else "wrong",
                "judged": wording.judged_text(bool(table.correct[row]) if judged[row] or not cut else None, table.labels),
                "state": state,
                "word": {"stop": "stopped here", "unread": "not computed with stopping"}.get(state, ""),
                "text": _shortened(step.get("text") or ""),
            }
        )
    what = wording.example_line(bool(table.correct[end]), bool(table.correct[last]), stop, len(steps), table.labels, stopping, cut)
    return {
        "id": data["id"],
        "what": what,
        "question": _shortened(data.get("question") or ""),
        "gold": data.get("gold"),
        "steps": steps,
    }


def _shortened(text: str) -> str:
    if len(text) <= LONGEST_TEXT:
        return text
    half = LONGEST_TEXT // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters left out …]\n{text[-half:]}"
