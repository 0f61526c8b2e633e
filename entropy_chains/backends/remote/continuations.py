"""The ways to ask a server for the answer after its thinking was cut, each a small frozen value.

Servers differ in what they allow after a cut (``docs/openai.md`` has the table). Every way makes the request to send next. The
ways of a backend are tried in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from entropy_chains.backends import Message
from entropy_chains.backends.remote.echo import BegunTurn
from entropy_chains.core.families import ThinkTags

ANSWER_NOW = "Give the final answer now, without further reasoning."
"""The turn that asks for the answer where a server cannot go on from a given text."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request to a server.

    Attributes:
        purpose: ``reason`` (the run itself), ``answer`` (after a stop), ``probe`` (an answer that may be thrown away), ``full``
            (again, without stopping).
        messages: the conversation.
        extra: settings besides the user's own, for the body of the request.
        prefix: text after the rendered conversation, for raw completions; None = a chat request.
        max_tokens: most tokens to generate.
        logprobs: whether entropies are needed.
        k: alternatives to ask for then.
        begun: the assistant's turn that the server goes on from, which some send back first; None where there is none.
        usage: whether to ask for the usage at a stream's end (``stream_options``).
        streamed: whether it is sent as a stream.
    """

    purpose: str
    messages: Sequence[Message]
    max_tokens: int
    extra: Mapping[str, Any] = field(default_factory=dict)
    prefix: str | None = None
    logprobs: bool = True
    k: int = 20
    begun: BegunTurn | None = None
    usage: bool = True
    streamed: bool = True


class Way(Protocol):
    """A way to ask for the answer. ``name`` is what users write; ``exact``: the model reads its own tokens only."""

    @property
    def name(self) -> str: ...

    @property
    def exact(self) -> bool: ...

    def request(self, purpose: str, messages: Sequence[Message], thinking: str, tags: ThinkTags, max_tokens: int) -> Request:
        """Returns the request for the answer after ``thinking``: raw text up to a boundary, opening tag included."""
        ...


def begun(raw: str, tags: ThinkTags, opened: bool) -> str:
    """Returns the thinking with its opening tag, which a server that splits the thinking off leaves out.

    Args:
        raw: the thinking as it came.
        tags: the family's thinking tags.
        opened: the prompt has the opening tag already.
    """
    if opened or raw.lstrip().startswith(tags.open):
        return raw
    return tags.open + ("" if raw.startswith("\n") else "\n") + raw


def closed(thinking: str, tags: ThinkTags) -> str:
    """Returns the thinking with its closing tag on a line of its own, and what comes between that and the answer."""
    return thinking.rstrip("\n") + "\n" + tags.close + tags.after


@dataclass(frozen=True, slots=True)
class Prefill:
    """Sends the thinking as the beginning of the assistant's turn, which the server continues (vLLM, SGLang)."""

    name: str = "prefill"
    exact: bool = True

    def request(self, purpose: str, messages: Sequence[Message], thinking: str, tags: ThinkTags, max_tokens: int) -> Request:
        turn = {"role": "assistant", "content": closed(thinking, tags)}
        extra = {"continue_final_message": True, "add_generation_prompt": False}
        own = thinking.removeprefix(tags.open)
        begun = BegunTurn(own, tags.close, thinking[: len(thinking) - len(own)])
        return Request(purpose, [*messages, turn], max_tokens, extra, logprobs=False, begun=begun)


@dataclass(frozen=True, slots=True)
class RawCompletion:
    """Sends the rendered conversation and the thinking to ``/v1/completions`` (llama.cpp, transformers serve, older vLLM)."""

    name: str = "completion"
    exact: bool = True

    def request(self, purpose: str, messages: Sequence[Message], thinking: str, tags: ThinkTags, max_tokens: int) -> Request:
        return Request(purpose, messages, max_tokens, prefix=closed(thinking, tags), logprobs=False)


@dataclass(frozen=True, slots=True)
class Turn:
    """Asks for the answer in a new turn (any chat API). The thinking stands in the assistant's turn before it.

    ``settings``: under these the model does not think anew, where the server has such settings.
    """

    ask: str = ANSWER_NOW
    settings: Mapping[str, Any] = field(default_factory=dict)
    name: str = "turn"
    exact: bool = False

    def request(self, purpose: str, messages: Sequence[Message], thinking: str, tags: ThinkTags, max_tokens: int) -> Request:
        text = thinking.removeprefix(tags.open).strip()
        turns = [{"role": "assistant", "content": text}, {"role": "user", "content": self.ask}]
        return Request(purpose, [*messages, *turns], max_tokens, dict(self.settings), logprobs=False)


WAYS: dict[str, Way] = {w.name: w for w in (Prefill(), RawCompletion(), Turn())}


def way(name: str, unthinking: Mapping[str, Any]) -> Way:
    """The way of this name. ``unthinking``: the server's settings under which a model does not think; a turn needs them."""
    entry = WAYS[name]
    return replace(entry, settings=unthinking) if isinstance(entry, Turn) else entry
