"""LlamaIndex engines and agents before and after the one added line, on real servers with the bundled reasoner.

It is a small model that multiplies: it calls no tools, and writes no ReAct. Agents that do are in the distribution's own tests,
against a scripted server; here an agent is offered a tool and answers without it.
"""

from __future__ import annotations

import asyncio

import pytest
from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.agent.react.formatter import ReActChatFormatter
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.llms import ChatMessage
from llama_index.core.schema import TextNode
from llama_index.llms.entropy_chains import EarlyStopLLM, EntropyEventHandler, attach
from llama_index.llms.openai import OpenAI
from llama_index.llms.openai_like import OpenAILike

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.demo import MODEL_NAME
from entropy_chains.demo.questions import draw_questions
from entropy_chains.recording import conversation

pytestmark = pytest.mark.servers
POLICY = Policy(MODEL_NAME, (0.005,), segmentation=Segmentation("line", 32))
QUESTIONS = draw_questions(3, 5)
ASKED, GOLD = "6437*268=?", "1725116"
"""A hard one: 863 tokens in full, sure after 345."""
MOST = 0.67
"""Share of the full run's tokens that the engine may make; two fifths are read."""
TRIES = 6
"""On a busy machine the bundled model can be done before the client has read what it needs: one try of these counts."""


@pytest.fixture(params=["vllm", "llama"])
def engine(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def index():
    notes = ["the price of each item in the store", "the total of each order is a product"]
    return VectorStoreIndex([TextNode(text=n) for n in notes], embed_model=MockEmbedding(8))


def inside(engine, **settings):
    given = {"is_chat_model": True, "is_function_calling_model": True, "temperature": 0, "max_tokens": 1000} | settings
    return OpenAILike(model=engine.name, api_base=engine.base_url, api_key="none", context_window=2048, timeout=300, **given)


def stopping(target):
    """The one added line."""
    return attach(target, POLICY, name=MODEL_NAME)


def generated(engine, work):
    """What the work gives, and the tokens that the engine made for it, by its own counter."""
    before = engine.counters()["generated"]
    return work(), engine.counters()["generated"] - before


def saves(engine, full, early):
    """Both works give the same, and the engine makes fewer tokens for the second; what they give."""
    text, all_tokens = generated(engine, full)
    counts = []
    while len(counts) < TRIES and not (counts and counts[-1] < MOST * all_tokens):
        found, tokens = generated(engine, early)
        counts.append(tokens)
        assert found == text
    assert counts[-1] < MOST * all_tokens, (all_tokens, counts)
    return text


def query(engine, asynchronously=False):
    """The text of a query's response."""

    async def run():
        made = await engine.aquery(ASKED)
        return "".join([t async for t in made.response_gen if t]) if hasattr(made, "response_gen") else str(made)

    if asynchronously:
        return asyncio.run(run()).strip()
    made = engine.query(ASKED)
    return "".join(t for t in made.response_gen if t).strip() if hasattr(made, "response_gen") else str(made).strip()


MODES = ["compact", "refine", "tree_summarize", "simple_summarize", "accumulate", "streaming"]


@pytest.mark.parametrize(
    ("mode", "asynchronously"), [*((mode, False) for mode in MODES), ("compact", True), ("accumulate", True), ("streaming", True)]
)
def test_a_query_engine_stops_and_answers(engine, index, mode, asynchronously):
    """In every response mode, before and after the one added line: the same answer, for fewer tokens by the engine's count."""

    def made():
        how = {"streaming": True} if mode == "streaming" else {"response_mode": mode}
        return index.as_query_engine(llm=inside(engine), use_async=asynchronously, **how)

    plain, stopped = made(), stopping(made())
    text = saves(engine, lambda: squeezed(query(plain, asynchronously)), lambda: squeezed(query(stopped, asynchronously)))
    assert GOLD in text


def squeezed(text):
    """Its words: vLLM leaves the blank lines after the thinking in the text, which a stopped run's answer has not."""
    return " ".join(text.split())


CHATS = ["simple", "context", "condense_question", "condense_plus_context"]


@pytest.mark.parametrize(
    ("kind", "method"),
    [*((kind, "chat") for kind in CHATS), ("simple", "stream_chat"), ("context", "stream_chat"), ("simple", "achat")],
)
def test_a_chat_engine_stops_and_answers(engine, index, kind, method):
    """The same for a chat engine, streamed or not."""

    def made():
        llm = inside(engine)
        return SimpleChatEngine.from_defaults(llm=llm) if kind == "simple" else index.as_chat_engine(chat_mode=kind, llm=llm)

    def ask(chat_engine):
        chat_engine.reset()
        if method == "achat":
            return str(asyncio.run(chat_engine.achat(ASKED))).strip()
        found = getattr(chat_engine, method)(ASKED)
        return ("".join(found.response_gen) if method == "stream_chat" else str(found)).strip()

    plain, stopped = made(), stopping(made())
    assert saves(engine, lambda: ask(plain), lambda: ask(stopped)) == GOLD


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


SHORT = ReActChatFormatter(system_header="Tools: {tool_desc} {tool_names}.")
"""The bundled model reads 2,048 characters, and LlamaIndex's own text for ReAct has more."""

AGENTS = {
    "FunctionAgent": lambda llm, tools: FunctionAgent(tools=tools, llm=llm),
    "FunctionAgent, not streamed": lambda llm, tools: FunctionAgent(tools=tools, llm=llm, streaming=False),
    "ReActAgent": lambda llm, tools: ReActAgent(tools=tools, llm=llm, formatter=SHORT),
    "AgentWorkflow": lambda llm, tools: AgentWorkflow(agents=[FunctionAgent(name="a", description="d", tools=tools, llm=llm)]),
}


def run(agent):
    """The agent's answer."""

    async def ask():
        return str(await agent.run(ASKED)).strip()

    return asyncio.run(ask())


@pytest.mark.parametrize("kind", AGENTS)
def test_an_agent_stops_and_answers(engine, kind):
    """The same for agents; a function agent without tools, for vLLM refuses them unless started with a parser for calls."""
    tools = [add] if kind == "ReActAgent" else []
    assert (
        saves(engine, lambda: run(AGENTS[kind](inside(engine), tools)), lambda: run(stopping(AGENTS[kind](inside(engine), tools))))
        == GOLD
    )


@pytest.mark.parametrize("kind", ["FunctionAgent", "AgentWorkflow"])
def test_an_agent_with_tools_still_works_on_llama_server(llama, kind):
    """It refuses logprobs on a stream with tools: the agent runs in full, says so, and answers."""
    handler = EntropyEventHandler()
    get_dispatcher().add_event_handler(handler)
    try:
        with pytest.warns(UserWarning, match="no logprobs"):
            answer = run(stopping(AGENTS[kind](inside(llama), [add])))
    finally:
        get_dispatcher().event_handlers.remove(handler)
    (row,) = handler.summary().rows
    assert answer == GOLD
    assert row.outcome.stopped is False
    assert "llama.cpp sends no logprobs on a streamed call with tools" in row.outcome.reason


@pytest.mark.filterwarnings("ignore:.*think again")
@pytest.mark.parametrize("cls", [OpenAILike, OpenAI])
@pytest.mark.parametrize("reuse_client", [True, False])
def test_answers_are_the_full_runs(engine, reuse_client, cls, monkeypatch):
    """Every question is stopped, sync and async alike, and answered as in full; of OpenAILike the prompt's count is near.

    OpenAI's class has no raw completions: on llama-server it asks by a turn, upon which the bundled model thinks again. That is
    thrown away, and the question run in full.
    """
    inner = inside(engine, reuse_client=reuse_client)
    if cls is OpenAI:  # it knows OpenAI's models only
        monkeypatch.setattr("llama_index.llms.openai.base.openai_modelname_to_contextsize", lambda name: 2048)
        monkeypatch.setattr("llama_index.llms.openai.base.is_chat_model", lambda model: True)
        inner = OpenAI(
            model=engine.name, api_base=engine.base_url, api_key="none", temperature=0, max_tokens=1000, reuse_client=reuse_client
        )
    llm = EarlyStopLLM(llm=inner, policy=POLICY, name=MODEL_NAME)
    for question in QUESTIONS:
        asked = [ChatMessage(role=m["role"], content=m["content"]) for m in conversation(question)]
        full, early, late = llm.chat(asked, early_stop=False), llm.chat(asked), asyncio.run(llm.achat(asked))
        by_turn = cls is OpenAI and engine.kind != "vllm"
        assert early.message.content == late.message.content == full.message.content.strip()
        assert early.additional_kwargs["early_stop_stopped"] is not by_turn
        assert ("think again" in early.additional_kwargs["early_stop_reason"]) is by_turn
        assert early.additional_kwargs["early_stop_step"] == late.additional_kwargs["early_stop_step"]
        if cls is OpenAILike:
            assert early.additional_kwargs["early_stop_tokens"] == late.additional_kwargs["early_stop_tokens"]
            assert abs(early.additional_kwargs["prompt_tokens"] - full.additional_kwargs["prompt_tokens"]) <= 8


def test_many_calls_at_once_are_each_as_alone(engine):
    """Thirty-two calls of one LLM on one loop, stopped, watched and in full: every one is what it is by itself."""
    llms = [EarlyStopLLM(llm=inside(engine), policy=policy, name=MODEL_NAME) for policy in (POLICY, None)]
    asked = [[ChatMessage(role=m["role"], content=m["content"]) for m in conversation(q)] for q in QUESTIONS[:2]]
    works = [(llm, messages) for llm in llms for messages in asked]

    async def ask(llm, messages):
        made = await llm.achat(messages)
        told = made.additional_kwargs
        return made.message.content.strip(), told["early_stop_stopped"], told.get("early_stop_step"), told["completion_tokens"]

    async def all_of(times):
        return await asyncio.gather(*(ask(*work) for work in works * times))

    alone = [asyncio.run(ask(*work)) for work in works]
    assert [stopped for _, stopped, _, _ in alone] == [True, True, False, False]
    found = asyncio.run(all_of(8))
    assert [f[1:3] for f in found] == [a[1:3] for a in alone] * 8
    assert [f[0] for f in found] == [a[0] for a in alone] * 8


@pytest.mark.parametrize("stop", [False, True])
def test_the_event_handler_measures_and_stops_streams(engine, stop):
    """Shadow figures of a full run are the same with and without the stop; a prepared stream ends on the server."""
    llm = inside(engine, logprobs=True, top_logprobs=20)
    handler = EntropyEventHandler(POLICY.for_model(engine.name), stop=stop)
    if stop:
        handler.prepare(llm)
    asked = [ChatMessage(role="user", content=ASKED)]
    get_dispatcher().add_event_handler(handler)
    try:
        if stop:
            plain = inside(engine)
            saves(engine, lambda: bool(list(plain.stream_chat(asked))), lambda: bool(list(llm.stream_chat(asked))))
        else:
            list(llm.stream_chat(asked))
    finally:
        get_dispatcher().event_handlers.remove(handler)
    row = handler.summary().rows[-1]
    assert (row.outcome.stopped, row.outcome.step) == (stop, 1 if row.entropies[0] <= POLICY.thresholds[0] else 2)
    assert (row.would_save is None) == stop
