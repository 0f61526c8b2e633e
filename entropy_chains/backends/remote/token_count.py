"""How many tokens a reply had: as the server counts them, where that can be true of what came. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from entropy_chains.backends.remote.readers import Update, Usage

MOST_TOKENS = 2**20
"""More tokens than a reply has, where nobody said how many it may have."""

SMALLEST_LIMIT = 16
"""The fewest tokens that every API takes as a limit (OpenAI's Responses)."""

LONGEST_TOKEN = 128
"""Characters of the longest tokens that vocabularies have (a row of blanks in OpenAI's)."""


@dataclass(slots=True, kw_only=True)
class TokenCount:
    """The tokens of one reply.

    The server's count is believed from the least that came (tokens with logprobs, or text that no fewer can hold) up to what the
    reply was allowed; twice what came is possible in any case. Otherwise those that came are counted.

    Attributes:
        pieces: tokens that came; of text without logprobs at least as many.
        entries: those of them with logprobs.
        characters: of their text.
        usage: as the server told it last.
        limit: tokens that the reply was allowed; None: not known.
    """

    pieces: int = 0
    entries: int = 0
    characters: int = 0
    usage: Usage | None = None
    limit: int | None = None

    def take(self, update: Update) -> None:
        """Count what an update brings."""
        self.pieces += len(update.pieces)
        for piece in update.pieces:
            self.entries += bool(piece.token.alternatives) or piece.token.logprob is not None
            self.characters += len(piece.text)
        self.usage = update.usage or self.usage

    @property
    def tokens(self) -> int:
        """Tokens as the server counts them; those that came where it does not say, as on a stream that was closed."""
        counted = self._counted
        return counted if self._least <= counted <= self._most and counted else self.pieces  # a gateway may count 0

    @property
    def doubt(self) -> str | None:
        """What is wrong with the server's count, where it is far from what came; None where it may be true, or is none."""
        counted = self._counted
        if not counted or self._least <= 2 * counted <= 2 * self._most:
            return None
        return f"the server counts {counted:,} tokens for a reply of which {self.pieces:,} came; these are counted instead"

    @property
    def _counted(self) -> int:
        return (self.usage.completion_tokens or 0) if self.usage else 0

    @property
    def _least(self) -> int:
        return max(self.entries, self.characters // LONGEST_TOKEN)

    @property
    def _most(self) -> int:
        return max(min(self.limit or MOST_TOKENS, MOST_TOKENS), 2 * self.pieces, SMALLEST_LIMIT)
