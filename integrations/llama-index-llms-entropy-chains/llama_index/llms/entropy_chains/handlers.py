"""``EntropyEventHandler``: every LLM call measured through LlamaIndex's instrumentation, whatever object makes it.

An observer sees events, not objects: what it can do is measure, and end a *streaming* call of an LLM that was prepared for it.
It cannot stop a call that does not stream, and it cannot ask for the answer after a stop: ``EarlyStopLLM`` does both.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.exception import ExceptionEvent
from llama_index.core.instrumentation.events.llm import (
    LLMChatEndEvent,
    LLMChatInProgressEvent,
    LLMChatStartEvent,
    LLMCompletionEndEvent,
    LLMCompletionInProgressEvent,
    LLMCompletionStartEvent,
)
from llama_index.llms.entropy_chains._measured import CallMeasurement, HandlerTerms, end_streams
from llama_index.llms.entropy_chains._runs import Run, follow_spans
from llama_index.llms.entropy_chains._summary import MeasuredCall, Summary, Totals
from llama_index_instrumentation.base import BaseEvent  # noqa: TC002 (pydantic reads annotations)
from llama_index_instrumentation.events.span import SpanDropEvent
from pydantic import PrivateAttr

from entropy_chains import Outcome, Policy, Segmentation, ThinkTags, stopping_enabled
from entropy_chains.adapters import OnMismatch, check_options
from entropy_chains.errors import SettingsError

logger = logging.getLogger("entropy_chains")

OPEN = 1024
"""Most calls followed at a time. A stream that is asked for and never read ends without an event: the oldest are forgotten."""

_STARTS = (LLMChatStartEvent, LLMCompletionStartEvent)
_CHUNKS = (LLMChatInProgressEvent, LLMCompletionInProgressEvent)
_ENDS = (LLMChatEndEvent, LLMCompletionEndEvent)


class EntropyEventHandler(BaseEventHandler):
    """Measures every LLM call: entropy of each step, where the policy would have stopped, what that would have saved.

    ``get_dispatcher().add_event_handler(handler)`` puts it to work. It needs the logprobs: ask for them where the LLM is made
    (``OpenAILike(…, logprobs=True, top_logprobs=20)``). With OpenTelemetry, figures are written on the spans of the call and of its
    query (add the handler before the instrumentor). A query's response has them in ``metadata``, unless it is streamed: its tokens
    come after the query has ended.

    Args:
        policy: a Policy or its file; None only measures. Calls of another model are measured, and not judged.
        stop: end streaming calls of LLMs given to :meth:`prepare` where the policy says so. The caller then has the thinking so
            far and **no answer**; calls that do not stream, have tools or want structured output run in full.
        on_mismatch: ``error`` (not judged) or ``warn``, where the policy is for something else.
        segmentation, k: without a policy.
        think_tags, opened: as in :class:`entropy_chains.backends.openai.OpenAIBackend`.
        keep: rows kept for :meth:`summary`; the totals count all.
    """

    _terms: HandlerTerms = PrivateAttr()
    _open: dict[str, CallMeasurement] = PrivateAttr(default_factory=dict)
    _rows: deque[MeasuredCall] = PrivateAttr()
    _totals: Totals = PrivateAttr(default_factory=Totals)
    _runs: Any = PrivateAttr(default_factory=WeakKeyDictionary)  # the row of each run of a wrapper
    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    def __init__(
        self,
        policy: Policy | str | Path | None = None,
        *,
        stop: bool = False,
        on_mismatch: OnMismatch = "error",
        segmentation: Segmentation | None = None,
        k: int = 20,
        think_tags: ThinkTags | None = None,
        opened: bool = False,
        keep: int = 1000,
    ):
        super().__init__()
        policy = Policy.of(policy)
        check_options({"on_mismatch": on_mismatch})
        if not isinstance(stop, bool):
            raise SettingsError(f"stop is {stop!r}; it must be True or False")
        if stop and policy is None:
            raise SettingsError("stop is True, but there is no policy that says when; give one, or leave stop")
        self._terms = HandlerTerms(
            policy, stop, on_mismatch, segmentation, (policy and policy.k) or k, think_tags or ThinkTags(), opened
        )
        self._rows = deque(maxlen=keep)
        follow_spans()

    @classmethod
    def class_name(cls) -> str:
        """As LlamaIndex wants it."""
        return "EntropyEventHandler"

    def prepare(self, llm: Any) -> None:
        """Let this handler end the streams of an LLM of ``llama_index.llms.openai``, and of its copies.

        Its class becomes a subclass of its own. Clients and keys stay its own, also those set later.

        Raises:
            SettingsError: the handler was made without ``stop``, or the LLM does not use the ``openai`` SDK.
        """
        if not self._terms.stop:
            raise SettingsError("this handler only measures; make it with stop=True to end streams")
        end_streams(llm)

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        """Take an event. An error of ours is logged, and never the run's."""
        try:
            self._take(event)
        except Exception:  # LlamaIndex would drop it without a word
            logger.warning("measuring a %s failed; the run goes on", type(event).__name__, exc_info=True)

    def _take(self, event: BaseEvent) -> None:
        if isinstance(event, _CHUNKS):
            call = self._open.get(event.span_id or "")
            if call is not None:
                call.chunk(event.response)
        elif isinstance(event, _STARTS):
            self._begin(event)
        elif isinstance(event, _ENDS):
            self._end(event.span_id, event.response)
        elif isinstance(event, SpanDropEvent):
            self._dropped(event.span_id)
        elif isinstance(event, ExceptionEvent):
            self._end(event.span_id, None, "the stream was not read to its end")

    def _begin(self, event: LLMChatStartEvent | LLMCompletionStartEvent) -> None:
        if event.span_id is None:
            return
        terms = replace(self._terms, stop=self._terms.stop and stopping_enabled())
        call = CallMeasurement(terms, event.model_dict, event.span_id)
        with self._lock:
            self._open[event.span_id] = call
            while len(self._open) > OPEN:
                del self._open[next(iter(self._open))]
        if call.run_request is not None and self._run_over not in call.run_request.run.watchers:
            call.run_request.run.watchers.append(self._run_over)

    def _end(self, span_id: str | None, response: Any, why: str | None = None) -> None:
        with self._lock:
            call = self._open.pop(span_id or "", None)
        if call is None:
            return
        row = call.row(response, why)
        run = call.run_request.run if call.run_request else None
        with self._lock:
            before = self._runs.get(run) if run is not None else None
            row = before.joined(row) if before is not None else row
            self._put(row, before)
            if run is not None:
                self._runs[run] = row
        if run is None and call.scope is not None:
            call.scope.add(span_id, row.outcome)

    def _run_over(self, run: Run, outcome: Outcome) -> None:
        """A run of an ``EarlyStopLLM`` has ended: its requests are one row, with the wrapper's outcome."""
        with self._lock:
            before = self._runs.get(run)
            if before is not None:
                self._put(before.judged(outcome), before)

    def _put(self, row: MeasuredCall, before: MeasuredCall | None) -> None:
        """Keep a row, in an earlier one's place if there is one."""
        self._totals = self._totals.add(row)
        if before is None:
            self._rows.append(row)
            return
        self._totals = self._totals.add(before, -1)
        if before in self._rows:
            self._rows[self._rows.index(before)] = row

    def _dropped(self, span_id: str | None) -> None:
        """A call that failed."""
        with self._lock:
            self._open.pop(span_id or "", None)

    def summary(self) -> Summary:
        """The calls so far; ``rich.print`` shows a table."""
        with self._lock:
            return Summary(tuple(self._rows), self._totals)
