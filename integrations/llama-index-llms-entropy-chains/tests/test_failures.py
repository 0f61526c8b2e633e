"""Servers that misbehave, through LlamaIndex: one clear error or an answer, never a part of one, and no key in what is shown."""

from __future__ import annotations

import asyncio
import traceback

import httpx
import openai
import pytest
from hostile import Act, Hostile, begin, end, events, whole
from llama_index.core.llms import ChatMessage
from llama_index.llms.entropy_chains import EarlyStopLLM
from llama_index.llms.openai_like import OpenAILike
from loopback import SURE, UNSURE, Reply, is_answer_call, said, thinking

from entropy_chains.errors import BackendError
from entropy_chains.policy import Policy
from entropy_chains.steps import Segmentation

KEY, HEADER = "sk-verysecret123", "hidden-header"
POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))
ASKED = [ChatMessage(role="user", content="What is 6*7?")]
THOUGHT = thinking(UNSURE, UNSURE, SURE, SURE, SURE, SURE, answer="The answer is 42")
ANSWER = said("The answer is 42")
DEATHS = (BackendError, openai.APIError, httpx.TransportError)
"""Our own error where a stream just ends, which LlamaIndex takes for a whole reply; else the client's."""


def run(server, method, **settings):
    given = {"max_retries": 0, "timeout": 30, "default_headers": {"X-Auth": HEADER}, "is_chat_model": True}
    llm = EarlyStopLLM(OpenAILike(model="scripted", api_base=server.url, api_key=KEY, **given), POLICY, **settings)
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
