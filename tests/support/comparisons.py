"""Recorded runs to compare rules on."""

from __future__ import annotations

import numpy as np
from recorded import every_signal

from entropy_chains.core.signals import MEAN, SIGNALS
from entropy_chains.offline.compare import Comparison
from entropy_chains.offline.traces import Step, Trace
from entropy_chains.options import OPTIONS

RIGHT, WRONG = "1", "0"
ALL = tuple(name for name in SIGNALS if name != MEAN)


def population(questions=150, steps=5, *, shift=0.5, copies=1, seed=0, record=ALL, gold=RIGHT, **given):
    """Runs whose wrong answers are less sure by ``shift`` on every signal; the last step is right nineteen times in twenty."""
    rng = np.random.default_rng(seed)
    runs = []
    for n in range(questions * copies):
        recorded = []
        for i in range(1, steps + 1):
            wrong = rng.random() < (0.05 if i == steps else 0.4 / i)
            unsure, tokens = abs(rng.normal(0.1, 0.1)) + shift * wrong, int(rng.integers(30, 60))
            special = {"deepconf": max(0.0, 10 - unsure), "trial_confidence": 1 / (1 + unsure), "sum_entropy": unsure * tokens}
            signals = every_signal(unsure) | special
            kept = {name: signals[name] for name in record}
            recorded.append(Step(WRONG if wrong else RIGHT, unsure, tokens, probe_tokens=4, signals=kept))
        runs.append(
            Trace(f"{seed}-{n}", recorded, gold=gold, group=f"{seed}-{n // copies}", k=20, estimator="renormalised", **given)
        )
    return runs


def row(found: Comparison, rule: str, method: str = "certified"):
    """The row of this rule and method."""
    return next(r for r in found.rules if (r.rule, r.method) == (rule, method))


SETTINGS = {
    ("auto", "certified"): {},
    ("entropy", "certified"): {"rule": "entropy", "signal": "mean_entropy"},
    ("entropy (sum)", "certified"): {"rule": "entropy", "signal": "sum_entropy"},
    ("entropy (trial)", "certified"): {"rule": "entropy", "signal": "trial_entropy"},
    ("entropy+agreement", "certified"): {"rule": "entropy+agreement", "signal": "mean_entropy"},
    ("fixed-step", "certified"): {"rule": "fixed-step"},
    **{(m, "published"): {"method": m} for m in OPTIONS["method"] if m != "certified"},
}
"""What ``calibrate`` is given for our rows, by rule and method."""
