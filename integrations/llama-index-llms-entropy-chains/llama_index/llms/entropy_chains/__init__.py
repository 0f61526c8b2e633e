"""Early stopping for LlamaIndex: reasoning is closed when the model is sure, and the answer is still given.

Everything here is loaded on first use: importing this package loads no model and no SDK.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from entropy_chains.adapters import lazy_names

if TYPE_CHECKING:
    from llama_index.llms.entropy_chains.agents import EarlyStopFunctionAgent, EarlyStopReActAgent
    from llama_index.llms.entropy_chains.attachment import attach, detach
    from llama_index.llms.entropy_chains.base import EarlyStopLLM
    from llama_index.llms.entropy_chains.handlers import EntropyEventHandler
    from llama_index.llms.entropy_chains.local import TransformersLLM

_HOME = {
    "attach": "attachment",
    "detach": "attachment",
    "EarlyStopFunctionAgent": "agents",
    "EarlyStopLLM": "base",
    "EarlyStopReActAgent": "agents",
    "EntropyEventHandler": "handlers",
    "TransformersLLM": "local",
}
"""Public name to the module it lives in."""

__all__ = [
    "attach",
    "detach",
    "EarlyStopFunctionAgent",
    "EarlyStopLLM",
    "EarlyStopReActAgent",
    "EntropyEventHandler",
    "TransformersLLM",
]

if not TYPE_CHECKING:  # so that a misspelt name is an error to type checkers
    __getattr__, __dir__ = lazy_names(globals(), _HOME)
