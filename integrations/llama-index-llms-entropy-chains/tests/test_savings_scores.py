"""What each trace saved, where Phoenix and Langfuse show it: sent by the SDKs themselves to receivers of our own.

The model and the receivers are scripted (fakes); a real Phoenix is asked in ``tests/servers/test_phoenix_savings.py``.
"""

from __future__ import annotations

import base64
import json
from types import SimpleNamespace
from typing import Any

import langfuse
import pytest
from llama_index.core import MockEmbedding, SummaryIndex
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.schema import TextNode
from llama_index.llms.entropy_chains import attach
from llama_index.llms.entropy_chains.tracing import langfuse_savings, phoenix_savings
from llama_index.llms.openai_like import OpenAILike
from loopback import UNSURE, Loopback, thinking
from openinference.instrumentation.llama_index import LlamaIndexInstrumentor
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from serving import Receiver

from entropy_chains import Policy, Segmentation
from entropy_chains.errors import SettingsError
from entropy_chains.savings.spans import SavingsExporter

REMAINING = {"remaining_tokens": [200, 160, 120, 80, 40, 0]}
POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32), calibration=REMAINING)
SHARE = "early_stop_tokens_saved_share"


@pytest.fixture
def provider():
    """LlamaIndex's spans go to it."""
    dispatcher, made, instrumentor = get_dispatcher(), TracerProvider(), LlamaIndexInstrumentor()
    kept = list(dispatcher.event_handlers), list(dispatcher.span_handlers)
    instrumentor.instrument(tracer_provider=made)
    yield made
    instrumentor.uninstrument()
    dispatcher.event_handlers[:], dispatcher.span_handlers[:] = kept
    made.shutdown()


def unsure(body):
    return thinking(*[UNSURE] * 6, answer="The answer is 42", pace=0.0005)


def asked(policy: Policy | None = POLICY, script: Any = None, times: int = 1) -> None:
    """Queries of an engine with the one added line."""
    with Loopback(script) if script else Loopback() as server:
        llm = OpenAILike(model="scripted", api_base=server.url, api_key="sk-hidden", is_chat_model=True, context_window=8000)
        engine = attach(SummaryIndex([TextNode(text="x")], embed_model=MockEmbedding(4)).as_query_engine(llm=llm), policy)
        for n in range(times):
            engine.query(f"q{n}")


def test_phoenix_gets_an_annotation_of_each_trace(provider):
    """Its share, 0 where nothing was stopped, with a word; the headers that were given, and no key of the model's."""
    with Receiver() as phoenix:
        provider.add_span_processor(phoenix_savings(phoenix.origin + "/", {"Authorization": "Bearer px"}))
        asked()
        asked(script=unsure)
        provider.force_flush()
    for path, headers, body in phoenix.got:
        about = (path, headers["Authorization"], headers["Content-Type"])
        assert about == ("/v1/trace_annotations", "Bearer px", "application/json")
        assert b"sk-hidden" not in body
    stopped, full = [each for _, _, body in phoenix.got for each in json.loads(body)["data"]]
    assert {stopped["name"], full["name"]} == {SHARE}
    assert stopped["result"] == {
        "score": 120 / 244,
        "label": "stopped",
        "explanation": "1 of 1 runs stopped; 124 tokens computed, about 120 saved",
    }
    assert (full["result"]["score"], full["result"]["label"]) == (0, "in full")
    assert len({stopped["trace_id"], full["trace_id"]}) == 2
    assert all(len(each["trace_id"]) == 32 and len(each["identifier"]) == 16 for each in (stopped, full))


@pytest.mark.parametrize(
    "policy", [None, Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))], ids=["no policy", "no calibration"]
)
def test_what_nobody_knows_is_not_told(provider, policy):
    """Without a policy nothing can be saved; without a calibration nobody knows how much a stop saved."""
    with Receiver() as phoenix:
        provider.add_span_processor(phoenix_savings(phoenix.origin))
        asked(policy)
        provider.force_flush()
    assert phoenix.got == []


def test_a_phoenix_that_refuses_is_logged_and_no_more(provider, caplog):
    """The app goes on."""
    with Receiver(status=401) as phoenix:
        provider.add_span_processor(phoenix_savings(phoenix.origin))
        asked()
        provider.force_flush()
    assert "savings of 1 traces were not posted: HTTP Error 401" in caplog.text


def test_an_address_that_is_none_is_refused_at_once():
    """Before a span is lost."""
    with pytest.raises(SettingsError, match="localhost:6006"):
        phoenix_savings("localhost:6006")


def test_an_error_of_the_callers_is_no_error_of_the_apps(caplog):
    """As OpenTelemetry wants it of exporters."""
    told = {"entropy_chains.total.policy": "p", "entropy_chains.total.runs": 1, "entropy_chains.total.stopped_runs": 0}
    span = SimpleNamespace(attributes=told, context=SimpleNamespace(trace_id=1, span_id=1))

    def post(savings):
        raise RuntimeError("no")

    assert SavingsExporter(post).export([span]).name == "FAILURE"
    assert "not posted: no" in caplog.text


def read_by_langfuse(body: bytes) -> list[dict[str, Any]]:
    """Observations as Langfuse's server makes them of spans: usage of ``gen_ai.usage.*`` and ``llm.token_count.*``, tags, level.

    After ``extractUsageDetails`` of its OtelIngestionProcessor, as published; its server was not asked.
    """
    words = {"prompt": "input", "input_tokens": "input", "completion": "output", "output_tokens": "output"}
    made = []
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        for span in (span for scope in resource.scope_spans for span in scope.spans):
            values = {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}
            usage = {}
            for key, value in values.items():
                for prefix in ("gen_ai.usage.", "llm.token_count."):
                    if key.startswith(prefix):
                        name = key.removeprefix(prefix)
                        usage[words.get(name, name)] = value
            made.append({"usage": usage, "attributes": values, "trace": span.trace_id.hex(), "root": not span.parent_span_id})
    return made


def test_langfuse_reads_the_tokens_and_gets_the_scores():
    """Its own SDK sends spans and scores: usage adds up to the tokens computed, once; both scores name the trace."""
    provider = TracerProvider()
    with Receiver() as receiver:
        client = langfuse.Langfuse(
            public_key="pk-test", secret_key="sk-test", base_url=receiver.origin, tracer_provider=provider, flush_at=512
        )
        dispatcher, instrumentor = get_dispatcher(), LlamaIndexInstrumentor()
        kept = list(dispatcher.event_handlers), list(dispatcher.span_handlers)
        instrumentor.instrument(tracer_provider=provider)
        provider.add_span_processor(langfuse_savings(client))
        try:
            asked(times=3)
        finally:
            instrumentor.uninstrument()
            dispatcher.event_handlers[:], dispatcher.span_handlers[:] = kept
        client.flush()
        client.shutdown()
    token = "Basic " + base64.b64encode(b"pk-test:sk-test").decode()
    assert {headers["Authorization"] for _, headers, _ in receiver.got} == {token}
    spans = [each for path, _, body in receiver.got if path.endswith("/otel/v1/traces") for each in read_by_langfuse(body)]
    roots = [span for span in spans if span["root"]]
    assert len(roots) == 3
    assert sum(span["usage"].get("output", 0) for span in spans) == 3 * 124
    assert sum(span["usage"].get("input", 0) for span in spans) == sum(
        span["attributes"].get("gen_ai.usage.input_tokens", 0) for span in spans
    )
    assert [root["attributes"]["entropy_chains.total.tokens"] for root in roots] == [124] * 3
    scores = [score for path, _, body in receiver.got if path == "/api/public/scores" for score in json.loads(body)]
    told = {(score["traceId"], score["name"]): score["value"] for score in scores}
    assert told == {
        (r["trace"], name): value for r in roots for name, value in ((SHARE, 120 / 244), ("early_stop_tokens_saved", 120))
    }
