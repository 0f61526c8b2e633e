"""The LangChain wrapper on real servers with the bundled reasoner: LangChain's own suite, and chains that stop."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from engine_counts import MOST, counted, stopped
from langchain.agents import create_agent
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_deepseek import ChatDeepSeek
from langchain_entropy_chains import EarlyStopChatModel, EarlyStopMiddleware, instrument, with_early_stop
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.demo import MODEL_NAME
from entropy_chains.demo.questions import draw_questions

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

pytestmark = pytest.mark.servers
# Few alternatives: the bundled model is so fast that reading many would let the server run ahead of its client.
POLICY = Policy(MODEL_NAME, (0.005,), k=5, segmentation=Segmentation("line", 32)).for_model("demo")
QUESTIONS = [q["question"] for q in draw_questions(12, 5)]
GOLD = [q["gold"] for q in draw_questions(12, 5)]
LONGEST, SOME = 1600, 4


def openai_chat(engine, **settings):
    return ChatOpenAI(
        model=engine.name, base_url=engine.base_url, api_key="none", **{"temperature": 0, "max_tokens": LONGEST, **settings}
    )


def deepseek_chat(engine, **settings):
    return ChatDeepSeek(model=engine.name, api_base=engine.base_url, api_key="none", temperature=0, max_tokens=LONGEST, **settings)


class Suite(ChatModelIntegrationTests):
    """The bundled model reads a sum and calls no tools, so what the suite asks about these is left out."""

    named = "openai:demo"
    address = "base_url"

    @pytest.fixture(autouse=True)
    def served(self, request):
        self.engine = request.getfixturevalue(self.server)

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return EarlyStopChatModel

    @property
    def chat_model_params(self) -> dict[str, Any]:
        settings = {"api_key": "none", "temperature": 0, "max_tokens": LONGEST, self.address: self.engine.base_url}
        return {"inner": self.named, "policy": POLICY, **settings}

    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def has_structured_output(self) -> bool:
        return False

    @property
    def supports_model_override(self) -> bool:
        return False


class TestVLLM(Suite):
    """``ChatOpenAI`` on vLLM."""

    server = "vllm"


class TestDeepSeekOnVLLM(Suite):
    """``ChatDeepSeek``, which keeps the reasoning's text, on vLLM."""

    server, named, address = "vllm", "deepseek:demo", "api_base"


class TestLlamaServer(Suite):
    """``ChatOpenAI`` on llama-server."""

    server = "llama"


@pytest.fixture(params=[("vllm", openai_chat), ("vllm", deepseek_chat), ("llama", openai_chat)], ids=["vllm", "deepseek", "llama"])
def served(request):
    name, make = request.param
    engine = request.getfixturevalue(name)
    return engine, partial(make, engine)


def invoke(runnable, asked):
    return [runnable.invoke(a) for a in asked]


def stream(runnable, asked):
    return [last(list(runnable.stream(a))) for a in asked]


def batch(runnable, asked):
    return runnable.batch(asked)


def ainvoke(runnable, asked):
    async def run():
        return [await runnable.ainvoke(a) for a in asked]

    return asyncio.run(run())


def astream(runnable, asked):
    async def run():
        return [last([c async for c in runnable.astream(a)]) for a in asked]

    return asyncio.run(run())


def abatch(runnable, asked):
    return asyncio.run(runnable.abatch(asked))


WAYS = [invoke, stream, batch, ainvoke, astream, abatch]


def last(chunks):
    """The text of a chain's stream; of an agent's its last update, as the state that ``invoke`` gives."""
    return "".join(chunks) if isinstance(chunks[0], str) else chunks[-1]["model"]


def chain(model):
    return ChatPromptTemplate.from_template("{question}") | model | StrOutputParser()


def agent(model):
    """An agent without tools, for the bundled model calls none; those with tools run on the scripted server."""
    return create_agent(model)


EXISTING = {
    "chain": (chain, lambda question: {"question": question}, lambda told: told),
    "agent": (agent, lambda question: {"messages": [("user", question)]}, lambda told: told["messages"][-1].text),
}


@pytest.mark.parametrize("kind", EXISTING)
def test_the_added_line_costs_less_in_every_way_of_calling(served, kind):
    """An existing chain or agent, then one line more: by the engine's own counter a third less is made, and answers stay right."""
    engine, make = served
    build, given, answer = EXISTING[kind]
    model, asked = make(), [given(q) for q in QUESTIONS[:SOME]]
    existing = build(model)
    runs = [counted(engine, partial(invoke, existing, [a])) for a in asked]
    full, made_full = [answer(told) for (told,), _ in runs], [made for _, made in runs]
    if kind == "chain":
        existing = with_early_stop(existing, POLICY)
    else:
        instrument(model, POLICY)  # the agent was built before
    for way in WAYS:
        parts = [(asked, sum(made_full))] if "batch" in way.__name__ else [([a], m) for a, m in zip(asked, made_full, strict=True)]
        early = [stopped(engine, partial(way, existing, part), made) for part, made in parts]
        assert sum(made for _, made in early) < MOST * sum(made_full), way.__name__
        assert rights(answer(told) for found, _ in early for told in found) >= rights(full) - 1, way.__name__


def rights(answers):
    """How many of the answers are right."""
    return sum(answer == gold for answer, gold in zip(answers, GOLD, strict=False))


def test_an_agent_built_with_the_middleware_costs_less(served):
    """The same for an agent that is built anew: the middleware is the added line, and the state holds the totals."""
    engine, make = served
    asked = [{"messages": [("user", q)]} for q in QUESTIONS[:SOME]]
    _, made_full = counted(engine, lambda: invoke(agent(make()), asked))
    stopping = create_agent(make(), middleware=[EarlyStopMiddleware(POLICY)])
    states, made = stopped(engine, lambda: invoke(stopping, asked), made_full)
    assert made < MOST * made_full
    assert all(s["early_stop_calls"] == 1 for s in states)
    assert sum(s["early_stop_tokens"] for s in states) < MOST * made_full


def test_the_wrapper_makes_the_backends_runs(served):
    """Sync, async and streamed: the same step, entropy, thinking and answer as the OpenAI backend's on the same server."""
    import openai

    from entropy_chains.backends import Sampling
    from entropy_chains.backends.openai import OpenAIBackend
    from entropy_chains.recording import conversation

    engine, make = served
    client = openai.OpenAI(base_url=engine.base_url, api_key="none")
    backend = OpenAIBackend(client, engine.name, name=MODEL_NAME)
    sampling = Sampling(temperature=0, max_tokens=LONGEST)
    runs = backend.generate([conversation({"question": q}) for q in QUESTIONS[:4]], policy=POLICY, sampling=sampling)
    model = EarlyStopChatModel(make(), POLICY)

    async def both():
        return [await model.ainvoke(QUESTIONS[1]), [c async for c in model.astream(QUESTIONS[2])]]

    one = model.invoke(QUESTIONS[0])
    two, chunks = asyncio.run(both())
    three = sum(chunks[1:], chunks[0])
    chunks = list(model.stream(QUESTIONS[3]))
    four = sum(chunks[1:], chunks[0])
    for message, run in zip((one, two, three, four), runs, strict=True):
        told = message.response_metadata
        assert (message.text, told["early_stop_stopped"]) == (run.answer, run.outcome.stopped)
        assert told.get("early_stop_step") == run.outcome.step
        assert message.additional_kwargs["reasoning_content"].strip("\n") == run.reasoning
        assert message.usage_metadata["output_tokens"] == told["early_stop_tokens"]
        assert message.usage_metadata["input_tokens"] > 0
        if run.outcome.stopped:
            assert told["early_stop_entropy"] == pytest.approx(run.outcome.entropy, abs=2e-4)
    assert any(run.outcome.stopped for run in runs)
