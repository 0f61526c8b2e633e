"""What a fitted policy saves and loses: on questions kept out of its calibration, or, as an estimate, by folds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from entropy_chains.core.policy import Policy
from entropy_chains.errors import InputError
from entropy_chains.offline.calibrate import calibrate, draw_groups
from entropy_chains.offline.diagnose import listed
from entropy_chains.offline.published import stop_rows, tokens_spent
from entropy_chains.offline.replay import ReplayResult, decisions, judge_live, replay
from entropy_chains.offline.table import Array, Table, Traces, as_table

FOLDS = 5
"""Parts of the questions for an estimate where none are held out."""

JUDGED_FIGURES = (
    "groups",
    "tokens_saved",
    "tokens_saved_interval",
    "accuracy_change",
    "accuracy_change_interval",
    "lost_correct",
    "lost_cut",
)
"""Figures of the replay that a policy carries in ``calibration.judged``, beside ``on``."""


def hold_out(table: Table, share: float, seed: int = 0) -> tuple[Table, Table]:
    """The table's questions in two parts: those to calibrate on, and the drawn ``share`` to judge on.

    Raises:
        InputError: the share is not between 0 and 1, or leaves one of the parts empty.
    """
    if isinstance(share, bool) or not 0 < share < 1:
        raise InputError(f"hold_out is {share!r}; it must be between 0 and 1, as 0.3 for 30 %")
    held = round(share * table.groups)
    if not 0 < held < table.groups:
        raise InputError(f"hold_out is {share!r}, which of {table.groups} questions leaves none on one side; record more questions")
    remaining = (np.random.default_rng([seed, 7]).permutation(table.groups) >= held)[table.group]
    return table.subset(remaining), table.subset(~remaining)


def parts(table: Table, folds: int, seed: int = 0) -> Array:
    """The part, 0 to ``folds`` - 1, that each run is in, int [runs]: as many questions in each, runs of one question together."""
    part: Array = (np.random.default_rng([seed, 6]).permutation(table.groups) % folds)[table.group]
    return part


def calibrate_and_judge(
    traces: Traces, *, hold_out_share: float | None = None, examples: int | None = None, seed: int = 0, **settings: Any
) -> Policy:
    """A calibrated policy that carries what it saves and loses in ``calibration.judged``.

    ``on`` says on which questions. ``held_out``: on those that calibration never saw. ``folds``: an estimate of the procedure, for
    a policy that was fitted on all; each of :data:`FOLDS` parts is judged by a policy fitted on the others in the same way, which
    has fewer questions to be certified on. ``calibration``: on the questions it was fitted on, where it does not stop at all, or
    four fifths of them are too few for any certificate.

    Args:
        traces: a table, a file, several, or traces in memory.
        hold_out_share: share of the questions that calibration never sees, to judge on; None: none.
        examples: calibrate on this many questions, drawn by ``seed``; the others are left alone.
        seed: of every draw.
        settings: further arguments of :func:`entropy_chains.calibrate`.

    Raises:
        InputError: bad traces or a bad argument.
    """
    table = recorded = as_table(traces)
    held: Table | None = None
    if hold_out_share is not None:
        table, held = hold_out(table, hold_out_share, seed)
    policy = calibrate(table, seed=seed, examples=examples, **settings)
    if examples is not None:
        table = draw_groups(table, examples, seed)
    judged = table if held is None else held
    if policy.calibration["cut_runs"] == "wrong":
        judged = judged.with_cut_as_full()
    folded = _by_folds(table, judged, seed, settings) if held is None and policy.active else None
    result = folded or replay(judged, policy, seed=seed)
    on = "held_out" if held is not None else "folds" if folded else "calibration"
    figures = {"on": on} | {name: getattr(result, name) for name in JUDGED_FIGURES}
    left_out = recorded.runs - table.runs
    return replace(policy, calibration={**policy.calibration, "left_out": left_out, "judged": listed(figures)})


def _by_folds(table: Table, judged: Table, seed: int, settings: dict[str, Any]) -> ReplayResult | None:
    """All runs, each part of them stopped by the policy that is fitted on the others; None where these are too few to fit on.

    ``judged``: the runs as they are judged.
    """
    if table.groups < FOLDS:
        return None
    part = parts(table, FOLDS, seed)
    stops, spent = np.zeros(table.runs, np.int32), np.zeros(table.runs, np.int64)
    for fold in range(FOLDS):
        policy = calibrate(table.subset(part != fold), seed=seed, **settings)
        if policy.reason == "too_few_examples":
            return None
        fold_runs = judged.subset(part == fold)
        stops[part == fold] = at = decisions(fold_runs, policy)
        spent[part == fold] = tokens_spent(fold_runs, at, policy.active and policy.stop_rule.reads_answers)
    return judge_live(judged, stops, spent, judged.correct[stop_rows(judged, stops)] == 1, seed=seed)
