"""The reply to one request: its tokens as the server counts them, how it ended, and, of a probe, its answer and signals."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from entropy_chains.backends import Probe
from entropy_chains.backends.remote.readers import Piece, Update
from entropy_chains.backends.remote.token_count import TokenCount
from entropy_chains.backends.text.markup import clean_answer
from entropy_chains.core.entropy import token_entropy
from entropy_chains.core.families import ThinkTags
from entropy_chains.core.finish_reasons import is_cut
from entropy_chains.core.phases import Phase
from entropy_chains.core.signals import MassFloor, Tally

MOST_UNSEEN_TOKENS = 16
"""Reasoning tokens of which the client hands on no text, from which on a reply thinks: a few are what a close left behind."""


@dataclass(slots=True)
class Reply(TokenCount):
    """The reply to one request.

    Attributes:
        purpose: the request's.
        before: tokens of the run before it.
        finish: as the server told it last.
        full: it has all tokens that it was allowed, and the server never said why it ended.
        said: the visible tokens, of a probe.
        again: the model thinks anew, in a probe.
        unseen: reasoning tokens of which the client hands on no text.
    """

    purpose: str
    before: int = 0
    finish: str | None = None
    full: bool = False
    said: list[Piece] = field(default_factory=list)
    again: bool = False
    unseen: int = 0

    @property
    def thinks_unseen(self) -> bool:
        """The model thinks, and the client drops the text."""
        return self.unseen >= MOST_UNSEEN_TOKENS

    @property
    def prompt(self) -> int | None:
        """Tokens of its prompt, if the server told."""
        return (self.usage.prompt_tokens or None) if self.usage else None

    @property
    def end(self) -> str | None:
        """How it ended: the server's word, or ``length`` where it sent none."""
        return "length" if self.full else self.finish

    def take(self, update: Update) -> None:
        """Count a chunk of it; the text is kept of a probe only."""
        TokenCount.take(self, update)  # not super(): slots make the class anew
        self.unseen += sum(p.phase is Phase.THINKING and not (p.text or p.token.text) for p in update.pieces)
        if self.purpose == "probe":
            self.said += [p for p in update.pieces if p.phase is not Phase.THINKING and p.text]
            anew = any(p.phase is Phase.THINKING and p.text.strip() for p in update.pieces)
            self.again = self.again or anew or (self.thinks_unseen and not self.said)
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
        logprobs = [t.logprob for t in tokens if t.logprob is not None]
        # Signals need the logprobs of all tokens of the answer, and no others: of a part of it they would be other figures.
        if answer is not None and answer == text.strip() and len(logprobs) == len(tokens):
            signals["trial_confidence"] = math.fsum(map(math.exp, logprobs)) / len(logprobs)
            tally = Tally(floor)
            for token in tokens:
                tally.add(token_entropy(token, k=k))
            signals |= tally.trial()
        return Probe(answer, self.tokens, signals, self.again or (answer is None and tags.open in text))
