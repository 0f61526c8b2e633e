"""Ids to text and back for one model: its tokenizer, chat template and thinking tags."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from entropy_chains.backends import Message
from entropy_chains.backends.text.markup import Markup
from entropy_chains.backends.text.reading import OutputReader
from entropy_chains.core.families import ThinkTags, default_template, detect_family, template_hash
from entropy_chains.core.phases import Phase, phase_after_prompt
from entropy_chains.core.tool_calls import ToolCall
from entropy_chains.errors import SettingsError, short

RESERVED = (
    *("messages", "conversation", "add_generation_prompt", "continue_final_message"),
    *("tokenize", "tokenizer_kwargs", "padding", "truncation", "max_length"),
    *("return_tensors", "return_dict", "return_assistant_tokens_mask"),
)
"""What ``apply_chat_template`` takes that is no setting of the template: the backend gives it, or goes without."""

REASONING_FIELD = "reasoning_content"
"""Where a message's thinking stands."""


class Vocabulary:
    """What the backend knows of a model's text.

    Args:
        tokenizer: with a chat template and a vocabulary.
        name: the model's label, for messages.
        tags: thinking tags; found in the chat template by default.
        eos: ids that end a reply; the tokenizer's own by default.
        template_kwargs: passed to the chat template.

    Attributes:
        eos: ids that end a reply; pad: the id that fills rows up.
        tags: thinking tags, None for a model without.

    Raises:
        SettingsError: the tokenizer has no chat template or no vocabulary.
    """

    def __init__(
        self,
        tokenizer: Any,
        name: str,
        tags: ThinkTags | None = None,
        eos: int | Sequence[int] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ):
        if not default_template(getattr(tokenizer, "chat_template", None)):
            raise SettingsError("the tokenizer has no chat template; set tokenizer.chat_template to the model family's")
        if not tokenizer("0", add_special_tokens=False).input_ids:  # what transformers makes of a folder without one
            raise SettingsError(f"the tokenizer of {name} has no vocabulary: its tokenizer files are missing")
        self._tokenizer = tokenizer
        self._template_kwargs = dict(template_kwargs or {})
        self._check_template_kwargs()
        self._texts: dict[int, str] = {}
        self._hidden: dict[int, bool] = {}
        family = detect_family(tokenizer.chat_template)
        self.tags = tags or (family.tags if family else None)
        self._field = family.field if family else REASONING_FIELD
        ids = tokenizer.eos_token_id if eos is None else eos
        self.eos = frozenset(ids if isinstance(ids, Sequence) else [ids])
        self.pad = next(i for i in (tokenizer.pad_token_id, *sorted(e for e in self.eos if e is not None), 0) if i is not None)

    def __len__(self) -> int:
        return len(self._tokenizer)

    def with_template(self, settings: Mapping[str, Any]) -> Vocabulary:
        """The same with further settings of the chat template."""
        other = copy.copy(self)
        other._template_kwargs = {**self._template_kwargs, **settings}
        other._check_template_kwargs()
        return other

    def _check_template_kwargs(self) -> None:
        """Raise SettingsError for what is the backend's to say."""
        for name, value in self._template_kwargs.items():
            if name in RESERVED:
                raise SettingsError(f"template_kwargs has {name}={short(value)}, which the backend sets itself: leave it out")

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """What the chat template is given besides the conversation."""
        return dict(self._template_kwargs)

    @property
    def template(self) -> str:
        """Hash of the chat template and the closing text: a policy belongs to it."""
        return template_hash(self.chat_template, self.tags)

    @property
    def chat_template(self) -> str:
        """The chat template; of several the one for conversations without tools."""
        return default_template(self._tokenizer.chat_template)

    def text(self, token: int) -> str:
        """One token's text; remembered, since it is asked for at every token."""
        if token not in self._texts:
            self._texts[token] = self.decode([token])
        return self._texts[token]

    def is_hidden(self, token: int) -> bool:
        """Whether it is a special token, which shows no text in an answer."""
        if token not in self._hidden:
            self._hidden[token] = bool(self.text(token)) and not self.decode([token], special=False)
        return self._hidden[token]

    def decode(self, ids: Sequence[int], *, special: bool = True) -> str:
        """Text of ids, with or without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False))

    def encode(self, text: str) -> list[int]:
        """Ids of a text, nothing added."""
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)

    def prompt(self, messages: Sequence[Message]) -> tuple[list[int], Phase]:
        """The prompt's ids, and where the output begins after it."""
        rendered = self._rendered(messages, add_generation_prompt=True)
        phase = phase_after_prompt(rendered, self.tags) if self.tags else Phase.ANSWER
        if self.tags and phase is Phase.BEFORE and self.tags.open in rendered:  # does it stand in a question, or after them all?
            phase = phase_after_prompt(rendered, self.tags, self._rendered(messages, add_generation_prompt=False))
        return self.encode(rendered), phase

    def _rendered(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        settings = {**self._template_kwargs, "add_generation_prompt": add_generation_prompt}
        turns = [self._with_thinking(message) for message in messages]
        return str(self._tokenizer.apply_chat_template(turns, tokenize=False, **settings))

    def _with_thinking(self, message: Message) -> Message:
        """A message with its thinking where the family's template reads it."""
        thinking = message.get(REASONING_FIELD)
        if not thinking or self._field == REASONING_FIELD:
            return message
        # In channels a turn that calls has room for one text before the call: the thinking is what the model goes on from.
        spent = {"content": ""} if self.tags and self.tags.in_channels and message.get("tool_calls") else {}
        return {**message, self._field: thinking, **spent}

    @property
    def has_tools(self) -> bool:
        """Tools are offered through the template."""
        return bool(self._template_kwargs.get("tools"))

    def reader(self, phase: Phase) -> OutputReader:
        """Reads an output that begins here."""
        return OutputReader(self, phase, has_tools=self.has_tools)

    def read(self, ids: Sequence[int], phase: Phase, forced: int | None = None) -> OutputReader:
        """A whole output, read.

        Args:
            ids: the output's.
            phase: where it begins.
            forced: how many of them came before its thinking was closed by force; None: it was not.
        """
        reader = self.reader(phase)
        reader.read(ids, forced)
        reader.finish()
        return reader

    def reasoned(self, ids: Sequence[int], phase: Phase) -> int:
        """How many tokens of an output are thinking, tags included.

        Args:
            ids: the output's.
            phase: where it begins.
        """
        markup, count = Markup(self.tags, phase), 0
        while count < len(ids) and markup.phase is not Phase.ANSWER:
            markup.take(self.text(ids[count]))
            count += 1
        return count if markup.thought else 0

    def answer(self, ids: Sequence[int], phase: Phase | None = None) -> str | None:
        """The answer's text without special tokens; None where there is none, or it is malformed.

        Args:
            ids: those of a whole output; or those after a close by force, of which what the close left behind is no answer.
            phase: where a whole output begins.
        """
        return self.read(ids, phase or Phase.ANSWER, 0 if phase is None else None).whole_answer

    def calls(self, reader: OutputReader, ids: Sequence[int]) -> tuple[ToolCall, ...]:
        """The tool calls of an output; by the tokenizer's own description of its replies, where it has one.

        Args:
            reader: that has read it.
            ids: those after its thinking.
        """
        calls = reader.calls
        if calls and getattr(self._tokenizer, "response_template", None):
            with suppress(Exception):  # a description that does not fit says nothing
                entries = self._tokenizer.parse_response(self.decode(ids), prefix="").get("tool_calls") or []
                return tuple(_described(call) for call in entries) or calls
        return calls


def _described(call: Mapping[str, Any]) -> ToolCall:
    function = call.get("function", call)
    arguments = function.get("arguments") or {}
    return ToolCall(function["name"], arguments if isinstance(arguments, str) else json.dumps(arguments))
