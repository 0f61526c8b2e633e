"""Savings on OpenTelemetry spans: the contract's table as attributes, for Phoenix, LangSmith and whatever else reads spans.

Without ``opentelemetry`` installed nothing is marked. A span that has ended takes no attributes, so the one to mark is looked up
when the call begins (:func:`current_span`): a stream's chunks are read after LlamaIndex has left the call's context.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from entropy_chains import Outcome

TAGS = "tag.tags"
"""OpenInference's attribute for tags."""

LANGSMITH, LANGSMITH_TAGS = "langsmith.metadata.", "langsmith.span.tags"
"""Where LangSmith's own SDK puts a run's metadata and its tags (one text, with commas) on a span, and its OTLP endpoint looks."""

STOPPED = "early-stopped"


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
    """Write an outcome, or its table, on a span, by default the one that is open here; whether it was still open."""
    span = span or current_span()
    if span is None or not span.is_recording():
        return False
    table = outcome.metadata() if isinstance(outcome, Outcome) else outcome
    span.set_attributes(table)
    if table["early_stop_stopped"]:
        known = (getattr(span, "attributes", None) or {}).get(TAGS) or ()
        span.set_attribute(TAGS, [*(t for t in known if t != STOPPED), STOPPED])
    return True


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

    known = dict(span.attributes or {})
    added = {LANGSMITH + name: value for name, value in known.items() if name.startswith("early_stop_")}
    if TAGS in known:
        added[LANGSMITH_TAGS] = ", ".join(known[TAGS])
    if not added:
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
    return ReadableSpan(attributes=known | added, **{name: getattr(span, name) for name in same})
