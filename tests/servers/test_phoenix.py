"""Savings in a real Phoenix: sent as spans, stored, and read back over its REST API. The model is the scripted server (a fake)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import phoenix as phoenixes
import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_entropy_chains import EarlyStopChatModel
from langchain_entropy_chains.spans import EarlyStopSpans
from langchain_openai import ChatOpenAI
from llama_index.core import MockEmbedding, SummaryIndex
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.schema import TextNode
from llama_index.llms.entropy_chains import EarlyStopLLM, EntropyEventHandler
from llama_index.llms.openai_like import OpenAILike
from loopback import Loopback
from openinference.instrumentation.langchain import LangChainInstrumentor
from openinference.instrumentation.llama_index import LlamaIndexInstrumentor
from openinference.semconv.resource import ResourceAttributes
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation

pytestmark = pytest.mark.servers

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32), calibration={"remaining_tokens": [200, 160, 120]})
KEY = "sk-hidden-in-tests"


@pytest.fixture(scope="session")
def phoenix() -> Iterator[phoenixes.Phoenix]:
    """A Phoenix with nothing in it."""
    if not (phoenixes.FOLDER / ".complete").exists() and not os.environ.get("CI"):
        pytest.skip("Phoenix is not installed; scripts/install_phoenix.sh installs it")
    with phoenixes.start() as running:
        yield running


def sent_to(phoenix: phoenixes.Phoenix, project: str) -> TracerProvider:
    provider = TracerProvider(resource=Resource({ResourceAttributes.PROJECT_NAME: project}))
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(phoenix.traces_url)))
    return provider


@pytest.fixture
def handler() -> Iterator[EntropyEventHandler]:
    """An event handler that hears of all calls of one test."""
    handlers = get_dispatcher().event_handlers
    before = list(handlers)
    made = EntropyEventHandler(POLICY)
    get_dispatcher().add_event_handler(made)
    yield made
    handlers[:] = before


@pytest.fixture
def server() -> Iterator[Loopback]:
    """The scripted model."""
    with Loopback() as running:
        yield running


@pytest.mark.parametrize("wrapped", [False, True], ids=["observed", "stopped"])
def test_a_query_engines_trace_shows_the_savings(phoenix, server, handler, wrapped):
    """The table stands on a span of the query's trace, with the types it was sent in, and no key anywhere."""
    project = f"llama-index-{wrapped}"
    instrumentor = LlamaIndexInstrumentor()
    instrumentor.instrument(tracer_provider=sent_to(phoenix, project))
    try:
        llm = OpenAILike(model="scripted", api_base=server.url, api_key=KEY, is_chat_model=True, logprobs=True, top_logprobs=20)
        engine = SummaryIndex([TextNode(text="six times seven is asked for")], embed_model=MockEmbedding(8)).as_query_engine(
            llm=EarlyStopLLM(llm, POLICY) if wrapped else llm
        )
        answer = engine.query("What is 6*7?")
    finally:
        instrumentor.uninstrument()
    assert str(answer) == "The answer is 42"
    spans = phoenix.spans(project, 5)
    told = [{k: v for k, v in s["attributes"].items() if k.startswith("early_stop_")} for s in spans]
    (row,) = handler.summary().rows
    (judged,) = [t for t in told if "early_stop_stopped" in t]  # of a stopped run: on its last request's span
    table = row.outcome.metadata()
    assert {k: v for k, v in judged.items() if k != "early_stop_tokens"} == {
        k: v for k, v in table.items() if k != "early_stop_tokens"
    }
    assert sum(t.get("early_stop_tokens", 0) for t in told) == table["early_stop_tokens"]
    assert (row.outcome.stopped, row.outcome.step) == (wrapped, 3)
    assert len({s["context"]["trace_id"] for s in spans}) == 1
    assert KEY not in json.dumps(spans)


def test_a_langchain_chains_trace_shows_the_savings(phoenix, server):
    """The table stands in the LLM span of the chain's trace, with a callback as attributes too, and no key anywhere."""
    instrumentor = LangChainInstrumentor()
    instrumentor.instrument(tracer_provider=sent_to(phoenix, "langchain"))
    try:
        inner = ChatOpenAI(model="scripted", base_url=server.url, api_key=KEY)
        chain = (
            ChatPromptTemplate.from_messages([("user", "{q}")]) | EarlyStopChatModel(inner=inner, policy=POLICY) | StrOutputParser()
        )
        assert chain.invoke({"q": "What is 6*7?"}, {"callbacks": [EarlyStopSpans()]}) == "The answer is 42"
    finally:
        instrumentor.uninstrument()
    spans = phoenix.spans("langchain", 4)
    (found,) = [s["attributes"] for s in spans if s["span_kind"] == "LLM"]
    told = json.loads(found["output.value"])["generations"][0][0]["message"]["kwargs"]["response_metadata"]
    assert (told["early_stop_stopped"], told["early_stop_step"]) == (True, 3)
    assert told["early_stop_tokens"] == found["llm.token_count.completion"]
    assert {k: v for k, v in told.items() if k.startswith("early_stop_")}.items() <= found.items()
    assert KEY not in json.dumps(spans)
