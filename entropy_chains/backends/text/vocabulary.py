"""Ids to text and back for one model: its tokenizer, chat template and thinking tags."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from entropy_chains.backends import Message
from entropy_chains.backends.text.markup import AnswerMarkup, Markup, divided, text_in
from entropy_chains.core.families import ThinkTags, detect_tags, template_hash
from entropy_chains.core.steps import Phase, phase_after_prompt
from entropy_chains.errors import SettingsError, short

RESERVED = (
    *("messages", "conversation", "chat_template", "add_generation_prompt", "continue_final_message"),
    *("tokenize", "tokenizer_kwargs", "padding", "truncation", "max_length"),
    *("return_tensors", "return_dict", "return_assistant_tokens_mask"),
)
"""What ``apply_chat_template`` takes that is no setting of the template: the backend gives it, or goes without."""


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
        self._check_template_kwargs()
        self._texts: dict[int, str] = {}
        self._hidden: dict[int, bool] = {}
        self.tags = tags or detect_tags(tokenizer.chat_template)
        own = tokenizer.eos_token_id if eos is None else eos
        self.eos = frozenset(own if isinstance(own, Sequence) else [own])
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
        """The chat template."""
        return str(self._tokenizer.chat_template)

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
        return str(self._tokenizer.apply_chat_template(list(messages), tokenize=False, **settings))

    def thinking(self, ids: Sequence[int], phase: Phase) -> tuple[int, str]:
        """How many tokens of an output are thinking, tags included, and the thinking's text without them.

        Args:
            ids: the output's.
            phase: where it begins.
        """
        markup, count = Markup(self.tags, phase), 0
        while count < len(ids) and markup.phase is not Phase.ANSWER:
            markup.take(self.text(ids[count]))
            count += 1
        if not markup.thought:
            return 0, ""
        whole = self.decode([i for i in ids[:count] if i not in self.eos])
        return count, divided(whole, self.tags, phase)[0].strip("\n")

    def answer(self, ids: Sequence[int], phase: Phase | None = None) -> str | None:
        """The answer's text without special tokens; None where there is none, or it is malformed.

        Args:
            ids: those of a whole output; or those after a close by force, of which what the close left behind is no answer.
            phase: where a whole output begins.
        """
        if phase is None:
            forced = AnswerMarkup(self.tags)
            return self._shown(ids, forced.take, lambda: forced.rest)
        markup = Markup(self.tags, phase)
        return self._shown(ids, lambda text: text_in(markup.take(text), Phase.ANSWER), lambda: text_in(markup.rest, Phase.ANSWER))

    def _shown(self, ids: Sequence[int], take: Callable[[str], str], rest: Callable[[], str]) -> str | None:
        """The text from the first token on of which anything shows, special tokens left out."""
        ids = [i for i in ids if i not in self.eos]
        shown, at = "", len(ids) - 1
        for n, token in enumerate(ids):
            shown = take(self.text(token))
            if shown.strip():
                at = n
                break
        shown = shown if shown.strip() else rest()
        if not shown.strip():
            return None
        text = self.text(ids[at])
        while len(text) < len(shown):  # tokens that were kept back come out together
            at -= 1
            text = self.text(ids[at]) + text
        return self.decode(ids[at:], special=False)[len(text) - len(shown) :].strip() or None
