"""How a token is drawn: each row of a batch by numbers of its own, so that its tokens are the same whatever runs beside it.

``generate()`` draws for all rows from one stream of numbers: a row that ends, or is taken out of the batch, would change what
every other row gets, and a run in full and its stopped twin could not be compared token by token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    LogitsProcessor,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

TOP_H = getattr(transformers, "TopHLogitsWarper", None)  # since transformers 4.57
WARPERS: tuple[tuple[str, Any, float | None], ...] = (
    ("temperature", TemperatureLogitsWarper, 1.0),
    *((("top_h", TOP_H, None),) if TOP_H else ()),
    ("top_k", TopKLogitsWarper, 0),
    ("top_p", TopPLogitsWarper, 1.0),
    ("min_p", MinPLogitsWarper, None),
    ("typical_p", TypicalLogitsWarper, 1.0),
    ("epsilon_cutoff", EpsilonLogitsWarper, 0.0),
    ("eta_cutoff", EtaLogitsWarper, 0.0),
)
"""What shapes the distribution that is drawn from, in the order of ``generate()``, with the value under which it does nothing."""


class Numbers:
    """The uniform numbers of some rows: row ``n`` of a call with one seed has its own, a number for each position.

    Args:
        seed: of the call; None: never the same twice.
        rows: the rows' numbers within the call.
        purpose: other numbers for the same rows.
    """

    def __init__(self, seed: int | None, rows: Sequence[int], purpose: int = 0):
        draws = [None if seed is None else (seed, row, purpose) for row in rows]
        self._sources = [np.random.default_rng(d) for d in draws]
        self._drawn: list[list[float]] = [[] for _ in rows]

    def at(self, row: int, position: int) -> float:
        """The number of a row (its place in ``rows``) at a position, in [0, 1)."""
        drawn = self._drawn[row]
        while len(drawn) <= position:
            drawn += self._sources[row].random(256).tolist()
        return drawn[position]


def warped(config: Any, draw: Callable[[], Sequence[float]]) -> list[LogitsProcessor]:
    """What a sampling ``generate()`` does after its processors, ending in the draw; the config is left a greedy one.

    ``draw`` gives a number for each running row.
    """
    processors = []
    for name, warper, neutral in WARPERS:
        value = getattr(config, name, None)
        if value not in (None, neutral):
            processors.append(warper(value))
    if config.do_sample:
        processors.append(Draw(draw))
    config.do_sample = False
    for name, _, _ in WARPERS:
        setattr(config, name, None)
    return processors


class Draw(LogitsProcessor):  # type: ignore[misc]
    """Leaves every row the one token it draws, by inverse transform sampling.

    That is the first at which the summed probability passes the row's number.
    """

    def __init__(self, draw: Callable[[], Sequence[float]]):
        self._draw = draw

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        summed = scores.softmax(-1, dtype=torch.float32).cumsum(-1)
        numbers = torch.tensor(self._draw(), device=scores.device)[:, None] * summed[:, -1:]
        # Rounding may lift a number to the whole sum: then it is the last token that has a share in it.
        last = (summed < summed[:, -1:]).sum(-1, keepdim=True)
        drawn = torch.searchsorted(summed, numbers, right=True).minimum(last)
        return torch.full_like(scores, -torch.inf).scatter_(-1, drawn, 0.0)
