"""How a server is asked for the answer once its thinking was cut: one small frozen value a way.

Servers differ in what they let one do after a cut (``docs/openai.md`` has the table). Every way gives the request to send next,
or None where it cannot serve this cut; the ways of a backend are tried in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from entropy_chains.backends import Message
from entropy_chains.core.families import ThinkTags

ANSWER_NOW = "Give the final answer now, without further reasoning."
"""The turn that asks for the answer where a server cannot go on from a given text."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to send next.

    Attributes:
        purpose: ``reason`` (the run itself), ``answer`` (after a stop), ``probe`` (an answer that may be thrown away), ``full``
            (again, without stopping).
        messages: the conversation.
        extra: settings besides the user's own, for the body of the request.
        prefix: text after the rendered conversation, for raw completions; None = a chat request.
        max_tokens: most tokens to generate.
        logprobs: whether entropies are needed.
    """

    purpose: str
    messages: Sequence[Message]
    max_tokens: int
    extra: Mapping[str, Any] = field(default_factory=dict)
    prefix: str | None = None
    logprobs: bool = True


class Continuation(Protocol):
    """A way to the answer. ``name`` is what users write; ``exact``: the model reads its own tokens again, and nothing else."""

    @property
    def name(self) -> str: ...

    @property
    def exact(self) -> bool: ...

    def request(self, purpose: str, messages: Sequence[Message], thinking: str, tags: ThinkTags, max_tokens: int) -> Request:
        """The request for the answer after ``thinking``: raw text, opening tag included, up to a boundary."""
        ...


def begun(raw: str, tags: ThinkTags, opened: bool) -> str:
    """The thinking as the model wrote it, opening tag included: a server that splits it off leaves that out.

    ``opened``: the prompt has the tag already.
    """
    if opened or raw.lstrip().startswith(tags.open):
        return raw
    return tags.open + ("" if raw.startswith("\n") else "\n") + raw


def closed(thinking: str, tags: ThinkTags) -> str:
    """The thinking as the model would have ended it: on a line of its own, with what belongs before the answer."""
    return thinking.rstrip("\n") + "\n" + tags.close + tags.after


@dataclass(frozen=True, slots=True)
class Prefill:
    """The assistant's turn is sent as begun, and the server goes on with it (vLLM, SGLang)."""

    name: str = "prefill"
    exact: bool = True

    def request(self, purpose: str, messages: Sequence[Message], thinking: str, tags: ThinkTags, max_tokens: int) -> Request:
        turn = {"role": "assistant", "content": closed(thinking, tags)}
        extra = {"continue_final_message": True, "add_generation_prompt": False}
        return Request(purpose, [*messages, turn], max_tokens, extra, logprobs=False)


@dataclass(frozen=True, slots=True)
class RawCompletion:
    """The rendered conversation and the thinking are sent to ``/v1/completions`` (llama.cpp, transformers serve, older vLLM)."""

    name: str = "completion"
    exact: bool = True

    def request(self, purpose: str, messages: Sequence[Message], thinking: str, tags: ThinkTags, max_tokens: int) -> Request:
        return Request(purpose, messages, max_tokens, prefix=closed(thinking, tags), logprobs=False)


@dataclass(frozen=True, slots=True)
class Turn:
    """A new turn asks for the answer (any chat API). The model reads its thinking as its own earlier words."""

    ask: str = ANSWER_NOW
    name: str = "turn"
    exact: bool = False

    def request(self, purpose: str, messages: Sequence[Message], thinking: str, tags: ThinkTags, max_tokens: int) -> Request:
        said = thinking.removeprefix(tags.open).strip()
        turns = [{"role": "assistant", "content": said}, {"role": "user", "content": self.ask}]
        return Request(purpose, [*messages, *turns], max_tokens, logprobs=False)


WAYS: dict[str, Continuation] = {w.name: w for w in (Prefill(), RawCompletion(), Turn())}
