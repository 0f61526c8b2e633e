"""Entropy of a batch's logits on a GPU: against the usual formula, and the share of the memory bandwidth that is reached.

The bandwidth is that of copying the same logits on the same device: a copy reads and writes every byte once, the entropy has to
read each at least once. Not run where torch finds no CUDA device; ``--quick`` then runs the same code on the CPU, in small.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from measure import Paired, Row, turn_by_turn

CALLS = 50
"""Calls between two waits for the device: one alone would measure its launch."""


def on_gpu(shape: tuple[int, int], k: int, usual: Callable[[Any, int | None], Any], quick: bool) -> list[Row]:
    """Rows for exact and top-k entropy, float32 and bfloat16."""
    import torch

    from entropy_chains import logits_entropy

    available = torch.cuda.is_available()
    if not available and not quick:
        return [
            Row("logits", "on a GPU: times as fast as the usual formula", None, "×", note="not run: torch finds no CUDA device")
        ]
    where = torch.cuda.get_device_name() if available else "the CPU, code check"
    if not available:
        shape = (4, 1024)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        x = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3).to(dtype).to("cuda" if available else "cpu")
        size = x.numel() * x.element_size()

        def waited(work: Callable[[], object]) -> Callable[[], None]:
            def calls() -> None:
                for _ in range(CALLS):
                    work()
                if available:
                    torch.cuda.synchronize()

            return calls

        for wanted, what in ((None, "exact"), (k, f"k = {k}")):
            if abs(logits_entropy(x, wanted).entropy.float() - usual(x, wanted)).max() > 1e-2:
                raise AssertionError("the two formulas do not agree: they cannot be compared")
            ours, plain, copied = turn_by_turn(
                2 if quick else 15,
                waited(lambda x=x, k=wanted: logits_entropy(x, k).entropy),
                waited(lambda x=x, k=wanted: usual(x, k)),
                waited(x.clone),
            )
            label = f"{where}, {str(dtype).removeprefix('torch.')}, {what}"
            row = Paired(plain, ours).row("logits", f"{label}: times as fast as the usual formula", per=CALLS, scale="ms")
            shares = [(size / a) / (2 * size / c) for a, c in zip(ours, copied, strict=True)]
            rates = (CALLS * moved / statistics.median(taken) / 1e9 for moved, taken in ((size, ours), (2 * size, copied)))
            note = " of ".join(f"{rate:.0f}" for rate in rates) + " GB/s"
            figure = f"{label}: share of a copy's bandwidth"
            rows += [row, Row("logits", figure, statistics.median(shares), "", min(shares), max(shares), note=note)]
    return rows
