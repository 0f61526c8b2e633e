"""What a trace saved, as an annotation in a real Phoenix. The model is the scripted server (a fake)."""

from __future__ import annotations

import os
import time

import phoenix as phoenixes
import pytest
from llama_index.core import MockEmbedding, SummaryIndex
from llama_index.core.schema import TextNode
from llama_index.llms.entropy_chains import attach
from llama_index.llms.entropy_chains.tracing import phoenix_savings
from llama_index.llms.openai_like import OpenAILike
from loopback import Loopback
from openinference.instrumentation.llama_index import LlamaIndexInstrumentor
from openinference.semconv.resource import ResourceAttributes
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from entropy_chains import Policy, Segmentation

pytestmark = pytest.mark.servers

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32), calibration={"remaining_tokens": [200, 160, 120]})


def test_a_trace_in_phoenix_has_what_it_saved():
    """By one added line beside the exporter: the share, and in words what it is of."""
    if not (phoenixes.FOLDER / ".complete").exists() and not os.environ.get("CI"):
        pytest.skip("Phoenix is not installed; scripts/install_phoenix.sh installs it")
    with phoenixes.start() as phoenix, Loopback() as server:
        provider = TracerProvider(resource=Resource({ResourceAttributes.PROJECT_NAME: "savings"}))
        provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(phoenix.traces_url)))
        provider.add_span_processor(phoenix_savings(phoenix.url))
        instrumentor = LlamaIndexInstrumentor()
        instrumentor.instrument(tracer_provider=provider)
        try:
            llm = OpenAILike(model="scripted", api_base=server.url, api_key="none", is_chat_model=True, context_window=8000)
            attach(SummaryIndex([TextNode(text="x")], embed_model=MockEmbedding(8)).as_query_engine(llm=llm), POLICY).query("q")
        finally:
            instrumentor.uninstrument()
        provider.shutdown()
        trace = phoenix.spans("savings", 5)[0]["context"]["trace_id"]
        found, end = [], time.monotonic() + 30  # Phoenix stores annotations after they have arrived
        while not found and time.monotonic() < end:
            found = phoenix.get(f"/v1/projects/savings/trace_annotations?trace_ids={trace}")["data"]
            time.sleep(0.2)
    (annotation,) = found
    assert annotation["name"] == "early_stop_tokens_saved_share"
    assert annotation["result"]["label"] == "stopped"
    assert annotation["result"]["score"] == pytest.approx(120 / 244)
    assert "about 120 saved" in annotation["result"]["explanation"]
