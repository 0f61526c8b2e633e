"""What people are told of runs that were cut off: while recording, in calibration, and beside figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from entropy_chains.core.finish_reasons import is_cut
from entropy_chains.core.policy import Policy

WHY = "finish_raw in the traces says why"
"""Where to look where a run was cut off by something else than its limit."""

NAMED = 10
"""Questions that a message names at most."""


def of_recording(finishes: Mapping[str, int], limit: int | None, broken: Sequence[str] = ()) -> str | None:
    """How many of the runs were cut off, and what to do; None where none was.

    Args:
        finishes: how many runs ended in which way, as the traces' ``finish`` says.
        limit: tokens that a reply was allowed.
        broken: ids of the questions whose runs ended in an error.
    """
    cut = {finish: count for finish, count in finishes.items() if is_cut(finish)}
    if not cut:
        return None
    remedies = []
    if "length" in cut:
        remedies.append(
            f"raise max_tokens (--max-tokens; it was {limit}), or the context length of the model or server where that is less"
        )
    if cut.keys() - {"length"}:
        remedies.append(WHY)
    if broken:
        remedies.append(f"an error ended {', '.join(broken[:NAMED])}" + (" and others" if len(broken) > NAMED else ""))
    ways = ", ".join(f"{finish}: {count}" for finish, count in cut.items())
    total, runs = sum(cut.values()), sum(finishes.values())
    return f"{total} of {runs} runs were cut off ({ways}), so nobody knows their full answers: {'; '.join(remedies)}"


def of_calibration(policy: Policy) -> str:
    """What calibration did with the runs that were cut off, and what helps; empty where there were none."""
    get = policy.calibration.get
    cut, runs, limit = get("cut"), get("runs"), get("max_tokens")
    if not cut:
        return ""
    beginning = f"{'All' if cut == runs else f'{cut} of the'} {runs} calibration runs were cut off"
    at = f" at {limit} tokens" if limit else ""
    remedy = f"Record those that reached the limit (finish: length) with a larger --max-tokens; of the others, {WHY}."
    if cut == runs:
        return f"{beginning}, so no full answer is known. {remedy}"
    if get("cut_runs") == "wrong":
        return f"{beginning} and taken for full runs (--cut-runs wrong): the policy is for users whose runs are cut off{at}, too."
    if get("labels") == "gold":
        remedy += " Where users' runs are cut off at the same limit, use --cut-runs wrong."
    counted = (
        f"{beginning}, so their full answers are not known: a stop on them counts as lost unless its answer is known to be right."
    )
    return counted if policy.active else f"{counted} {remedy}"


def of_replay(policy: Policy, figures: Mapping[str, Any]) -> str:
    """What figures say of runs that were cut off, and of a policy that took such runs for full ones; else empty."""
    calibration = of_calibration(policy) if policy.calibration.get("cut_runs") == "wrong" else ""
    return f"{calibration} {of_figures(figures)}".strip()


def of_figures(figures: Mapping[str, Any]) -> str:
    """What figures say of runs that were cut off; empty where there were none."""
    cut, judged, lost = figures.get("cut"), figures.get("judged"), figures.get("lost_cut")
    if not cut:
        return ""
    text = f"{cut:,} runs were cut off, so their full answers are not known"
    text += f"; accuracy is over the other {judged:,}." if judged else ", and no run came to its end."
    if lost is not None:
        text += f" Of them, stopped with an answer that is not known to be right: {lost:,}. These count as lost."
    return text
