"""Recorded runs as a limit of tokens cuts them off."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from entropy_chains.offline.traces import Step, Trace

RIGHT, WRONG = "1", "0"
HEADER = {"model": "m", "estimator": "renormalised", "k": 20, "gold": RIGHT}


def cut_at(trace: Trace, limit: int) -> Trace:
    """The run as it is recorded under a limit of tokens: whole, or its steps before the limit and a rest without an answer."""
    if sum(step.tokens for step in trace.steps) <= limit:
        return replace(trace, finish="stop", max_tokens=limit)
    ends = np.cumsum([step.tokens for step in trace.steps[:-1]])
    kept = trace.steps[: int((ends <= limit).sum())]
    rest = Step(None, None, limit - sum(step.tokens for step in kept))
    return replace(trace, steps=[*kept, rest], finish="length", max_tokens=limit)
