"""Whether live steps still look like those of calibration."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from entropy_chains.core.policy import Policy
from entropy_chains.core.policy_fields import QUANTILES

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.float64]]


LEAST_VALUES = 30
"""Fewest values of a step for its drift test; the smallest bins then expect 1.5 each."""


@dataclass(frozen=True, slots=True)
class DriftStep:
    """The test of one step: ``n`` values, ``p_value`` (None where it was not tested, ``note`` says why), ``flagged``."""

    step: int
    n: int
    p_value: float | None = None
    flagged: bool = False
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Drift:
    """Whether the live step values still look like those of calibration.

    Attributes:
        drifted: a step was flagged; None where no step could be tested.
        verdict: one sentence, with the remedy.
    """

    steps: tuple[DriftStep, ...]
    drifted: bool | None
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"drifted": self.drifted, "verdict": self.verdict, "steps": [asdict(s) for s in self.steps]}


def drift(
    entropies_per_step: Sequence[Iterable[float | None]], policy: Policy, *, full_runs: bool = False, level: float = 0.001
) -> Drift:
    """Compare live values of the policy's signal with the quantiles of its calibration, step by step.

    Chi-square goodness of fit over the five bins that the quantiles at 0.05, 0.25, 0.75 and 0.95 cut, per step with at least
    30 values, Bonferroni over the steps tested. The quantiles come from N calibration groups and are uncertain themselves, so
    the n live values count as n·N/(n+N) (the two-sample form); without it much traffic would always raise an alarm.

    Args:
        entropies_per_step: for each step from 1 its values in the signal's unit, one a run; None is left out.
        policy: with ``calibration["entropy_quantiles"]``.
        full_runs: the values come from runs that were never stopped (the holdout, or stopping off). Otherwise only the steps up
            to ``min_steps`` are compared: later ones are reached by the unsure runs alone and differ by design.
        level: chance of a false alarm over all steps together.
    """
    import numpy as np
    from scipy.stats import chisquare

    quantiles = policy.calibration.get("entropy_quantiles") or []
    groups = policy.calibration.get("groups") or policy.calibration.get("runs")
    seen_by_all = len(entropies_per_step) if full_runs or not policy.active else policy.min_steps
    tested: list[tuple[int, int, float]] = []
    rows: dict[int, DriftStep] = {}
    for step, entropies in enumerate(entropies_per_step, 1):
        values = np.array([v for v in entropies if v is not None and math.isfinite(v)], dtype=np.float64)
        note = None
        if step > len(quantiles) or quantiles[step - 1] is None:
            note = "the policy holds no quantiles for this step"
        elif step > seen_by_all:
            note = f"after step {seen_by_all} only runs that were not stopped are seen; give the holdout's with full_runs=True"
        elif values.size < LEAST_VALUES:
            note = f"at least {LEAST_VALUES} values are needed"
        else:
            observed, expected = _bins(values, np.asarray(quantiles[step - 1], dtype=np.float64))
            if len(observed) < 2:
                note = "the calibration values are nearly all equal"
            else:
                weight = groups / (groups + values.size) if groups else 1.0
                test = chisquare(weight * observed, weight * expected * values.size)
                tested.append((step, values.size, float(test.pvalue)))
                continue
        rows[step] = DriftStep(step, values.size, note=note)
    for step, n, p in tested:
        rows[step] = DriftStep(step, n, p, p < level / len(tested))
    steps = tuple(rows[step] for step in sorted(rows))
    flagged = [str(s.step) for s in steps if s.flagged]
    if not tested:
        verdict = f"not known: no step has {LEAST_VALUES} values to compare with the policy's calibration quantiles"
    elif flagged:
        verdict = (
            f"the values at step {', '.join(flagged)} no longer look like those of calibration: "
            "record new runs and calibrate again; until then the certificate does not cover this traffic"
        )
    else:
        verdict = "the values look like those of calibration"
    return Drift(steps, bool(flagged) if tested else None, verdict)


def _bins(values: Array, edges: Array) -> tuple[Array, Array]:
    """Counts and expected shares between the quantiles ``edges``.

    Edges that are equal, or that several live values hit exactly, stand on a heap of equal values: how much lies at or below
    them is then not what the quantile says, so the bins on both sides are joined.
    """
    import numpy as np

    heap = np.array([(edges == e).sum() > 1 or (values == e).sum() > 1 for e in edges])
    cuts = edges[~heap]
    shares = np.diff([0.0, *np.array(QUANTILES)[~heap], 1.0])
    return np.bincount(np.searchsorted(cuts, values), minlength=len(shares)).astype(np.float64), shares
