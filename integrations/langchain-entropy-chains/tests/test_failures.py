"""Servers and settings that misbehave, through LangChain: one clear error or an answer, and no key or header in any trace."""

from __future__ import annotations

import asyncio
import json
import warnings

import httpx
import openai
import pytest
from hostile import ODD, Act, Hostile, begin, end, event, events, whole
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from langchain_entropy_chains import EarlyStopChatModel, EarlyStopMiddleware, EntropyCallbackHandler, instrument
from langchain_openai import ChatOpenAI
from loopback import SURE, UNSURE, Reply, is_answer_call, said, thinking
from wire import HEAD

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import BackendError, EntropyChainsError, NoLogprobsError

KEY, HEADER = "sk-verysecret123", "hidden-header"
POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))
THOUGHT = thinking(UNSURE, UNSURE, SURE, SURE, SURE, SURE, answer="The answer is 42")
ANSWER = said("The answer is 42")
DEATHS = (BackendError, openai.APIError, httpx.TransportError)
"""Our own error where a stream just ends, for ``ChatOpenAI`` takes that for a whole reply; else the client's."""


def whole_run(request):
    return [*begin(), *events(THOUGHT, request.body), *end(len(THOUGHT.tokens))]


def answered(request):
    return [*begin(), *events(Reply(ANSWER), request.body), *end(len(ANSWER))]


def well(request):
    if not request.body.get("stream"):
        message = {"role": "assistant", "content": "The answer is 42"}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        return [whole(200, {"id": "c1", "object": "chat.completion", "created": 1, "model": "scripted", "choices": [choice]})]
    return answered(request) if is_answer_call(request.body) else whole_run(request)


def broken(request, act, at=50):
    """A run that begins well, and ends in the middle."""
    return [*begin(), *events(THOUGHT, request.body)[:at], act]


def chat(server, **settings):
    given = {"api_key": KEY, "max_retries": 0, "timeout": 30, "default_headers": {"X-Auth": HEADER}, "base_url": server.url}
    return ChatOpenAI(model="scripted", **(given | settings))


class Seen(BaseCallbackHandler):
    """All that a tracer is told."""

    raise_error = True

    def __init__(self):
        self.told, self.failed, self.ended = [], 0, 0

    def on_chat_model_start(self, serialized, messages, **kwargs):
        self.told.append(json.dumps([serialized, kwargs], default=repr))

    def on_chain_start(self, serialized, inputs, **kwargs):
        self.told.append(json.dumps([serialized, kwargs], default=repr))

    def on_llm_end(self, response, **kwargs):
        self.ended += 1
        self.told.append(response.model_dump_json())

    def on_llm_error(self, error, **kwargs):
        self.failed += 1
        self.told.append(repr(error))

    @property
    def text(self):
        return "\n".join(self.told)


def invoke(model, config=None):
    return model.invoke("What is 6*7?", config)


def stream(model, config=None):
    return list(model.stream("What is 6*7?", config))


def ainvoke(model, config=None):
    return asyncio.run(model.ainvoke("What is 6*7?", config))


def astream(model, config=None):
    async def run():
        return [c async for c in model.astream("What is 6*7?", config)]

    return asyncio.run(run())


WAYS = pytest.mark.parametrize("run", [invoke, stream, ainvoke, astream])


@WAYS
@pytest.mark.parametrize("act", [Act.CLOSE, Act.RESET])
def test_a_server_that_dies_while_it_thinks_is_one_error(run, act):
    """No half answer passes for one: the run fails once, and no socket stays open."""
    seen = Seen()
    with Hostile(lambda request: broken(request, act)) as server:
        with pytest.raises(DEATHS) as caught:
            run(EarlyStopChatModel(chat(server), POLICY), {"callbacks": [seen]})
        assert (seen.failed, seen.ended, len(server.requests)) == (1, 0, 1)
    assert KEY not in seen.text + str(caught.value)
    assert HEADER not in seen.text + str(caught.value)


@WAYS
@pytest.mark.parametrize("act", [Act.CLOSE, Act.RESET])
def test_a_server_that_dies_in_the_answer_after_a_stop_is_asked_in_full(run, act):
    """The question is run again without stopping, the user gets the answer, and the reason tells."""

    def script(request):
        return [*begin(), *events(Reply(ANSWER), request.body)[:2], act] if is_answer_call(request.body) else whole_run(request)

    seen = Seen()
    with Hostile(script) as server:
        found = run(EarlyStopChatModel(chat(server), POLICY), {"callbacks": [seen]})
    message = sum(found[1:], found[0]) if isinstance(found, list) else found
    assert message.text.endswith("The answer is 42")
    assert message.response_metadata["early_stop_stopped"] is False
    assert "could not be had" in message.response_metadata["early_stop_reason"]
    assert KEY not in seen.text


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_retry_and_a_fallback_take_over_from_a_dead_server(asynchronous):
    """``with_retry`` asks again and is stopped as ever; ``with_fallbacks`` answers; an agent with both in its model goes on."""
    run = ainvoke if asynchronous else invoke
    with Hostile(lambda request: broken(request, Act.CLOSE) if request.number == 0 else well(request)) as server:
        model = EarlyStopChatModel(chat(server), POLICY)
        message = run(model.with_retry(stop_after_attempt=2, wait_exponential_jitter=False))
        assert (message.content, message.response_metadata["early_stop_stopped"]) == ("The answer is 42", True)
    with Hostile(lambda request: broken(request, Act.CLOSE)) as server:
        other = EarlyStopChatModel(chat(server), POLICY).with_fallbacks([RunnableLambda(lambda _: AIMessage("else"))])
        assert run(other).content == "else"


def test_a_silent_server_is_left_when_the_clients_time_is_over():
    """The client's own timeout holds, and no socket stays open."""
    with Hostile(lambda request: broken(request, Act.SILENCE)) as server:
        with pytest.raises((openai.APITimeoutError, httpx.TimeoutException)):
            invoke(EarlyStopChatModel(chat(server, timeout=1), POLICY))
        assert server.empty()


# --- keys and headers


def shapes(server):
    """Ways to hold a model; a header is bound to each of them as well."""
    bound = {"extra_headers": {"Authorization": f"Bearer {KEY}", "X-Auth": HEADER}}
    wrapped = EarlyStopChatModel(chat(server), POLICY)
    prompt = ChatPromptTemplate.from_template("{q}")
    changed = instrument(chat(server, default_headers=None), POLICY)  # a ChatOpenAI's own settings LangChain tells itself
    asked = {"messages": [("user", "q")]}
    return {
        "bound inside": lambda c: EarlyStopChatModel(chat(server).bind(**bound), POLICY).invoke("q", c),
        "bound outside": lambda c: (prompt | wrapped.bind(**bound) | StrOutputParser()).invoke({"q": "q"}, c),
        "of the call": lambda c: list(wrapped.stream("q", c, **bound)),
        "instrumented": lambda c: changed.invoke("q", c, **bound),
        "refused": lambda c: wrapped.invoke("q", c, response_format={"type": "json_object"}, **bound),
        "agent": lambda c: create_agent(chat(server), middleware=[EarlyStopMiddleware(POLICY)]).invoke(asked, c),
    }


@pytest.mark.parametrize("shape", ["bound inside", "bound outside", "of the call", "instrumented", "refused", "agent"])
@pytest.mark.filterwarnings("ignore:this call is not stopped early")
def test_no_key_and_no_header_reaches_a_trace(shape):
    """Not those of the client, and not those bound to a call: neither parameters, metadata, outputs nor reprs hold them."""
    with Hostile(well) as server:
        seen, measured = Seen(), EntropyCallbackHandler(POLICY)
        shapes(server)[shape]({"callbacks": [measured, seen]})
        assert any(HEADER in str(r.headers) for r in server.requests)  # they were sent
        model = EarlyStopChatModel(chat(server), POLICY, bound={"extra_headers": {"X-Auth": HEADER}})
    everything = seen.text + repr(measured.summary()) + json.dumps(measured.summary().to_dict()) + repr(model) + str(model)
    everything += repr(model.model_dump())
    assert KEY not in everything
    assert HEADER not in everything


@pytest.mark.parametrize("made", [lambda m: m, lambda m: m.bind(temperature=0.5)], ids=["model", "binding"])
def test_errors_of_ours_hold_no_key(made):
    """A server that repeats the key it refuses: in the answer's request it is taken out of the reason."""

    def script(request):
        if is_answer_call(request.body):
            return [whole(401, {"error": {"message": f"Incorrect API key: {KEY}"}})]
        return whole_run(request)

    with Hostile(script) as server:
        message = EarlyStopChatModel(made(chat(server)), POLICY).invoke("q")
    assert message.content == "The answer is 42"
    assert KEY not in str(message)


def test_a_wrong_policy_stops_no_request():
    """Another model's policy is refused before anything is sent, with the remedy."""
    with Hostile(well) as server:
        with pytest.raises(EntropyChainsError, match="for_model"):
            EarlyStopChatModel(chat(server), Policy("another", (0.2,))).invoke("q")
        assert server.requests == []


@pytest.mark.parametrize("run", [invoke, ainvoke])
@pytest.mark.parametrize("about", ODD.values(), ids=ODD)
def test_whatever_a_server_says_of_itself_the_apps_call_is_made(run, about):
    """It is asked once, and what came is remembered: a silent one is not waited for again."""
    with Hostile(well, about=about) as server:
        model = EarlyStopChatModel(chat(server, timeout=0.3), POLICY)
        assert run(model).content == "The answer is 42"
        since = len(server.asked)
        run(model)
        assert len(server.asked) == since > 0


@pytest.mark.parametrize("where", ["key", "header", "address"])
@pytest.mark.parametrize("chosen", ["full", "error"])
def test_a_server_that_refuses_logprobs_and_repeats_a_secret(where, chosen):
    """It stands in no reason, warning or error of ours, whatever it looks like."""
    secret = "0123456789abcdef0123456789abcdef"

    def script(request):
        refused = {"error": {"message": f"{secret} is not allowed to request logprobs", "code": 403}}
        return [whole(403, refused)] if request.body.get("logprobs") else well(request)

    with Hostile(script) as server, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        given = {"key": {"api_key": secret}, "header": {"default_headers": {"X-Auth": secret}}, "address": {}}[where]
        url = server.url.replace("//", f"//me:{secret}@") if where == "address" else server.url
        model = EarlyStopChatModel(chat(server, **{"base_url": url, **given}), POLICY, without_logprobs=chosen)
        if chosen == "error":
            with pytest.raises(NoLogprobsError) as raised:
                model.invoke("q")
            told = str(raised.value)
        else:
            told = str(model.invoke("q"))
    assert "logprobs" in told
    assert secret not in told + "".join(str(each.message) for each in warned)


@pytest.mark.parametrize("run", [invoke, ainvoke])
@pytest.mark.parametrize(
    "chunk",
    [
        {"object": "error", "message": "no room", "code": 500},
        {**HEAD, "choices": [{"index": 0, "delta": {}, "finish_reason": "error", "error": {"code": 502, "message": "no room"}}]},
    ],
    ids=["object", "choice"],
)
def test_an_error_in_the_place_of_a_chunk_is_an_error(run, chunk):
    """Never an empty answer, and no TypeError of the client's; its text does not come through LangChain."""
    with (
        Hostile(lambda request: [*begin(), event(chunk), *end(reason=None)]) as server,
        pytest.raises(BackendError, match="stream"),
    ):
        run(EarlyStopChatModel(chat(server), POLICY))
