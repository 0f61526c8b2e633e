"""The LangChain wrapper on real servers with the bundled reasoner: LangChain's own suite, and chains that stop."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_deepseek import ChatDeepSeek
from langchain_entropy_chains import EarlyStopChatModel, with_early_stop
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

from entropy_chains.demo import MODEL_NAME
from entropy_chains.demo.questions import draw_questions
from entropy_chains.policy import Policy
from entropy_chains.steps import Segmentation

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

pytestmark = pytest.mark.servers
# Few alternatives: the bundled model is so fast that reading many would let the server run ahead of its client.
POLICY = Policy(MODEL_NAME, (0.005,), k=5, segmentation=Segmentation("line", 32)).for_model("demo")
QUESTIONS = [q["question"] for q in draw_questions(12, 5)]
GOLD = [q["gold"] for q in draw_questions(12, 5)]
MOST = 1600


def openai_chat(engine, **settings):
    return ChatOpenAI(
        model=engine.name, base_url=engine.base_url, api_key="none", **{"temperature": 0, "max_tokens": MOST, **settings}
    )


def deepseek_chat(engine, **settings):
    return ChatDeepSeek(model=engine.name, api_base=engine.base_url, api_key="none", temperature=0, max_tokens=MOST, **settings)


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
        settings = {"api_key": "none", "temperature": 0, "max_tokens": MOST, self.address: self.engine.base_url}
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


def counted(engine, work):
    """What work gives, and the tokens that the engine made for it by its own count."""
    before = engine.counters()["generated"]
    found = work()
    return found, engine.counters()["generated"] - before


def test_a_chain_with_one_added_line_costs_less(served):
    """By the server's own counter a third less is made, and the chain's answers stay right."""
    engine, make = served
    chain = ChatPromptTemplate.from_template("{question}") | make() | StrOutputParser()
    asked = [{"question": q} for q in QUESTIONS]
    full, made_full = counted(engine, lambda: [chain.invoke(a) for a in asked])
    chain = with_early_stop(chain, POLICY)
    early, made = counted(engine, lambda: [chain.invoke(a) for a in asked])
    assert made < 0.67 * made_full
    assert sum(a == b for a, b in zip(early, GOLD, strict=True)) >= sum(a == b for a, b in zip(full, GOLD, strict=True)) - 1


def test_the_wrapper_makes_the_backends_runs(served):
    """Sync, async and streamed: the same step, entropy, thinking and answer as the OpenAI backend's on the same server."""
    import openai

    from entropy_chains.backends import Sampling
    from entropy_chains.backends.openai import OpenAIBackend
    from entropy_chains.recording import conversation

    engine, make = served
    client = openai.OpenAI(base_url=engine.base_url, api_key="none")
    backend = OpenAIBackend(client, engine.name, name=MODEL_NAME)
    sampling = Sampling(temperature=0, max_tokens=MOST)
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
