"""Stop reasoning models in LangChain when they are sure, and still get an answer.

Everything here is loaded on first use: importing this package loads LangChain's core at most, and no provider.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from entropy_chains.adapters import lazy_names
from langchain_entropy_chains._version import __version__ as __version__

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

if not TYPE_CHECKING:  # so that a misspelt name is an error to type checkers
    __getattr__, __dir__ = lazy_names(globals(), _HOME)
