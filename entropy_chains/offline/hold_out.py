"""What a fitted policy saves and loses: on questions kept out of its calibration, or, as an estimate, on those it was fitted on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from entropy_chains.core.policy import Policy
from entropy_chains.errors import InputError
from entropy_chains.offline.calibrate import calibrate
from entropy_chains.offline.diagnose import listed
from entropy_chains.offline.replay import replay
from entropy_chains.offline.table import Table, Traces, as_table

FIGURES = (
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
    kept = (np.random.default_rng([seed, 7]).permutation(table.groups) >= held)[table.group]
    return table.subset(kept), table.subset(~kept)


def calibrate_and_judge(traces: Traces, *, hold_out_share: float | None = None, seed: int = 0, **settings: Any) -> Policy:
    """A calibrated policy that carries what it saves and loses in ``calibration.judged``.

    Args:
        traces: a table, a file, several, or traces in memory.
        hold_out_share: share of the questions that calibration never sees, to judge on (``on``: ``held_out``); None: judged on
            those it was fitted on (``on``: ``calibration``), which flatters it.
        seed: of every draw.
        settings: further arguments of :func:`entropy_chains.calibrate`.

    Raises:
        InputError: bad traces or a bad argument.
    """
    table = judged = as_table(traces)
    if hold_out_share is not None:
        table, judged = hold_out(table, hold_out_share, seed)
    policy = calibrate(table, seed=seed, **settings)
    if policy.calibration["cut_runs"] == "wrong":
        judged = judged.with_cut_as_full()
    found = replay(judged, policy, seed=seed).to_dict()
    figures = {"on": "calibration" if hold_out_share is None else "held_out"} | {name: found[name] for name in FIGURES}
    left_out = policy.calibration["left_out"] + (0 if hold_out_share is None else judged.runs)
    return replace(policy, calibration={**policy.calibration, "left_out": left_out, "judged": listed(figures)})
