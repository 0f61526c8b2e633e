"""LangChain's own integration suite where the bundled model cannot follow: tools, structured output, JSON.

The scripted server thinks, is stopped in the middle of it, and then does what is asked by schema. The same suite on real servers,
without tools: ``tests/servers/test_langchain.py``. It runs here around a plain ``ChatOpenAI`` too: what fails only with the wrapper
is the wrapper's fault.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_entropy_chains import EarlyStopChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests
from loopback import SURE, UNSURE, Loopback, Reply, is_answer_call, said, thinking

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))
JOKE = {"properties": {"setup": {"type": "string"}, "punchline": {"type": "string"}}}


def able(body: dict[str, Any]) -> Reply:
    """Thinks, then calls the tool, fills in the form, or talks; asked for the answer after a stop it thinks no more."""
    thought = [] if is_answer_call(body) else thinking(UNSURE, SURE, SURE, SURE).tokens[:160]
    form, tools, choice = body.get("response_format"), body.get("tools"), body.get("tool_choice")
    if form:
        schema = form["json_schema"]["schema"] if form["type"] == "json_schema" else JOKE
        return Reply([*thought, *said(json.dumps(filled(schema)))])
    forced = choice not in (None, "auto", "none")
    if tools and choice != "none" and (forced or body["messages"][-1]["role"] != "tool"):
        named = choice["function"]["name"] if isinstance(choice, dict) else tools[0]["function"]["name"]
        function = next(t["function"] for t in tools if t["function"]["name"] == named)
        return Reply(thought, tools=[(named, filled(function["parameters"]))])
    return Reply([*thought, *said("The answer is 42")])


def filled(schema: dict[str, Any]) -> dict[str, Any]:
    """A value of an object's schema."""
    return {n: 3 if s.get("type") == "integer" else "你好 こんにちは" for n, s in schema.get("properties", {}).items()}


@pytest.mark.asyncio(loop_scope="class")
class Suite(ChatModelIntegrationTests):
    """Left out: pictures, sound and PDF, which the script does not see, and another model's name, which it does not tell.

    One event loop for all tests of a class: ``langchain-openai`` keeps one client for an address, and since version 3 the SDK of
    OpenAI does not try again where a connection of that client belongs to a loop that was closed. With a loop for each test every
    second asynchronous one fails, plain as wrapped.
    """

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def served(cls):
        with Loopback(able) as running:
            cls.url = running.url
            yield

    @property
    def settings(self) -> dict[str, Any]:
        return {"base_url": self.url, "api_key": "none", "stream_usage": True}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return False

    @property
    def structured_output_kwargs(self) -> dict[str, Any]:
        return {"method": self.method}


class Plain(Suite):
    """``ChatOpenAI`` itself."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "scripted", **self.settings}


class Wrapped(Suite):
    """``ChatOpenAI`` with early stopping around it."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return EarlyStopChatModel

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"inner": "openai:scripted", "policy": POLICY, **self.settings}


class TestPlainByFunction(Plain):
    """Structured output by a forced tool call."""

    method = "function_calling"


class TestWrappedByFunction(Wrapped):
    """Structured output by a forced tool call."""

    method = "function_calling"


class TestPlainBySchema(Plain):
    """Structured output by a response format."""

    method = "json_schema"


class TestWrappedBySchema(Wrapped):
    """Structured output by a response format."""

    method = "json_schema"


def test_the_suite_above_is_stopped():
    """Its ordinary calls and its calls with tools on offer are cut; else it would show nothing."""

    @tool
    def weather(place: str) -> str:
        """Weather of a place."""
        return place

    with Loopback(able) as server:
        model = EarlyStopChatModel("openai:scripted", POLICY, base_url=server.url, api_key="none")
        told = [m.invoke([HumanMessage("q")]).response_metadata for m in (model, model.bind_tools([weather]))]
    assert [t["early_stop_stopped"] for t in told] == [True, True]
