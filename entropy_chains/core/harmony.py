"""Replies in channels, as gpt-oss writes them (the harmony format): a series of messages, each with a header.

::

    <|channel|>analysis<|message|>We need …<|end|><|start|>assistant<|channel|>final<|message|>It is 42.<|return|>

``analysis`` is thinking, ``final`` is the answer, and so is a ``commentary`` to the reader before a call. A message to a recipient
is a tool call: ``<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1}<|call|>``.
"""

from __future__ import annotations

import re

from entropy_chains.core.families import begun_at_end
from entropy_chains.core.phases import Phase
from entropy_chains.core.tool_calls import ToolCall

START, MESSAGE, END = "<|start|>", "<|message|>", "<|end|>"
HEADER = re.compile(r"(?:<\|start\|>)?\s*(?:assistant)?\s*([^<]*)(?:<\|channel\|>\s*(\w+)(.*))?", re.DOTALL)
RECIPIENT = re.compile(r"\bto=(\S+?)(?=<|\s|$)")
BEGINNINGS = ("<|channel|>", START, "to=", MESSAGE)
"""What a header may begin with. The first message's header begins in the prompt, so any part of it may come first in the reply."""
LONGEST_HEADER = 200
BETWEEN = "\n\n"
"""Shown between two messages of the same kind."""
ENDS = {
    Phase.THINKING: (END,),
    Phase.ANSWER: (END + START,),  # an answer is the last message: what else it says is text
}
"""What ends a message of thinking or answer."""
CALL_ENDS = ("<|call|>", END, "<|return|>")
"""What ends a tool call."""
LAST = (END, "<|return|>")
"""What may stand at the end of the last message, and is no part of it."""


class Channels:
    """Follows the text of one reply, however it is cut.

    Args:
        phase: where the reply begins: ``THINKING`` or ``ANSWER`` where the prompt has a whole header.

    Attributes:
        phase: where the text so far ends; ``BEFORE`` in a header.
        calls: the tool calls that have ended.
    """

    __slots__ = ("_body", "_edge", "_ended", "_held", "_recipient", "_shown", "calls", "phase")

    def __init__(self, phase: Phase = Phase.BEFORE):
        self.phase = phase
        self.calls: list[ToolCall] = []
        self._held = ""
        self._edge = phase is not Phase.BEFORE  # a message has just begun: blanks belong to its header
        self._recipient: str | None = None  # of the call that is being written
        self._body = ""  # of that call
        self._ended = False  # some message has ended
        self._shown: set[Phase] = set()  # kinds of messages with text so far

    def take(self, text: str) -> list[tuple[Phase, str]]:
        """The thinking's and the answer's text known with this text, in order."""
        self._held += text
        spans: list[tuple[Phase, str]] = []
        while self._held:
            before = (self.phase, self._held)
            spans += self._begin() if self.phase is Phase.BEFORE else self._message()
            if before == (self.phase, self._held):
                break
        return [(phase, part) for phase, part in spans if part]

    @property
    def keeps(self) -> bool:
        """Some text is kept back, which may become markup."""
        return bool(self._held)

    @property
    def rest(self) -> list[tuple[Phase, str]]:
        """What is kept back, if nothing more comes."""
        if self._recipient is not None or (self.phase is Phase.BEFORE and self._ended and _begins(self._held.lstrip())):
            return []  # a call, or a part of a header
        text, phase = self._held, Phase.ANSWER if self.phase is Phase.BEFORE else self.phase
        text = _without_last(text) if phase is Phase.ANSWER else text
        return [(phase, text)] if text else []

    @property
    def unfinished(self) -> ToolCall | None:
        """The call that is being written."""
        return None if self._recipient is None else _call(self._recipient, self._body + self._held)

    def _begin(self) -> list[tuple[Phase, str]]:
        text = self._held.lstrip()
        header, ended, body = text.partition(MESSAGE)
        begins = _begins(text)
        if begins and not ended and len(text) <= LONGEST_HEADER:
            return []
        if not (begins and ended):  # no header: text, which is shown
            self.phase, self._edge = Phase.ANSWER, bool(self._shown)
            return []
        self._held, self._edge, self._body = body, True, ""
        parts = HEADER.match(header)
        role, channel, rest = parts.groups() if parts else ("", None, None)
        recipient = RECIPIENT.search(f"{role} {rest or ''}")
        self._recipient = recipient[1] if recipient else None
        self.phase = Phase.THINKING if channel == "analysis" and recipient is None else Phase.ANSWER
        return []

    def _message(self) -> list[tuple[Phase, str]]:
        phase, text = self.phase, self._held
        ends = CALL_ENDS if self._recipient is not None else ENDS[phase]
        at, end = min(((text.find(e), e) for e in ends if e in text), default=(-1, ""))
        if at < 0:
            tail_length = begun_at_end(text, (*ends, *LAST))
            self._held = text[len(text) - tail_length :]
            return self._show(phase, text[: len(text) - tail_length])
        self._held = text[at + len(end) :]
        self._held = START + self._held if end.endswith(START) else self._held
        spans = self._show(phase, text[:at])
        if self._recipient is not None:
            self.calls.append(_call(self._recipient, self._body))
        self._recipient, self.phase, self._ended = None, Phase.BEFORE, True
        return spans

    def _show(self, phase: Phase, text: str) -> list[tuple[Phase, str]]:
        if self._recipient is not None:
            self._body += text
            return []
        text = text.lstrip() if self._edge else text
        if not text:
            return []
        joined = BETWEEN + text if self._edge and phase in self._shown else text
        self._edge = False
        self._shown.add(phase)
        return [(phase, joined)]


def _begins(text: str) -> bool:
    return any(text.startswith(start) or start.startswith(text) for start in BEGINNINGS)


def _without_last(text: str) -> str:
    return next((text.removesuffix(last) for last in LAST if text.endswith(last)), text)


def _call(recipient: str, body: str) -> ToolCall:
    return ToolCall(recipient.removeprefix("functions."), body.strip())
