"""The engine's half of the vLLM plug-in that knows no vLLM: requests as rows of a batch that come, move and go.

In every step of the engine a row goes through the same three stations: :meth:`Rows.take` reads the token it has got since the
last step and may decide to close, :meth:`Rows.measure` computes the entropies of all rows' next tokens at once, and
:meth:`Rows.force` leaves a row that is closing one choice only. Whatever goes wrong in a row ends its watching and no more: it
runs in full, and the engine with all its other requests goes on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from entropy_chains.backends.vllm_settings import Serving, Settings, check
from entropy_chains.backends.vocabulary import Vocabulary
from entropy_chains.entropy import RowEntropies, logits_entropy
from entropy_chains.errors import EntropyChainsError, InputError
from entropy_chains.monitor import Decision, Monitor
from entropy_chains.policy import stopping_enabled
from entropy_chains.steps import Phase

logger = logging.getLogger("vllm.entropy_chains")  # below vLLM's own, so that it is shown where vLLM's is

KEPT = 256
"""Tokens whose figures or logits a row keeps before they are summed up; few long sums cost less than many short ones."""

TAIL = 16
"""Tokens at a prompt's end among which the tag that opens the thinking stands."""


class Figures:
    """Entropy, mass, lower, upper and confidence of some rows' next tokens, [rows, 5], on their way to the host.

    They are read one step later, when the tokens are known: the copy runs beside the engine's work, and nobody waits for it.
    """

    __slots__ = ("_arrived", "_values")

    def __init__(self, values: RowEntropies):
        stacked = values.figures()
        self._arrived = None
        if stacked.device.type == "cuda":
            host = torch.empty(stacked.shape, dtype=stacked.dtype, pin_memory=True)
            host.copy_(stacked, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()
            stacked = host
        self._values = stacked.cpu().numpy()

    def __getitem__(self, place: int) -> np.ndarray[Any, Any]:
        if self._arrived is not None:
            self._arrived.synchronize()
            self._arrived = None
        figures: np.ndarray[Any, Any] = self._values[place]
        return figures


Place = tuple["Figures | np.ndarray[Any, Any]", int]
"""Where one token's figures, or its logits, are: those of all rows in a step, and the row among them."""


class Row:
    """One request.

    Attributes:
        monitor: its steps and its decision; stops: it may decide to close; late: what is pending are logits, not figures.
        fed: tokens of its output that were taken.
        on: it is watched; False once its thinking is over, or something went wrong.
        told: the log has its outcome.
        closing: tokens of its output when it was decided to close, or None.
        measured: its next token is one of the thinking that the model chooses: its entropy counts.
        k: the likeliest tokens that its policy's entropy is over, None for all.
        pending: where its next token's figures are, or its logits, if it is measured.
        waiting: texts of the last tokens, quiet ones, that the monitor has not taken yet.
    """

    __slots__ = (
        "_kept", "closing", "fed", "k", "late", "measured", "monitor", "on", "pending", "settings", "stops", "told", "waiting",
    )  # fmt: skip

    def __init__(self, settings: Settings, monitor: Monitor, *, stops: bool, late: bool):
        self.settings, self.monitor, self.stops, self.late = settings, monitor, stops, late
        self.fed = 0
        self.on, self.told = True, False
        self.closing: int | None = None
        self.k = settings.policy.k
        self.measured = monitor.phase is Phase.THINKING
        self.pending: Place | None = None
        self._kept: list[Place] = []  # of tokens that were taken
        self.waiting: list[str] = []

    def keep(self, text: str, place: Place) -> None:
        """Take a quiet token of the thinking. It decides nothing, so the monitor gets it with the next that may."""
        self.fed += 1
        self.waiting.append(text)
        self._kept.append(place)

    def feed(self, text: str, *, forced: bool) -> Decision | None:
        """Take the token whose figures are pending; returns a decision where a step ended with it."""
        pending, self.pending = self.pending, None
        self.fed += 1
        if self.waiting:
            self.monitor.skim(self.waiting)
            self.waiting.clear()
        if self.monitor.advance(text, forced=forced):
            if pending is None:
                raise EntropyChainsError(f"token {self.fed} counts, but its entropy was not measured")
            self._kept.append(pending)
        ended = self.monitor.at_end
        if self._kept and (ended or len(self._kept) >= KEPT):
            self._sum_up()
        return self.monitor.decide() if ended else None

    def _sum_up(self) -> None:
        figures = np.array([step[place] for step, place in self._kept])
        self._kept.clear()
        self.monitor.absorb(logits_entropy(figures, self.k).figures() if self.late else figures.astype(np.float64))


class Rows:
    """What all rows share.

    Args:
        serving: what the engine serves.
        late: keep every step's logits, and compute a row's entropies at the end of its step, all at once. For small logits on
            a CPU: many small computations cost more than the logits' memory.
        silent: another rank sees the same rows, and reports them.
    """

    def __init__(self, serving: Serving, *, late: bool = False, silent: bool = False):
        self.serving = serving
        self._late, self._silent = late, silent
        self._failed = False
        vocabulary = serving.vocabulary
        tags = vocabulary.tags if vocabulary else None
        self._vocabulary: Vocabulary = vocabulary  # type: ignore[assignment]  # no row is begun without one
        self._close = vocabulary.encode(tags.close + tags.after) if vocabulary and tags else []
        self._quiet: dict[int, str] = {}  # texts of tokens seen so far, "" for one that is not quiet
        self._indices: tuple[list[int], torch.Tensor] | None = None

    def begin(self, settings: Settings | None, prompt: Sequence[int] | None, params: Any = None) -> Row | None:
        """A row for a request that has just come; None where it is not to be watched.

        Args:
            settings: what it asks for; None: nothing.
            prompt: its prompt's tokens, the last of them at least; None where there are none.
            params: its sampling parameters.
        """
        if settings is None:
            return None
        try:
            check(settings, self.serving, params)
        except InputError as error:  # the front end refuses it already, unless it knew less than is known here
            self.say(f"runs in full: {error}", settings)
            return None
        tags = self._vocabulary.tags
        opened = bool(prompt and tags and self._vocabulary.decode(list(prompt)[-TAIL:]).rstrip().endswith(tags.open))
        stop = settings.stop and stopping_enabled()
        monitor = Monitor(settings.policy, tags=tags, thinking=opened, stop=stop, holdout=settings.holdout)
        return Row(settings, monitor, stops=stop and not settings.holdout, late=self._late)

    def take(self, row: Row, known: int, token: int) -> None:
        """Read what the row has got since the last step: a token, or nothing while its prompt is being read.

        Args:
            row: a row that is watched.
            known: tokens of its output so far.
            token: the last of them.
        """
        if known == row.fed:
            return
        if known != row.fed + 1:
            self.leave(row, f"{known} tokens where {row.fed + 1} were expected")
            return
        if row.closing is not None and token != self._close[row.fed - row.closing]:
            self.leave(row, "the closing tag was not accepted, by a grammar perhaps")
            return
        text, last = self._vocabulary.text(token), token in self._vocabulary.eos
        if token not in self._quiet:
            self._quiet[token] = text if row.monitor.quiet(text) and not last else ""
        decision = row.feed(text, forced=last or row.closing is not None)
        if decision is Decision.CLOSE:
            row.closing = row.fed
        if decision is not None and not row.told:
            self._report(row, decision)
        phase, closing = row.monitor.phase, row.closing is not None
        row.measured = phase is Phase.THINKING and not closing
        row.on = row.fed - row.closing < len(self._close) if closing else phase is not Phase.ANSWER

    def measure(self, logits: torch.Tensor, rows: Sequence[tuple[int, Row]]) -> None:
        """Compute the entropies of the next tokens of all rows in their thinking, at once for each k, or keep their logits.

        Args:
            logits: before temperature, [batch, vocabulary].
            rows: those that are watched, with their places in the batch, ascending.
        """
        if self._late:
            kept = logits.float().numpy().copy()  # the engine scales them in place
            for place, row in rows:
                row.pending = (kept, place) if row.measured else None
            return
        wanted: dict[int | None, list[tuple[int, Row]]] = {}
        for place, row in rows:
            row.pending = None
            if row.measured:
                wanted.setdefault(row.k, []).append((place, row))
        for k, some in wanted.items():
            places = [place for place, _ in some]
            part = logits if len(places) == logits.shape[0] else logits[self._index(places, logits.device)]
            figures = Figures(logits_entropy(part, k))
            for n, (_, row) in enumerate(some):
                row.pending = (figures, n)

    def force(self, logits: torch.Tensor, rows: Iterable[tuple[int, Row]]) -> None:
        """Leave rows that are closing one choice, the next token of the closing text; changes ``logits`` in place.

        A row in which that token is impossible (a grammar's mask) stays as it is.
        """
        closing = [(place, self._close[row.fed - row.closing]) for place, row in rows if row.on and row.closing is not None]
        if not closing:
            return
        places, tokens = (_moved(list(n), logits.device) for n in zip(*closing, strict=True))
        left = logits[places]
        own = left.gather(1, tokens[:, None])
        only = torch.full_like(left, -torch.inf).scatter_(1, tokens[:, None], own)
        logits[places] = torch.where(own > -torch.inf, only, left)

    def step(self, logits: torch.Tensor, rows: Sequence[tuple[int, Row]], news: Sequence[tuple[int, int]]) -> torch.Tensor:
        """All three, for one step of the engine; never raises, for that would end the whole server.

        Args:
            logits: before temperature, [batch, vocabulary]; rows that close are changed in place.
            rows: those that are watched, with their places in the batch, ascending.
            news: for each of them the number of tokens of its output so far, and the last of them.

        Returns:
            The logits.
        """
        quiet = self._quiet
        for (_, row), (known, token) in zip(rows, news, strict=True):
            if row.pending and known == row.fed + 1 and (text := quiet.get(token)) and len(row.waiting) < KEPT:
                row.keep(text, row.pending)  # nearly every token: nothing else is done for it
                continue
            try:
                self.take(row, known, token)
            except Exception as error:  # noqa: BLE001 (see above)
                self.failed([row], error)
        watched = [(place, row) for place, row in rows if row.on]
        for work in (self.measure, self.force):
            try:
                work(logits, watched)
            except Exception as error:  # noqa: BLE001 (see above)
                self.failed([row for _, row in watched], error)
        return logits

    def leave(self, row: Row, why: str) -> None:
        """Stop watching a row; it runs in full."""
        row.on, row.pending = False, None
        self.say(f"runs in full: {why}", row.settings)

    def say(self, what: str, settings: Settings, *, level: int = logging.INFO) -> None:
        """One line in the server's log."""
        if not self._silent:
            logger.log(level, "entropy-chains: request %r %s", settings.id, what)

    def failed(self, rows: Iterable[Row], error: Exception) -> None:
        """Something of ours broke: these rows run in full. Told once, with all there is to say."""
        for row in rows:
            row.on, row.pending = False, None
        if not self._failed:
            self._failed = True
            logger.error("entropy-chains failed; the requests concerned run in full. Told once.", exc_info=error)

    def _report(self, row: Row, decision: Decision) -> None:
        if not row.monitor.decided or (row.stops and decision is not Decision.CLOSE):
            return
        outcome, row.told = row.monitor.finish(), True
        said = "closed" if outcome.stopped else "would have been closed"
        level = logging.INFO if row.settings.id else logging.DEBUG  # told to who asks for it by a name
        self.say(f"{said} {json.dumps(outcome.metadata())}", row.settings, level=level)

    def _index(self, places: list[int], device: torch.device) -> torch.Tensor:
        """The places as a tensor; kept, for most steps watch the same rows as the one before."""
        if self._indices is None or self._indices[0] != places:
            self._indices = (places, _moved(places, device))
        return self._indices[1]


def _moved(values: Sequence[int], device: torch.device) -> torch.Tensor:
    """Some numbers on the device, without waiting for it."""
    made = torch.tensor(values, pin_memory=device.type == "cuda")
    return made.to(device, non_blocking=True)
