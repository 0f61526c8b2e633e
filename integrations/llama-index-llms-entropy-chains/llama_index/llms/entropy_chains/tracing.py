"""Savings on OpenTelemetry spans: the contract's table as attributes, for Phoenix, LangSmith and whatever else reads spans.

Without ``opentelemetry`` installed nothing is marked. A span that has ended takes no attributes, so the one to mark is looked up
when the call begins (:func:`current_span`): a stream's chunks are read after LlamaIndex has left the call's context.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from entropy_chains import Outcome
from entropy_chains.adapters import FLAT, TOTAL, root_attributes, run_attributes, usage_attributes
from entropy_chains.adapters import langfuse_savings as langfuse_savings
from entropy_chains.adapters import phoenix_savings as phoenix_savings

OPENINFERENCE_TAGS = "tag.tags"
"""OpenInference's attribute for tags."""

LANGSMITH, LANGSMITH_TAGS = "langsmith.metadata.", "langsmith.span.tags"
"""Where LangSmith's own SDK puts a run's metadata and its tags (one text, with commas) on a span, and its OTLP endpoint looks."""

TAG = "early-stopped"

TOTALS = (
    "early_stop_runs",
    "early_stop_stopped_runs",
    "early_stop_tokens",
    "early_stop_tokens_saved_estimate",
    "early_stop_tokens_saved_share",
    "early_stop_policy",
    "early_stop_holdout",
)
"""What a root tells of the table of all its runs; all else is of a single run."""


def current_span() -> Any:
    """The span that is open here; None where there is none, or no ``opentelemetry``."""
    try:
        from opentelemetry import trace
    except ImportError:
        return None
    span = trace.get_current_span()
    # OpenInference puts a stand-in into the context, which becomes the parent's when the call returns.
    span = getattr(span, "__wrapped__", span)
    return span if span.is_recording() else None


def mark_span(outcome: Outcome | Mapping[str, Any], span: Any = None) -> bool:
    """Write an outcome, or its table, on a span, by default the one that is open here; whether it was still open.

    Each figure stands under its own name and, for tools that group by dots, under ``entropy_chains.``.
    """
    span = span or current_span()
    if span is None or not span.is_recording():
        return False
    table = outcome.metadata() if isinstance(outcome, Outcome) else outcome
    span.set_attributes(run_attributes(table))
    if table.get("early_stop_stopped"):
        _tag(span)
    return True


def mark_request(table: Mapping[str, Any], tokens: int, span: Any, prompt: int | None = None) -> bool:
    """Write on a request's span what that request made, and the outcome of its run where it is told there.

    Args:
        table: the outcome, or nothing.
        tokens: completion tokens of the request.
        span: its span.
        prompt: tokens of its prompt, if the server told.
    """
    if not mark_span({**table, "early_stop_tokens": tokens}, span):
        return False
    span.set_attributes(usage_attributes(tokens, prompt))
    return True


def mark_root(table: Mapping[str, Any], span: Any) -> bool:
    """Write the totals of a trace, of the table of all its runs, on its root."""
    if span is None or not span.is_recording():
        return False
    span.set_attributes(root_attributes({name: table[name] for name in TOTALS if name in table}))
    if table["early_stop_stopped_runs"]:
        _tag(span)
    return True


def _tag(span: Any) -> None:
    tags = (getattr(span, "attributes", None) or {}).get(OPENINFERENCE_TAGS) or ()
    span.set_attribute(OPENINFERENCE_TAGS, [*(t for t in tags if t != TAG), TAG])


def lasting(span: Any, busy: Callable[[], bool], before: Callable[[], Any] = bool) -> Callable[[], None]:
    """Let a span end when the work in it does: tracers end that of a stream as soon as its generator was made.

    Args:
        span: an OpenTelemetry span.
        busy: whether the work still runs.
        before: what is to be written on the span before it ends.

    Returns:
        what to call when the work has ended. A span that nobody has ended by then stays open.
    """
    end, end_called = span.end, False

    def finish() -> None:
        if end_called and not busy() and span.is_recording():
            before()
            end()

    def later(end_time: int | None = None) -> None:  # the time at which the generator was made
        nonlocal end_called
        end_called = True
        finish()

    try:
        span.end = later
    except AttributeError:  # a span of a class that cannot be changed ends as it did
        before()
    return finish


class ForLangSmith:
    """A span exporter around one to LangSmith's OTLP endpoint: savings and tags get the names that LangSmith reads.

    ::

        exporter = ForLangSmith(OTLPSpanExporter("https://api.smith.langchain.com/otel/v1/traces", headers={"x-api-key": key}))

    What goes to other exporters stays as it is.
    """

    def __init__(self, exporter: Any):
        self._exporter = exporter

    def export(self, spans: Sequence[Any]) -> Any:
        """As in OpenTelemetry's ``SpanExporter``."""
        return self._exporter.export([_for_langsmith(span) for span in spans])

    def shutdown(self) -> None:
        """See :meth:`export`."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """See :meth:`export`."""
        return bool(self._exporter.force_flush(timeout_millis))


def _for_langsmith(span: Any) -> Any:
    """A copy of a finished span with further attributes; the span itself where there is nothing to tell."""
    from opentelemetry.sdk.trace import ReadableSpan

    attributes = dict(span.attributes or {})
    totals = {FLAT + name.removeprefix(TOTAL): value for name, value in attributes.items() if name.startswith(TOTAL)}
    table = {name: value for name, value in attributes.items() if name.startswith(FLAT)} | totals
    more = {LANGSMITH + name: value for name, value in table.items()}
    if OPENINFERENCE_TAGS in attributes:
        more[LANGSMITH_TAGS] = ", ".join(attributes[OPENINFERENCE_TAGS])
    if not more:
        return span
    same = (
        "name",
        "context",
        "parent",
        "resource",
        "events",
        "links",
        "kind",
        "status",
        "start_time",
        "end_time",
        "instrumentation_scope",
    )
    return ReadableSpan(attributes=attributes | more, **{name: getattr(span, name) for name in same})
