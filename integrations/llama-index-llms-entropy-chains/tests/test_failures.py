"""Servers that misbehave, through LlamaIndex: one clear error or an answer, never a part of one, and no key in what is shown."""

from __future__ import annotations

import asyncio
import traceback
import warnings

import httpx
import openai
import pytest
from hostile import ODD, Act, Hostile, begin, end, event, events, whole
from llama_index.core.llms import ChatMessage
from llama_index.llms.entropy_chains import EarlyStopLLM
from llama_index.llms.openai_like import OpenAILike
from loopback import SURE, UNSURE, Reply, is_answer_call, said, thinking
from wire import HEAD

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import BackendError, NoLogprobsError

KEY, HEADER = "sk-verysecret123", "hidden-header"
POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))
ASKED = [ChatMessage(role="user", content="What is 6*7?")]
THOUGHT = thinking(UNSURE, UNSURE, SURE, SURE, SURE, SURE, answer="The answer is 42")
ANSWER = said("The answer is 42")
DEATHS = (BackendError, openai.APIError, httpx.TransportError)
"""Our own error where a stream just ends, which LlamaIndex takes for a whole reply; else the client's."""


def inside(url, **settings):
    given = {"max_retries": 0, "timeout": 30, "default_headers": {"X-Auth": HEADER}, "is_chat_model": True, "api_key": KEY}
    return OpenAILike(model="scripted", api_base=url, **(given | settings))


def run(server, method, **settings):
    return ask(EarlyStopLLM(inside(server.url), POLICY, **settings), method)


def ask(llm, method):
    return asyncio.run(llm.achat(ASKED)) if method == "achat" else llm.chat(ASKED)


def whole_run(request):
    return [*begin(), *events(THOUGHT, request.body), *end(len(THOUGHT.tokens))]


def answered(request):
    return [*begin(), *events(Reply(ANSWER), request.body), *end(len(ANSWER))]


@pytest.mark.parametrize("method", ["chat", "achat"])
@pytest.mark.parametrize("act", [Act.CLOSE, Act.RESET])
def test_a_server_that_dies_in_the_thinking_is_an_error(act, method):
    """Never the part that came, as if it were a whole reply; no key or header in the error."""

    def script(request):
        return [*begin(), *events(THOUGHT, request.body)[:50], act]

    with Hostile(script) as server, pytest.raises(DEATHS) as raised:
        run(server, method)
    shown = "".join(traceback.format_exception(raised.value)) + repr(raised.value)
    assert KEY not in shown
    assert HEADER not in shown


@pytest.mark.parametrize("method", ["chat", "achat"])
@pytest.mark.parametrize("act", [Act.CLOSE, Act.RESET])
def test_a_server_that_dies_in_the_answer_is_asked_in_another_way(act, method):
    """After a stop the answer's first request breaks off: the next way gives it, whole."""
    answers = []

    def script(request):
        if not is_answer_call(request.body):
            return whole_run(request)
        answers.append(request)
        return [*begin(), *events(Reply(ANSWER), request.body)[:2], act] if len(answers) == 1 else answered(request)

    with Hostile(script) as server:
        made = run(server, method, continuation=("prefill", "turn"))
    assert made.message.content == "The answer is 42"
    assert len(answers) == 2


@pytest.mark.parametrize("method", ["chat", "achat"])
def test_where_no_answer_can_be_had_the_run_is_a_full_one_and_shows_no_key(method):
    """Every request after the stop is refused, by a server that repeats the key: the question is run in full."""

    def script(request):
        refused = {"error": {"message": f"bad key {KEY}", "code": 401}}
        return [whole(401, refused)] if is_answer_call(request.body) else whole_run(request)

    with Hostile(script) as server:
        made = run(server, method)
    assert made.message.content == "The answer is 42"
    assert made.additional_kwargs["early_stop_stopped"] is False
    assert KEY not in repr(made)


@pytest.mark.parametrize("method", ["chat", "achat"])
@pytest.mark.parametrize("about", ODD.values(), ids=ODD)
def test_whatever_a_server_says_of_itself_the_apps_call_is_made(method, about):
    """It is asked once, and what came is remembered: a silent one is not waited for again."""

    def script(request):
        return answered(request) if is_answer_call(request.body) else whole_run(request)

    with Hostile(script, about=about) as server:
        llm = EarlyStopLLM(inside(server.url, timeout=0.3), POLICY)
        assert ask(llm, method).message.content == "The answer is 42"
        since = len(server.asked)
        ask(llm, method)
        assert len(server.asked) == since > 0


@pytest.mark.parametrize("method", ["chat", "achat"])
def test_where_there_is_no_server_the_llms_own_error_comes(method):
    """As without the wrapper; and once there is one it is asked who it is."""
    with Hostile(whole_run) as server:
        url = server.url
    raised = []
    for llm in (inside(url), EarlyStopLLM(inside(url), POLICY)):
        with pytest.raises(openai.APIConnectionError) as caught:
            ask(llm, method)
        raised.append((type(caught.value), str(caught.value)))
    assert raised[0] == raised[1]
    assert llm._learnt.server is None


@pytest.mark.parametrize("where", ["api_key", "header"])
@pytest.mark.parametrize("chosen", ["full", "error"])
def test_a_server_that_refuses_logprobs_and_repeats_a_secret(where, chosen):
    """It stands in no reason, warning or error of ours, whatever it looks like."""
    secret = "0123456789abcdef0123456789abcdef"

    def script(request):
        refused = {"error": {"message": f"{secret} is not allowed to request logprobs", "code": 403}}
        return [whole(403, refused)] if request.body.get("logprobs") else whole_run(request)

    given = {"api_key": secret} if where == "api_key" else {"default_headers": {"X-Auth": secret}}
    with Hostile(script) as server, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        llm = EarlyStopLLM(inside(server.url, **given), POLICY, without_logprobs=chosen)
        if chosen == "error":
            with pytest.raises(NoLogprobsError) as raised:
                llm.chat(ASKED)
            told = str(raised.value)
        else:
            told = str(llm.chat(ASKED).additional_kwargs)
    assert "logprobs" in told
    assert secret not in told + "".join(str(each.message) for each in warned)


@pytest.mark.parametrize("method", ["chat", "achat"])
@pytest.mark.parametrize(
    "chunk",
    [
        {"object": "error", "message": "no room", "code": 500},
        {**HEAD, "choices": [{"index": 0, "delta": {}, "finish_reason": "error", "error": {"code": 502, "message": "no room"}}]},
    ],
    ids=["object", "choice"],
)
def test_an_error_in_the_place_of_a_chunk_is_an_error(method, chunk):
    """Never an empty answer, and no TypeError of the LLM's, but what the server said."""
    with (
        Hostile(lambda request: [*begin(), event(chunk), *end(reason=None)]) as server,
        pytest.raises(BackendError, match="error in the stream: no room"),
    ):
        run(server, method)


@pytest.mark.parametrize("method", ["chat", "achat"])
def test_a_chunk_without_choices_is_passed_over(method):
    """As the core does it: it says nothing."""
    odd = {**HEAD, "choices": None}

    def script(request):
        first, *rest = answered(request) if is_answer_call(request.body) else whole_run(request)
        return [first, event(odd), *rest]

    with Hostile(script) as server:
        assert run(server, method).message.content == "The answer is 42"
