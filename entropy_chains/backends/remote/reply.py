"""What came of one request to a server: its text, its tokens as the server counts them, and, of a probe, how sure it is."""

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
    """What came of one request."""

    purpose: str
    before: int = 0  # tokens of the run before it
    pieces: int = 0
    usage: Usage | None = None
    finish: str | None = None
    said: list[Piece] = field(default_factory=list)  # a probe's visible tokens
    again: bool = False  # of a probe: the model thinks anew

    @property
    def tokens(self) -> int:
        """As the server counts them; entries where it does not say, as on a stream that was closed."""
        counted = self.usage.completion_tokens if self.usage else None
        return counted if counted is not None else self.pieces

    @property
    def prompt(self) -> int | None:
        """Tokens of its prompt, if the server told."""
        return self.usage.prompt_tokens if self.usage else None

    def take(self, update: Update) -> None:
        """A chunk of it; of a probe the text is kept."""
        self.pieces += len(update.pieces)
        if self.purpose == "probe":
            self.said += [p for p in update.pieces if p.phase is not Phase.THINKING and p.text]
            self.again = self.again or any(p.phase is Phase.THINKING and p.text.strip() for p in update.pieces)
        self.usage = update.usage or self.usage
        self.finish = update.finish_reason or self.finish

    def probe(self, tags: ThinkTags, k: int, floor: MassFloor | None = None) -> Probe:
        """A probe's answer, what it took, and what its tokens' logprobs say of it."""
        text, tokens = "".join(p.text for p in self.said), [p.token for p in self.said]
        answer = None if self.again or is_cut(self.finish) else clean_answer(text, tags)
        signals = dict[str, float]()
        known = [t.logprob for t in tokens if t.logprob is not None]
        # Only where every token was told and all of them are the answer: a part of it would be another figure.
        if answer is not None and answer == text.strip() and len(known) == len(tokens):
            signals["trial_confidence"] = math.fsum(map(math.exp, known)) / len(known)
            tally = Tally(floor)
            for token in tokens:
                tally.add(token_entropy(token, k=k))
            signals |= tally.trial()
        return Probe(answer, self.tokens, signals)
