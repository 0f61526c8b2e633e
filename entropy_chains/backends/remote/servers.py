"""Which server this is, and what it can do after a stop, from what it says of itself. Pure: the caller does the asking."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Server:
    """What is known about a server.

    Attributes:
        kind: ``vllm``, ``llama.cpp``, ``sglang``, ``openai`` or ``unknown``.
        root: its address without ``/v1``.
        ways: how to get the answer after a stop, best first; see :mod:`.continuations`.
        control: it closes the thinking of a running stream when told so.
        chat_template: where the server tells it.
        max_tokens: the name of the request's token limit.
        plugin: version of this package's plug-in inside the server, or None; asked for by :mod:`.vllm_client`.
    """

    kind: str
    root: str
    ways: tuple[str, ...] = ("turn",)
    control: bool = False
    chat_template: str | None = None
    max_tokens: str = "max_tokens"
    plugin: str | None = None


def identify(base_url: str, model: str) -> Generator[str, Any, Server]:
    """Ask as little as is needed: yields addresses to GET, is sent what came, returns the server."""
    base = base_url.rstrip("/")
    root = base.removesuffix("/v1")
    listed = yield f"{base}/models"
    owner = _owner(listed, model)
    if owner == "vllm":
        return Server("vllm", root, ("prefill", "turn"))
    if owner == "llamacpp":
        props = yield f"{root}/props"
        template = props.get("chat_template") if isinstance(props, Mapping) else None
        text = template if isinstance(template, str) and template else None
        return Server("llama.cpp", root, ("completion", "turn"), control=True, chat_template=text)
    if owner == "sglang":
        return Server("sglang", root, ("prefill", "turn"))
    if owner in ("openai", "system", "openai-internal"):
        return Server("openai", root, max_tokens="max_completion_tokens")
    return Server("unknown", root)


def _owner(listed: Any, model: str) -> str:
    """Who the server says owns the model, or any of its models."""
    found = listed.get("data") if isinstance(listed, Mapping) else None
    entries = [e for e in found if isinstance(e, Mapping)] if isinstance(found, list) else []
    mine = [e for e in entries if e.get("id") == model] or entries
    owner = mine[0].get("owned_by") if mine else None
    return owner if isinstance(owner, str) else ""
