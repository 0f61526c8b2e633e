"""Servers that refuse what only early stopping sends: an app that worked before goes on working. They are scripted (fakes)."""

from __future__ import annotations

import asyncio
import warnings

import openai
import pytest
from chats import ainvoke, astream, chat, invoke, stream
from hostile import Hostile, whole
from langchain_entropy_chains import EarlyStopChatModel, instrument
from llama_index.llms.entropy_chains import EarlyStopLLM
from llms import ASKED as MESSAGES
from llms import inside
from loopback import Loopback, Reply, asks_logprobs

from entropy_chains.backends.openai import AsyncOpenAIBackend, OpenAIBackend
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import BackendError
from scripts import quick

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))
CONVERSATION = [{"role": "user", "content": "What is 6*7?"}]
OPTIONS = {
    "named": Reply(status=400, message="Unrecognized request argument supplied: stream_options"),
    "extra": Reply(status=422, message="stream_options: Extra inputs are not permitted"),
}
UNNAMED = {
    "400": Reply(status=400, message="Invalid request parameters"),
    "405": Reply(status=405, message="Method not supported here"),
    "406": Reply(status=406, message="Not acceptable"),
    "422": Reply(status=422, message="Unprocessable"),
}
NO_STREAM = Reply(status=400, message="Your organization must be verified to stream this model.")


def core(server, policy=POLICY, count=1, **settings):
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        backend = OpenAIBackend(client, "scripted", **{"without_logprobs": "full", **settings})
        runs = [backend.generate([CONVERSATION], policy=policy)[0] for _ in range(count)]
    return [(run.answer, run.outcome.metadata()) for run in runs]


def acore(server, policy=POLICY, count=1):
    async def runs():
        async with openai.AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
            backend = AsyncOpenAIBackend(client, "scripted", without_logprobs="full")
            return [(await backend.agenerate([CONVERSATION], policy=policy))[0] for _ in range(count)]

    return [(run.answer, run.outcome.metadata()) for run in asyncio.run(runs())]


def in_langchain(ask):
    def calls(server, policy=POLICY, count=1, **settings):
        model = EarlyStopChatModel(chat(server, **settings), policy)
        messages = [ask(model, "What is 6*7?") for _ in range(count)]
        return [(message.content, message.response_metadata) for message in messages]

    return calls


def in_llama_index(ask):
    def calls(server, policy=POLICY, count=1, **settings):
        llm = EarlyStopLLM(inside(server, max_retries=0, **settings), policy)
        responses = [ask(llm) for _ in range(count)]
        return [(response.message.content, response.additional_kwargs) for response in responses]

    return calls


def astreamed(llm):
    async def last():
        return [response async for response in await llm.astream_chat(MESSAGES)][-1]

    return asyncio.run(last())


APPS = {
    "invoke": in_langchain(invoke),
    "ainvoke": in_langchain(ainvoke),
    "stream": in_langchain(stream),
    "astream": in_langchain(astream),
    "chat": in_llama_index(lambda llm: llm.chat(MESSAGES)),
    "achat": in_llama_index(lambda llm: asyncio.run(llm.achat(MESSAGES))),
    "stream_chat": in_llama_index(lambda llm: list(llm.stream_chat(MESSAGES))[-1]),
    "astream_chat": in_llama_index(astreamed),
}
CALLS = {"core": core, "core, async": acore, **APPS}


def refused(what, reply, script=quick):
    """A server that refuses requests of which ``what`` is true."""
    return Loopback(lambda body: reply if what(body) else script(body))


def told(calls, *args, **settings):
    """What calls gave, and what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        replies = calls(*args, **settings)
    return replies, [str(each.message) for each in caught if each.category is UserWarning]


def has_options(body):
    return bool(body.get("stream_options"))


@pytest.mark.parametrize("reply", OPTIONS)
@pytest.mark.parametrize("call", CALLS)
def test_without_stream_options_a_run_is_stopped_all_the_same(call, reply):
    """Asked again without them, once: later calls do not ask for them; logprobs stay."""
    with refused(has_options, OPTIONS[reply]) as server:
        replies, _ = told(CALLS[call], server, count=2)
        asked = [(has_options(each.body), asks_logprobs(each.body)) for each in server.calls]
    assert [text.rpartition("\n")[2] for text, _ in replies] == ["42", "42"]
    assert all(table["early_stop_stopped"] for _, table in replies)
    assert asked == [(True, True), (False, True), (False, False), (False, True), (False, False)]


@pytest.mark.parametrize(("call", "settings"), [("chat", "additional_kwargs"), ("invoke", "model_kwargs")])
def test_the_users_own_stream_options_are_kept(call, settings):
    """What early stopping asks for comes beside them, and does not replace them."""
    own = {"include_usage": False, "of_mine": 1}
    with Loopback(quick) as server:
        CALLS[call](server, **{settings: {"stream_options": own}})
        sent = server.calls[0].body["stream_options"]
    assert {name: sent[name] for name in own} == own


@pytest.mark.parametrize("reply", UNNAMED)
@pytest.mark.parametrize("call", CALLS)
def test_a_client_error_that_names_nothing_may_be_about_logprobs(call, reply):
    """The request is sent once without what was added; that it is answered then is remembered, and said."""
    with refused(asks_logprobs, UNNAMED[reply]) as server:
        replies, said = told(CALLS[call], server, count=2)
        asked = [asks_logprobs(each.body) for each in server.calls]
    assert [text for text, _ in replies] == ["42", "42"]
    assert [table["early_stop_active"] for _, table in replies] == [False, False]
    assert asked == [True, False, False]
    assert len(said) == 1
    assert "refuses the request with logprobs" in said[0]
    assert UNNAMED[reply].message in said[0]


@pytest.mark.parametrize("call", CALLS)
def test_an_error_of_the_users_own_is_raised_as_it_is(call):
    """It is sent twice, once: the same error of a later call is passed on at once, and nothing is taken for refused."""
    with refused(lambda body: True, UNNAMED["400"]) as server:
        for _ in range(2):
            with pytest.raises((openai.BadRequestError, BackendError), match="Invalid request parameters"):
                CALLS[call](server)
        with_logprobs = [asks_logprobs(each.body) for each in server.calls]
    assert with_logprobs == [True, False] * 2  # two clients


@pytest.mark.parametrize("call", ["invoke", "chat"])
def test_the_second_time_the_same_client_passes_it_on(call):
    """Errors by their text; and after a call that was answered, all of them."""
    answers = [Reply(status=400, message="odd"), Reply(status=400, message="odd"), Reply(status=400, message="odd")]
    with Loopback(lambda body: answers.pop() if answers else quick(body)) as server:
        model = (
            EarlyStopChatModel(chat(server), POLICY) if call == "invoke" else EarlyStopLLM(inside(server, max_retries=0), POLICY)
        )

        def ask():
            return model.invoke("What is 6*7?") if call == "invoke" else model.chat(MESSAGES)

        for _ in range(2):
            with pytest.raises(openai.BadRequestError, match="odd"):
                ask()
        assert len(server.calls) == 3
        ask()
        count = len(server.calls)
        answers.append(Reply(status=400, message="another"))
        with pytest.raises(openai.BadRequestError, match="another"):
            ask()
        assert len(server.calls) == count + 1


@pytest.mark.parametrize(
    "message", ["This model's maximum context length is 4096 tokens", "Your prompt was flagged by our content policy"]
)
def test_errors_of_the_question_are_not_asked_twice(message):
    """They name what is at fault."""
    with refused(lambda body: True, Reply(status=400, message=message)) as server:
        with pytest.raises(openai.BadRequestError, match=message[:20]):
            APPS["invoke"](server)
        assert len(server.calls) == 1


def test_where_logprobs_are_needed_the_error_names_them():
    """The core's default: it is raised at once, and says that they may be at fault, and what to do."""
    with refused(asks_logprobs, UNNAMED["400"]) as server:
        with pytest.raises(BackendError, match=r"Invalid request parameters; the request asks for logprobs.*without_logprobs='"):
            core(server, without_logprobs="error")
        assert len(server.calls) == 1


@pytest.mark.parametrize("policy", [POLICY, None])
@pytest.mark.parametrize("call", APPS)
def test_a_server_that_does_not_stream_is_asked_for_the_whole_reply(call, policy):
    """As the app itself would ask it: said once, remembered, not active; later calls are one request."""
    with refused(lambda body: bool(body.get("stream")), NO_STREAM) as server:
        replies, said = told(CALLS[call], server, policy, count=2)
        asked = [bool(each.body.get("stream")) for each in server.calls]
        assert not any(has_options(each.body) or "stream_usage" in each.body for each in server.calls[1:])
    assert [text for text, _ in replies] == ["42", "42"]
    assert asked == [True, False, False]
    assert not any(table["early_stop_active"] for _, table in replies)
    assert all("refuses to stream" in table["early_stop_reason"] for _, table in replies if policy)
    assert len(said) == 1
    assert "verified to stream" in said[0]


def test_an_instrumented_model_and_one_that_is_switched_off_do_not_stream_either():
    """The off switch restores the app."""

    def ask(server):
        model, off = chat(server), EarlyStopChatModel(chat(server), POLICY)
        instrument(model, POLICY)
        return [model.invoke("What is 6*7?"), off.invoke("What is 6*7?", {"configurable": {"early_stop": False}})]

    with refused(lambda body: bool(body.get("stream")), NO_STREAM) as server:
        messages, said = told(ask, server)
    assert [message.content for message in messages] == ["42", "42"]
    assert all("verified to stream" in each for each in said)


def test_the_core_names_streaming_where_it_is_refused():
    """Its replies are streams."""
    with refused(lambda body: True, NO_STREAM) as server, pytest.raises(BackendError, match="verified to stream"):
        core(server)


TOOL = {"id": "call_1", "type": "function", "function": {"name": "multiply", "arguments": '{"a": 6}'}}


def completion(request):
    """A finished chat completion, longer than a connection's buffer, whatever was asked for."""
    tools = {"tool_calls": [TOOL]} if request.body.get("tools") else {}
    message = {"role": "assistant", "content": None if tools else "42", "reasoning_content": "so it is\n" * 1000, **tools}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if tools else "stop", "logprobs": None}
    usage = {"prompt_tokens": 5, "completion_tokens": 4000, "total_tokens": 4005}
    head = {"id": "c1", "object": "chat.completion", "created": 1, "model": "scripted"}
    return [whole(200, {**head, "choices": [choice], "usage": usage})]


@pytest.mark.parametrize("call", CALLS)
def test_a_whole_reply_in_the_place_of_a_stream_is_the_reply(call):
    """It was paid for: it is taken as it is, not measured, and that is said."""
    with Hostile(completion) as server:
        ((text, table),), said = told(CALLS[call], server)
        assert len(server.requests) == 1
    assert text == "42"
    assert (table["early_stop_active"], table["early_stop_stopped"], table["early_stop_tokens"]) == (False, False, 4000)
    assert "whole" in table["early_stop_reason"]
    assert len(said) == 1


def test_its_tool_calls_are_the_replys():
    """In LangChain as in LlamaIndex."""
    tool = {"type": "function", "function": {"name": "multiply", "parameters": {"type": "object", "properties": {}}}}

    def ask(server):
        llm = EarlyStopLLM(inside(server), POLICY)
        message = EarlyStopChatModel(chat(server), POLICY).bind_tools([tool]).invoke("What is 6*7?")
        return message, llm.get_tool_calls_from_response(llm.chat(MESSAGES, tools=[tool]))

    with Hostile(completion) as server:
        (message, calls), _ = told(ask, server)
    assert [(each["name"], each["args"]) for each in message.tool_calls] == [("multiply", {"a": 6})]
    assert [(each.tool_name, each.tool_kwargs) for each in calls] == [("multiply", {"a": 6})]
