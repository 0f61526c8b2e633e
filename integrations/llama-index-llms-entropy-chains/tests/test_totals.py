"""Totals: whoever adds up has each token, stop and saving once, wherever he reads them. The server is scripted (a fake)."""

from __future__ import annotations

import asyncio

import pytest
from llama_index.core import MockEmbedding, Settings, SummaryIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.llms import ChatMessage
from llama_index.core.query_engine import RouterQueryEngine
from llama_index.core.schema import TextNode
from llama_index.core.selectors import LLMSingleSelector
from llama_index.core.tools import QueryEngineTool
from llama_index.llms.entropy_chains import EarlyStopFunctionAgent, EarlyStopLLM, EntropyEventHandler, TransformersLLM, attach
from llama_index.llms.entropy_chains.tracing import TOTAL, ForLangSmith
from llama_index.llms.openai_like import OpenAILike
from loopback import SURE, UNSURE, Loopback, Reply, is_answer_call, line, said, sums, thinking
from openinference.instrumentation.llama_index import LlamaIndexInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from entropy_chains.backends.transformers import TransformersBackend
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.demo import MODEL_FOLDER, MODEL_NAME

ASKED = [ChatMessage(role="user", content="What is 6*7?")]
LINES = Segmentation("line", 32)
REMAINING = {"remaining_tokens": [200, 160, 120, 80, 40, 0]}
PLAIN = Policy("scripted", (0.2,), segmentation=LINES, calibration=REMAINING)
PROBING = Policy("scripted", (0.1,), signal="trial_entropy", segmentation=LINES, calibration=REMAINING)
REFINING = Policy("scripted", (0.2,), mode="refine", segmentation=Segmentation("call", 1), calibration=REMAINING)


@pytest.fixture
def traced(quiet):
    """Spans as Phoenix and Langfuse get them; no handler of ours is put in. A token counter of LlamaIndex's counts along."""
    exporter, provider, instrumentor = InMemorySpanExporter(), TracerProvider(), LlamaIndexInstrumentor()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor.instrument(tracer_provider=provider)
    Settings.callback_manager = CallbackManager([TokenCountingHandler(tokenizer=str.split)])
    yield exporter
    Settings._callback_manager = None
    instrumentor.uninstrument()


def probed(stops):
    """Six unsure lines; a probe after the third is sure where the run is to stop."""

    def script(body):
        if is_answer_call(body):
            sure = stops and "step3" in str(body["messages"][-1].get("content"))
            return Reply(said("The answer is 42", SURE if sure else UNSURE))
        return thinking(*[UNSURE] * 6, answer="The answer is 42", pace=0.0005)

    return script


def thinks_again(body):
    """After a stop it thinks anew, so the stop is given up and the run is asked in full."""
    if is_answer_call(body):
        return Reply(said("<think>\nanew\n</think>\nno"))
    return sums(body)


def unsure(body):
    return thinking(*[UNSURE] * 6, answer="The answer is 42", pace=0.0005)


RUNS = {
    "stopped": (PLAIN, sums, {}),
    "in full": (PLAIN, unsure, {}),
    "stopped by a probe": (PROBING, probed(True), {}),
    "probed, in full": (PROBING, probed(False), {}),
    "a stop given up": (PLAIN, thinks_again, {}),
    "refined": (REFINING, lambda body: Reply(said("The answer is 42")), {"mode": "refine"}),
}


def inside(server):
    about = {"is_chat_model": True, "is_function_calling_model": True, "context_window": 8000, "max_retries": 0}
    return OpenAILike(model="scripted", api_base=server.url, api_key="none", **about)


def engine_of(llm, **settings):
    return SummaryIndex([TextNode(text="x")], embed_model=MockEmbedding(4)).as_query_engine(llm=llm, **settings)


def query(attached, llm):
    return attached(engine_of(llm)).query("q").metadata


def aquery(attached, llm):
    return asyncio.run(attached(engine_of(llm)).aquery("q")).metadata


def streamed(attached, llm):
    response = attached(engine_of(llm, streaming=True)).query("q")
    assert "".join(response.response_gen)
    return response.metadata


def astreamed(attached, llm):
    async def run():
        response = await attached(engine_of(llm, streaming=True, use_async=True)).aquery("q")
        assert [t async for t in response.response_gen]
        return response.metadata

    return asyncio.run(run())


def chat(attached, llm):
    return attached(SimpleChatEngine.from_defaults(llm=llm)).chat("q").metadata


def stream_chat(attached, llm):
    response = attached(SimpleChatEngine.from_defaults(llm=llm)).stream_chat("q")
    assert "".join(response.response_gen)
    return response.metadata


def astream_chat(attached, llm):
    async def run():
        response = await attached(SimpleChatEngine.from_defaults(llm=llm)).astream_chat("q")
        assert [t async for t in response.async_response_gen()]
        return response.metadata

    return asyncio.run(run())


def agent(attached, llm):
    async def run():
        return await attached(FunctionAgent(tools=[], llm=llm)).run("q")

    return dict(asyncio.run(run()).items())


WAYS = [query, aquery, streamed, astreamed, chat, stream_chat, astream_chat, agent]


def total(spans, name):
    """The sum of an attribute, as a dashboard makes it."""
    return sum(span.attributes.get(name) or 0 for span in spans)


def told_of(spans, name):
    """The same of the contract's figures: tokens, stops and savings."""
    return tuple(total(spans, name + each) for each in ("tokens", "stopped", "tokens_saved_estimate"))


def check(traced, handler, told):
    """All who count agree; returns what they agree on: tokens, stopped runs, tokens saved."""
    spans = traced.get_finished_spans()
    models = [s for s in spans if s.attributes["openinference.span.kind"] == "LLM"]
    (root,) = [s for s in spans if any(name.startswith(TOTAL) for name in s.attributes)]
    totals = handler.summary().totals
    found = (totals.tokens, totals.stopped, totals.saved)
    assert root.parent is None
    assert totals.calls == told["early_stop_runs"] == root.attributes["early_stop_runs"]
    assert told_of(models, "early_stop_") == told_of(spans, "early_stop_") == told_of(models, "entropy_chains.") == found
    assert total(models, "llm.token_count.completion") == total(spans, "gen_ai.usage.output_tokens") == found[0]
    assert total(models, "llm.token_count.prompt") == total(spans, "gen_ai.usage.input_tokens")
    assert Settings.callback_manager.handlers[0].completion_llm_token_count == found[0]
    assert (told["early_stop_tokens"], told["early_stop_stopped_runs"]) == found[:2]
    assert told.get("early_stop_tokens_saved_estimate", 0) == found[2]
    assert [total([root], TOTAL + n) for n in ("tokens", "stopped_runs", "tokens_saved_estimate")] == [*found]
    if found[2]:
        share = found[2] / (found[0] + found[2])
        assert told["early_stop_tokens_saved_share"] == root.attributes["early_stop_tokens_saved_share"] == share
    return found


def followed(policy):
    """A handler that hears of all calls."""
    handler = EntropyEventHandler(policy if policy.mode == "thinking" else None)
    get_dispatcher().event_handlers.insert(0, handler)
    return handler


@pytest.mark.parametrize("kind", RUNS)
def test_each_token_stop_and_saving_is_counted_once(traced, kind):
    """Whether it stops, runs in full, probes, gives a stop up or repeats its call: the tokens are those of all requests."""
    policy, script, settings = RUNS[kind]
    handler = followed(policy)
    with Loopback(script) as server:
        told = query(lambda engine: attach(engine, policy, **settings), inside(server))
        server.settled()
        whole = sum(c.made for c in server.calls if not c.gone)
        read = sum(120 for c in server.calls if c.gone)  # three lines of 40 tokens
    tokens, stopped, saved = check(traced, handler, told)
    assert tokens == whole + read
    assert (stopped, saved) == {"stopped": (1, 120), "stopped by a probe": (1, 120), "refined": (1, 200)}.get(kind, (0, 0))


@pytest.mark.parametrize("way", WAYS)
def test_they_are_told_whatever_is_asked(traced, way):
    """Queries, chats and agents, streamed or not, sync and async: what is returned holds the totals, and so does the root."""
    handler = followed(PLAIN)
    with Loopback() as server:
        told = way(lambda target: attach(target, PLAIN), inside(server))
    assert check(traced, handler, told) == (124, 1, 120)
    assert (told["early_stop_stopped"], told["early_stop_step"]) == (True, 3)


@pytest.mark.parametrize("way", WAYS)
def test_they_are_told_without_any_tracer(way):
    """As for users who have none."""
    with Loopback() as server:
        told = way(lambda target: attach(target, PLAIN), inside(server))
    assert (told["early_stop_tokens"], told["early_stop_runs"], told["early_stop_stopped"]) == (124, 1, True)


def test_an_agent_tells_of_all_its_calls(traced):
    """Two calls with a tool between them: what is returned holds the sums over both."""

    def script(body):
        if any(m["role"] == "tool" for m in body["messages"]):
            return sums(body)
        tool = [("multiply", {"a": 6, "b": 7})]
        told = said("now") if is_answer_call(body) else thinking(UNSURE, UNSURE, SURE, SURE).tokens
        return Reply(told, tools=tool)

    def multiply(a: int, b: int) -> int:
        """Multiply two numbers."""
        return a * b

    async def run(llm):
        return await attach(FunctionAgent(tools=[multiply], llm=llm), PLAIN).run("q")

    handler = followed(PLAIN)
    with Loopback(script) as server:
        output = asyncio.run(run(inside(server)))
    assert check(traced, handler, dict(output.items()))[1:] == (2, 240)
    assert output.early_stop_runs == 2


def test_a_query_in_a_query_is_told_in_both_and_counted_once(traced):
    """A router: its own call and the one of the engine that it chose; the root alone has the totals."""

    def script(body):
        choosing = '[{"choice": 1, "reason": "sums"}]' if "choices" in str(body["messages"]) else "The answer is 42"
        return Reply(said(choosing)) if is_answer_call(body) else sums(body)

    handler = followed(PLAIN)
    with Loopback(script) as server:
        llm = inside(server)
        tool = QueryEngineTool.from_defaults(engine_of(llm), description="sums")
        response = attach(RouterQueryEngine(LLMSingleSelector.from_defaults(llm=llm), [tool], llm=llm), PLAIN).query("q")
    assert response.metadata["early_stop_runs"] == 2
    assert check(traced, handler, response.metadata)[1:] == (2, 240)


@pytest.mark.parametrize("way", [query, streamed, stream_chat, agent])
def test_spans_last_as_long_as_their_work(traced, way):
    """A request's span ends after its first token, and the spans around it after it: each has its real duration."""
    with Loopback() as server:
        way(lambda target: attach(target, PLAIN), inside(server))
    spans = {s.context.span_id: s for s in traced.get_finished_spans()}
    requests = [s for s in spans.values() if "early_stop_tokens" in s.attributes]
    assert len(requests) == 2
    for span in requests:
        assert span.events[0].name == "First Token Stream Event"
        assert span.end_time > span.events[0].timestamp
    assert requests[0].end_time < requests[1].start_time or requests[1].end_time < requests[0].start_time
    for span in requests:
        while span.parent is not None and span.parent.span_id in spans:
            outer = spans[span.parent.span_id]
            assert outer.start_time <= span.start_time < span.end_time <= outer.end_time, outer.name
            span = outer


def test_a_stream_that_is_given_up_leaves_no_span_open(traced):
    """Read in part, or not at all: all spans are exported, and what was made is counted."""
    with Loopback() as server:
        llm = EarlyStopLLM(inside(server), PLAIN)
        stream = llm.stream_chat(ASKED)
        for _ in range(10):
            next(stream)
        stream.close()
        del stream
        (request,) = [s for s in traced.get_finished_spans() if "early_stop_tokens" in s.attributes]
        assert 0 < request.attributes["early_stop_tokens"] < 120
        assert "EarlyStopLLM.stream_chat" in [s.name for s in traced.get_finished_spans()]


def test_langsmith_has_the_totals_on_the_root_run(traced):
    """Under the contract's names there: a sum over roots and one over model runs are both the truth."""
    with Loopback() as server:
        query(lambda engine: attach(engine, PLAIN), inside(server))
    sent = []

    class Exporter:
        def export(self, spans):
            sent.extend(spans)

    ForLangSmith(Exporter()).export(traced.get_finished_spans())
    name = "langsmith.metadata.early_stop_"
    (root,) = [s for s in sent if s.parent is None]
    assert told_of([s for s in sent if s.parent is not None], name) == (124, 1, 120)
    assert [root.attributes[name + n] for n in ("tokens", "stopped_runs", "tokens_saved_estimate", "runs")] == [124, 1, 120, 1]
    assert root.attributes["langsmith.span.tags"] == "early-stopped"


def test_answers_at_once_are_told_apart(traced):
    """Twenty queries at once: each response has its own run's figures."""

    async def every(engine):
        return await asyncio.gather(*(engine.aquery(f"q{n}") for n in range(20)))

    with Loopback() as server:
        responses = asyncio.run(every(attach(engine_of(inside(server)), PLAIN)))
    assert [(r.metadata["early_stop_runs"], r.metadata["early_stop_tokens"]) for r in responses] == [(1, 124)] * 20


def test_where_no_llm_is_watched_a_response_stays_as_it_was():
    """The metadata of other engines are not touched."""
    with Loopback() as server:
        EarlyStopLLM(inside(server), PLAIN)  # spans are followed from now on
        response = engine_of(inside(server)).query("q")
    assert [name for name in response.metadata if "early_stop" in name] == []


@pytest.fixture(scope="module")
def local():
    """The bundled model with a policy that stops after its first step."""
    backend = TransformersBackend.from_pretrained(MODEL_FOLDER, name=MODEL_NAME)
    policy = Policy(
        MODEL_NAME, (0.2,), segmentation=backend.segmentation, template=backend.template, calibration={"remaining_tokens": [40, 0]}
    )
    return TransformersLLM(backend=backend, temperature=0, max_tokens=600), policy


@pytest.mark.parametrize("way", WAYS[:4])
def test_a_local_model_is_told_in_the_same_places(traced, local, way):
    """README's snippet: its engine's response says what the stop saved, without a handler."""
    llm, policy = local
    handler = followed(policy)
    told = way(lambda target: attach(target, policy), llm)
    assert check(traced, handler, told)[1:] == (1, 40)


async def test_an_agents_loop_is_told_with_the_tokens_of_its_calls(traced):
    """An agent whose loop ends early: on what it returns the stop, once, and each token once, with a handler and without."""
    policy = Policy("scripted", (0.2,), scope="agent", segmentation=Segmentation("call", 1))

    def script(body):
        sure = Reply(line("look it up", SURE, reasoning=False), tools=[("search", {"query": "x"})])
        return sure if body.get("tools") else Reply(said("the answer"))

    def search(query: str) -> str:
        """Look up."""
        return "found"

    for with_handler in (False, True):
        if with_handler:
            followed(PLAIN)
        traced.clear()
        with Loopback(script) as server:
            llm = OpenAILike(
                model="scripted",
                api_base=server.url,
                api_key="none",
                is_chat_model=True,
                is_function_calling_model=True,
                logprobs=True,
                top_logprobs=20,
            )
            output = await EarlyStopFunctionAgent(tools=[search], llm=llm, policy=policy).run("hello")
            made = server.settled()
        assert (output["early_stop_stopped_runs"], output["early_stop_tokens"]) == (1, made) == (1, output.early_stop_tokens)
        spans = traced.get_finished_spans()
        assert told_of(spans, "early_stop_")[:2] == (made if with_handler else 0, 1)
        assert sum(s.attributes.get(TOTAL + "tokens", 0) for s in spans) == made
