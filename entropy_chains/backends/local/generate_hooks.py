"""What happens while ``generate()`` runs: entropies and tokens are read, and the closing tag is forced where a row is stopped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor, StoppingCriteria

from entropy_chains.backends import Chunk, GeneratedStep, Generation, Probe
from entropy_chains.backends.local.sampling import Numbers
from entropy_chains.backends.text.markup import as_chunks
from entropy_chains.backends.text.vocabulary import Vocabulary
from entropy_chains.core.batch_monitor import BatchMonitor
from entropy_chains.core.entropy import EntropyBounds
from entropy_chains.core.entropy_rows import logits_entropy
from entropy_chains.core.monitor import Decision
from entropy_chains.core.phases import Phase
from entropy_chains.core.tokens import Token

THIN = 8
"""Rows of a batch from which on it is worth leaving those behind that are over: each time takes a copy of the cache."""

FIGURES = 5
"""Per token: entropy, mass, lower, upper, confidence."""


class Cancelled:
    """Ends a ``generate()`` whose reader has gone away."""

    def __init__(self, cancelled: threading.Event):
        self._cancelled = cancelled

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._cancelled.is_set(), device=input_ids.device)


class TrialProcessor(LogitsProcessor):  # type: ignore[misc]
    """Reads what rules read of a forced answer, from the logits before temperature.

    Args:
        k: alternatives that a token's entropy is computed from; None = the whole vocabulary.

    Attributes:
        entropies: of each row's first token over the whole vocabulary, bits, [rows].
    """

    def __init__(self, k: int | None) -> None:
        self.entropies: Any = None
        self._k = k
        self._scores: torch.Tensor | None = None  # of the token being drawn
        self._chances: list[torch.Tensor] = []
        self._figures: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._drawn(input_ids[:, -1:])
        if self.entropies is None:
            self.entropies = logits_entropy(scores, None).entropy
        self._figures.append(logits_entropy(scores, self._k).figures())
        self._scores = scores
        return scores

    def _drawn(self, tokens: torch.Tensor) -> None:
        if self._scores is not None:
            scores = self._scores.float()
            self._chances.append((scores.gather(-1, tokens) - scores.logsumexp(-1, keepdim=True)).exp())

    def chances(self, last: torch.Tensor) -> list[list[float]]:
        """Probability of every token drawn, [rows, tokens]; ``last``: the tokens drawn last, [rows, 1]."""
        self._drawn(last)
        chances: list[list[float]] = torch.cat(self._chances, dim=-1).tolist()
        return chances

    @property
    def figures(self) -> np.ndarray[Any, Any]:
        """Entropy, mass, lower, upper and confidence of every token drawn, [rows, tokens, 5]."""
        figures: np.ndarray[Any, Any] = torch.stack(self._figures, dim=1).float().cpu().numpy()
        return figures


class Watch:
    """Reads entropies and tokens of one batch while ``generate()`` runs, and forces the closing tag where a row is stopped.

    ``phases``: where each row's output begins. ``late``: the monitor reads the entropies itself, from the logits, where a step
    ends.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        monitor: BatchMonitor,
        k: int | None,
        close: list[int],
        phases: Sequence[Phase],
        limits: Sequence[int],
        put: Callable[[Chunk], None] | None,
        cancelled: threading.Event | None,
        *,
        late: bool = False,
    ):
        count = len(monitor.rows)
        self._vocabulary, self._monitor, self._k, self._close, self._phases = vocabulary, monitor, k, close, phases
        for row, phase in zip(monitor.rows, phases, strict=True):
            row.enter(phase)
        self._limits, self._put, self.cancelled = limits, put, cancelled
        self.rows = list(range(count))  # the monitor's rows that the running generate() holds, in its order
        self.ids: list[list[int]] = [[] for _ in range(count)]
        self.paused = [False] * count
        self.prefill = [0] * count  # tokens computed a second time
        self._probed = [0] * count
        self._answers: dict[int, str] = {}  # of probes that the run was stopped with
        self.thins = False  # end generate() once half of its rows are over
        self._steps: list[list[GeneratedStep]] = [[] for _ in range(count)]
        self._ended = [False] * count
        self._closing = [-1] * count  # index into the closing tag of the token forced next
        self._figures: torch.Tensor | np.ndarray[Any, Any] | None = None  # of the token being drawn, or its logits
        self._late = late
        self._entries = k or 0
        self._start = self._last = time.perf_counter()
        self._since = [self._start] * count
        self._took = [0.0] * count
        self._reader = vocabulary.reader(phases[0])  # of the row that is put
        self._forced: dict[int, int] = {}  # by row: tokens before its closing text
        watch = self

        class Processor(LogitsProcessor):  # type: ignore[misc]
            def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
                return watch.process(scores)

        class Criterion(StoppingCriteria):  # type: ignore[misc]
            def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
                return watch.chosen(input_ids[:, -1])

        self.processor, self.criterion = Processor(), Criterion()

    @property
    def is_cancelled(self) -> bool:
        return self.cancelled is not None and self.cancelled.is_set()

    def is_over(self, r: int) -> bool:
        """Whether a row has ended, or waits for its probe."""
        return self.paused[r] or self.has_ended(r)

    def has_ended(self, r: int) -> bool:
        """Whether a row has said its last, or may say no more."""
        return self._ended[r] or r in self._answers or len(self.ids[r]) >= self._limits[r]

    def begin(self, rows: list[int]) -> None:
        """These rows go on."""
        self.rows = rows
        for r in rows:
            self.paused[r] = False

    @property
    def left(self) -> int:
        """Tokens that the running rows may still have, at most."""
        return max(self._limits[r] - len(self.ids[r]) for r in self.rows)

    def numbers(self, drawn: Numbers) -> list[float]:
        """What the running rows' next tokens are drawn by."""
        return [drawn.at(r, len(self.ids[r])) for r in self.rows]

    def process(self, scores: torch.Tensor) -> torch.Tensor:
        """The logits of every row's next token: read their entropy, and leave a stopped row one choice only."""
        self._figures = None
        if any(self._monitor.rows[r].phase is not Phase.ANSWER and not self._ended[r] for r in self.rows):
            # Late: laid into the monitor's array before anything changes the scores; those of closing rows are not read.
            self._entries = min(self._k or scores.shape[-1], scores.shape[-1])
            self._figures = scores.float().numpy() if self._late else logits_entropy(scores, self._k).figures()
        for n, r in enumerate(self.rows):
            if self._closing[r] >= 0:
                scores[n] = -torch.inf
                scores[n, self._close[self._closing[r]]] = 0.0
        return scores

    def chosen(self, tokens: torch.Tensor) -> torch.Tensor:
        """Every row's next token: feed the monitor, act on its decisions; returns the rows to end, bool [rows]."""
        ids, figures = self._on_host(tokens)
        every = self._monitor.rows
        texts, live, forced = [""] * len(every), [], set[int]()
        for token, r in zip(ids, self.rows, strict=True):
            if self.is_over(r):
                continue
            live.append(r)
            texts[r] = self._vocabulary.text(token)
            if self._closing[r] >= 0 or token in self._vocabulary.eos:
                forced.add(r)
        decisions = self._monitor.feed(texts, figures, live, forced)
        now = time.perf_counter()
        new = dict(zip(self.rows, ids, strict=True))
        for r in live:
            self._took_token(r, new[r], figures, now)
        for r, decision in decisions.items():
            self._step_ended(r, decision, now)
        over = [self.is_over(r) for r in self.rows]
        thin = self.thins and THIN <= len(over) <= 2 * sum(over)
        return torch.tensor([self.is_cancelled or thin or o for o in over], device=tokens.device)

    def _on_host(self, tokens: torch.Tensor) -> tuple[list[int], np.ndarray[Any, Any] | None]:
        """The new tokens' ids, and their figures as the monitor wants them, a row each; one copy from the device a step."""
        if self._figures is None:
            return tokens.tolist(), None
        if isinstance(self._figures, np.ndarray):
            ids, figures = tokens.tolist(), self._figures
        else:  # float32 holds ids up to 2^24
            packed = torch.cat([self._figures.float(), tokens[:, None].float()], dim=-1).cpu().numpy()
            ids, figures = packed[:, FIGURES].astype(np.int64).tolist(), packed[:, :FIGURES]
        if len(self.rows) < len(self._monitor.rows):
            spread = np.full((len(self._monitor.rows), figures.shape[1]), np.nan, figures.dtype)
            spread[self.rows] = figures
            figures = spread
        return ids, figures

    def _took_token(self, r: int, token: int, figures: np.ndarray[Any, Any] | None, now: float) -> None:
        self.ids[r].append(token)
        self._took[r] = now - self._start
        forced = self._closing[r] >= 0
        if forced:
            self._closing[r] = self._closing[r] + 1 if self._closing[r] + 1 < len(self._close) else -1
        self._ended[r] = token in self._vocabulary.eos
        if self._put:
            missing = forced or figures is None or figures[r, 0] != figures[r, 0]
            bounds = None if missing or figures is None else _bounds(figures[r], self._entries)
            for chunk in self._chunks(r, token, bounds, forced=forced):
                self._put(chunk)

    def _chunks(self, r: int, token: int, bounds: EntropyBounds | None, *, forced: bool) -> list[Chunk]:
        spans = self._reader.take(token)
        return as_chunks(spans, self._reader.phase, Token(self._vocabulary.text(token), token), bounds, forced=forced)

    def _step_ended(self, r: int, decision: Decision, now: float) -> None:
        record, end = self._monitor.rows[r].last, len(self.ids[r])
        if record is None:
            return
        text = self._vocabulary.decode(self.ids[r][end - record.tokens :])
        self._steps[r].append(GeneratedStep(record, text, end, now - self._since[r]))
        self._since[r] = now
        if decision is Decision.CLOSE:
            self._closing[r] = 0
            self._forced[r] = end
            self._reader.force()
        elif decision is Decision.PROBE:
            self.paused[r] = True

    def tried(self, r: int, probe: Probe, again: int) -> None:
        """A paused row was probed, for which ``again`` tokens were computed a second time; where that stops it, it is answered."""
        self._probed[r] += probe.tokens
        self.prefill[r] += again
        if self._monitor.rows[r].answer(probe.answer, probe.signals) is Decision.CLOSE and probe.answer is not None:
            self._answers[r] = probe.answer
            if self._put:
                self._put(Chunk(probe.answer, Phase.ANSWER))

    def finished(self, r: int, prompt: int) -> Generation:
        """The row's run, once ``generate()`` is over."""
        ids, phase = self.ids[r], self._phases[r]
        monitor = self._monitor.rows[r]
        if monitor.segmentation.boundary == "call":
            self._step_ended(r, self._monitor.end_step(r), self._start + self._took[r])
        read, reasoned = self._vocabulary.read(ids, phase, self._forced.get(r)), self._vocabulary.reasoned(ids, phase)
        answer: str | None
        if r in self._answers:
            answer, finish = self._answers[r], "stop"
        else:
            answer = read.whole_answer
            finish = "stop" if self._ended[r] else "cancelled" if self.is_cancelled else "length"
            if self._put:
                for chunk in [Chunk(text, where) for where, text in self._reader.finish()]:
                    self._put(chunk)
        end = self._steps[r][-1].end if self._steps[r] else 0
        return Generation(
            reasoning=read.reasoning.strip("\n"),
            answer=answer,
            steps=tuple(self._steps[r]),
            outcome=monitor.finish(tokens=len(ids) + self._probed[r]),
            tokens=len(ids) + self._probed[r],
            reasoning_tokens=reasoned,
            prompt_tokens=prompt,
            rest_tokens=len(ids) - end,
            seconds=self._took[r],
            finish_reason=finish,
            finish_raw=finish,
            prefill_tokens=self.prefill[r],
            token_ids=tuple(ids),
            tool_calls=self._vocabulary.calls(read, ids[reasoned:]),
        )


def _bounds(figures: np.ndarray[Any, Any], k: int) -> EntropyBounds:
    entropy, mass, lower, upper, confidence = (float(f) for f in figures)
    return EntropyBounds(entropy, lower, upper, mass, k, confidence)
