"""Thinking tags and tool markers of model families: the file for a new family."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache

from entropy_chains.errors import InputError

LONGEST = 48
"""Most characters of a tag or marker."""


@dataclass(frozen=True, slots=True)
class ThinkTags:
    """How a model family marks its thinking.

    Attributes:
        open: text that begins thinking.
        close: text that ends it.
        after: text between the closing tag and the answer, forced together with it.
    """

    open: str = "<think>"
    close: str = "</think>"
    after: str = "\n\n"

    def __post_init__(self) -> None:
        for name in ("open", "close"):
            tag = getattr(self, name)
            if not 0 < len(tag) <= LONGEST or tag != tag.strip():
                raise InputError(f"{name} is {tag!r}; a thinking tag has 1 to {LONGEST} characters, without blanks around it")

        if self.open == self.close:
            raise InputError(f"open and close are both {self.open!r}: nobody could tell where the thinking ends; give two tags")

    def to_list(self) -> list[str]:
        """Opening tag, closing tag and what stands before the answer, as on the command line."""
        return [self.open, self.close, self.after]

    @property
    def answer_starts(self) -> tuple[str, ...]:
        """What an answer without thinking may begin with: ``after``, or a part of it, where the prompt ends in the rest."""
        return _answer_starts(self.after.strip())


@lru_cache
def _answer_starts(after: str) -> tuple[str, ...]:
    return tuple(after[found.start() :] for found in re.finditer("<", after))


FAMILIES = (
    ThinkTags("<|channel|>analysis<|message|>", "<|end|>", "<|start|>assistant<|channel|>final<|message|>"),
    ThinkTags("<seed:think>", "</seed:think>", ""),
    ThinkTags("[THINK]", "[/THINK]", ""),
    ThinkTags("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>"),
    ThinkTags("<thinking>", "</thinking>"),
    ThinkTags("<reasoning>", "</reasoning>"),
    ThinkTags("<think>", "</think>"),
)
"""gpt-oss, Seed-OSS, Magistral, Command A Reasoning, and the tag pairs of Qwen3, DeepSeek-R1, QwQ, GLM and their relatives."""


def detect_tags(chat_template: str | None) -> ThinkTags | None:
    """The family's thinking tags from its chat template, or None for a model that has none (use the refine loop)."""
    template = chat_template or ""
    return next((t for t in FAMILIES if t.open in template or (t.close in template and t.close != "<|end|>")), None)


def template_hash(chat_template: str, tags: ThinkTags | None) -> str:
    """What a policy belongs to besides the model: the chat template and the closing text, as ``sha256:`` and 16 hex digits."""
    chat_template = chat_template.removesuffix("\n") + "\n"  # Jinja never renders a last line end, and llama-server leaves it out
    close = f"{tags.open}\0{tags.close}\0{tags.after}" if tags else ""
    return "sha256:" + hashlib.sha256(f"{chat_template}\0{close}".encode()).hexdigest()[:16]


TOOL_CALL = "<tool_call>"
"""Before a call that is one JSON object, as Qwen, Hermes and their relatives write it: what local models are read by."""

TOOL_MARKERS = {
    TOOL_CALL: "</tool_call>",
    "<function_call>": "</function_call>",
    "<function=": "</function>",
    "<tools>": "</tools>",
    "<|tool_call_begin|>": "<|tool_call_end|>",
    "<|tool_calls_section_begin|>": "<|tool_calls_section_end|>",
    "<｜tool▁calls▁begin｜>": "<｜tool▁calls▁end｜>",
    "[TOOL_CALLS]": None,
    "<|python_tag|>": None,
}
"""Opening and closing texts of tool calls; None: it lasts to the end of the stream."""
