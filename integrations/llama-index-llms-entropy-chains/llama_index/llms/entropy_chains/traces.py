"""Savings on OpenTelemetry spans: the contract's table as attributes, for Phoenix and whatever else reads spans.

Without ``opentelemetry`` installed nothing is marked. A span that has ended takes no attributes, so the one to mark is looked up
when the call begins (:func:`current_span`): a stream's chunks are read after LlamaIndex has left the call's context.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from entropy_chains.monitor import Outcome

TAGS = "tag.tags"
"""OpenInference's attribute for tags."""

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
