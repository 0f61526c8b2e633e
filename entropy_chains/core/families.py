"""Thinking tags and tool markers of model families: the file for a new family."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from entropy_chains.errors import InputError

LONGEST_TAG = 48
"""Most characters of a tag or marker."""


@dataclass(frozen=True, slots=True)
class ThinkTags:
    """How a model family marks its thinking.

    Attributes:
        open: text that begins thinking.
        close: text that ends it.
        after: text between the closing tag and the answer, forced together with it.
        end: text that some families put after their answer; it shows in none.
    """

    open: str = "<think>"
    close: str = "</think>"
    after: str = "\n\n"
    end: str = ""

    def __post_init__(self) -> None:
        for name in ("open", "close"):
            tag = getattr(self, name)
            if not 0 < len(tag) <= LONGEST_TAG or tag != tag.strip():
                raise InputError(f"{name} is {tag!r}; a thinking tag has 1 to {LONGEST_TAG} characters, without blanks around it")

        if self.open == self.close:
            raise InputError(f"open and close are both {self.open!r}: nobody could tell where the thinking ends; give two tags")

    def to_list(self) -> list[str]:
        """Opening tag, closing tag and what stands before the answer, as on the command line."""
        return [self.open, self.close, self.after]

    @property
    def answer_starts(self) -> tuple[str, ...]:
        """What an answer without thinking may begin with: ``after``, or a part of it, where the prompt ends in the rest."""
        return _answer_starts(self.after.strip())

    @property
    def in_channels(self) -> bool:
        """Whether a reply is a series of messages, each with its channel: see :mod:`entropy_chains.core.harmony`."""
        return self.open.startswith("<|channel|>")


@lru_cache
def _answer_starts(after: str) -> tuple[str, ...]:
    return tuple(after[match.start() :] for match in re.finditer("<", after))


@dataclass(frozen=True, slots=True)
class Family:
    """A model family, and how a chat template shows that it is one of it.

    Attributes:
        models: some of them, for readers.
        tags: how it marks its thinking.
        signs: texts by which its template is known; the opening and the closing tag by default.
        field: where its template reads the thinking of earlier messages.
        anywhere: its signs count wherever they stand: they are no tags, and stand in no other template.
    """

    models: str
    tags: ThinkTags
    signs: tuple[str, ...] = ()
    field: str = "reasoning_content"
    anywhere: bool = False


TABLE = (
    Family(
        "gpt-oss",
        ThinkTags("<|channel|>analysis<|message|>", "<|end|>", "<|start|>assistant<|channel|>final<|message|>"),
        ("<|channel|>analysis<|message|>",),  # other families end their turns with <|end|> as well
        "thinking",
    ),
    Family("Gemma 4", ThinkTags("<|channel>thought", "<channel|>", "")),
    Family("Seed-OSS", ThinkTags("<seed:think>", "</seed:think>", "")),
    Family("Magistral, Ministral 3 Reasoning", ThinkTags("[THINK]", "[/THINK]", "")),
    Family(
        "Command A Reasoning",
        ThinkTags("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
        field="thinking",
    ),
    Family(
        "Apriel",
        ThinkTags("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]", "\n", "[END FINAL RESPONSE]"),
        ("[BEGIN FINAL RESPONSE]",),
        "thought",
        anywhere=True,
    ),
    Family(
        "Granite 3.2",
        ThinkTags("Here is my thought process:", "Here is my response:", "\n"),
        ("Here is my thought process:",),
        anywhere=True,
    ),
    Family("EXAONE Deep", ThinkTags("<thought>", "</thought>")),
    Family("MiniMax M3", ThinkTags("<mm:think>", "</mm:think>")),
    Family("", ThinkTags("<thinking>", "</thinking>")),
    Family("", ThinkTags("<reasoning>", "</reasoning>")),
    Family("Granite 3.3", ThinkTags("<think>", "</think>", "<response>", "</response>"), ("<response></response>",), anywhere=True),
    Family("Phi-4-mini-reasoning", ThinkTags(), ("Your name is Phi, an AI math expert",), anywhere=True),
    Family(
        "Qwen3, QwQ, DeepSeek-R1 and V3.1, GLM, EXAONE 4, SmolLM3, Nemotron, Phi-4-reasoning, MiniMax M2, Kimi K2 Thinking",
        ThinkTags(),
    ),
)
"""Every family known, the special ones first: a template belongs to the first whose signs it shows."""

FAMILIES = tuple(dict.fromkeys([ThinkTags(), *(family.tags for family in TABLE)]))
"""Their tags, each once. The common ones come first: a reply shows its tags, and not what its family writes after them."""


def detect_tags(chat_template: str | Mapping[str, str] | None) -> ThinkTags | None:
    """The family's thinking tags from its chat template, or None for a model that has none (use the refine loop).

    A template that only mentions a tag, in a comment, in a sentence or to look for it in a message, is no thinking model's.
    """
    family = detect_family(chat_template)
    return family.tags if family else None


def detect_family(chat_template: str | Mapping[str, str] | None) -> Family | None:
    """The family whose template this is, or None for one without thinking."""
    template = _COMMENT.sub("", default_template(chat_template))
    return next((family for family in TABLE if _shows(template, family)), None)


def default_template(chat_template: Any) -> str:
    """The template that is used where a tokenizer has several, by name; "" where it has none."""
    if isinstance(chat_template, Mapping):
        chat_template = chat_template.get("default", next(iter(chat_template.values()), ""))
    return str(chat_template or "")


_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
_PIECE = re.compile(r"\{\{.*?\}\}|\{%.*?%\}", re.DOTALL)
_LITERAL = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"", re.DOTALL)
_TAKEN_APART = re.compile(r"\b(?:split|rsplit|partition|rpartition|replace|join|removeprefix|removesuffix)\(\s*$")
_FORBIDDEN = re.compile(r"\b(?:not?|never|without|don't)\b", re.IGNORECASE)
_LOOKED_FOR = re.compile(r"(?:[!=]=|\b(?:startswith|endswith|count|find|raise_exception)\()\s*$")


def _shows(template: str, family: Family) -> bool:
    signs = family.signs or (family.tags.open, family.tags.close)
    if not any(sign in template for sign in signs):
        return False
    return family.anywhere or any(_is_markup(text, family.tags, signs) for text in _written(template))


def _written(template: str) -> list[str]:
    """The texts that a template writes: what stands outside its statements, and the strings in them that it does not look for.

    A text at which it takes messages apart (``content.split('</think>')``) is among them.
    """
    texts, end = [], 0
    for piece in _PIECE.finditer(template):
        texts.append(template[end : piece.start()])
        end, code = piece.end(), piece[0]
        for match in _LITERAL.finditer(code):
            literal = (match[1] or match[2] or "").replace("\\n", "\n")
            rest = code[match.end() :].lstrip()
            if not (_LOOKED_FOR.search(code[: match.start()]) or re.match(r"(?:not\s+)?in\b|[!=]=", rest)):
                texts.append(literal)
    return [*texts, template[end:]] if end else [*texts, *_bare(template)]


def _bare(template: str) -> list[str]:
    """A template's text without statements; a line of code without its braces, as some people keep it."""
    cut = [m[1] or m[2] for m in _LITERAL.finditer(template) if _TAKEN_APART.search(template[: m.start()])]
    return cut or [template]


def _is_markup(text: str, tags: ThinkTags, signs: tuple[str, ...]) -> bool:
    """Whether a text has a tag where markup stands: at the edge of a line, or as a pair. Within a sentence it is a mention."""
    first, last = (re.escape(tag) if tag in signs else r"(?!)" for tag in (tags.open, tags.close))
    edges = rf"{first}[ \t]*$|^[ \t]*{first}\w|^[ \t]*{last}"
    pair = re.search(f"([^.!?\n]*){first}.*?{last}", text, re.DOTALL)
    return bool(re.search(edges, text, re.MULTILINE) or (pair and not _FORBIDDEN.search(pair[1])))


def template_hash(chat_template: str, tags: ThinkTags | None) -> str:
    """What a policy belongs to besides the model: the chat template and the closing text, as ``sha256:`` and 16 hex digits."""
    chat_template = chat_template.removesuffix("\n") + "\n"  # Jinja never renders a last line end, and llama-server leaves it out
    close = f"{tags.open}\0{tags.close}\0{tags.after}" if tags else ""
    return "sha256:" + hashlib.sha256(f"{chat_template}\0{close}".encode()).hexdigest()[:16]


TOOL_CALL = "<tool_call>"
"""Before a call that is one JSON object, as Qwen, Hermes and their relatives write it."""

TOOL_MARKERS = {
    TOOL_CALL: "</tool_call>",
    "<function_call>": "</function_call>",
    "<function=": "</function>",
    "<tools>": "</tools>",
    "<|tool_call_begin|>": "<|tool_call_end|>",
    "<|tool_calls_section_begin|>": "<|tool_calls_section_end|>",
    "<｜tool▁calls▁begin｜>": "<｜tool▁calls▁end｜>",
    "<|tool_call>": "<tool_call|>",
    "<seed:tool_call>": "</seed:tool_call>",
    "<|START_ACTION|>": "<|END_ACTION|>",
    "[TOOL_CALLS]": None,
    "<|python_tag|>": None,
}
"""Opening and closing texts of tool calls; None: it lasts to the end of the stream."""


def begun_at_end(text: str, marks: Collection[str]) -> int:
    """The most characters at a text's end that are a mark, or the beginning of one: more text may complete it. 0 where none are."""
    firsts, tail = {mark[:1] for mark in marks}, text[-max(map(len, marks), default=0) :]
    return next((len(tail) - n for n, c in enumerate(tail) if c in firsts and any(m.startswith(tail[n:]) for m in marks)), 0)
