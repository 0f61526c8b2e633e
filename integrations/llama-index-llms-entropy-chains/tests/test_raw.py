"""``raw`` of calls that do not stream is what the plain class has there. The server is scripted (a fake: it thinks nothing)."""

from __future__ import annotations

import asyncio

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.llms.entropy_chains import EarlyStopLLM
from llama_index.llms.openai import OpenAIResponses
from llms import ANSWER, ASKED, KEY, LOOP, POLICY, TOOL, ask_all, inside, wrapped
from loopback import SURE, UNSURE, Loopback, Reply, is_answer_call, said, thinking
from openai.types.chat import ChatCompletionChunk

WHOLE = ["chat", "complete", "achat", "acomplete"]


def short(body):
    """Three short lines of thinking, unsure of the first, then the answer; where there are tools, a call."""
    if is_answer_call(body):
        return Reply(said(ANSWER))
    reply = thinking(UNSURE, SURE, SURE, words=34, answer=ANSWER)
    return (
        reply
        if not body.get("tools")
        else Reply(reply.tokens[: -len(ANSWER.split())], tools=[("multiply", {"a": 6}), ("multiply", {"a": 7})])
    )


@pytest.fixture(params=["reasoning_content", "reasoning", ""])
def server(request):
    """One that sends its reasoning in a field, or in the text."""
    with Loopback(short, field_name=request.param) as running:
        yield running


def asked(llm, method, **kwargs):
    (response,) = ask_all(llm, method, **kwargs)
    return response


def contents(raw, server):
    """What a reply says; its id is its own. Where thinking stands in the text, the server counts its tags in a stream only.

    Beside tool calls servers send no text as ``null`` or as an empty one.
    """
    said = raw.model_dump(exclude={"id", "created"} if server.field_name else {"id", "created", "usage"}, exclude_none=True)
    for choice in said["choices"]:
        if "tool_calls" in choice.get("message", ()):
            choice["message"].setdefault("content", "")
    return said


@pytest.mark.parametrize("chat_model", [True, False])
@pytest.mark.parametrize("method", WHOLE)
def test_a_run_in_full_has_the_raw_response_of_the_plain_class(server, method, chat_model):
    """Type, message, reasoning, finish reason and usage: an app that reads them goes on working."""
    settings = {"is_chat_model": chat_model}
    plain = asked(inside(server, **settings), method).raw
    raw = asked(wrapped(server, None, settings), method).raw
    assert type(raw) is type(plain)
    assert contents(raw, server) == contents(plain, server)


@pytest.mark.parametrize("method", ["chat", "achat"])
def test_tool_calls_stand_in_the_raw_response(server, method):
    """As objects of the class that the SDK makes of a reply; LlamaIndex reads them from the message as before."""
    plain, made = asked(inside(server), method, tools=[TOOL]), asked(wrapped(server, None), method, tools=[TOOL])
    assert contents(made.raw, server) == contents(plain.raw, server)
    kinds = [type(call) for call in plain.raw.choices[0].message.tool_calls]
    assert [type(call) for call in made.raw.choices[0].message.tool_calls] == kinds
    calls = [(call.tool_name, call.tool_kwargs) for call in wrapped(server).get_tool_calls_from_response(made)]
    assert calls == [("multiply", {"a": 6}), ("multiply", {"a": 7})]


@pytest.mark.parametrize("method", WHOLE)
def test_a_stopped_run_has_a_whole_raw_response(server, method):
    """The text is the response's, the reasoning that up to the stop, and the usage what was made in all requests."""
    response = asked(wrapped(server), method)
    told, raw = response.additional_kwargs, response.raw
    assert told["early_stop_stopped"]
    (choice,) = raw.choices
    assert (choice.finish_reason, raw.model) == ("stop", "scripted")
    assert choice.message.content == (response.text if "complete" in method else response.message.content)
    assert choice.message.content.endswith(ANSWER)
    if server.field_name:
        reasoning = getattr(choice.message, server.field_name)
        assert reasoning.startswith("step1")
        assert "step3" not in reasoning
    usage = (raw.usage.prompt_tokens, raw.usage.completion_tokens, raw.usage.total_tokens)
    assert usage == (told["prompt_tokens"], told["completion_tokens"], told["total_tokens"])
    assert usage[1] == told["early_stop_tokens"] > len(ANSWER.split())


@pytest.mark.parametrize("method", ["chat", "achat"])
def test_the_loop_has_a_whole_raw_response(server, method):
    """Its text is the last call's; its tokens are those of all calls."""
    response = asked(wrapped(server, LOOP, mode="refine", max_steps=2), method)
    raw, told = response.raw, response.additional_kwargs
    assert raw.choices[0].message.content == response.message.content
    assert raw.usage.completion_tokens == told["completion_tokens"] == sum(c.made for c in server.calls)


@pytest.mark.parametrize("method", ["stream_chat", "astream_chat"])
def test_a_stream_keeps_its_chunks(server, method):
    """Each response has the chunk that it was made of, as without the wrapper."""
    responses = ask_all(wrapped(server), method)
    assert {type(response.raw) for response in responses} == {ChatCompletionChunk}


@pytest.mark.parametrize("streaming", [False, True])
def test_an_agent_gets_a_raw_response_as_before(server, streaming):
    """``AgentOutput.raw`` of a step that does not stream is a whole reply's."""
    raws = []
    for llm in (inside(server), wrapped(server, None)):
        agent = FunctionAgent(llm=llm, streaming=streaming, timeout=20)

        async def run(agent=agent):
            return await agent.run("6*7?")

        raws.append(asyncio.run(run()).raw)
    assert raws[0]["object"] == raws[1]["object"]
    assert bool(raws[1]["choices"]) is not streaming


def test_a_token_counter_counts_each_request_once(server):
    """LlamaIndex's reads ``raw`` of the inner LLM's events; their sum is that of the raw response."""
    counter = TokenCountingHandler(tokenizer=str.split)
    llm = EarlyStopLLM(inside(server, callback_manager=CallbackManager([counter])), POLICY)
    response = llm.chat(ASKED)
    assert counter.completion_llm_token_count == response.raw.usage.completion_tokens


def test_the_responses_api_has_its_response():
    """In the place of the event that ends a stream."""
    with Loopback(short, field_name="") as server:
        llm = OpenAIResponses("gpt-4o", api_base=server.url, api_key=KEY)
        with pytest.warns(UserWarning, match="Responses API"):
            wrapper = EarlyStopLLM(llm, policy=None)
        raw = wrapper.chat(ASKED).raw
    assert raw.object == "response"
