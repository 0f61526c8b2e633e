"""A reply's text without its thinking tags: which of it is reasoning, and which is answer. Pure.

What a tag is depends on where it stands. Thinking can begin at the start of the output only, and a closing tag ends it only while
it goes on: any other tag is text, of an answer that speaks about tags. It is decided on the text, however it is cut into tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

from entropy_chains.backends import Chunk
from entropy_chains.core.entropy import EntropyBounds
from entropy_chains.core.families import ThinkTags, begun_at_end
from entropy_chains.core.harmony import Channels
from entropy_chains.core.phases import Phase, phase_at_start
from entropy_chains.core.tokens import Token
from entropy_chains.core.tool_calls import ToolCall

Span = tuple[Phase, str]
"""A piece of visible text, and where it belongs: ``THINKING`` or ``ANSWER``."""


class Markup:
    """Follows the text of one output. Text that may still become a tag is kept back until more comes.

    Blanks around tags belong to them; all other text comes out letter for letter.

    Args:
        tags: the family's thinking tags; None for a model without: all its text is answer.
        phase: where the output begins.

    Attributes:
        phase: where the text so far ends.
        thought: there is thinking in the output.
    """

    __slots__ = ("_after", "_channels", "_edge", "_forced", "_held", "_opened", "_tags", "phase", "thought")

    def __init__(self, tags: ThinkTags | None, phase: Phase = Phase.BEFORE):
        self._tags = tags or ThinkTags()
        self.phase = phase if tags else Phase.ANSWER
        self.thought = self.phase is Phase.THINKING
        self._held = ""
        self._edge = self.thought  # a tag has just ended: blanks that follow belong to it
        self._opened = self.thought  # the prompt has the tag; some models write it once more
        self._forced: AnswerMarkup | None = None
        self._channels = Channels(self.phase) if tags and tags.in_channels else None
        self._after = ""  # what may follow the closing tag before the answer begins

    def take(self, text: str, phase: Phase | None = None) -> list[Span]:
        """What is known with this text.

        Args:
            text: the text that comes next.
            phase: where it belongs, if the server says so by a field of its own: then its tags are text.
        """
        spans = self._take(text, phase)
        forced = self._forced
        if forced is None:
            return spans
        if self._channels is not None and text_in(spans, Phase.THINKING).strip():
            forced.again = True  # by a message of its own
        return [(where, forced.take(part) if where is Phase.ANSWER else part) for where, part in spans]

    def _take(self, text: str, phase: Phase | None) -> list[Span]:
        if phase is not None:
            is_tag = phase is Phase.THINKING and text.strip() in (self._tags.open, self._tags.close)  # some leave it in the field
            return [*self.enter(phase), *_span(phase, "" if is_tag else text)]
        if self._channels is not None:
            spans, self.phase = self._channels.take(text), self._channels.phase
            self.thought = self.thought or self.phase is Phase.THINKING or any(where is Phase.THINKING for where, _ in spans)
            return spans
        if self.phase is Phase.ANSWER and not (self._held or self._edge or self._tags.end):
            return _span(Phase.ANSWER, text)
        self._held += text
        spans = self._begin() if self.phase is Phase.BEFORE else []
        if self.phase is Phase.THINKING:
            spans += self._think()
        if self.phase is Phase.ANSWER:
            spans += self._answer()
        return spans

    def silent(self, text: str) -> list[Span]:
        """The same for a token that the server shows no text of: it says something only if it is a tag."""
        tag = text.strip()
        if self._channels is not None:
            return []
        if self.phase is Phase.BEFORE and tag == self._tags.open:
            return self.enter(Phase.THINKING)
        return self.enter(Phase.ANSWER) if self.phase is Phase.THINKING and tag == self._tags.close else []

    def force(self) -> None:
        """The thinking is closed by force from here on: see :class:`AnswerMarkup`."""
        self._forced = AnswerMarkup(self._tags)

    @property
    def again(self) -> bool:
        """After a close by force thinking was begun again."""
        return self._forced is not None and self._forced.again

    def enter(self, phase: Phase) -> list[Span]:
        """The text that follows belongs here; returns what was kept back."""
        if phase is self.phase and not (self._held or self._channels):
            return []
        spans, self._held, self._edge, self._after = self._kept, "", False, ""
        self._channels = self._channels and Channels(phase)
        self.phase, self.thought = phase, self.thought or phase is Phase.THINKING
        return spans

    @property
    def rest(self) -> list[Span]:
        """What is kept back: text like any other, if nothing more comes."""
        if self._forced is None or self.phase is Phase.THINKING:
            return self._kept
        later = deepcopy(self._forced)
        return _span(Phase.ANSWER, later.take(text_in(self._kept, Phase.ANSWER)) + later.rest)

    @property
    def calls(self) -> list[ToolCall]:
        """The tool calls so far, of a family that writes them as messages; the last one may be cut off."""
        if self._channels is None:
            return []
        last = self._channels.unfinished
        return [*self._channels.calls, *([last] if last else [])]

    @property
    def _kept(self) -> list[Span]:
        if self._channels is not None:
            return self._channels.rest
        end, at_end = self._tags.end, self._held.rstrip()
        if self.phase is Phase.ANSWER and end and at_end.endswith(end):
            return _span(Phase.ANSWER, at_end.removesuffix(end))
        return _span(Phase.THINKING if self.phase is Phase.THINKING else Phase.ANSWER, self._held)

    def _begin(self) -> list[Span]:
        lead = self._held.lstrip()
        self.phase = phase_at_start(lead, self._tags)
        if self.phase is Phase.THINKING:
            self._held, self._edge, self.thought = lead[len(self._tags.open) :], True, True
        elif self.phase is Phase.ANSWER:
            start = next((tag for tag in self._tags.answer_starts if lead.startswith(tag)), "")
            if start:
                self._held, self._edge = lead[len(start) :], True
        return []

    def _think(self) -> list[Span]:
        close = self._tags.close
        if self._edge:
            lead = self._held.lstrip()
            if self._opened and lead != self._tags.open and self._tags.open.startswith(lead):
                return []  # it may still come
            self._held = lead.removeprefix(self._tags.open).lstrip() if self._opened else lead
            self._opened, self._edge = False, not self._held
        text, closed, left = self._held.partition(close)
        if closed:
            self.phase, self._held, self._edge, self._after = Phase.ANSWER, left, True, self._tags.after.strip()
            return _span(Phase.THINKING, text)
        tail_length = begun_at_end(text, [close])
        self._held = text[len(text) - tail_length :]
        return _span(Phase.THINKING, text[: len(text) - tail_length])

    def _answer(self) -> list[Span]:
        text = self._held.lstrip() if self._edge else self._held
        if self._edge and self._after:
            if self._after.startswith(text) and text != self._after:
                return []  # it may still come
            text, self._after = text.removeprefix(self._after).lstrip(), ""
        tail_length = self._ending(text)
        self._held, self._edge = text[len(text) - tail_length :], self._edge and not text
        return _span(Phase.ANSWER, text[: len(text) - tail_length])

    def _ending(self, text: str) -> int:
        """Characters at the answer's end that are, or may become, the text that ends it."""
        end, bare = self._tags.end, text.rstrip()
        if end and bare.endswith(end):
            return len(text) - len(bare) + len(end)
        return begun_at_end(text, [end])


class AnswerMarkup:
    """The same for what a model writes after its thinking was closed by force.

    A second closing tag, the text after it, blanks and empty thinking are what the close left behind. Where thinking is begun
    again, nothing more is an answer.

    Attributes:
        again: thinking was begun again.
    """

    def __init__(self, tags: ThinkTags | None):
        self._leading = [text for text in (tags.close, tags.after.strip()) if text] if tags else []
        self._markup = Markup(tags)
        self._held = ""
        self._begun = self.again = False

    def take(self, text: str) -> str:
        """What of the answer is known with this text."""
        self._held += text
        while self._leading:
            lead = self._held.lstrip()
            if self._leading[0].startswith(lead) and lead != self._leading[0]:
                return ""  # it may still come
            if lead.startswith(self._leading[0]):
                self._held = lead[len(self._leading[0]) :]
            del self._leading[0]
        spans, self._held = self._markup.take(self._held), ""
        self.again = self.again or bool(text_in(spans, Phase.THINKING).strip())
        answer = "" if self.again else text_in(spans, Phase.ANSWER)
        answer = answer if self._begun else answer.lstrip()
        self._begun = self._begun or bool(answer)
        return answer

    @property
    def rest(self) -> str:
        """What is kept back: text like any other, if nothing more comes."""
        text = self._held if self._leading else text_in(self._markup.rest, Phase.ANSWER)
        return "" if self.again else text if self._begun else text.lstrip()


def text_in(spans: Sequence[Span], phase: Phase) -> str:
    """The text that belongs to one phase."""
    return "".join([text for where, text in spans if where is phase])


def clean_answer(text: str, tags: ThinkTags | None) -> str | None:
    """The answer after a close by force, without what that left behind; None where it is malformed.

    Malformed is an answer that is empty, or before which thinking was begun again.
    """
    markup = AnswerMarkup(tags)
    return (markup.take(text) + markup.rest).strip() or None


def as_chunks(
    spans: Sequence[Span], phase: Phase, token: Token, bounds: EntropyBounds | None = None, *, forced: bool = False
) -> list[Chunk]:
    """One token's chunk; or two, where the thinking ends within it."""
    (first, text), *others = spans or [(phase, "")]
    return [Chunk(text, first, token, bounds, forced), *(Chunk(text, where) for where, text in others)]


def _span(phase: Phase, text: str) -> list[Span]:
    return [(phase, text)] if text else []
