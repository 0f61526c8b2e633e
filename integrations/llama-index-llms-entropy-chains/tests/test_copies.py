"""Copies of an ``EarlyStopLLM``, and LLMs that an app holds in its class."""

from __future__ import annotations

import asyncio
import copy

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.core.workflow import StartEvent, StopEvent, Workflow, step
from llama_index.llms.entropy_chains import EarlyStopLLM, attach, detach
from llama_index.llms.openai_like import OpenAILike

from entropy_chains import Policy, Segmentation
from entropy_chains.errors import SettingsError

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))
ASKED = "What is 6*7?"


def inside(server, **settings):
    given = {"model": "scripted", "api_base": server.url, "api_key": "none", "is_chat_model": True, "context_window": 8000}
    return OpenAILike(**given, max_retries=0, **settings)


@pytest.mark.parametrize("way", [lambda llm: llm.model_copy(), copy.copy])
def test_a_setting_of_a_copy_is_the_copy_s_alone(server, way):
    """As of the plain class."""
    llm = EarlyStopLLM(inside(server), POLICY)
    made = way(llm)
    made.temperature = 0.8
    assert (llm.temperature, made.temperature) == (0.1, 0.8)


def test_what_a_copy_is_made_with_reaches_the_request(server):
    """Settings of the inner LLM and of the wrapper."""
    llm = EarlyStopLLM(inside(server), POLICY)
    made = llm.model_copy(update={"temperature": 0.9, "early_stop": False})
    told = made.chat([ChatMessage(ASKED)]).additional_kwargs
    assert (server.calls[0].body["temperature"], told["early_stop_stopped"]) == (0.9, False)
    assert llm.chat([ChatMessage(ASKED)]).additional_kwargs["early_stop_stopped"]
    assert server.calls[1].body["temperature"] == 0.1


def test_detach_gives_a_copy_its_own_llm_back(server):
    """An object that replaces its LLM by a copy after attach keeps that one's settings after detach."""

    class Asking:
        def __init__(self) -> None:
            self.llm = inside(server)

        def ask(self, question: str) -> str:
            self.llm = self.llm.model_copy(update={"temperature": 0.9})
            return str(self.llm.chat([ChatMessage(question)]).message.content)

    asking = Asking()
    tool = FunctionTool.from_defaults(asking.ask, name="ask", description="asks")
    attach([tool], POLICY)
    assert tool.call(ASKED).raw_output == "The answer is 42"
    detach([tool])
    assert (type(asking.llm), asking.llm.temperature) == (OpenAILike, 0.9)


def flow(llm):
    """A workflow class in the form of LlamaIndex's tutorials."""

    class Flow(Workflow):
        @step
        async def go(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result=await self.llm.achat([ChatMessage(ASKED)]))

    Flow.llm = llm
    return Flow


def test_an_llm_of_the_class_is_replaced_on_the_object_alone(server):
    """Twice, and back; another object of the class keeps the plain one."""
    kind, plain = flow(inside(server)), inside(server)
    kind.llm = plain

    async def run():
        app, other = kind(timeout=20), kind(timeout=20)
        attach(app, POLICY)
        attach(app, POLICY)
        assert isinstance(app.llm, EarlyStopLLM)
        assert (await app.run()).additional_kwargs["early_stop_stopped"]
        assert (kind.llm, other.llm) == (plain, plain)
        detach(app)
        assert app.llm is plain
        assert "llm" not in vars(app)

    asyncio.run(run())


def test_a_switch_is_true_or_false(server):
    """A word is refused, and not taken for yes."""
    with pytest.raises(SettingsError, match="early_stop is 'no'"):
        EarlyStopLLM(inside(server), POLICY).chat([ChatMessage(ASKED)], early_stop="no")
