"""The reply to one request: its tokens as the server counts them, how it ended, and, of a probe, its answer and signals."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from entropy_chains.backends import Probe
from entropy_chains.backends.remote.readers import Piece, Update, Usage
from entropy_chains.backends.text.markup import clean_answer
from entropy_chains.core.entropy import token_entropy
from entropy_chains.core.families import ThinkTags
from entropy_chains.core.finish_reasons import is_cut
from entropy_chains.core.signals import MassFloor, Tally
from entropy_chains.core.steps import Phase


@dataclass(slots=True)
class Reply:
    """The reply to one request.

    Attributes:
        purpose: the request's.
        before: tokens of the run before it.
        pieces: tokens that came.
        usage, finish: as the server told them last.
        said: the visible tokens, of a probe.
        again: the model thinks anew, in a probe.
    """

    purpose: str
    before: int = 0
    pieces: int = 0
    usage: Usage | None = None
    finish: str | None = None
    said: list[Piece] = field(default_factory=list)
    again: bool = False

    @property
    def tokens(self) -> int:
        """Tokens as the server counts them; those that came where it does not say, as on a stream that was closed."""
        counted = self.usage.completion_tokens if self.usage else None
        return counted or self.pieces  # a gateway may count 0

    @property
    def prompt(self) -> int | None:
        """Tokens of its prompt, if the server told."""
        return (self.usage.prompt_tokens or None) if self.usage else None

    def take(self, update: Update) -> None:
        """Count a chunk of it; the text is kept of a probe only."""
        self.pieces += len(update.pieces)
        if self.purpose == "probe":
            self.said += [p for p in update.pieces if p.phase is not Phase.THINKING and p.text]
            self.again = self.again or any(p.phase is Phase.THINKING and p.text.strip() for p in update.pieces)
        self.usage = update.usage or self.usage
        self.finish = update.finish_reason or self.finish

    def probe(self, tags: ThinkTags, k: int, floor: MassFloor | None = None) -> Probe:
        """Returns a probe's answer, its tokens, and the signals that its logprobs give.

        Args:
            tags: the family's thinking tags.
            k: alternatives that were asked for.
            floor: positions with less mass enter with their upper bound.
        """
        text, tokens = "".join(p.text for p in self.said), [p.token for p in self.said]
        answer = None if self.again or is_cut(self.finish) else clean_answer(text, tags)
        signals = dict[str, float]()
        known = [t.logprob for t in tokens if t.logprob is not None]
        # Signals need the logprobs of all tokens of the answer, and no others: of a part of it they would be other figures.
        if answer is not None and answer == text.strip() and len(known) == len(tokens):
            signals["trial_confidence"] = math.fsum(map(math.exp, known)) / len(known)
            tally = Tally(floor)
            for token in tokens:
                tally.add(token_entropy(token, k=k))
            signals |= tally.trial()
        return Probe(answer, self.tokens, signals)
