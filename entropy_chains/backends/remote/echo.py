"""The begun turn that a server sends back before it goes on from it (llama.cpp; vLLM where ``echo`` is set). Pure.

Such an echo is text of the request: none of its tokens was computed, none is the answer's, and no thinking is begun again by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from entropy_chains.backends.remote.alignment import Part
from entropy_chains.core.phases import Phase


@dataclass(frozen=True)
class BegunTurn:
    """An assistant's turn that a server is to go on from.

    Attributes:
        thinking: without its tags.
        close: the closing tag after it.
        open: the opening tag before it; empty where the prompt has it.
    """

    thinking: str
    close: str
    open: str = ""

    @cached_property
    def in_content(self) -> tuple[str, ...]:
        """How it is sent back as content, without blanks. Without its closing tag it might as well be the answer's beginning.

        A closing tag alone is none: a model writes that, too.
        """
        closed = _bare(self.thinking + self.close)
        whole = (_bare(self.open) + closed,) if self.open else ()
        return (*whole, closed) if self.thinking.strip() else whole

    @cached_property
    def in_field(self) -> tuple[str, ...]:
        """How it is sent back in a field for the reasoning, where a server splits that off."""
        return (_bare(self.thinking),)


class Echo:
    """Leaves the echo of a begun turn out of a reply.

    Text that may be the echo is kept back until it is whole, or turns out to be the reply's own. Blanks are not compared: servers
    strip them around tags.
    """

    __slots__ = ("_in_field", "_kept", "_left", "_over", "_turn")

    def __init__(self, turn: BegunTurn):
        self._turn = turn
        self._over = False  # whether there is one is known
        self._kept: list[Part] = []
        self._left: Sequence[str] = ()  # what would have to follow, in each form that the echo may have
        self._in_field = False  # what was kept came in a field for the reasoning

    def take(self, parts: Sequence[Part]) -> list[Part]:
        """Those of the texts up to now, with these of a chunk, that are the reply's own."""
        own: list[Part] = []
        for part in parts:
            own += [part] if self._over else self._own(*part)
        return own

    def rest(self) -> list[Part]:
        """What was kept back, if nothing more comes: the reply's own, unless it is the echo, whole."""
        kept = [] if "" in self._left else self._kept
        self._over, self._kept = True, []
        return kept

    def _own(self, phase: Phase | None, text: str) -> list[Part]:
        in_field, bare = phase is Phase.THINKING, _bare(text)
        if not self._kept:
            if not bare:
                return [(phase, text)]
            self._in_field, self._left = in_field, self._turn.in_field if in_field else self._turn.in_content
        elif in_field is not self._in_field:
            return [*self.rest(), (phase, text)]
        if not in_field and (ended := next((left for left in self._left if bare.startswith(left)), None)) is not None:
            self._over, self._kept = True, []
            rest = _without(text, len(ended))
            return [(phase, rest)] if rest else []
        self._kept.append((phase, text))
        self._left = [left[len(bare) :] for left in self._left if left.startswith(bare)]
        return [] if self._left else self.rest()


def without_echo(text: str, turn: BegunTurn | None) -> str:
    """A whole reply's content without the echo of the turn that it was asked after."""
    bare = _bare(text)
    echo = next((form for form in turn.in_content if bare.startswith(form)), "") if turn else ""
    return _without(text, len(echo)) if echo else text


def _bare(text: str) -> str:
    return "".join(text.split())


def _without(text: str, count: int) -> str:
    """What comes after so many characters that are no blanks, and the blanks after them."""
    ends = [at + 1 for at, character in enumerate(text) if not character.isspace()]
    return text[ends[count - 1] :].lstrip()
