"""What an :class:`.handlers.EntropyEventHandler` measured: a row a call, totals, and a table of both."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rich.table import Table

from entropy_chains import Outcome


@dataclass(frozen=True, slots=True)
class MeasuredCall:
    """One LLM call.

    Attributes:
        model: as the server or the LLM names it.
        streamed: its tokens came one by one.
        entropies: of its steps, in order, bits; None where a step has too few logprobs.
        outcome: stopped or not and why; ``step`` of a call that was not stopped is where the policy would have.
        would_save: reasoning tokens it went on for after that step, counted; None where nothing would have been stopped.
    """

    model: str
    streamed: bool
    entropies: tuple[float | None, ...]
    outcome: Outcome
    would_save: int | None = None

    def joined(self, later: MeasuredCall) -> MeasuredCall:
        """Both as one: requests of one run of an ``EarlyStopLLM``."""
        tokens = self.outcome.tokens + later.outcome.tokens
        first = self if self.entropies else later  # a request for an answer has no steps
        return replace(
            first,
            entropies=(*self.entropies, *later.entropies),
            outcome=replace(first.outcome, tokens=tokens),
        )

    def judged(self, outcome: Outcome) -> MeasuredCall:
        """With the outcome that its run came to."""
        same = outcome.policy == self.outcome.policy and not outcome.stopped
        return replace(self, outcome=outcome, would_save=self.would_save if same else None)


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over all calls, also of those whose rows are no longer kept.

    Attributes:
        calls: LLM calls.
        measured: those with an entropy.
        tokens: completion tokens.
        stopped: calls that were stopped; ``saved``: tokens that saved, an estimate from calibration.
        would_stop: further calls that the policy would have stopped; ``would_save``: tokens they went on for, counted.
    """

    calls: int = 0
    measured: int = 0
    tokens: int = 0
    stopped: int = 0
    saved: int = 0
    would_stop: int = 0
    would_save: int = 0

    def add(self, row: MeasuredCall, sign: int = 1) -> Totals:
        """With one more row; ``sign`` -1: with one less."""
        outcome = row.outcome
        return Totals(
            self.calls + sign,
            self.measured + sign * any(h is not None for h in row.entropies),
            self.tokens + sign * outcome.tokens,
            self.stopped + sign * outcome.stopped,
            self.saved + sign * (outcome.tokens_saved or 0),
            self.would_stop + sign * (row.would_save is not None),
            self.would_save + sign * (row.would_save or 0),
        )


@dataclass(frozen=True, slots=True)
class Summary:
    """The last rows and the totals; ``rich.print`` shows it as a table."""

    rows: tuple[MeasuredCall, ...]
    totals: Totals

    def __rich__(self) -> Table:
        totals = self.totals
        columns = ("call", "model", "steps", "last entropy (bits)", "tokens", "stop at step", "saved", "why")
        table = Table(*columns, title="LLM calls", show_footer=True)
        for n, row in enumerate(self.rows, totals.calls - len(self.rows) + 1):
            outcome, last = row.outcome, row.entropies[-1] if row.entropies else None
            step = "" if outcome.step is None else str(outcome.step) if outcome.stopped else f"({outcome.step})"
            saved = f"~{outcome.tokens_saved}" if outcome.tokens_saved is not None else _would(row.would_save)
            entropy = "" if last is None else f"{last:.3f}"
            table.add_row(str(n), row.model, str(len(row.entropies)), entropy, str(outcome.tokens), step, saved, outcome.reason)
        feet = (str(totals.calls), "all", "", "", str(totals.tokens), f"{totals.stopped} ({totals.would_stop})")
        for column, foot in zip(table.columns, (*feet, f"~{totals.saved} ({totals.would_save})", ""), strict=True):
            column.footer = foot
        table.caption = "~ estimated from calibration; in brackets: not stopped, but the policy would have"
        return table


def _would(tokens: int | None) -> str:
    return "" if tokens is None else f"({tokens})"
