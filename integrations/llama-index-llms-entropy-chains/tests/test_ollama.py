"""LlamaIndex's ``Ollama`` itself, on Ollama's own API: stopped in every way, and the answer got without new thinking, or said so.

The server is scripted (a fake, see ``ollama_loopback``): no Ollama was tried.
"""

from __future__ import annotations

import asyncio
import copy
import warnings

import pytest
from llama_index.core import SummaryIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import TextNode
from llama_index.core.tools import FunctionTool
from llama_index.llms.entropy_chains import EarlyStopLLM, attach
from loopback import SURE, UNSURE, Reply, sums, thinking
from ollama_loopback import Ollama as Server
from pydantic import BaseModel

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import NoLogprobsError
from scripts import paced, rethinking

Ollama = pytest.importorskip("llama_index.llms.ollama").Ollama

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))
ASKED = [ChatMessage(role="user", content="What is 6*7?")]
ANSWER = "The answer is 42"
RETHINKING = rethinking(paced)


@pytest.fixture
def server():
    with Server(RETHINKING, tags=True) as running:
        yield running


def plain(server, **settings):
    return Ollama(model="scripted", base_url=server.url, **settings)


async def last_of(stream):
    return [response async for response in await stream][-1]


WAYS = {
    "chat": lambda llm: llm.chat(ASKED),
    "stream_chat": lambda llm: [*llm.stream_chat(ASKED)][-1],
    "achat": lambda llm: asyncio.run(llm.achat(ASKED)),
    "astream_chat": lambda llm: asyncio.run(last_of(llm.astream_chat(ASKED))),
    "complete": lambda llm: llm.complete("What is 6*7?"),
    "stream_complete": lambda llm: [*llm.stream_complete("What is 6*7?")][-1],
    "acomplete": lambda llm: asyncio.run(llm.acomplete("What is 6*7?")),
    "astream_complete": lambda llm: asyncio.run(last_of(llm.astream_complete("What is 6*7?"))),
}


def text_of(response):
    return response.text if hasattr(response, "text") else response.message.content


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("thinking", [True, None])
def test_it_is_stopped_and_answers_without_thinking_anew(server, way, thinking):
    """The class asks for no logprobs: its client is told to. The server stops, and is asked once more, with thinking off."""
    inner = plain(server, thinking=thinking)
    response = WAYS[way](EarlyStopLLM(inner, POLICY))
    assert (text_of(response), response.additional_kwargs["early_stop_stopped"]) == (ANSWER, True)
    assert [(body.get("think"), body.get("top_logprobs")) for body in server.bodies] == [(thinking, 20), (False, None)]
    assert (server.made[1], server.left()) == (4, 1)
    assert server.made[0] < 240
    told = response.additional_kwargs
    assert (told["completion_tokens"], told["total_tokens"] - told["completion_tokens"]) == (124, told["prompt_tokens"])
    assert WAYS[way](inner).additional_kwargs.get("early_stop_stopped") is None
    assert "logprobs" not in server.bodies[-1]  # the user's LLM is as it was


@pytest.mark.filterwarnings("ignore:.*think again")
@pytest.mark.parametrize("way", ["chat", "astream_chat"])
def test_a_model_that_thinks_all_the_same_is_run_in_full(way):
    """As gpt-oss: what it thinks anew is noticed, and nothing of it is shown."""
    with Server(RETHINKING, tags=True, obeys=False) as server:
        response = WAYS[way](EarlyStopLLM(plain(server, thinking="low"), POLICY))
    assert (response.message.content, response.additional_kwargs["early_stop_stopped"]) == (ANSWER, False)
    assert "think again" in response.additional_kwargs["early_stop_reason"]


@pytest.mark.parametrize("way", ["chat", "achat"])
def test_without_thinking_there_is_nothing_to_stop(server, way):
    """``thinking=False``: the answer, in one request."""
    told = WAYS[way](EarlyStopLLM(plain(server, thinking=False), POLICY)).additional_kwargs
    assert (len(server.bodies), told["early_stop_stopped"], told["early_stop_active"]) == (1, False, True)


def calling(body):
    """A thinking, then a call; once the tool has answered, the answer."""
    if any(message["role"] == "tool" for message in body["messages"]):
        return sums(body)
    made = Reply() if "call a tool" in str(body["messages"][-1]) else thinking(UNSURE, SURE, SURE, answer="")
    return Reply([t for t in made.tokens if t.reasoning], tools=[("multiply", {"a": 6, "b": 7})], pace=0.0005)


def multiply(a: int, b: int) -> int:
    """Multiply."""
    return a * b


def test_an_agents_calls_are_whole_and_its_thinking_is_stopped():
    """With tools Ollama gives logprobs, too."""
    with Server(calling, tags=True) as server:
        llm = EarlyStopLLM(plain(server, thinking=True), POLICY)
        prepared = llm._prepare_chat_with_tools([FunctionTool.from_defaults(multiply)], user_msg="What is 6*7?")
        response = llm.chat(**prepared)
        assert response.additional_kwargs["early_stop_stopped"] is True
        assert [(c.tool_name, c.tool_kwargs) for c in llm.get_tool_calls_from_response(response)] == [
            ("multiply", {"a": 6, "b": 7})
        ]

        async def asked():
            return await FunctionAgent(tools=[multiply], llm=llm).run("What is 6*7?")

        assert str(asyncio.run(asked())) == ANSWER
    assert all(body["tools"] for body in server.bodies)


class Product(BaseModel):
    """What 6*7 is."""

    value: int


def formed(body):
    """JSON where a form is given."""
    return thinking(UNSURE, SURE, SURE, answer='{"value": 42}') if body.get("format") else sums(body)


@pytest.mark.parametrize(
    "ask",
    [
        lambda server: EarlyStopLLM(plain(server), POLICY).chat(ASKED, format="json").message.content,
        lambda server: EarlyStopLLM(plain(server, json_mode=True), POLICY).chat(ASKED).message.content,
        lambda server: asyncio.run(EarlyStopLLM(plain(server, json_mode=True), POLICY).achat(ASKED)).message.content,
        lambda server: EarlyStopLLM(plain(server), POLICY).structured_predict(Product, PromptTemplate("6*7?")).model_dump_json(),
    ],
    ids=["of the call", "of the LLM", "of the LLM, asyncio", "structured_predict"],
)
def test_a_given_form_is_never_cut(ask):
    """``format`` and ``json_mode``: one request, whole."""
    with Server(formed, tags=True) as server:
        assert ask(server).replace(" ", "") == '{"value":42}'
        assert (len(server.bodies), bool(server.bodies[0]["format"])) == (1, True)


@pytest.mark.parametrize("without", ["full", "error"])
def test_a_server_without_logprobs_is_told_of(without):
    """An Ollama before 0.12.11: the whole reply and one warning, or the error that was asked for."""
    with Server(sums, tags=True, since=(0, 12, 10)) as server, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        llm = EarlyStopLLM(plain(server, thinking=True), POLICY, without_logprobs=without)
        if without == "error":
            with pytest.raises(NoLogprobsError, match="no logprobs"):
                llm.chat(ASKED)
            return
        told = [llm.chat(ASKED).additional_kwargs["early_stop_active"] for _ in range(2)]
    assert (told, len([w for w in caught if w.category is UserWarning])) == ([False, False], 1)


def test_an_old_client_that_knows_no_logprobs_gives_whole_replies(server):
    """Its ``chat`` refuses the setting: asked again without, with one warning."""
    inner = plain(server)
    known = inner.client

    class Old:
        def chat(self, model, messages, stream, format, tools, think, options, keep_alive):  # noqa: A002
            return known.chat(model, messages, stream=stream, think=think)

    inner = plain(server, client=Old(), context_window=8000)
    with pytest.warns(UserWarning, match="logprobs"):
        response = EarlyStopLLM(inner, POLICY).chat(ASKED)
    assert (response.message.content, response.additional_kwargs["early_stop_active"]) == (ANSWER, False)


def test_nothing_is_asked_of_the_server_when_it_is_wrapped():
    """Ollama's class finds its context window by a request: one that is down is met by the first call, as without the wrapper."""
    inner = Ollama(model="scripted", base_url="http://127.0.0.1:9")
    llm = EarlyStopLLM(inner, POLICY)
    with pytest.raises(ConnectionError):
        llm.chat(ASKED)


def test_it_is_attached_and_copied(server):
    """In an engine that has it, and by a deep copy, which shares nothing with it."""
    engine = SummaryIndex([TextNode(text="x")]).as_query_engine(llm=plain(server))
    attach(engine, POLICY)
    assert engine.query("What is 6*7?").metadata["early_stop_stopped"] is True
    llm = EarlyStopLLM(plain(server), POLICY)
    made = copy.deepcopy(llm)
    assert made.llm is not llm.llm
    assert made.chat(ASKED).additional_kwargs["early_stop_stopped"] is True


def test_a_limit_among_the_options_is_lowered_for_the_answer(server):
    """``num_predict``: what is left after the stop."""
    EarlyStopLLM(plain(server, additional_kwargs={"num_predict": 300}), POLICY).chat(ASKED)
    first, second = [body["options"]["num_predict"] for body in server.bodies]
    assert (first, 300 - second) == (300, 120)


def test_gpt_oss_is_left_whole_and_said_so_when_it_is_wrapped():
    """It thinks whatever it is told, so a stop would be paid for and thrown away: one warning, at construction."""
    with Server(RETHINKING, tags=True, obeys=False) as server:
        inner = Ollama(model="gpt-oss:20b", base_url=server.url, thinking="low")
        with pytest.warns(UserWarning, match="gpt-oss:20b cannot be kept from thinking again"):
            llm = EarlyStopLLM(inner, POLICY.for_model("gpt-oss:20b"))
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            told = [llm.chat(ASKED).additional_kwargs, asyncio.run(llm.achat(ASKED)).additional_kwargs]
    assert [t["early_stop_stopped"] for t in told] == [False, False]
    assert "cannot be kept from thinking" in told[0]["early_stop_reason"]
    assert len(server.bodies) == 2
