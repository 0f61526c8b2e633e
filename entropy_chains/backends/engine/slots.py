"""Which request sits where in the batch of vLLM's V1 model runner: rows that leave, come, move, and come back. Knows no vLLM."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from entropy_chains.backends.engine.settings import read

if TYPE_CHECKING:
    import torch

    from entropy_chains.backends.engine.buffers import Row
    from entropy_chains.backends.engine.requests import Rows


class Change(Protocol):
    """vLLM's ``BatchUpdate``: to be followed in the order removed, added, moved. An added or moved row may replace another."""

    @property
    def removed(self) -> Sequence[int]: ...
    @property
    def added(self) -> Sequence[tuple[int, Any, list[int] | None, list[int]]]: ...
    @property
    def moved(self) -> Sequence[tuple[int, int, Any]]: ...


class Seat(NamedTuple):
    """A row with what vLLM tells of its request: the object of its parameters, and the list that its output tokens go to."""

    row: Row
    params: Any
    output: list[int]


class Seats:
    """The watched rows by their places in the batch.

    Args:
        rows: what all rows share.
        left_limit: rows remembered after they left, but for those with a long policy. A request that waits for memory leaves the
            batch as a finished one does, and comes back with tokens in its output; a row that is forgotten by then runs in full.
    """

    def __init__(self, rows: Rows, left_limit: int):
        self._rows = rows
        self._seats: dict[int, Seat] = {}
        self._left: deque[Seat] = deque(maxlen=left_limit)
        self._watched: list[tuple[int, Row]] | None = None  # in order, with their outputs beside it; None: not known yet
        self._outputs: list[list[int]] = []

    def update(self, change: Change) -> None:
        """Follow the batch; never raises."""
        self._watched = None
        try:
            for place in change.removed:
                self._leave(place)
            for place, params, prompt, output in change.added:
                self._leave(place)
                self._sit(self._taken(params, prompt, output), place)
            for first, second, direction in change.moved:
                mover, other = self._rise(first), self._rise(second)
                self._sit(mover, second)
                self._sit(other if direction.name == "SWAP" else None, first)
        except Exception as error:  # noqa: BLE001 (it would end the server; and who sits where is no longer known)
            self._rows.failed([seat.row for seat in self._seats.values()], error)
            self._seats.clear()

    def step(self, logits: torch.Tensor) -> torch.Tensor:
        """One step of the engine: see :meth:`Rows.step`."""
        try:
            return self._step(logits)
        except Exception as error:  # noqa: BLE001 (it would end the server)
            self._rows.failed([seat.row for seat in self._seats.values()], error)
            return logits

    def _step(self, logits: torch.Tensor) -> torch.Tensor:
        if self._watched is None or not all(row.on for _, row in self._watched):
            seats = [(place, seat) for place, seat in sorted(self._seats.items()) if seat.row.on]
            self._watched = [(place, seat.row) for place, seat in seats]
            self._outputs = [seat.output for _, seat in seats]
        if not self._watched:
            return logits
        lengths = list(map(len, self._outputs))
        tokens = [output[-1] if output else -1 for output in self._outputs]
        if -1 in tokens:  # nothing yet, or a placeholder for a token that is not known yet
            lengths = [_length(output) for output in self._outputs]
            tokens = [output[n - 1] if n else -1 for n, output in zip(lengths, self._outputs, strict=True)]
        return self._rows.step(logits, self._watched, lengths, tokens)

    def _sit(self, seat: Seat | None, place: int) -> None:
        if seat is None:
            return
        try:
            seat.row.sit(place)
            self._seats[place] = seat
        except Exception as error:  # noqa: BLE001 (it would end the watching of all)
            self._rows.failed([seat.row], error)

    def _rise(self, place: int) -> Seat | None:
        """Empty a place; returns who sat there, if it is still watched."""
        seat = self._seats.pop(place, None)
        if seat is None or not seat.row.on:
            return None
        try:
            seat.row.rise()
        except Exception as error:  # noqa: BLE001 (it would end the server)
            self._rows.failed([seat.row], error)
            return None
        return seat

    def _leave(self, place: int) -> None:
        seat = self._rise(place)
        if seat and seat.row.settings.small:
            self._left.append(seat)

    def _taken(self, params: Any, prompt: list[int] | None, output: list[int]) -> Seat | None:
        try:
            settings = read(params.extra_args)
            if settings is None or len(output) == 0:
                row = self._rows.begin(settings, prompt, params)
                return Seat(row, params, output) if row else None
            for seat in self._left:
                fed = seat.row.fed
                # Requests with n > 1 share their parameters: their tokens tell them apart, or they are as good as one another.
                if seat.params is params and seat.output[:fed] == output[:fed]:
                    self._left.remove(seat)
                    return seat._replace(output=output)
            self._rows.say("came back and is not watched any more: its thinking was over, or it was away too long", settings)
        except Exception as error:  # noqa: BLE001 (it would end the server)
            self._rows.failed([], error)
        return None


def _length(output: list[int]) -> int:
    """Tokens so far, without the placeholders (-1)."""
    length = len(output)
    while length and output[length - 1] < 0:
        length -= 1
    return length
