"""The root run of a call, for the holdout: LangChain itself tells a run its parent only."""

from __future__ import annotations

from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.callbacks.base import BaseCallbackManager
from langchain_core.tracers.context import register_configure_hook

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig


class RootRuns(BaseCallbackHandler):
    """Knows the root of every run that is under way."""

    run_inline = True

    def __init__(self) -> None:
        self._roots: dict[UUID, UUID] = {}

    def root(self, run: UUID) -> UUID:
        """The root of a run; the run itself where it was begun before anybody watched."""
        return self._roots.get(run, run)

    def on_chain_start(
        self, serialized: Any, inputs: Any, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        self._roots[run_id] = self.root(parent_run_id) if parent_run_id else run_id

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


@cache
def watch() -> RootRuns:
    """Have every run begun from now on watched; called by the first model with a holdout."""
    runs = RootRuns()
    register_configure_hook(ContextVar("entropy_chains_roots", default=runs), inheritable=True)
    return runs


def rooted(config: RunnableConfig) -> tuple[RunnableConfig, str]:
    """The config, and the id of the root run that a call with it belongs to; a call without a parent is given its id here."""
    callbacks = config.get("callbacks")
    parent = callbacks.parent_run_id if isinstance(callbacks, BaseCallbackManager) else None
    if parent is not None:
        return config, str(watch().root(parent))
    run = config.get("run_id") or uuid4()
    return {**config, "run_id": run}, str(run)
