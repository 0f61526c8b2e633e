"""Figures that say whether they were measured, counted or estimated: latency, FLOPs, money, energy.

* ``measured``: an instrument or a randomised comparison gave it (a clock, an energy counter, the holdout)
* ``counted``: it was added up (tokens)
* ``estimated``: it follows from a formula or a price list, which ``how`` names (FLOPs, money, replayed seconds)

What could not be had is None, never a made-up number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, get_args

from entropy_chains.errors import InputError

Kind = Literal["measured", "counted", "estimated"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure with its unit and where it comes from.

    Attributes:
        value: a finite number, or several by name (``latency``).
        unit: for example ``tokens``, ``s``, ``FLOP``, ``J``, ``USD``, or ``fraction`` (negative = worse).
        kind: ``measured``, ``counted`` or ``estimated``.
        how: one sentence: the instrument, what was counted, or the formula.
    """

    value: float | Mapping[str, float | None]
    unit: str
    kind: Kind
    how: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"kind is {self.kind!r}; it must be one of {', '.join(KINDS)}")
        values = self.value.values() if isinstance(self.value, Mapping) else (self.value,)
        if any(v is not None and not math.isfinite(v) for v in values):
            raise InputError(f"value is {self.value!r}; a figure that could not be had is None, not a Figure")


def latency(seconds: Sequence[float]) -> dict[str, float | None]:
    """``mean``, ``p50``, ``p95`` (linear interpolation) and ``std`` (ddof 1; None for one run) of seconds a run.

    Raises:
        InputError: no seconds, or one that is negative or not finite.
    """
    import numpy as np

    values = np.asarray(seconds, dtype=np.float64)
    if not values.size or not np.isfinite(values).all() or (values < 0).any():
        raise InputError("latency needs at least one duration, each a finite number of seconds that is not negative")
    p50, p95 = np.quantile(values, [0.5, 0.95])
    std = float(values.std(ddof=1)) if values.size > 1 else None
    return {"mean": float(values.mean()), "p50": float(p50), "p95": float(p95), "std": std}


def flops(parameters: float, tokens: float) -> Figure:
    """Forward-pass FLOPs of generating ``tokens``: 2·N·tokens (Kaplan et al. 2020, arXiv 2001.08361, section 2.1).

    The attention term, which grows with the context, is left out, as is reading the prompt. ``parameters`` are the active
    ones: for a mixture of experts those one token passes through.
    """
    if parameters < 0 or tokens < 0:
        raise InputError(f"parameters {parameters!r} and tokens {tokens!r} must not be negative")
    how = "2 x parameters x generated tokens (arXiv 2001.08361); attention and prompt left out"
    return Figure(2.0 * parameters * tokens, "FLOP", "estimated", how)


def money(prompt_tokens: float, completion_tokens: float, price_in: float, price_out: float, *, currency: str = "USD") -> Figure:
    """Price of the tokens at list prices a million; discounts for cached prompts or batches are not known here."""
    if min(prompt_tokens, completion_tokens, price_in, price_out) < 0:
        raise InputError("token counts and prices must not be negative")
    value = (prompt_tokens * price_in + completion_tokens * price_out) / 1e6
    how = f"counted tokens at {price_in:g} (prompt) and {price_out:g} (completion) {currency} a million"
    return Figure(value, currency, "estimated", how)


class EnergyMeter:
    """Energy a GPU used while the ``with`` block ran, from NVML's counter of the whole board (other processes included).

    Attributes:
        figure: joules, measured; None until the block has ended, and where there is no counter to read.
        reason: why there is no figure, or None.
    """

    def __init__(self, device: int = 0) -> None:
        self.device = device
        self.figure: Figure | None = None
        self.reason: str | None = "the block has not ended"
        self._read: Callable[[], int] | None = None
        self._close: Callable[[], object] | None = None
        self._start = 0

    def __enter__(self) -> EnergyMeter:
        self.figure = None
        try:
            import pynvml

            pynvml.nvmlInit()
            self._close = pynvml.nvmlShutdown
            handle = pynvml.nvmlDeviceGetHandleByIndex(self.device)
            self._read = lambda: int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))  # mJ since the driver was loaded
            self._start = self._read()
        except ImportError:
            self._read, self.reason = None, "energy is not known: pynvml is not installed (pip install nvidia-ml-py)"
        except Exception as error:  # noqa: BLE001  a missing GPU, driver or counter must not break what is being measured
            self._read, self.reason = None, f"energy is not known: GPU {self.device} has no NVML energy counter ({error})"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            used = self._read() - self._start if self._read else None
            if used is not None and used < 0:
                self.reason = "energy is not known: the counter started anew during the measurement"
            elif used is not None:
                how = f"NVML energy counter of GPU {self.device}, the whole board, other processes included"
                self.figure, self.reason = Figure(used / 1000.0, "J", "measured", how), None
        except Exception as failure:  # noqa: BLE001  see __enter__
            self.reason = f"energy is not known: the counter could not be read again ({failure})"
        finally:
            if self._close:
                self._close()
            self._read = self._close = None
