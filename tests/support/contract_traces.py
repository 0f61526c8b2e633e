"""The contract's example of a trace."""

from __future__ import annotations

from entropy_chains.offline.traces import (
    Step,
    Trace,
)

CONTRACT = {
    "id": "q17",
    "group": "q17",
    "question": "347*86=?",
    "gold": "29842",
    "model": "entropy-chains/demo",
    "mode": "thinking",
    "signal": "mean_entropy",
    "estimator": "renormalised",
    "k": 20,
    "temperature": 0.6,
    "temperature_mode": "raw",
    "segmentation": {"boundary": "line", "min_tokens": 32},
    "template": "sha256:…",
    "steps": [
        {"answer": "29842", "correct": True, "entropy": 0.41, "tokens": 212, "seconds": 3.1, "mass": 0.999},
        {"answer": "29842", "correct": True, "entropy": 0.18, "tokens": 198, "seconds": 2.9, "mass": 0.999},
    ],
}


def trace(name: str, **given) -> Trace:
    return Trace(name, [Step("1", 0.5, 10), Step(None, None, 0)], gold="1", **given)
