"""A local model's tokens to what is shown of them: reasoning, answer and tool calls, while they come and once they are over.

A stream and its finished run are read by the same object, so they are the same text. What is markup is decided on text, however a
tag is cut into tokens. Special tokens show no text in an answer; the same letters, spelled, do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from entropy_chains.backends.text.markup import Markup, Span
from entropy_chains.core.families import ThinkTags
from entropy_chains.core.phases import Phase
from entropy_chains.core.tool_calls import CallText, ToolCall


class Texts(Protocol):
    """What reading asks of a vocabulary."""

    tags: ThinkTags | None
    eos: frozenset[int]

    def decode(self, ids: Sequence[int], *, special: bool = True) -> str:
        """Text of ids."""
        ...

    def text(self, token: int) -> str:
        """One token's text."""
        ...

    def is_hidden(self, token: int) -> bool:
        """Whether it shows no text in an answer."""
        ...


class OutputReader:
    """Reads one output, token by token or many at a time.

    Args:
        texts: the model's vocabulary.
        phase: where the output begins.
        has_tools: tools were offered: what a tool marker begins is a call and no answer.

    Attributes:
        reasoning, answer: the text so far; it begins without blanks.
    """

    def __init__(self, texts: Texts, phase: Phase, *, has_tools: bool = False):
        self._texts = texts
        self._markup = Markup(texts.tags, phase)
        self._readable = Readable(texts.decode)
        self._calls = CallText() if has_tools else None
        self._begun: Phase | None = None  # the phase whose text has begun to show
        self.reasoning = self.answer = ""

    @property
    def phase(self) -> Phase:
        """Where the text so far ends."""
        return self._markup.phase

    def take(self, token: int) -> list[Span]:
        """What shows with this token."""
        if token in self._texts.eos:
            return []
        return self._show(self._readable.take([token]), self._texts.text(token) if self._texts.is_hidden(token) else "")

    def read(self, ids: Sequence[int], forced: int | None = None) -> None:
        """Take many tokens; the thinking was closed by force from ``forced`` of them on."""
        begin = 0
        for end, token in enumerate([*ids, None]):
            if end == forced:
                self._run(ids[begin:end])
                self.force()
                begin = end
            if token is None or self._texts.is_hidden(token) or token in self._texts.eos:
                self._run(ids[begin:end])
                begin = end
                if token is not None:
                    self.take(token)
                    begin = end + 1

    def _run(self, ids: Sequence[int]) -> None:
        if ids:
            self._show(self._readable.take(ids), "")

    def force(self) -> None:
        """The thinking is closed by force from here on."""
        self._markup.force()

    def finish(self) -> list[Span]:
        """What was kept back, once nothing more comes."""
        spans = self._shown(self._markup.rest)
        if self._calls is not None:
            spans += self._shown([(Phase.ANSWER, self._calls.rest)], filtered=True)
        return spans

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """The tool calls of the output, once it is over."""
        return (*self._markup.calls, *(self._calls.calls if self._calls is not None else ()))

    @property
    def whole_answer(self) -> str | None:
        """The answer, once the output is over; None where there is none, or thinking was begun again after a close by force."""
        return None if self._markup.again else self.answer.strip() or None

    def _show(self, text: str, hidden: str) -> list[Span]:
        return self._shown(self._markup.take(text), hidden)

    def _shown(self, spans: Iterable[Span], hidden: str = "", *, filtered: bool = False) -> list[Span]:
        visible = []
        for phase, text in spans:
            part = text
            if phase is Phase.ANSWER:
                part = self._calls.take(part) if self._calls is not None and not filtered else part
                part = part.removesuffix(hidden)
            part = part if self._begun is phase else part.lstrip()  # neither thinking nor answer begins with blanks
            if not part:
                continue
            self._begun = phase
            if phase is Phase.ANSWER:
                self.answer += part
            else:
                self.reasoning += part
            visible.append((phase, part))
        return visible


class Readable:
    """Tokens to text as it becomes readable: a character split over tokens comes out with its last one."""

    def __init__(self, decode: Callable[[Sequence[int]], str]):
        self._decode, self._ids, self._shown = decode, list[int](), ""

    def take(self, ids: Sequence[int]) -> str:
        """What can be read with these tokens."""
        self._ids += ids
        text = self._decode(self._ids)
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        new = text[len(self._shown) :]
        # Keep the last token for context: some tokenizers drop the space before a text's first token.
        self._ids = self._ids[-1:]
        self._shown = self._decode(self._ids)
        return new
