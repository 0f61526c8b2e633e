"""EarlyStopSpans on the real OpenInference instrumentation: a table on every model's span, totals on the root's."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from langchain_entropy_chains import EarlyStopChatModel
from langchain_entropy_chains.spans import EarlyStopSpans
from langchain_openai import ChatOpenAI
from loopback import Loopback, sums
from openinference.instrumentation.langchain import LangChainInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32), calibration={"remaining_tokens": [200, 160, 120]})


@pytest.fixture
def exported():
    exporter, provider, instrumentor = InMemorySpanExporter(), TracerProvider(), LangChainInstrumentor()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor.instrument(tracer_provider=provider)
    yield exporter
    instrumentor.uninstrument()


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "alone"])
def test_the_table_is_on_the_models_span_and_the_totals_on_the_roots(exported, way):
    """Flat and dotted names, the usage of all that was computed, and sums over the chain's model runs once, on its root."""
    with Loopback(lambda body: replace(sums(body), pace=0.001)) as server:
        model = EarlyStopChatModel(ChatOpenAI(model="scripted", base_url=server.url, api_key="none"), POLICY)
        chain = ChatPromptTemplate.from_template("{x}") | {"a": model, "b": model} | RunnableLambda(lambda found: found)
        marks = EarlyStopSpans()
        config = {"callbacks": [marks]}
        if way == "ainvoke":
            asyncio.run(chain.ainvoke({"x": "q"}, config))
        else:
            _ = chain.invoke({"x": "q"}, config) if way == "invoke" else model.invoke("q", config)
    spans = [dict(span.attributes) | {"root": span.parent is None} for span in exported.get_finished_spans()]
    models = [span for span in spans if "early_stop_tokens" in span]
    assert len(models) == (1 if way == "alone" else 2)
    for span in models:
        assert span["early_stop_stopped"] is span["entropy_chains.stopped"] is True
        assert span["early_stop_tokens"] == span["entropy_chains.tokens"] == span["gen_ai.usage.output_tokens"]
    (root,) = [span for span in spans if "entropy_chains.total.runs" in span]
    assert root["root"]
    assert root["entropy_chains.total.tokens"] == sum(span["early_stop_tokens"] for span in models)
    assert root["entropy_chains.total.tokens_saved_share"] > 0
    assert (marks._totals, marks._parents, marks._roots) == ({}, {}, {})
