"""Savings on OpenTelemetry spans: the contract's table as attributes, for Phoenix, LangSmith and whatever else reads spans.

Without ``opentelemetry`` installed nothing is marked. A span that has ended takes no attributes, so the one to mark is looked up
when the call begins (:func:`current_span`): a stream's chunks are read after LlamaIndex has left the call's context.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from entropy_chains.monitor import Outcome

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
    span.set_attributes({**table, **{LANGSMITH + name: value for name, value in table.items()}})
    if table["early_stop_stopped"]:
        known = (getattr(span, "attributes", None) or {}).get(TAGS) or ()
        tags = [*(t for t in known if t != STOPPED), STOPPED]
        span.set_attributes({TAGS: tags, LANGSMITH_TAGS: ", ".join(tags)})
    return True
