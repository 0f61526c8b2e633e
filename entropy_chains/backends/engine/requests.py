"""The engine's half of the vLLM plug-in that knows no vLLM: requests as rows of a batch that come, move and go.

In every step of the engine a row goes through the same three stations: the token it has got since the last step is taken, by
:meth:`Ledger.keep` with those of all rows or, if something may be decided with it, by :meth:`Rows.take`;
:meth:`Ledger.measure` computes the entropies of all rows' next tokens at once; and :meth:`Rows.force` leaves a row that is
closing one choice only.
Whatever goes wrong in a row ends its watching and no more: it runs in full, and the engine with all its other requests goes on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from entropy_chains.backends.engine.buffers import Ledger, Row, moved
from entropy_chains.backends.engine.settings import Serving, Settings, check
from entropy_chains.backends.text.vocabulary import Vocabulary
from entropy_chains.core.monitor import Decision, Monitor
from entropy_chains.core.phases import Phase, phase_after_prompt
from entropy_chains.core.policy import stopping_enabled
from entropy_chains.errors import InputError

logger = logging.getLogger("vllm.entropy_chains")  # below vLLM's own, so that it is shown where vLLM's is

PROMPT_TAIL = 16
"""Tokens at a prompt's end among which a tag that opens the thinking, or closes it, stands."""


class Rows:
    """What all rows share.

    Args:
        serving: what the engine serves.
        seats: rows that can be in the batch at once.
        late: see :class:`Ledger`.
        silent: another rank sees the same rows, and reports them.
    """

    def __init__(self, serving: Serving, seats: int, *, late: bool = False, silent: bool = False):
        self.serving = serving
        self._silent = silent
        self._failed = False
        vocabulary = serving.vocabulary
        tags = vocabulary.tags if vocabulary else None
        self._vocabulary: Vocabulary = vocabulary  # type: ignore[assignment]  # no row is begun without one
        self._close = vocabulary.encode(tags.close + tags.after) if vocabulary and tags else []
        self._ledger = Ledger(seats, self._vocabulary.text if vocabulary else str, late=late)
        self._looked: set[int] = set()  # tokens of which the ledger knows whether they are quiet
        self._batch: tuple[Sequence[tuple[int, Row]], np.ndarray[Any, Any], np.ndarray[Any, Any]] | None = None

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
        stop = settings.stop and stopping_enabled()
        monitor = Monitor(settings.policy, tags=tags, stop=stop, holdout=settings.holdout)
        if prompt and tags:
            monitor.enter(phase_after_prompt(self._vocabulary.decode(list(prompt)[-PROMPT_TAIL:]), tags))
        return Row(self._ledger, settings, monitor, stops=stop and not settings.holdout)

    def take(self, row: Row, length: int, token: int) -> None:
        """Read what the row has got since the last step: a token, or nothing while its prompt is being read.

        Args:
            row: a row that is watched.
            length: tokens of its output so far.
            token: the last of them.
        """
        if length == row.fed or not row.on:
            return
        if length != row.fed + 1:
            self.leave(row, f"{length} tokens where {row.fed + 1} were expected")
            return
        if row.closing is not None and token != self._close[row.fed - row.closing]:
            self.leave(row, "the closing tag was not accepted, by a grammar perhaps")
            return
        text, last = self._vocabulary.text(token), token in self._vocabulary.eos
        if token not in self._looked:
            self._looked.add(token)
            self._ledger.quiet[token] = row.monitor.quiet(text) and not last
        decision = row.feed(text, forced=last or row.closing is not None)
        if decision is Decision.CLOSE:
            row.closing = row.fed
        if decision is not None and not row.reported:
            self._report(row, decision)
        if row.closing is None:
            row.on = row.monitor.phase is not Phase.ANSWER
        else:
            row.on = row.fed - row.closing < len(self._close)
        row.look()

    def force(self, logits: torch.Tensor, rows: Iterable[tuple[int, Row]]) -> None:
        """Leave rows that are closing one choice, the next token of the closing text; changes ``logits`` in place.

        A row in which that token is impossible (a grammar's mask) stays as it is.
        """
        closing = [(place, self._close[row.fed - row.closing]) for place, row in rows if row.on and row.closing is not None]
        if not closing:
            return
        places, tokens = (moved(list(n), logits.device) for n in zip(*closing, strict=True))
        left = logits[places]
        token_logits = left.gather(1, tokens[:, None])
        only = torch.full_like(left, -torch.inf).scatter_(1, tokens[:, None], token_logits)
        logits[places] = torch.where(token_logits > -torch.inf, only, left)

    def step(
        self, logits: torch.Tensor, rows: Sequence[tuple[int, Row]], lengths: Sequence[int], tokens: Sequence[int]
    ) -> torch.Tensor:
        """One step of the engine; never raises, for that would end the whole server.

        Args:
            logits: before temperature, [batch, vocabulary]; rows that close are changed in place.
            rows: those that are watched, with their places in the batch, ascending. The same list again means the same rows.
            lengths: for each of them the number of tokens of its output so far.
            tokens: the last of those, -1 where there is none.

        Returns:
            The logits.
        """
        try:
            self._step(logits, rows, lengths, tokens)
        except Exception as error:  # noqa: BLE001 (see above)
            if len(rows) == 1:
                self.failed([rows[0][1]], error)
                return logits
            # Whose fault it is shows when each is taken alone. What was done for a row already is not done twice: its tokens are
            # counted, and its next token's figures are the same again.
            for n in range(len(rows)):
                self.step(logits, rows[n : n + 1], lengths[n : n + 1], tokens[n : n + 1])
        return logits

    def _step(self, logits: torch.Tensor, rows: Sequence[tuple[int, Row]], lengths: Sequence[int], tokens: Sequence[int]) -> None:
        self._ledger.prepare(logits.shape[-1])
        seats, places = self._arrays(rows)
        for n in self._ledger.keep(seats, np.array(lengths), np.array(tokens)):
            row = rows[n][1]
            try:
                self.take(row, lengths[n], tokens[n])
            except Exception as error:  # noqa: BLE001 (the other rows go on)
                self.failed([row], error)
        self._ledger.measure(logits, seats, places)
        self.force(logits, rows)

    def leave(self, row: Row, why: str) -> None:
        """Stop watching a row; it runs in full."""
        row.leave()
        self.say(f"runs in full: {why}", row.settings)

    def say(self, what: str, settings: Settings, *, level: int = logging.INFO) -> None:
        """One line in the server's log."""
        if not self._silent:
            logger.log(level, "entropy-chains: request %r %s", settings.id, what)

    def failed(self, rows: Iterable[Row], error: Exception) -> None:
        """Something of ours broke: these rows run in full. Told once, with all there is to say."""
        for row in rows:
            row.leave()
        if not self._failed:
            self._failed = True
            logger.error("entropy-chains failed; the requests concerned run in full. Told once.", exc_info=error)

    def _report(self, row: Row, decision: Decision) -> None:
        if not row.monitor.decided or (row.stops and decision is not Decision.CLOSE):
            return
        outcome, row.reported = row.monitor.finish(), True
        verb = "closed" if outcome.stopped else "would have been closed"
        level = logging.INFO if row.settings.id else logging.DEBUG  # told to who asks for it by a name
        self.say(f"{verb} {json.dumps(outcome.metadata())}", row.settings, level=level)

    def _arrays(self, rows: Sequence[tuple[int, Row]]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """The rows' seats and places; kept, for most steps have the rows of the one before."""
        if self._batch is None or self._batch[0] is not rows:
            self._batch = (rows, np.array([row.seat for _, row in rows]), np.array([place for place, _ in rows]))
        return self._batch[1:]
