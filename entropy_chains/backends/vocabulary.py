"""Ids to text and back for one model: its tokenizer, chat template and thinking tags."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from entropy_chains.backends import Message
from entropy_chains.backends.assembly import clean_answer
from entropy_chains.errors import SettingsError
from entropy_chains.steps import ThinkTags, detect_tags, template_hash


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
        if not getattr(tokenizer, "chat_template", None):
            raise SettingsError("the tokenizer has no chat template; set tokenizer.chat_template to the model family's")
        if not tokenizer("0", add_special_tokens=False).input_ids:  # what transformers makes of a folder without one
            raise SettingsError(f"the tokenizer of {name} has no vocabulary: its tokenizer files are missing")
        self._tokenizer = tokenizer
        self._template_kwargs = dict(template_kwargs or {})
        self._texts: dict[int, str] = {}
        self.tags = tags or detect_tags(tokenizer.chat_template)
        own = tokenizer.eos_token_id if eos is None else eos
        self.eos = frozenset(own if isinstance(own, Sequence) else [own])
        self.pad = next(i for i in (tokenizer.pad_token_id, *sorted(e for e in self.eos if e is not None), 0) if i is not None)

    def with_template(self, settings: Mapping[str, Any]) -> Vocabulary:
        """The same with further settings of the chat template."""
        other = copy.copy(self)
        other._template_kwargs = {**self._template_kwargs, **settings}
        return other

    @property
    def template(self) -> str:
        """Hash of the chat template and the closing text: a policy belongs to it."""
        return template_hash(self.chat_template, self.tags)

    @property
    def chat_template(self) -> str:
        """The chat template."""
        return str(self._tokenizer.chat_template)

    def text(self, token: int) -> str:
        """One token's text; remembered, since it is asked for at every token."""
        if token not in self._texts:
            self._texts[token] = self.decode([token])
        return self._texts[token]

    def decode(self, ids: Sequence[int], *, special: bool = True) -> str:
        """Text of ids, with or without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False))

    def encode(self, text: str) -> list[int]:
        """Ids of a text, nothing added."""
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)

    def prompt(self, messages: Sequence[Message]) -> tuple[list[int], bool]:
        """The prompt's ids, and whether it opens the thinking."""
        rendered = self._tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=False, **self._template_kwargs
        )
        opened = self.tags is not None and rendered.rstrip().endswith(self.tags.open)
        return self.encode(rendered), opened

    def answer(self, ids: Sequence[int]) -> str | None:
        """The answer's text without debris; None where it is malformed: empty, or thinking resumed."""
        text = clean_answer(self.decode([i for i in ids if i not in self.eos]), self.tags)
        return None if text is None else self.decode(self.encode(text), special=False).strip() or None
