"""Savings on OpenTelemetry spans, as an in-memory exporter gets them."""

from __future__ import annotations

import pytest
from llama_index.core import MockEmbedding, SummaryIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.schema import TextNode
from llama_index.llms.entropy_chains import EarlyStopLLM
from llama_index.llms.entropy_chains.agents import EarlyStopFunctionAgent
from llama_index.llms.entropy_chains.handlers import EntropyEventHandler
from llama_index.llms.entropy_chains.tracing import LANGSMITH, ForLangSmith, current_span, mark_span
from llama_index.observability.otel import LlamaIndexOpenTelemetry
from llms import ASKED, POLICY, astream_chat, llm_at, stream_chat
from loopback import SURE, Loopback, Reply, line, said
from openinference.instrumentation import using_tags
from openinference.instrumentation.llama_index import LlamaIndexInstrumentor
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from serving import Receiver

from entropy_chains.core.monitor import Outcome
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation

OUTCOME = Outcome(True, True, "sure", 3, 0.05, 0.2, 121, 120, False, "0123456789ab")


@pytest.fixture
def exported(quiet):
    """Spans of OpenInference's instrumentor, which Phoenix reads; our handler was added before it."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    handler = EntropyEventHandler(POLICY, stop=True)
    quiet.add_event_handler(handler)
    instrumentor = LlamaIndexInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    exporter.handler = handler
    yield exporter
    instrumentor.uninstrument()


def marked(exporter):
    """The spans with savings, by name."""
    return {s.name: dict(s.attributes) for s in exporter.get_finished_spans() if "early_stop_step" in (s.attributes or {})}


@pytest.mark.parametrize("call", [stream_chat, astream_chat])
def test_a_stopped_stream_is_marked_on_its_own_llm_span(server, exported, call):
    """Although its chunks are read outside of the call's context: the whole table, and the tag beside the user's."""
    llm = llm_at(server)
    exported.handler.prepare(llm)
    with using_tags(["mine"]):
        call(llm)
    ((name, found),) = marked(exported).items()
    assert name.endswith(call.__name__)
    (row,) = exported.handler.summary().rows
    assert {k: v for k, v in found.items() if k.startswith("early_stop_")} == row.outcome.metadata()
    assert (found["early_stop_stopped"], found["early_stop_step"], found["early_stop_tokens_saved_estimate"]) == (True, 3, 120)
    assert found["tag.tags"] == ("mine", "early-stopped")
    assert found["openinference.span.kind"] == "LLM"
    assert all(s.status.is_ok for s in exported.get_finished_spans())  # the LLM ended as after a whole reply


def test_a_call_that_does_not_stream_is_marked_with_its_shadow_figures_and_token_counts(server, exported):
    """Where it would have stopped, on the LLM span; the counts are the server's; no key is on any span."""
    llm_at(server).chat(ASKED)
    ((_, found),) = marked(exported).items()
    assert (found["early_stop_stopped"], found["early_stop_step"]) == (False, 3)
    assert found["llm.token_count.completion"] == found["early_stop_tokens"] == server.calls[0].made
    assert "tag.tags" not in found
    assert "sk-hidden" not in str([s.attributes for s in exported.get_finished_spans()])


def test_calls_of_a_query_engine_are_marked_inside_its_trace(server, exported):
    """One trace: the savings on its LLM span, and the totals on its root."""
    index = SummaryIndex([TextNode(text="six times seven")], embed_model=MockEmbedding(8))
    index.as_query_engine(llm=llm_at(server)).query("What is 6*7?")
    spans = exported.get_finished_spans()
    assert len({s.context.trace_id for s in spans}) == 1
    assert [name.rsplit(".", 1)[-1] for name in marked(exported)] == ["chat"]
    (root,) = [s for s in spans if s.parent is None]
    assert root.attributes["early_stop_runs"] == 1


async def test_an_agents_loop_is_marked_on_its_step(exported):
    """The span that is open in take_step is run_agent_step."""
    policy = Policy("scripted", (0.2,), scope="agent", segmentation=Segmentation("call", 1))

    def script(body):
        sure = Reply(line("look it up", SURE, reasoning=False), tools=[("search", {"query": "x"})])
        return sure if body.get("tools") else Reply(said("the answer"))

    def search(query: str) -> str:
        """Look up."""
        return "found"

    with Loopback(script) as server:
        llm = llm_at(server, is_function_calling_model=True)
        agent = EarlyStopFunctionAgent(tools=[search], llm=llm, policy=policy)
        assert isinstance(agent, FunctionAgent)
        await agent.run("hello")
    spans = [s for s in exported.get_finished_spans() if s.name.endswith("run_agent_step")]
    assert [s.attributes["early_stop_stopped"] for s in spans] == [False, True]
    assert {s.attributes["early_stop_step"] for s in spans} == {1}


def test_llama_indexs_own_opentelemetry_has_calls_that_do_not_stream_only(server, quiet, monkeypatch):
    """Its span of a stream has ended before the first chunk, so it carries no savings and no end event."""
    exporter = InMemorySpanExporter()
    quiet.add_event_handler(EntropyEventHandler(POLICY))
    # It sets the provider of the whole process, which can be set only once.
    own = LlamaIndexOpenTelemetry(span_exporter=exporter, span_processor="simple", tracer_provider=TracerProvider())
    monkeypatch.setattr(trace, "set_tracer_provider", lambda provider: None)
    monkeypatch.setattr(trace, "get_tracer", lambda name: own.tracer_provider.get_tracer(name))
    own.start_registering()
    llm = llm_at(server)
    llm.chat(ASKED)
    stream_chat(llm)
    assert {name.rsplit(".", 1)[-1] for name in marked(exporter)} == {"chat"}
    events = {s.name.rsplit(".", 1)[-1]: [e.name for e in s.events] for s in exporter.get_finished_spans() if s.events}
    assert events == {"chat": ["LLMChatStartEvent", "LLMChatEndEvent"], "stream_chat": ["LLMChatStartEvent"]}


def test_a_span_is_marked_only_while_it_is_open():
    """And what was marked says so."""
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    assert current_span() is None
    assert mark_span(OUTCOME) is False
    with provider.get_tracer("test").start_as_current_span("open") as span:
        assert mark_span(OUTCOME)
        assert mark_span(OUTCOME)  # again: the tag is not doubled
    assert mark_span(OUTCOME, span) is False
    (found,) = exporter.get_finished_spans()
    table = OUTCOME.metadata()
    dotted = {name.replace("early_stop_", "entropy_chains."): value for name, value in table.items()}
    assert dict(found.attributes) == table | dotted | {"tag.tags": ("early-stopped",)}


def test_langsmith_gets_the_table_as_metadata_over_otlp(server, quiet):
    """What arrives on the wire at its address, typed, under the names that its own SDK uses; the LLM's key is nowhere in it."""
    quiet.add_event_handler(EntropyEventHandler(POLICY))
    instrumentor = LlamaIndexInstrumentor()
    with Receiver() as langsmith:
        provider = TracerProvider()
        exporter = OTLPSpanExporter(
            langsmith.origin + "/otel/v1/traces", headers={"x-api-key": "ls-key", "Langsmith-Project": "sums"}
        )
        provider.add_span_processor(SimpleSpanProcessor(ForLangSmith(exporter)))
        instrumentor.instrument(tracer_provider=provider)
        try:
            answer = EarlyStopLLM(llm_at(server, logprobs=None, top_logprobs=0), POLICY).chat(ASKED)
        finally:
            instrumentor.uninstrument()
    assert {(path, headers["x-api-key"]) for path, headers, _ in langsmith.got} == {("/otel/v1/traces", "ls-key")}
    sent = [ExportTraceServiceRequest.FromString(body) for _, _, body in langsmith.got]
    spans = [span for each in sent for of in each.resource_spans for scope in of.scope_spans for span in scope.spans]
    assert len({s.trace_id for s in spans}) == 1
    assert sum(not s.parent_span_id for s in spans) == 1
    told = [{a.key.removeprefix(LANGSMITH): a.value for a in s.attributes if a.key.startswith(LANGSMITH)} for s in spans]
    (last,) = [t for t in told if "early_stop_stopped" in t]
    tokens = [t["early_stop_tokens"].int_value for s, t in zip(spans, told, strict=True) if t and s.parent_span_id]
    assert sum(tokens) == answer.additional_kwargs["early_stop_tokens"]
    assert (last["early_stop_stopped"].bool_value, last["early_stop_step"].int_value) == (True, 3)
    assert last["early_stop_entropy"].double_value == pytest.approx(answer.additional_kwargs["early_stop_entropy"])
    assert set(last) == {name for name in answer.additional_kwargs if name.startswith("early_stop_")}
    assert "early-stopped" in [a.value.string_value for s in spans for a in s.attributes if a.key == "langsmith.span.tags"]
    assert "sk-hidden" not in str(spans)


def test_without_opentelemetry_nothing_is_marked(monkeypatch):
    """It is no dependency: its absence is no error."""
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry", None)
    assert mark_span(OUTCOME) is False
