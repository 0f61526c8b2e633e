"""Which server this is, from what it says of itself, and the one table of what each kind can do. Pure: the caller does the asking.

Nobody else compares the names of servers.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Abilities:
    """What servers of one kind can do; the defaults are those of any OpenAI-compatible API.

    Attributes:
        owners: who ``/models`` says owns their models.
        ways: how to get the answer after a stop, best first; see :mod:`.continuations`.
        unthinking: settings of a request under which a model does not think: for the answer after a stop, asked in a turn.
        always_thinking: beginnings of the names of models that think under these settings, too.
        control: they close the thinking of a running stream when told so.
        since: the first release that sends logprobs, by its name, where older ones are about; empty = all of them do, or none.
        logprobs_with_tools: they send logprobs on a streamed call with tools.
        plugin: this package's plug-in may be inside.
        usage_on_close: they count tokens on every chunk if asked to, so a closed stream has counts as well.
        max_tokens: the name of a chat request's token limit.
        template_at: path of the settings that hold the chat template, or None; below the server's root, as all of these.
        renders_at: path that renders a conversation to a text, or None.
        tokenizes_at: path that renders a conversation to its tokens' texts, or None.
        counters: names in ``/metrics`` of the tokens generated since the start, and of the requests that run now, or None.
    """

    owners: tuple[str, ...] = ()
    ways: tuple[str, ...] = ("turn",)
    unthinking: Mapping[str, Any] = field(default_factory=dict)
    always_thinking: tuple[str, ...] = ()
    control: bool = False
    since: str = ""
    logprobs_with_tools: bool = True
    plugin: bool = False
    usage_on_close: bool = False
    max_tokens: str = "max_tokens"
    template_at: str | None = None
    renders_at: str | None = None
    tokenizes_at: str | None = None
    counters: tuple[str, str] | None = None


RENDER = "/apply-template"
"""Path of llama.cpp, and of those that speak the same, that renders a conversation."""

OLLAMA_SINCE = "Ollama 0.12.11"

SERVERS = {
    "vllm": Abilities(
        owners=("vllm",),
        ways=("prefill", "turn"),
        plugin=True,
        usage_on_close=True,
        tokenizes_at="/tokenize",
        counters=("vllm:generation_tokens_total", "vllm:num_requests_running"),
    ),
    "llama.cpp": Abilities(
        owners=("llamacpp",),
        ways=("completion", "turn"),
        control=True,
        logprobs_with_tools=False,
        template_at="/props",
        renders_at=RENDER,
        counters=("llamacpp:tokens_predicted_total", "llamacpp:requests_processing"),
    ),
    "sglang": Abilities(
        owners=("sglang",),
        ways=("prefill", "turn"),
        counters=("sglang:generation_tokens_total", "sglang:num_running_reqs"),
    ),
    "ollama": Abilities(  # at /v1
        owners=("library",), unthinking={"reasoning_effort": "none"}, always_thinking=("gpt-oss",), since=OLLAMA_SINCE
    ),
    "ollama-native": Abilities(unthinking={"think": False}, always_thinking=("gpt-oss",), since=OLLAMA_SINCE),
    "openai": Abilities(owners=("openai", "system", "openai-internal"), max_tokens="max_completion_tokens"),
    "unknown": Abilities(),
}
"""By kind of server."""

UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Server:
    """What is known about a server.

    Attributes:
        kind: a name in :data:`SERVERS`.
        root: its address without ``/v1``.
        chat_template: where the server tells it.
        plugin: version of this package's plug-in inside the server, or None; asked for by :mod:`.introductions`.
    """

    kind: str = UNKNOWN
    root: str = ""
    chat_template: str | None = None
    plugin: str | None = None

    @property
    def can(self) -> Abilities:
        """What it can do."""
        return SERVERS[self.kind]

    def no_logprobs(self, *, tools: bool) -> str | None:
        """Why it sends no logprobs on a streamed call with or without tools, as the start of a sentence; None where it may."""
        blind = tools and not self.can.logprobs_with_tools
        return f"{self.kind} sends no logprobs on a streamed call with tools" if blind else None

    def always_thinks(self, model: str) -> str | None:
        """Why a stop would be in vain with a model: it would think anew before its answer; None where it need not."""
        thinks_anew = any(model.rpartition("/")[2].startswith(begun) for begun in self.can.always_thinking)
        return f"{model} cannot be kept from thinking again after a stop" if thinks_anew else None


OLLAMA = Server("ollama-native")
"""Ollama, where it is asked by its own API."""

CONTROL = "/chat/completions/control"
"""Path, below the base URL, where a server is told to end the thinking of a running stream."""


def end_thinking(stream: str | None) -> dict[str, Any]:
    """The body of a request to :data:`CONTROL`. ``stream``: the running stream's id."""
    return {"id": stream, "action": "reasoning_end"}


def is_done(reply: Any) -> bool:
    """Whether the server's reply to it says that it did so."""
    return isinstance(reply, Mapping) and reply.get("success") is True


def _get(address: str) -> Generator[str, Any, Any]:
    return (yield address)


def identify(base_url: str, model: str, get: Callable[[str], Generator[Any, Any, Any]] = _get) -> Generator[Any, Any, Server]:
    """Ask as little as is needed: yields addresses to GET, is sent the JSON that came, returns the server.

    Args:
        base_url: the client's.
        model: the served model's name.
        get: asks in another form: yields what its caller needs instead of an address, and returns the JSON.
    """
    base = base_url.rstrip("/")
    root = base.removesuffix("/v1")
    owner = _owner((yield from get(f"{base}/models")), model)
    kind = next((name for name, can in SERVERS.items() if owner in can.owners), UNKNOWN)
    template = None
    if path := SERVERS[kind].template_at:
        props = yield from get(f"{root}{path}")
        template = props.get("chat_template") if isinstance(props, Mapping) else None
    return Server(kind, root, template if isinstance(template, str) and template else None)


def _owner(listed: Any, model: str) -> str:
    """Who the server says owns the model, or any of its models."""
    data = listed.get("data") if isinstance(listed, Mapping) else None
    entries = [e for e in data if isinstance(e, Mapping)] if isinstance(data, list) else []
    mine = [e for e in entries if e.get("id") == model] or entries
    owner = mine[0].get("owned_by") if mine else None
    return owner if isinstance(owner, str) else ""
