"""What stopping saves: paired runs, the live holdout, and whether live traffic still looks like calibration.

Each figure says whether it was measured, counted or estimated (:mod:`entropy_chains.savings.figures`). Live wrappers call
:func:`is_holdout`, so numpy and scipy are imported by the functions that need them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from entropy_chains.errors import InputError
from entropy_chains.savings.figures import Figure, flops, latency, money

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.float64]]


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
        sides = [by_root(full), by_root(stopped)]
        if not sides[0] or sides[0].keys() != sides[1].keys():
            odd = sorted(sides[0].keys() ^ sides[1].keys())[:3]
            raise InputError(f"savings are paired: the same runs in full and with stopping are needed; on one side only: {odd}")
        figures: dict[str, Figure | None] = {"energy_full": energy_full, "energy": energy}
        for suffix, roots in zip(("_full", ""), sides, strict=True):
            calls = [call for root in roots.values() for call in root]
            count = sum(c.tokens for c in calls)
            figures["tokens" + suffix] = Figure(count, "tokens", "counted", "completion tokens computed, probes included")
            if all(c.seconds is not None for c in calls):
                spent = [sum(c.seconds or 0.0 for c in root) for root in roots.values()]
                figures["seconds" + suffix] = Figure(sum(spent), "s", "measured", "wall clock, summed over the runs")
                figures["latency" + suffix] = Figure(latency(spent), "s", "measured", "wall clock of each run; std with ddof 1")
            if parameters is not None:
                figures["flops" + suffix] = flops(parameters, count)
            if prices is not None:
                figures["money" + suffix] = money(sum(c.prompt_tokens for c in calls), count, *prices, currency=currency)
        return cls(**figures)


def by_root(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """The calls of every root run, in order."""
    roots: dict[str, list[Run]] = {}
    for run in runs:
        roots.setdefault(run.root, []).append(run)
    return roots
