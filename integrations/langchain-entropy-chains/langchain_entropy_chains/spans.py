"""OpenTelemetry: what early stopping did as attributes of OpenInference's spans, where they can be filtered and summed.

Imported by its own name, for it needs ``openinference-instrumentation-langchain``.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any
from uuid import UUID

from openinference.instrumentation.langchain import LangChainInstrumentor

from entropy_chains.adapters import FLAT, root_attributes, run_attributes, usage_attributes
from entropy_chains.adapters import langfuse_savings as langfuse_savings
from entropy_chains.adapters import phoenix_savings as phoenix_savings
from langchain_entropy_chains._roots import RootRuns
from langchain_entropy_chains._traced import CACHED
from langchain_entropy_chains.tracing import totals

if TYPE_CHECKING:
    from langchain_core.outputs import LLMResult


class EarlyStopSpans(RootRuns):
    """A callback that marks spans: the table on the model's, the totals on the root's.

    ::

        chain.invoke({"q": "What is 6*7?"}, {"callbacks": [EarlyStopSpans()]})

    A model's span has ``early_stop_…``, the same as ``entropy_chains.…``, and ``gen_ai.usage.*`` of all that was computed; the
    root's has ``entropy_chains.total.…``. Callbacks of a call come before the instrumentor's, so the spans are still open.
    """

    def __init__(self) -> None:
        super().__init__()
        self._totals: dict[UUID, dict[str, Any]] = {}  # by root
        self._parents: dict[UUID, UUID | None] = {}
        self._lock = Lock()

    def on_chat_model_start(
        self, serialized: Any, messages: Any, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        self._parents[run_id] = parent_run_id

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        parent = self._parents.pop(run_id, None)
        message: Any = getattr(response.generations[0][0], "message", None) if response.generations else None
        table = {name: value for name, value in getattr(message, "response_metadata", {}).items() if name.startswith(FLAT)}
        if not table:
            return
        usage = message.usage_metadata or {}
        _mark_span(run_id, run_attributes(table) | usage_attributes(usage.get("output_tokens"), usage.get("input_tokens")))
        if table[f"{FLAT}reason"] == CACHED:
            return
        with self._lock:
            root = self.root(parent) if parent else run_id
            self._totals[root] = totals(self._totals.get(root, {}), table)
        if parent is None:
            self._mark_root(run_id)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._parents.pop(run_id, None)

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        super().on_chain_end(outputs, run_id=run_id, **kwargs)
        self._mark_root(run_id)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        super().on_chain_error(error, run_id=run_id, **kwargs)
        self._mark_root(run_id)

    def _mark_root(self, run_id: UUID) -> None:
        totals_of_root = self._totals.pop(run_id, None)
        if totals_of_root:
            _mark_span(run_id, root_attributes(totals_of_root))


def _mark_span(run_id: UUID, attributes: dict[str, Any]) -> None:
    span = LangChainInstrumentor().get_span(run_id)
    if span is not None:
        span.set_attributes(attributes)
