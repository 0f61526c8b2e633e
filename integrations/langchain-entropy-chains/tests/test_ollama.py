"""``ChatOllama`` itself, on Ollama's own API: stopped in every way, and the answer got without new thinking, or whole and said so.

The server is scripted (a fake, see ``ollama_loopback``): no Ollama was tried.
"""

from __future__ import annotations

import asyncio
import warnings

import pytest
from langchain_core.tools import tool
from langchain_entropy_chains import EarlyStopChatModel, EarlyStopped, EntropyCallbackHandler, instrument, with_early_stop
from langchain_ollama import ChatOllama
from loopback import SURE, UNSURE, Reply, is_answer_call, sums, thinking
from ollama_loopback import Ollama

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import SettingsError
from scripts import rethinking

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))
ASKED = "What is 6*7?"
ANSWER = "The answer is 42"
RETHINKING = rethinking(sums)


@pytest.fixture
def server():
    with Ollama(RETHINKING, tags=True) as running:
        yield running


def chat(server, **settings):
    return ChatOllama(model="scripted", base_url=server.url, **settings)


def added(chunks):
    made = chunks[0]
    for chunk in chunks[1:]:
        made += chunk
    return made


async def astreamed(model):
    return added([chunk async for chunk in model.astream(ASKED)])


IN_ALL_WAYS = pytest.mark.parametrize(
    "ask",
    [
        lambda model: model.invoke(ASKED),
        lambda model: added([*model.stream(ASKED)]),
        lambda model: asyncio.run(model.ainvoke(ASKED)),
        lambda model: asyncio.run(astreamed(model)),
        lambda model: model.batch([ASKED, ASKED])[1],
    ],
    ids=["invoke", "stream", "ainvoke", "astream", "batch"],
)


@IN_ALL_WAYS
@pytest.mark.parametrize("reasoning", [True, None, "high"])
def test_it_is_stopped_and_answers_without_thinking_anew(server, ask, reasoning):
    """Whether the class passes the thinking's text on or drops it: the server stops, and is asked once more, with thinking off."""
    message = ask(EarlyStopChatModel(chat(server, reasoning=reasoning), POLICY))
    assert (message.content, message.response_metadata["early_stop_stopped"]) == (ANSWER, True)
    assert message.additional_kwargs["reasoning_content"].count("step3") == 40
    answers = [made for made, body in zip(server.made, server.bodies, strict=True) if body.get("think") is False]
    assert answers == [4] * (len(server.bodies) // 2)
    assert sum(server.made) < 200 * len(answers)
    assert message.usage_metadata["output_tokens"] == 124


@pytest.mark.parametrize("around", [with_early_stop, instrument, EarlyStopChatModel])
def test_however_it_is_attached(server, around):
    """In place, by a copy, or wrapped by hand."""
    message = around(chat(server), POLICY).invoke(ASKED)
    assert (message.content, message.response_metadata["early_stop_stopped"]) == (ANSWER, True)


@pytest.mark.parametrize("made", [lambda m: m, lambda m: m.bind(stop=["x"]), lambda m: EarlyStopChatModel(m, POLICY)])
def test_a_callback_stops_it_and_the_answer_is_got_without_thinking(server, made):
    """``finish()`` knows how Ollama is told, through bindings and wrappers."""
    model = chat(server, reasoning=True, logprobs=True, top_logprobs=20)
    with pytest.raises(EarlyStopped) as stopped:
        model.invoke(ASKED, {"callbacks": [EntropyCallbackHandler(POLICY, stop=True)]})
    assert stopped.value.finish(made(model)).content == ANSWER
    assert (server.bodies[-1]["think"], server.made[-1]) == (False, 4)
    assert asyncio.run(stopped.value.afinish(made(model))).content == ANSWER
    with pytest.raises(SettingsError, match="Ollama has 'turn' only"):
        stopped.value.finish(model, continuation="prefill")


@pytest.mark.filterwarnings("ignore:.*think again")
@pytest.mark.parametrize("ask", [lambda m: m.invoke(ASKED), lambda m: asyncio.run(m.ainvoke(ASKED))], ids=["invoke", "ainvoke"])
def test_a_model_that_thinks_all_the_same_is_run_in_full(ask):
    """As gpt-oss: what it thinks anew is noticed, though the user's own model would not show it; nothing of it is shown."""
    with Ollama(RETHINKING, tags=True, obeys=False) as server:
        message = ask(EarlyStopChatModel(chat(server, reasoning="low"), POLICY))
    assert (message.content, message.response_metadata["early_stop_stopped"]) == (ANSWER, False)
    assert "think again" in message.response_metadata["early_stop_reason"]
    assert message.usage_metadata["output_tokens"] > 244


@pytest.mark.parametrize("ask", [lambda m: m.invoke(ASKED), lambda m: asyncio.run(astreamed(m))], ids=["invoke", "astream"])
def test_gpt_oss_is_left_whole_and_said_so(ask):
    """It thinks whatever it is told, so a stop would be paid for and thrown away."""
    with Ollama(RETHINKING, tags=True, obeys=False) as server:
        model = ChatOllama(model="gpt-oss:20b", base_url=server.url, reasoning="low")
        with pytest.warns(UserWarning, match="gpt-oss:20b cannot be kept from thinking again"):
            message = ask(EarlyStopChatModel(model, POLICY.for_model("gpt-oss:20b")))
    assert (message.content, message.response_metadata["early_stop_stopped"], len(server.bodies)) == (ANSWER, False, 1)
    assert "cannot be kept from thinking" in message.response_metadata["early_stop_reason"]


@tool
def multiply(a: int, b: int) -> int:
    """Multiply."""
    return a * b


def calling(body):
    """A thinking, then a call; of a stopped run the call only."""
    made = Reply() if is_answer_call(body) else thinking(UNSURE, SURE, SURE, answer="")
    return Reply([t for t in made.tokens if t.reasoning], tools=[("multiply", {"a": 6, "b": 7})], pace=0.0005)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_thinking_before_a_call_is_stopped_and_the_call_is_whole(asynchronous):
    """Ollama gives logprobs with tools as well."""
    with Ollama(calling, tags=True) as server:
        model = EarlyStopChatModel(chat(server, reasoning=True), POLICY).bind_tools([multiply])
        message = asyncio.run(model.ainvoke(ASKED)) if asynchronous else model.invoke(ASKED)
    assert [(call["name"], call["args"]) for call in message.tool_calls] == [("multiply", {"a": 6, "b": 7})]
    assert message.response_metadata["early_stop_stopped"] is True


@pytest.mark.filterwarnings("ignore:this call is not stopped")
@pytest.mark.parametrize("place", ["field", "call"])
def test_a_given_form_is_never_cut(server, place):
    """``format`` of the model or the call: whole, with the reason."""
    model = EarlyStopChatModel(chat(server, **({"format": "json"} if place == "field" else {})), POLICY)
    message = model.invoke(ASKED, **({} if place == "field" else {"format": "json"}))
    assert (len(server.bodies), message.response_metadata["early_stop_stopped"]) == (1, False)
    assert "format" in message.response_metadata["early_stop_reason"]


def test_a_server_without_logprobs_is_named_with_the_version_to_have():
    """An Ollama before 0.12.11 sends none: the reply is whole, with one warning."""
    with Ollama(sums, tags=True, since=(0, 12, 10)) as server, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        model = EarlyStopChatModel(chat(server), POLICY)
        told = [model.invoke(ASKED).response_metadata for _ in range(2)]
    assert [t["early_stop_active"] for t in told] == [False, False]
    (said_once,) = [str(w.message) for w in caught if w.category is UserWarning]
    assert "ChatOllama" in said_once
    assert "0.12.11" in said_once


@pytest.mark.filterwarnings("ignore:.*allows 20")
def test_more_alternatives_than_ollama_gives_are_said(server):
    """Its limit is 20: a policy of more runs in full."""
    message = EarlyStopChatModel(chat(server), Policy("scripted", (0.2,), k=50)).invoke(ASKED)
    assert "allows 20" in message.response_metadata["early_stop_reason"]
    assert message.content == ANSWER


@pytest.mark.parametrize(
    ("own", "call"), [({"seed": 3}, {}), ({}, {"options": {"seed": 3}}), ({"seed": 3}, {"options": {"top_k": 1}})]
)
def test_a_loop_of_calls_sends_its_seed_where_ollama_has_it(server, own, call):
    """Among the options; the client knows no such setting of a call."""
    model = EarlyStopChatModel(chat(server, **own), mode="refine", max_steps=2)
    assert model.invoke(ASKED, **call).content == ANSWER
    seeds = [body["options"].get("seed") for body in server.bodies]
    assert seeds[0] == 3
    assert all(isinstance(seed, int) for seed in seeds)
