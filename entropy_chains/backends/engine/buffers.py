"""What the plug-in's rows have taken and not summed up yet: arrays over their seats, so that a step is one computation for all.

Nearly every token of a reasoning decides nothing: no step and no phase can end with it. Such tokens are only written down here,
all rows' at once; a row's monitor is told of them together with the next token that may decide something. Knows no vLLM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from entropy_chains.backends.engine.settings import Settings
from entropy_chains.core.entropy_rows import RowEntropies, logits_entropy
from entropy_chains.core.monitor import Decision, Monitor
from entropy_chains.core.phases import Phase
from entropy_chains.errors import EntropyChainsError

Array = np.ndarray[Any, Any]

TOKENS_A_SEAT = 256
"""Tokens that a seat keeps before they are summed up; few long sums cost less than many short ones."""

FIGURES_A_TOKEN = 5
"""Per token: entropy, mass, lower, upper, confidence."""


class Coming:
    """Figures of some rows' next tokens, [rows, 5], on their way to the host.

    They are read one step later, when the tokens are known: the copy runs beside the engine's work, and nobody waits for it.
    """

    def __init__(self, values: RowEntropies):
        stacked = values.figures()
        self._arrived = None
        if stacked.device.type == "cuda":
            host = torch.empty(stacked.shape, dtype=stacked.dtype, pin_memory=True)
            host.copy_(stacked, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()
            stacked = host
        self._values = stacked

    def read(self) -> Array:
        """The figures; waits for them if need be."""
        if self._arrived is not None:
            self._arrived.synchronize()
        figures: Array = self._values.cpu().numpy()
        return figures


class Ledger:
    """All seats' tokens and figures.

    Args:
        seats: rows that can be there at once.
        text: a token's text.
        late: keep every token's logits, and compute a row's entropies where they are summed up. For small logits on a CPU: many
            small computations cost more than the logits' memory.

    Attributes:
        fed: tokens of the output that were taken, [seats].
        counts: those whose figures are here, [seats]; monitor_counts: those among them that the monitor was told of, [seats].
        measured: the next token is one of the thinking that the model chooses, so its entropy counts, [seats].
        pending: the next token's figures are here, behind the kept ones, [seats].
        k: the likeliest tokens that entropies are over, 0 for all, [seats].
        quiet: tokens that are known to decide nothing, [vocabulary].
        tokens: the kept ones, [seats, TOKENS_A_SEAT + 1]; figures: theirs, or their logits, [seats, TOKENS_A_SEAT + 1, width].
        fault: what kept figures from coming, if something did. The rows that need them are given up, each for itself.
    """

    def __init__(self, seats: int, text: Callable[[int], str], *, late: bool):
        self.text, self.late = text, late
        self.fed, self.counts, self.monitor_counts, self.k = (np.zeros(seats, np.int64) for _ in range(4))
        self.measured, self.pending = (np.zeros(seats, bool) for _ in range(2))
        self.quiet = np.zeros(0, bool)
        self.tokens = np.zeros((seats, TOKENS_A_SEAT + 1), np.int64)
        self.figures = np.zeros((seats, TOKENS_A_SEAT + 1, 0), np.float32)  # until the width is known
        self.fault: Exception | None = None
        self._coming: list[tuple[Array, Coming]] = []
        self._indices: tuple[Array, torch.Tensor] | None = None

    def prepare(self, vocabulary: int) -> None:
        """Before a step: the model's logits have this width."""
        if len(self.quiet) != vocabulary:  # the first step
            self.quiet = np.zeros(vocabulary, bool)
            # Not touched before it is written to: seats that are never taken cost no memory.
            self.figures = np.empty((*self.tokens.shape, vocabulary if self.late else FIGURES_A_TOKEN), np.float32)

    def keep(self, seats: Array, lengths: Array, tokens: Array) -> list[int]:
        """Write down the quiet tokens; :meth:`measure` follows.

        Args:
            seats: of the rows in this step.
            lengths: tokens of each one's output so far.
            tokens: the last of those, -1 where there is none.

        Returns:
            The places in ``seats`` of the other rows.
        """
        self.arrive()
        counts = self.counts[seats]
        easy = self.quiet[tokens] & self.pending[seats] & (lengths == self.fed[seats] + 1) & (counts < TOKENS_A_SEAT)
        left: list[int] = []
        if not easy.all():
            left = np.flatnonzero(~easy).tolist()
            seats, counts, lengths, tokens = seats[easy], counts[easy], lengths[easy], tokens[easy]
        self.tokens[seats, counts] = tokens
        self.counts[seats] = counts + 1
        self.fed[seats] = lengths
        return left

    def measure(self, logits: torch.Tensor, seats: Array, places: Array) -> None:
        """The next tokens of all rows in their thinking: compute their figures, at once for each k, or keep their logits.

        Args:
            logits: before temperature, [batch, vocabulary].
            seats: of the rows in this step.
            places: theirs in the batch, ascending.
        """
        measured = self.measured[seats]
        self.pending[seats] = measured
        if not measured.all():
            seats, places = seats[measured], places[measured]
        if not len(seats):
            return
        if self.late:
            values = logits.float().numpy()
            self.figures[seats, self.counts[seats]] = values if len(places) == len(values) else values[places]
            return
        ks = self.k[seats]
        for k in set(ks.tolist()):
            some = ks == k
            try:
                part = logits if len(places) == len(logits) and some.all() else logits[self._index(places[some], logits.device)]
                self._coming.append((seats[some], Coming(logits_entropy(part, k or None))))
            except Exception as error:  # noqa: BLE001 (rows with another k go on)
                self._miss(seats[some], error)

    def _index(self, places: Array, device: torch.device) -> torch.Tensor:
        """The places as a tensor; kept, for most steps watch the same rows as the one before."""
        if self._indices is None or not np.array_equal(self._indices[0], places):
            self._indices = (places, moved(places.tolist(), device))
        return self._indices[1]

    def arrive(self) -> None:
        """Lay down what the last step measured."""
        coming, self._coming = self._coming, []  # first: what cannot be read must not be tried again in every step
        for seats, figures in coming:
            try:
                self.figures[seats, self.counts[seats]] = figures.read()
            except Exception as error:  # noqa: BLE001 (what comes for other seats is not lost)
                self._miss(seats, error)

    def _miss(self, seats: Array, error: Exception) -> None:
        self.pending[seats] = False
        self.fault = error


class Away(NamedTuple):
    """What a row without a seat takes with it; the figures of its next token, if there are any, stand behind the kept ones'."""

    fed: int
    monitor_count: int
    tokens: Array
    figures: Array


class Row:
    """One request: its seat in the ledger, and the monitor that follows it.

    Attributes:
        settings: what it asks for.
        monitor: its steps and its decision; stops: it may decide to close.
        on: it is watched; False once its thinking is over, or something went wrong.
        reported: the log has its outcome.
        closing: tokens of its output when it was decided to close, or None.
        seat: None while it is away: a request may leave the batch, and come back to another seat.
    """

    __slots__ = ("_away", "_ledger", "closing", "monitor", "on", "reported", "seat", "settings", "stops")

    def __init__(self, ledger: Ledger, settings: Settings, monitor: Monitor, *, stops: bool):
        self.settings, self.monitor, self.stops = settings, monitor, stops
        self.on, self.reported = True, False
        self.closing: int | None = None
        self.seat: int | None = None
        self._ledger = ledger
        self._away = Away(0, 0, np.zeros(0, np.int64), np.zeros((0, 0), np.float32))

    @property
    def fed(self) -> int:
        """Tokens of its output that were taken."""
        return self._away.fed if self.seat is None else int(self._ledger.fed[self.seat])

    def sit(self, seat: int) -> None:
        """Take a seat, with what it had in the one before."""
        ledger, away = self._ledger, self._away
        ledger.arrive()  # who sat here before may have figures under way
        count = len(away.tokens)
        ledger.fed[seat], ledger.monitor_counts[seat], ledger.counts[seat] = away.fed, away.monitor_count, count
        ledger.k[seat] = self.settings.policy.k or 0
        ledger.pending[seat] = len(away.figures) > count
        ledger.tokens[seat, :count] = away.tokens
        if len(away.figures):
            ledger.figures[seat, : len(away.figures)] = away.figures
        self.seat = seat  # last: it has no seat that cannot hold what it brings
        self.look()

    def rise(self) -> None:
        """Leave it. Nothing is summed up: most rows that go have ended, and do not come back."""
        if self.seat is None:
            return
        ledger, seat = self._ledger, self.seat
        ledger.arrive()
        count = int(ledger.counts[seat])
        figures = ledger.figures[seat, : count + int(ledger.pending[seat])]
        self._away = Away(
            int(ledger.fed[seat]), int(ledger.monitor_counts[seat]), ledger.tokens[seat, :count].copy(), figures.copy()
        )
        ledger.measured[seat] = ledger.pending[seat] = False
        self.seat = None

    def look(self) -> None:
        """Find out whether its next token is to be measured."""
        if self.seat is not None:
            thinking = self.on and self.closing is None and self.monitor.phase is Phase.THINKING
            self._ledger.measured[self.seat] = thinking
            self._ledger.pending[self.seat] &= thinking

    def leave(self) -> None:
        """It is not watched any more."""
        self.on = False
        self.look()

    def feed(self, text: str, *, forced: bool) -> Decision | None:
        """Take the token whose figures are pending; returns a decision where a step ended with it.

        Raises:
            EntropyChainsError: the token counts, but it was not measured.
        """
        ledger, seat = self._ledger, self.seat
        if seat is None:
            raise EntropyChainsError("a row has no seat, but a token")
        pending, ledger.pending[seat] = bool(ledger.pending[seat]), False
        ledger.fed[seat] += 1
        self._tell(seat)
        if self.monitor.advance(text, forced=forced):
            if not pending:
                raise EntropyChainsError(f"token {self.fed} counts, but it was not measured") from ledger.fault
            ledger.counts[seat] += 1
            ledger.monitor_counts[seat] += 1
        ended = self.monitor.at_end
        if ended or ledger.counts[seat] >= TOKENS_A_SEAT:
            self._sum_up(seat)
        return self.monitor.decide() if ended else None

    def _tell(self, seat: int) -> None:
        ledger = self._ledger
        start, end = int(ledger.monitor_counts[seat]), int(ledger.counts[seat])
        if start < end:
            self.monitor.skim([ledger.text(token) for token in ledger.tokens[seat, start:end].tolist()])
            ledger.monitor_counts[seat] = end

    def _sum_up(self, seat: int) -> None:
        ledger, count = self._ledger, int(self._ledger.counts[seat])
        if count:
            figures = ledger.figures[seat, :count]
            read = logits_entropy(figures, self.settings.policy.k).figures() if ledger.late else figures.astype(np.float64)
            self.monitor.absorb(read)
            ledger.counts[seat] = ledger.monitor_counts[seat] = 0


def moved(values: Sequence[int], device: torch.device) -> torch.Tensor:
    """Some numbers on the device, without waiting for it."""
    tensor = torch.tensor(values, pin_memory=device.type == "cuda")
    return tensor.to(device, non_blocking=True)
