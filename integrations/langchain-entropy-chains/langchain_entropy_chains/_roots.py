"""The root run of a call, for the holdout: LangChain itself tells a run its parent only."""

from __future__ import annotations

import sys
from contextlib import suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.callbacks.base import BaseCallbackManager
from langchain_core.tracers.context import register_configure_hook

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig


MOST_RUNS = 100_000
"""Runs under way at once that are known."""


class RootRuns(BaseCallbackHandler):
    """Knows the root of every run that is under way."""

    run_inline = True

    def __init__(self) -> None:
        self._roots: dict[UUID, UUID] = {}

    def root(self, run: UUID) -> UUID:
        """The root of a run; the run itself where it was begun before anybody watched."""
        root = self._roots.get(run)
        if root is not None:
            return root
        tree = _current_run_tree()  # LangSmith's own runs, as around an agent's middleware, are told to no callback
        if tree is None or str(run) not in tree.dotted_order:
            return run
        above = [UUID(part[-36:]) for part in tree.dotted_order.split(".")]
        return next((self._roots[each] for each in reversed(above) if each in self._roots), tree.trace_id)

    def on_chain_start(
        self, serialized: Any, inputs: Any, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        self._roots[run_id] = self.root(parent_run_id) if parent_run_id else run_id
        if len(self._roots) > MOST_RUNS:  # runs that nobody ended
            with suppress(KeyError, RuntimeError):
                del self._roots[next(iter(self._roots))]

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self._roots.pop(run_id, None)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._roots.pop(run_id, None)

    def on_tool_start(
        self, serialized: Any, input_str: Any, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        self.on_chain_start(serialized, input_str, run_id=run_id, parent_run_id=parent_run_id)

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self._roots.pop(run_id, None)

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._roots.pop(run_id, None)

    def on_retriever_start(
        self, serialized: Any, query: str, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        self.on_chain_start(serialized, query, run_id=run_id, parent_run_id=parent_run_id)

    def on_retriever_end(self, documents: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self._roots.pop(run_id, None)

    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._roots.pop(run_id, None)


def _current_run_tree() -> Any:
    """LangSmith's run that this code is in; None where there is none. Where nothing is traced, LangSmith is not loaded."""
    helpers = sys.modules.get("langsmith.run_helpers")
    return helpers.get_current_run_tree() if helpers else None


class _Watch(RootRuns):
    """Of all but models: a model's run has no runs below it."""

    ignore_llm = ignore_chat_model = True


WATCH = _Watch()
"""Watches every run from the first on: a model with a holdout may be made inside one."""

register_configure_hook(ContextVar("entropy_chains_roots", default=WATCH), inheritable=True)


def with_root(config: RunnableConfig) -> tuple[RunnableConfig, str]:
    """The config, and the id of the root run that a call with it belongs to; a call without a parent is given its id here."""
    callbacks = config.get("callbacks")
    parent = callbacks.parent_run_id if isinstance(callbacks, BaseCallbackManager) else None
    if parent is not None:
        return config, str(WATCH.root(parent))
    run, outside = config.get("run_id") or uuid4(), _current_run_tree()
    return {**config, "run_id": run}, str(outside.trace_id if outside else run)
