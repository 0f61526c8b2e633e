"""Ollama's own API through LangChain's ``ChatOllama``: what differs there from classes of OpenAI-compatible APIs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from entropy_chains.adapters import OLLAMA
from langchain_entropy_chains._model_info import OPTIONS

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

SINCE = "langchain-ollama 1.1"
"""The first release that passes logprobs on."""

PASS_ON_THINKING = {"reasoning": True}
"""A call's setting under which the class passes on thinking, also where the request says ``"think": false`` in vain (gpt-oss)."""


def speaks_ollama(chat: object) -> bool:
    """Whether a chat model asks Ollama by its own API."""
    return any(kind.__name__ == "ChatOllama" and hasattr(kind, "_create_chat_stream") for kind in type(chat).__mro__)


def settings_of(extra: Mapping[str, Any]) -> dict[str, Any] | None:
    """The settings of a call that stand for those of a request; None where they are another server's."""
    return {**PASS_ON_THINKING, **extra} if extra.keys() <= OLLAMA.can.unthinking.keys() else None


def with_seed(chat: BaseChatModel, kwargs: Mapping[str, Any], seed: int) -> tuple[BaseChatModel, dict[str, Any]]:
    """The model and the settings of a call with this seed, which a call takes among its options only."""
    if kwargs.get(OPTIONS) is not None:
        return chat, {**kwargs, OPTIONS: {**kwargs[OPTIONS], "seed": seed}}
    return chat.model_copy(update={"seed": seed}), {**kwargs}
