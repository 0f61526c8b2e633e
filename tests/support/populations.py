"""Made-up recordings whose wrong answers have the higher entropy."""

from __future__ import annotations

import numpy as np

from entropy_chains.offline.traces import Step, Trace

RIGHT, WRONG = "1", "0"


def population(questions=200, steps=4, *, shift=1.0, wrong=0.25, seed=0, full=0.95, **given):
    """Runs whose wrong answers have the higher entropy; the sum is recorded too."""
    rng = np.random.default_rng(seed)
    runs = []
    for i in range(questions):
        recorded = []
        for step in range(1, steps + 1):
            bad = rng.random() < (wrong if step < steps else 1 - full)
            h, tokens = float(abs(abs(rng.normal(0.5, 0.2)) + shift * bad)), int(rng.integers(80, 120))
            recorded.append(Step(WRONG if bad else RIGHT, h, tokens, signals={"sum_entropy": h * tokens}))
        runs.append(Trace(str(i), recorded, gold=RIGHT, **given))
    return runs
