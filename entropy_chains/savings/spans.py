"""OpenTelemetry: under which names savings stand on spans, and where Phoenix and Langfuse show them as scores.

Of ``opentelemetry`` nothing is imported before it is needed: without it there are no spans.
"""

from __future__ import annotations

import json
import logging
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from entropy_chains.core.monitor import DOTTED, FLAT, TOTAL
from entropy_chains.errors import SettingsError, quoted

logger = logging.getLogger("entropy_chains")

READ, MADE = "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"
"""OpenTelemetry's own names for the tokens of a request's prompt, and for those that it made."""

ONCE = (
    "early_stop_runs",
    "early_stop_stopped_runs",
    "early_stop_tokens_saved_share",
    "early_stop_policy",
    "early_stop_holdout",
)
"""Totals that stand on a root under their flat names as well: no run's span has them, or nobody adds them up."""

SHARE, SAVED = "early_stop_tokens_saved_share", "early_stop_tokens_saved"
"""Scores of a trace: what was saved of the tokens of full runs, 0 to 1, and the same in tokens."""


def run_attributes(table: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of the span of a run or request, of its table: each figure flat, and dotted for tools that group by dots."""
    return {**table, **{DOTTED + name.removeprefix(FLAT): value for name, value in table.items()}}


def usage_attributes(made: int | None, prompt: int | None) -> dict[str, int]:
    """Attributes of the same span for the tokens of all that was computed; those of the prompt where they are known."""
    return {name: tokens for name, tokens in ((MADE, made), (READ, prompt)) if tokens is not None}


def root_attributes(totals: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of the root span of a trace.

    Sums stand under ``entropy_chains.total.`` alone: dashboards of OpenTelemetry add up over all spans of a trace, and there each
    token, stop and saving has to stand once under one name.
    """
    once = {name: totals[name] for name in ONCE if name in totals}
    return once | {TOTAL + name.removeprefix(FLAT): value for name, value in totals.items()}


class Saving(NamedTuple):
    """What one trace saved, as the outermost span of a framework tells.

    Attributes:
        trace_id, span_id: of that span, in hexadecimal digits.
        share: of the tokens of full runs, 0 to 1, an estimate from calibration.
        tokens: the same in tokens.
        label: ``stopped``, ``in full`` or ``holdout``.
        explanation: for people.
    """

    trace_id: str
    span_id: str
    share: float
    tokens: int
    label: str
    explanation: str


def saving_of(span: Any) -> Saving | None:
    """What a finished span tells of its trace; None where it is no root with a policy, or nothing was estimated."""
    totals = {name.removeprefix(TOTAL): value for name, value in (span.attributes or {}).items() if name.startswith(TOTAL)}
    if "policy" not in totals:
        return None
    runs, stopped, tokens, saved = (totals.get(name) for name in ("runs", "stopped_runs", "tokens", "tokens_saved_estimate"))
    if stopped and saved is None:  # by a policy without a calibration
        return None
    label = "stopped" if stopped else "holdout" if totals.get("holdout") else "in full"
    explanation = f"{stopped} of {runs} runs stopped; {tokens} tokens computed, about {saved or 0} saved"
    share, trace_id, span_id = float(totals.get("tokens_saved_share", 0)), span.context.trace_id, span.context.span_id
    return Saving(f"{trace_id:032x}", f"{span_id:016x}", share, saved or 0, label, explanation)


class SavingsExporter:
    """OpenTelemetry's ``SpanExporter``, which sends no spans: of each trace's root it posts what was saved.

    Args:
        post: takes the savings of some traces. An error of it is logged, and never the app's.
    """

    def __init__(self, post: Callable[[Sequence[Saving]], object]):
        self._post = post

    def export(self, spans: Iterable[Any]) -> Any:
        """As in ``SpanExporter``."""
        from opentelemetry.sdk.trace.export import SpanExportResult

        savings = [saving for span in spans if (saving := saving_of(span)) is not None]
        try:
            if savings:
                self._post(savings)
        except Exception as error:  # noqa: BLE001 (tracing never breaks the user's run)
            logger.warning("savings of %d traces were not posted: %s", len(savings), quoted(str(error)) or type(error).__name__)
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing is kept."""

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Nothing is kept."""
        return True


def phoenix_savings(url: str = "http://127.0.0.1:6006", headers: Mapping[str, str] | None = None) -> Any:
    """A span processor that annotates each trace in Phoenix with what was saved.

    ::

        provider.add_span_processor(phoenix_savings("http://127.0.0.1:6006"))

    The annotation ``early_stop_tokens_saved_share`` is a column of Phoenix's table of traces, and its mean a chart above it. The
    label is ``stopped``, ``in full`` or ``holdout``. Spans are sent by the exporter that there is.

    Args:
        url: of Phoenix's pages; not of its collector.
        headers: such as ``{"Authorization": "Bearer …"}``.

    Raises:
        SettingsError: ``url`` is none of ``http`` or ``https``.
    """
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    if not url.startswith(("http://", "https://")):
        raise SettingsError(f"url is {url!r}; give that of Phoenix's pages, such as http://127.0.0.1:6006")
    address = f"{url.rstrip('/')}/v1/trace_annotations"

    def post(savings: Sequence[Saving]) -> None:
        body = json.dumps({"data": [_annotation(saving) for saving in savings]}).encode()
        sent = {"Content-Type": "application/json", **(headers or {})}
        request = urllib.request.Request(address, body, sent, method="POST")  # noqa: S310 (checked above)
        with urllib.request.urlopen(request, timeout=30):  # noqa: S310
            pass  # Phoenix keeps an annotation until its trace has arrived

    exporter: Any = SavingsExporter(post)  # opentelemetry's class in all but its ancestors
    return BatchSpanProcessor(exporter)


def _annotation(saving: Saving) -> dict[str, Any]:
    result = {"score": saving.share, "label": saving.label, "explanation": saving.explanation}
    about = {"trace_id": saving.trace_id, "identifier": saving.span_id}  # a trace of the app's may hold several
    return {**about, "name": SHARE, "annotator_kind": "CODE", "result": result}


def langfuse_savings(client: Any) -> Any:
    """A span processor that scores each trace in Langfuse: ``early_stop_tokens_saved_share`` and ``early_stop_tokens_saved``.

    ::

        trace.get_tracer_provider().add_span_processor(langfuse_savings(langfuse.get_client()))

    Args:
        client: Langfuse's own, which sends the scores as it sends spans.
    """
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    def post(savings: Sequence[Saving]) -> None:
        for saving in savings:
            about = {"trace_id": saving.trace_id, "data_type": "NUMERIC", "comment": saving.explanation}
            client.create_score(name=SHARE, value=saving.share, **about)
            client.create_score(name=SAVED, value=float(saving.tokens), **about)

    exporter: Any = SavingsExporter(post)
    return SimpleSpanProcessor(exporter)
