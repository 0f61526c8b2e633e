"""The rows of a batch, followed together: their figures come as arrays, and they decide as a monitor does."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import TYPE_CHECKING, Any

from entropy_chains.core.monitor import Decision, Monitor
from entropy_chains.core.policy import Policy

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

TOKENS_A_ROW = 64
"""Tokens whose figures a batch keeps before they are summed up."""


class BatchMonitor:
    """Follows the rows of a batch: a :class:`Monitor` each for text and decisions, one array for all their figures.

    The figures of a token are only laid into an array, all rows at once; a row's are read where its step ends, or where the
    array is full, with one computation for all its tokens since the last time.

    Args:
        policy: as in :class:`Monitor`.
        rows: batch size.
        holdout: rows that run in full on purpose.
        read: turns what :meth:`feed` is given into figures, [tokens, width] to [tokens, 5], where that is better done for many
            tokens at once; by default it is given figures.
        settings: the rest of what :class:`Monitor` takes, the same for all rows.

    Attributes:
        rows: the rows' monitors.
    """

    def __init__(
        self,
        policy: Policy | None,
        rows: int,
        *,
        holdout: Sequence[bool] | None = None,
        read: Callable[[Array], Array] | None = None,
        **settings: Any,
    ):
        import numpy as np

        self._np, self._read = np, read
        self.rows = [Monitor(policy, holdout=bool(holdout and holdout[r]), **settings) for r in range(rows)]
        self._kept: Array | None = None  # [TOKENS_A_ROW, rows, width], made when the width is known
        self._counted = np.zeros((TOKENS_A_ROW, rows), bool)
        self._filled = 0
        self._from = [0] * rows  # where in the array the row's figures begin that are not read yet

    def feed(
        self, texts: Sequence[str], figures: Array | None, live: Sequence[int], forced: Container[int] = ()
    ) -> dict[int, Decision]:
        """Take the next token of every live row.

        Args:
            texts: each row's token text, [rows].
            figures: entropy, mass, lower, upper (bits, bits), confidence of each row's token, [rows, 5]; NaN entropy = missing.
                With ``read``, what that takes. None where no row is in its thinking.
            live: the rows that have a token.
            forced: the rows whose token was put in.

        Returns:
            The decision of every row whose step ended with this token.
        """
        counted, ended = [], []
        for row in live:
            monitor = self.rows[row]
            if monitor.advance(texts[row], forced=row in forced):
                counted.append(row)
            if monitor.at_end:
                ended.append(row)
        if counted:
            if self._kept is None:
                shape, dtype = (1, 5) if figures is None else figures.shape, None if figures is None else figures.dtype
                self._kept = self._np.full((TOKENS_A_ROW, len(self.rows), shape[1]), self._np.nan, dtype)
            self._kept[self._filled] = self._np.nan if figures is None else figures
            self._counted[self._filled, counted] = True
            self._filled += 1
        for row in range(len(self.rows)) if self._filled == TOKENS_A_ROW else ended:
            self._sum_up(row)
        if self._filled == TOKENS_A_ROW:
            self._counted[:] = False
            self._filled, self._from = 0, [0] * len(self.rows)
        return {row: self.rows[row].decide() for row in ended}

    def _sum_up(self, row: int) -> None:
        part = slice(self._from[row], self._filled)
        self._from[row] = self._filled
        if self._kept is not None:
            figures = self._kept[part, row][self._counted[part, row]]
            if len(figures):
                self.rows[row].absorb(self._read(figures) if self._read else figures)

    def end_step(self, row: int, answer: str | None = None) -> Decision:
        """In the refine loop: the row's call has ended with this answer."""
        self._sum_up(row)
        return self.rows[row].end_step(answer)
