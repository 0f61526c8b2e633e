"""Applications of LlamaIndex on a real vLLM, each with one added line.

The server makes fewer tokens, the answers are the same, and the root's totals are the server's count.

The bundled reasoner multiplies and does nothing else: the router chooses by embeddings, and agents are offered tools and answer
without them. That agents do call tools is tested against a scripted server.
"""

from __future__ import annotations

import asyncio

import pytest
from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.agent.react.formatter import ReActChatFormatter
from llama_index.core.agent.workflow import ReActAgent
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.query_engine import RouterQueryEngine
from llama_index.core.schema import TextNode
from llama_index.core.selectors import EmbeddingSingleSelector
from llama_index.core.tools import QueryEngineTool
from llama_index.llms.entropy_chains import attach
from llama_index.llms.openai_like import OpenAILike
from openinference.instrumentation.llama_index import LlamaIndexInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from entropy_chains import Policy, Segmentation
from entropy_chains.demo import MODEL_NAME

pytestmark = pytest.mark.servers

POLICY = Policy(MODEL_NAME, (0.005,), segmentation=Segmentation("line", 32), calibration={"remaining_tokens": [500, 400, 300]})
ASKED, GOLD = "6437*268=?", "1725116"
"""A hard one: 863 tokens in full, sure after 345."""
MOST = 0.67
"""Share of the full run's tokens that the engine may make."""
TRIES = 6
"""On a busy machine the bundled model can be done before the client has read what it needs: one try of these counts."""
SHORT = ReActChatFormatter(system_header="Tools: {tool_desc} {tool_names}.")
"""The bundled model reads 2,048 characters, and LlamaIndex's own text for ReAct has more."""


def inside(engine):
    about = {"is_chat_model": True, "is_function_calling_model": True, "temperature": 0, "max_tokens": 1000}
    return OpenAILike(model=engine.name, api_base=engine.base_url, api_key="none", context_window=2048, timeout=300, **about)


def index_of(*notes):
    return VectorStoreIndex([TextNode(text=note) for note in notes], embed_model=MockEmbedding(8))


def router(llm):
    """A router over two query engines."""
    engines = [
        index_of(note).as_query_engine(llm=llm) for note in ("the price of each item", "the total of each order is a product")
    ]
    tools = [QueryEngineTool.from_defaults(each, name=f"e{n}", description=f"sums {n}") for n, each in enumerate(engines)]
    selector = EmbeddingSingleSelector.from_defaults(embed_model=MockEmbedding(8))
    return RouterQueryEngine(selector, tools, llm=llm)


def chat_engine(llm):
    """A RAG chat engine that has heard something already."""
    history = [ChatMessage(role="user", content="2*3=?"), ChatMessage(role="assistant", content="6")]
    return index_of("the total of each order is a product").as_chat_engine(chat_mode="context", llm=llm, chat_history=history)


def agent(llm):
    """An agent with two tools."""

    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    def subtract(a: int, b: int) -> int:
        """Subtract two numbers."""
        return a - b

    return ReActAgent(tools=[add, subtract], llm=llm, formatter=SHORT)


def query(app):
    return app.query(ASKED)


def chat(app):
    return app.chat(ASKED)


def run(app):
    async def ask():
        return await app.run(ASKED)

    return asyncio.run(ask())


APPS = {
    "a router": (router, query),
    "a chat engine with history": (chat_engine, chat),
    "a ReAct agent with two tools": (agent, run),
}


@pytest.fixture
def traced():
    """Spans as Phoenix gets them."""
    dispatcher = get_dispatcher()
    kept = list(dispatcher.event_handlers), list(dispatcher.span_handlers)
    exporter, provider, instrumentor = InMemorySpanExporter(), TracerProvider(), LlamaIndexInstrumentor()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor.instrument(tracer_provider=provider)
    yield exporter
    instrumentor.uninstrument()
    dispatcher.event_handlers[:], dispatcher.span_handlers[:] = kept


@pytest.mark.parametrize("kind", APPS)
def test_one_added_line(vllm, traced, kind):
    """Fewer tokens by vLLM's own counter, the same answer; what came back and the root's span tell of that count."""
    make, ask = APPS[kind]

    def counted(app):
        before = vllm.counters()["generated"]
        answer = ask(app)
        vllm.let_others_first()
        return answer, vllm.counters()["generated"] - before

    def attached(**settings):
        """What was asked with the added line: the tokens made, what came back, and the root's span."""
        traced.clear()
        answer, made = counted(attach(make(inside(vllm)), POLICY, name=MODEL_NAME, **settings))
        assert GOLD in str(answer)
        told = dict(answer.items()) if hasattr(answer, "items") else answer.metadata
        (root,) = [s.attributes for s in traced.get_finished_spans() if "entropy_chains.total.tokens" in s.attributes]
        assert root["entropy_chains.total.tokens"] == told["early_stop_tokens"]
        assert root["early_stop_runs"] == told["early_stop_runs"] == 1
        return made, told, root

    plain, full = counted(make(inside(vllm)))
    assert GOLD in str(plain)
    made, told, _ = attached(holdout=1.0)
    assert told["early_stop_tokens"] == made  # what nobody closes is counted to the token
    for _ in range(TRIES):
        made, told, root = attached()
        assert told["early_stop_tokens"] <= made  # an engine makes more until it notices that a stream was closed
        if made < MOST * full:
            break
    assert made < MOST * full
    assert told["early_stop_stopped"] is True
    assert root["early_stop_tokens_saved_share"] > 0
