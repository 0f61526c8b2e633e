"""Where a reasoning step ends, and whether a token is reasoning or answer.

A step of a *thinking* stream ends at a causal boundary: a place that is known from the text up to and including its last
token, such as the end of a line. Steps shorter than a minimum are joined. There is never a boundary inside a code fence,
inside JSON, or inside a tool call. In the *refine* loop of the paper a step is one call, and the caller says when it ends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from entropy_chains.core.families import LONGEST_TAG, TOOL_MARKERS, ThinkTags
from entropy_chains.core.harmony import Channels
from entropy_chains.core.phases import Phase, phase_at_start
from entropy_chains.errors import InputError
from entropy_chains.options import OPTIONS
from entropy_chains.validation import WHOLE, Check, first_fault, is_whole, one_of

SEGMENTATION = {"boundary": one_of(OPTIONS["boundary"]), "min_tokens": Check(is_whole, WHOLE)}
"""Fields of :class:`Segmentation`."""


@dataclass(frozen=True, slots=True)
class Segmentation:
    """How a stream is cut into steps.

    Attributes:
        boundary: ``line`` (a step ends with a line), ``blank_line`` (with a paragraph), ``call`` (with a model call).
        min_tokens: shortest step in tokens; shorter ones are joined to the next.
    """

    boundary: str = "blank_line"
    min_tokens: int = 32

    def __post_init__(self) -> None:
        if fault := first_fault(asdict(self), SEGMENTATION):
            raise InputError(fault[1])

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Segmentation:
        """From the form in a trace or policy file."""
        return cls(**{name: fields[name] for name in SEGMENTATION if name in fields})

    def to_dict(self) -> dict[str, Any]:
        """The form in a trace or policy file."""
        return asdict(self)


_DIRECTIVE = re.compile(r"entropy-chains:\s*boundary=(\w+)\s+min_tokens=(\d+)")


def detect_segmentation(chat_template: str | None) -> Segmentation:
    """The model's own steps where its chat template names them, else paragraphs of at least 32 tokens.

    A template names them in a comment: ``{#- entropy-chains: boundary=line min_tokens=32 -#}``.
    """
    match = _DIRECTIVE.search(chat_template or "")
    return Segmentation(match[1], int(match[2])) if match else Segmentation()


# With the last character of every tool marker. A text without these, a line end and the thinking tags' last changes nothing.
_SPECIAL = frozenset('`~{}[]<>"\\|=')
_LISTED = re.compile(r"(?:(?:[-*+>]|\d{1,3}[.)])\s+)+")  # what may stand before a fence in a list or a quotation


_OPENERS, _CLOSERS = frozenset(",:;{[("), frozenset(",:}])")


class Scanner:
    """Follows the text of one stream: its phase, and whether a step may end here. Constant memory, no look-ahead.

    Args:
        tags: the family's thinking tags.
        boundary: as in :class:`Segmentation`.
        thinking: the prompt already opened the thinking.
    """

    __slots__ = (
        "_blank", "_boundary", "_channels", "_depth", "_ends", "_escaped", "_fence", "_firm", "_grace", "_line", "_opened",
        "_quoted", "_special", "_tags", "_tail", "_tool", "phase",
    )  # fmt: skip

    def __init__(self, tags: ThinkTags | None = None, boundary: str = "blank_line", *, thinking: bool = False):
        self._tags = tags or ThinkTags()
        self._ends = frozenset({"\n", self._tags.open[-1], self._tags.close[-1]})
        self._special = _special(self._ends)
        self._boundary = boundary
        self.phase = Phase.THINKING if thinking else Phase.BEFORE
        self._channels = Channels(self.phase) if self._tags.in_channels and boundary != "call" else None
        self._tail = ""
        self._line = ""  # the line's beginning, enough to know a fence or a blank line
        self._blank = False  # the line just ended was blank
        self._fence = ""
        self._tool: str | None = None  # what closes the tool call we are in; "" means nothing does
        self._depth = 0  # of brackets, in JSON or code without a fence
        self._firm = False  # the region looks like JSON, which may hold blank lines; a soft one ends at the first
        self._grace = 0  # successive lines of the region that JSON would not have
        self._opened = ""  # a bracket just opened; the next character tells whether it begins JSON
        self._quoted = self._escaped = False

    @property
    def protected(self) -> bool:
        """Inside a code fence, JSON or a tool call."""
        return bool(self._fence or self._depth or self._opened or self._tool is not None)

    @property
    def at_boundary(self) -> bool:
        """The text so far is thinking and ends where a step may end."""
        if self.phase is not Phase.THINKING or self.protected or not self._tail.endswith("\n"):
            return False
        if self._channels is not None and self._channels.keeps:
            return False
        return self._boundary == "line" or (self._boundary == "blank_line" and self._blank)

    def enter(self, phase: Phase) -> None:
        """The server says where the text that follows belongs; the tags were taken out of it."""
        if phase is not self.phase and self._boundary != "call":
            self._begin(phase)
            self._channels = self._channels and Channels(phase)

    def quiet(self, text: str) -> bool:
        """Whether no step and no thinking can end with this text, whatever came before: several such may be fed as one."""
        return bool(text) and self._ends.isdisjoint(text) and (self._channels is None or self.phase is Phase.THINKING)

    def feed(self, text: str) -> Phase:
        """Take the next token's text; returns the phase after it."""
        if self._channels is None:
            return self._feed(text)
        for phase, part in self._channels.take(text):
            if phase is not self.phase:
                self._begin(phase)
            self._feed(part)
        if self._channels.phase is not self.phase:
            self._begin(self._channels.phase)
        return self.phase

    def _feed(self, text: str) -> Phase:
        start = self._first(text) if self.phase is Phase.BEFORE else 0
        while start < len(text) and self.phase is Phase.THINKING:  # in an answer nothing ends, and no tag counts
            end = start
            if not (self._depth or self._opened):
                end = match.start() if (match := self._special.search(text, start)) else len(text)
            if end > start:
                self._tail = (self._tail + text[start:end])[-LONGEST_TAG:]
                self._line = (self._line + text[start:end]).lstrip()[:LONGEST_TAG]
            if end < len(text):
                self._character(text[end])
            start = end + 1
        return self.phase

    def _first(self, text: str) -> int:
        """Take the output's first text; returns how much of it is not thinking."""
        output = (self._tail + text).lstrip()
        phase = phase_at_start(output, self._tags)
        if phase is not Phase.BEFORE:
            self._begin(phase)
            return len(text) - (len(output) - len(self._tags.open))
        self._tail = output
        return len(text)

    def _character(self, c: str) -> None:
        self._tail = (self._tail + c)[-LONGEST_TAG:]
        if self._boundary != "call" and self._tail.endswith(self._tags.close):  # every token of a call is reasoning, tags or not
            self._begin(Phase.ANSWER)
            return
        if self._tool is not None:
            if self._tool and self._tail.endswith(self._tool):
                self._tool = None
            return
        if c in ">=]|":
            marker = next((m for m in TOOL_MARKERS if self._tail.endswith(m)), None)
            if marker:
                self._tool = TOOL_MARKERS[marker] or ""
                self._depth, self._opened = 0, ""
                return
        if c == "\n":
            self._line_ended()
        else:
            self._line = (self._line + c).lstrip()[:LONGEST_TAG]
        if not self._fence:
            self._brackets(c)

    def _begin(self, phase: Phase) -> None:
        self.phase = phase
        self._tail = self._line = self._fence = self._opened = ""
        self._tool, self._depth, self._blank = None, 0, False

    def _line_ended(self) -> None:
        line = self._line.strip()
        self._line = ""
        self._blank = not line
        if "```" in line or "~~~" in line:
            bare = line[match.end() :] if (match := _LISTED.match(line)) else line
            if not self._fence:
                self._fence = _fence_opened(bare)
                self._opened = "" if self._fence else self._opened
            elif bare.startswith(self._fence) and not bare.strip(self._fence[0]):
                self._fence = ""
        if self._depth and (line or not self._firm):
            # A line of JSON says "more follows", or the next one closes something. Two lines that do neither are something else:
            # were an unbalanced bracket to hold on for ever, the run would silently never stop.
            goes_on = line[:1] in _CLOSERS or self._tail[:-1].rstrip()[-1:] in _OPENERS
            self._grace = 0 if goes_on else self._grace + 1
            if self._blank or self._grace > 1:
                self._depth = 0

    def _brackets(self, c: str) -> None:
        """JSON begins at a bracket followed by a quote, a bracket or a line end, or at a line's first bracket."""
        if self._opened:
            if c in " \t\r":
                return
            first = self._line.strip()[:1] == self._opened[0]
            if c in '"{\n' or (c == "[" and self._opened[0] == "["):
                self._depth, self._firm = 1, True
            elif first and c not in "}]":
                self._depth, self._firm = 1, False
            self._opened, self._grace = "", 0
            self._quoted = self._escaped = False
        latex = self._tail[-2:-1] == "\\"  # \[ and \{ are mathematics
        if not self._depth:
            self._opened = c if c in "{[" and not latex else ""
            return
        if self._escaped:
            self._escaped = False
        elif self._quoted and c == "\\":
            self._escaped = True
        elif c == "\n":
            self._quoted = False  # JSON has no line end inside a string: recover
        elif c == '"':
            self._quoted = not self._quoted
        elif not self._quoted and not latex:
            self._depth += (c in "{[") - (c in "}]")


@lru_cache
def _special(ends: frozenset[str]) -> re.Pattern[str]:
    """One character that may change anything."""
    return re.compile("[" + re.escape("".join(sorted(_SPECIAL | ends))) + "]")


def _fence_opened(line: str) -> str:
    """The run of backticks or tildes that opens a code fence, or "": as in CommonMark, 3 at least and no backtick after them."""
    run = line[: len(line) - len(line.lstrip(line[:1]))]
    return run if run[:3] in ("```", "~~~") and "`" not in line[len(run) :] else ""
