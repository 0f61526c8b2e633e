"""Runs and policies for a report, and the text of its page."""

from __future__ import annotations

import re

import numpy as np

from entropy_chains.core.policy import Policy
from entropy_chains.offline.traces import Step, Trace

CERTIFICATE = {"risk": "lost-correct", "max_loss": 0.05, "confidence": 0.9, "groups": 240, "losses": 4}


def worked() -> list[Trace]:
    """20 runs of two steps of 100 tokens and 1 s each.

    Ten are sure (0.1 bits) and right at once; eight unsure (0.9 bits), wrong, then right; one sure, wrong, then right; one sure,
    right, then wrong.
    """
    plan = [(0.1, True, True)] * 10 + [(0.9, False, True)] * 8 + [(0.1, False, True), (0.1, True, False)]
    return [
        Trace(
            f"run {i}",
            [
                Step("7" if first else "8", value, 100, seconds=1.0, text=f"thinking about {i}"),
                Step("7" if last else "9", 0.05, 100, seconds=1.0, text="checking"),
            ],
            question=f"question {i}",
            gold="7",
            model="m",
        )
        for i, (value, first, last) in enumerate(plan)
    ]


def policy(**fields) -> Policy:
    fields = {"method": "certified", "reason": "certified", "calibration": {"groups": 240, "certificate": CERTIFICATE}} | fields
    return Policy("m", **{"thresholds": (0.5,)} | fields)


def random_traces(runs: int, seed: int = 0, *, gold: bool = True) -> list[Trace]:
    rng = np.random.default_rng(seed)
    made = []
    for i in range(runs):
        right = rng.random(3) < (0.7, 0.85, 0.9)
        values = rng.lognormal(np.where(right, -2.0, -1.0), 0.5)
        steps = [Step("7" if r else f"8{i % 3}", float(v), int(rng.integers(50, 200))) for r, v in zip(right, values, strict=True)]
        made.append(Trace(f"q{i}", steps, gold="7" if gold else None, model="m"))
    return made


def text_of(page: str) -> str:
    """What a reader sees: without style and tags, spaces joined."""
    page = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())
