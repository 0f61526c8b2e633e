"""Stop reasoning models in LangChain when they are sure, and still get an answer.

Everything here is loaded on first use: importing this package loads LangChain's core at most, and no provider.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_entropy_chains.attachment import instrument, uninstrument, with_early_stop
    from langchain_entropy_chains.callbacks import EarlyStopped, EntropyCallbackHandler
    from langchain_entropy_chains.chat_models import EarlyStopChatModel
    from langchain_entropy_chains.local import ChatTransformers
    from langchain_entropy_chains.middleware import EarlyStopMiddleware
    from langchain_entropy_chains.tracing import EarlyStopTracer

_HOME = {
    "ChatTransformers": "local",
    "EarlyStopChatModel": "chat_models",
    "EarlyStopMiddleware": "middleware",
    "EarlyStopped": "callbacks",
    "EarlyStopTracer": "tracing",
    "EntropyCallbackHandler": "callbacks",
    "instrument": "attachment",
    "uninstrument": "attachment",
    "with_early_stop": "attachment",
}
"""Public name to the module it lives in."""

__version__ = "0.1.0"

__all__ = [
    "ChatTransformers",
    "EarlyStopChatModel",
    "EarlyStopMiddleware",
    "EarlyStopped",
    "EarlyStopTracer",
    "EntropyCallbackHandler",
    "instrument",
    "uninstrument",
    "with_early_stop",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'langchain_entropy_chains' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"langchain_entropy_chains.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
