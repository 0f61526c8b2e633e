"""What stopping saves: paired runs, the live holdout, and whether live traffic still looks like calibration.

Each figure says whether it was measured, counted or estimated (:mod:`entropy_chains.savings.figures`). Live wrappers call
:func:`is_holdout`, so numpy and scipy are imported by the functions that need them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from entropy_chains.core.policy import QUANTILES, Policy
from entropy_chains.errors import InputError
from entropy_chains.savings.figures import EnergyMeter, Figure, flops, latency, money

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.float64]]

__all__ = [
    "Drift",
    "DriftStep",
    "EnergyMeter",
    "Figure",
    "HoldoutSaving",
    "Run",
    "Savings",
    "drift",
    "flops",
    "holdout_saving",
    "is_holdout",
    "latency",
    "money",
]

RESAMPLES = 2000
LARGEST_BOOTSTRAP = 20_000
"""Groups above this number are summed in random blocks of equal size first, which leaves the interval's width as it is."""

LEAST_RUNS = 10
"""Fewest runs on either side for an interval; a bootstrap over fewer says little."""

LEAST_VALUES = 30
"""Fewest values of a step for its drift test; the smallest bins then expect 1.5 each."""


@dataclass(frozen=True, slots=True)
class Run:
    """What one call cost, as a wrapper or a recording knows it.

    Attributes:
        root: the run the call belongs to; calls of one root are added up, for they were assigned together.
        tokens: completion tokens computed, all of them, probes included.
        holdout: it ran in full by assignment (:func:`is_holdout`).
        seconds: wall-clock time of the call, or None.
        prompt_tokens: tokens read, those of a second prefill after a cut included.
        shadow_tokens: for a full run: what the policy would have cost on it; None where that is not known.
        correct: whether its answer was right, or None without a label.
    """

    root: str
    tokens: int
    holdout: bool = False
    seconds: float | None = None
    prompt_tokens: int = 0
    shadow_tokens: int | None = None
    correct: bool | None = None


@dataclass(frozen=True, slots=True)
class Savings:
    """What the same questions cost in full and with stopping. Each field is a :class:`Figure`, or None where it is not known.

    ``…_full`` is the cost in full, the bare name the cost with stopping; sums over the runs, but ``latency``: seconds a run,
    with ``mean``, ``p50``, ``p95`` and ``std``.
    """

    tokens_full: Figure | None = None
    tokens: Figure | None = None
    seconds_full: Figure | None = None
    seconds: Figure | None = None
    latency_full: Figure | None = None
    latency: Figure | None = None
    flops_full: Figure | None = None
    flops: Figure | None = None
    energy_full: Figure | None = None
    energy: Figure | None = None
    money_full: Figure | None = None
    money: Figure | None = None

    def saved(self, name: str) -> float | None:
        """Fraction of ``name`` (such as ``tokens``) saved, a ratio of sums; of means for ``latency``. None where not known."""
        full, stopped = getattr(self, f"{name}_full"), getattr(self, name)
        if full is None or stopped is None:
            return None
        whole, part = (f.value["mean"] if isinstance(f.value, Mapping) else f.value for f in (full, stopped))
        return float(1.0 - part / whole) if whole else None

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, ready for JSON."""
        return {f.name: asdict(v) if (v := getattr(self, f.name)) else None for f in fields(self)}

    @classmethod
    def from_runs(
        cls,
        full: Iterable[Run],
        stopped: Iterable[Run],
        *,
        parameters: float | None = None,
        prices: tuple[float, float] | None = None,
        currency: str = "USD",
        energy_full: Figure | None = None,
        energy: Figure | None = None,
    ) -> Savings:
        """From paired runs: the same root runs, once in full and once with stopping.

        Args:
            full: the runs in full; calls of one root are added up.
            stopped: the runs with stopping.
            parameters: the model's active parameters, for the FLOPs.
            prices: of a million prompt tokens and of a million completion tokens.
            currency: of the prices.
            energy_full: from an :class:`EnergyMeter` around the full runs.
            energy: the same around the runs with stopping.

        Raises:
            InputError: the two sides do not hold the same root runs, or none.
        """
        sides = [_by_root(full), _by_root(stopped)]
        if not sides[0] or sides[0].keys() != sides[1].keys():
            odd = sorted(sides[0].keys() ^ sides[1].keys())[:3]
            raise InputError(f"savings are paired: the same runs in full and with stopping are needed; on one side only: {odd}")
        made: dict[str, Figure | None] = {"energy_full": energy_full, "energy": energy}
        for suffix, roots in zip(("_full", ""), sides, strict=True):
            calls = [call for root in roots.values() for call in root]
            count = sum(c.tokens for c in calls)
            made["tokens" + suffix] = Figure(count, "tokens", "counted", "completion tokens computed, probes included")
            if all(c.seconds is not None for c in calls):
                spent = [sum(c.seconds or 0.0 for c in root) for root in roots.values()]
                made["seconds" + suffix] = Figure(sum(spent), "s", "measured", "wall clock, summed over the runs")
                made["latency" + suffix] = Figure(latency(spent), "s", "measured", "wall clock of each run; std with ddof 1")
            if parameters is not None:
                made["flops" + suffix] = flops(parameters, count)
            if prices is not None:
                made["money" + suffix] = money(sum(c.prompt_tokens for c in calls), count, *prices, currency=currency)
        return cls(**made)


def _by_root(runs: Iterable[Run]) -> dict[str, list[Run]]:
    roots: dict[str, list[Run]] = {}
    for run in runs:
        roots.setdefault(run.root, []).append(run)
    return roots


def is_holdout(root_run: str, *, share: float, salt: str = "") -> bool:
    """Whether a root run is left to run in full, so that what stopping saves can be measured.

    The same in every process and on every machine: SHA-256 of (salt, root run) below ``share``. Assign by the *root* run, never
    by the call: calls of one run share their prompts and their fate.

    Args:
        root_run: name of the outermost run, for example a LangChain root run id.
        share: expected part of the runs held out, 0 (none) to 1 (all).
        salt: another salt draws another holdout.

    Raises:
        InputError: ``share`` is not between 0 and 1.
    """
    if isinstance(share, bool) or not 0.0 <= share <= 1.0:
        raise InputError(f"share is {share!r}; it must be between 0 (no holdout) and 1 (all runs)")
    digest = hashlib.sha256(json.dumps([salt, root_run]).encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53 < share  # 53 bits: an exact float below 1


@dataclass(frozen=True, slots=True)
class HoldoutSaving:
    """What the holdout says stopping saves. Intervals are 95 % bootstrap intervals over root runs; None below 10 a side.

    Attributes:
        runs_holdout, runs_stopping: root runs on each side.
        tokens_holdout, tokens_stopping: mean tokens a root run, counted.
        saved: intention to treat, a fraction: all runs assigned to stopping, stopped or not, against the holdout; measured.
        saved_shadow: on the holdout's own runs, what the policy would have cost on them: paired, so tighter; estimated, for
            what would have followed a stop was not run.
        accuracy_holdout, accuracy_stopping: mean over root runs with a label.
        accuracy_change: their difference, negative = worse.
        reason: what is missing for a saving, or None.
    """

    runs_holdout: int
    runs_stopping: int
    tokens_holdout: Figure | None = None
    tokens_stopping: Figure | None = None
    saved: Figure | None = None
    saved_interval: tuple[float, float] | None = None
    saved_shadow: Figure | None = None
    saved_shadow_interval: tuple[float, float] | None = None
    accuracy_holdout: float | None = None
    accuracy_stopping: float | None = None
    accuracy_change: float | None = None
    accuracy_change_interval: tuple[float, float] | None = None
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def holdout_saving(runs: Iterable[Run], *, seed: int = 0) -> HoldoutSaving:
    """Compare the runs assigned to stopping with the holdout.

    Raises:
        InputError: calls of one root run stand on both sides; the assignment must go by the root run.
    """
    import numpy as np

    roots = _by_root(runs)
    sides: dict[bool, list[list[Run]]] = {True: [], False: []}
    for root, calls in roots.items():
        if len({c.holdout for c in calls}) > 1:
            raise InputError(f"run {root!r} has calls in the holdout and outside it; assign by the root run (is_holdout)")
        sides[calls[0].holdout].append(calls)
    held, treated = (np.array([sum(c.tokens for c in calls) for calls in sides[s]], dtype=np.float64) for s in (True, False))
    made: dict[str, Any] = {"runs_holdout": held.size, "runs_stopping": treated.size}
    rng = np.random.default_rng(seed)
    for name, tokens in (("tokens_holdout", held), ("tokens_stopping", treated)):
        if tokens.size:
            made[name] = Figure(float(tokens.mean()), "tokens", "counted", "mean completion tokens a root run")
    shadow = [(sum(c.shadow_tokens or 0 for c in calls), sum(c.tokens for c in calls)) for calls in sides[True]
              if all(c.shadow_tokens is not None for c in calls)]  # fmt: skip
    if shadow and sum(whole for _, whole in shadow):
        pairs = np.array(shadow, dtype=np.float64)
        how = "1 - what the policy would have cost / what it cost, on the holdout's full runs"
        made["saved_shadow"] = Figure(float(1.0 - pairs[:, 0].sum() / pairs[:, 1].sum()), "fraction", "estimated", how)
        if len(pairs) >= LEAST_RUNS:
            made["saved_shadow_interval"] = _interval(1.0 - _ratios(m := _resampled(pairs, rng), m[:, 1]))
    if not held.size or not treated.size or not held.sum():
        made["reason"] = f"{held.size} runs in the holdout and {treated.size} outside it: both sides need runs with tokens"
        return HoldoutSaving(**made)
    how = "1 - mean tokens of all runs assigned to stopping / mean tokens of the holdout"
    made["saved"] = Figure(float(1.0 - treated.mean() / held.mean()), "fraction", "measured", how)
    if min(held.size, treated.size) >= LEAST_RUNS:
        resampled = _resampled(treated[:, None], rng), _resampled(held[:, None], rng)
        made["saved_interval"] = _interval(1.0 - _ratios(resampled[0], resampled[1][:, 0]))
    else:
        made["reason"] = f"an interval needs {LEAST_RUNS} runs on each side; there are {held.size} and {treated.size}"
    labels = [np.array([r for calls in sides[s] if (r := _right(calls)) is not None], dtype=np.float64) for s in (True, False)]
    if all(side.size for side in labels):
        made["accuracy_holdout"], made["accuracy_stopping"] = (float(side.mean()) for side in labels)
        made["accuracy_change"] = made["accuracy_stopping"] - made["accuracy_holdout"]
        if min(side.size for side in labels) >= LEAST_RUNS:
            before, after = (_resampled(side[:, None], rng)[:, 0] for side in labels)
            made["accuracy_change_interval"] = _interval(after - before)
    return HoldoutSaving(**made)


def _right(calls: Sequence[Run]) -> float | None:
    labels = [c.correct for c in calls if c.correct is not None]
    return sum(labels) / len(labels) if labels else None


def _ratios(means: Array, below: Array) -> Array:
    import numpy as np

    return np.divide(means[:, 0], below, out=np.ones_like(below), where=below > 0)


def _resampled(rows: Array, rng: np.random.Generator) -> Array:
    """Column means of bootstrap resamples of ``rows`` [n, columns]: [RESAMPLES, columns]."""
    import numpy as np

    n = len(rows)
    if n > LARGEST_BOOTSTRAP:
        size = -(-n // LARGEST_BOOTSTRAP)
        rows = rng.permutation(rows)[: n - n % size].reshape(-1, size, rows.shape[1]).mean(1)
        n = len(rows)
    return np.stack([rows[rng.integers(n, size=n)].mean(0) for _ in range(RESAMPLES)])


def _interval(values: Array) -> tuple[float, float]:
    import numpy as np

    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


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

    known = policy.calibration.get("entropy_quantiles") or []
    groups = policy.calibration.get("groups") or policy.calibration.get("runs")
    seen_by_all = len(entropies_per_step) if full_runs or not policy.active else policy.min_steps
    tested: list[tuple[int, int, float]] = []
    rows: dict[int, DriftStep] = {}
    for step, given in enumerate(entropies_per_step, 1):
        values = np.array([v for v in given if v is not None and math.isfinite(v)], dtype=np.float64)
        note = None
        if step > len(known) or known[step - 1] is None:
            note = "the policy holds no quantiles for this step"
        elif step > seen_by_all:
            note = f"after step {seen_by_all} only runs that were not stopped are seen; give the holdout's with full_runs=True"
        elif values.size < LEAST_VALUES:
            note = f"at least {LEAST_VALUES} values are needed"
        else:
            observed, expected = _bins(values, np.asarray(known[step - 1], dtype=np.float64))
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
