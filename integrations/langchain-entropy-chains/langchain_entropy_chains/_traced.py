"""What early stopping says of a call, where LangSmith's own tracer carries it: metadata of the model run.

A tracer of this package adds totals of the root (:mod:`.tracing`); without one the figures of each run still can be filtered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks.base import BaseCallbackManager
from langchain_core.messages import AIMessage

from entropy_chains.adapters import FLAT

if TYPE_CHECKING:
    from langchain_core.callbacks import BaseCallbackHandler
    from langchain_core.outputs import ChatResult
    from langchain_core.runnables import RunnableConfig

CACHED = "answered from the cache"
TAG = "early-stopped"

FIGURES = ("step", "entropy", "threshold", "tokens_saved_estimate", "tokens_would_save")
"""What is said of a run that was computed, and of no other."""

_COMPUTED: ContextVar[list[bool] | None] = ContextVar("entropy_chains_computed", default=None)


def computing() -> None:
    """A model begins to compute the reply of the call under way; one that is cached does not."""
    under_way = _COMPUTED.get()
    if under_way is not None:
        under_way.append(True)


class Computed:
    """``with Computed() as computed:`` tells, by a list that is empty or not, whether a reply was computed inside."""

    def __enter__(self) -> list[bool]:
        self._under_way: list[bool] = []
        self._token = _COMPUTED.set(self._under_way)
        return self._under_way

    def __exit__(self, *error: object) -> None:
        _COMPUTED.reset(self._token)


def traced_result(result: ChatResult, run_manager: Any, *, cached: bool) -> ChatResult:
    """A result, with what is said of a cached one set right; its tracers are told."""
    if cached:
        generations = [g.model_copy(update={"message": _cached_message(g.message)}) for g in result.generations]
        result = result.model_copy(update={"generations": generations})
    if run_manager is not None and result.generations:
        write_to_tracers(run_manager.handlers, run_manager.run_id, result.generations[0].message.response_metadata)
    return result


def _cached_message(message: Any) -> Any:
    """Neither computed nor saved: what the run said that made it is no longer true of this one."""
    metadata = message.response_metadata
    if not isinstance(message, AIMessage) or f"{FLAT}reason" not in metadata:
        return message
    rest = {name: value for name, value in metadata.items() if name.removeprefix(FLAT) not in FIGURES}
    changes = {f"{FLAT}stopped": False, f"{FLAT}reason": CACHED, f"{FLAT}tokens": 0}
    return message.model_copy(update={"response_metadata": rest | changes})


def write_to_tracers(handlers: Iterable[BaseCallbackHandler], run_id: Any, metadata: Mapping[str, Any]) -> None:
    """Write what is said of a run to LangSmith's tracers that follow it; the run has not ended yet."""
    table = {name: value for name, value in metadata.items() if name.startswith(FLAT)}
    for handler in handlers if table else ():
        run = handler.run_map.get(str(run_id)) if _is_tracer(handler) else None  # type: ignore[attr-defined]
        if run is not None:
            add_metadata(run, table)


def add_metadata(run: Any, table: Mapping[str, Any]) -> None:
    """Metadata of a run, in a dict of its own: LangChain may share one between runs."""
    run.extra["metadata"] = {**(run.extra.get("metadata") or {}), **table}
    if table.get("early_stop_stopped"):
        run.tags = sorted({*(run.tags or []), TAG})


def _is_tracer(handler: Any) -> bool:
    """By the name: LangSmith takes long to load, and where nothing is traced it is not."""
    return any(kind.__name__ == "LangChainTracer" for kind in type(handler).__mro__)


class Carried:
    """Follows the chunks of one stream, and tells the tracers when the last one comes.

    Args:
        config: of the call.
        kind: LangChain's class of managers, of which one is made where the config has none.
    """

    def __init__(self, config: RunnableConfig, kind: type[Any]):
        callbacks = config.get("callbacks")
        if not isinstance(callbacks, BaseCallbackManager):
            callbacks = kind.configure(callbacks)
            config = {**config, "callbacks": callbacks}
        self.config, self._handlers = config, [handler for handler in callbacks.handlers if _is_tracer(handler)]

    def see(self, chunk: Any) -> None:
        """A chunk, before it is passed on."""
        metadata, name = getattr(chunk, "response_metadata", {}), str(getattr(chunk, "id", ""))
        if self._handlers and f"{FLAT}reason" in metadata:
            write_to_tracers(self._handlers, name[-36:], metadata)
