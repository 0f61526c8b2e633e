"""``EarlyStopLLM`` over real HTTP against the scripted server of the tests (a fake: it thinks nothing)."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from llama_index.core.base.llms.types import ThinkingBlock
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.llms import ChatMessage, MockLLM, TextBlock
from llama_index.core.prompts import PromptTemplate
from llama_index.llms.entropy_chains import EarlyStopLLM
from llama_index.llms.openai import OpenAIResponses
from llama_index.llms.openai_like import OpenAILike
from llama_index_instrumentation.dispatcher import instrument_tags
from loopback import SURE, UNSURE, Loopback, Reply, is_answer_call, said, sums, thinking
from pydantic import BaseModel

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import NoLogprobsError, PolicyError, PolicyMismatch, SettingsError

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))
LOOP = Policy("scripted", (0.2,), mode="refine", segmentation=Segmentation("call", 1))
ASKED = [ChatMessage(role="user", content="What is 6*7?")]
ANSWER = "The answer is 42"
KEY = "sk-do-not-show-me"
TOOL = {"type": "function", "function": {"name": "multiply", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture
def server():
    with Loopback() as running:
        yield running


def inside(server: Loopback, **settings: Any) -> OpenAILike:
    given = {"is_chat_model": True, "is_function_calling_model": True, "context_window": 8000} | settings
    return OpenAILike(model="scripted", api_base=server.url, api_key=KEY, **given)


def wrapped(server: Loopback, policy: Any = POLICY, inner: dict[str, Any] | None = None, **settings: Any) -> EarlyStopLLM:
    return EarlyStopLLM(llm=inside(server, **(inner or {})), policy=policy, **settings)


def stopped(server: Loopback) -> bool:
    """The first request was closed near the third line, and the second one asked for the answer."""
    server.settled()
    first, second = server.calls
    return first.gone and first.made < first.planned and is_answer_call(second.body)


def ask_all(llm: EarlyStopLLM, method: str, **kwargs: Any) -> list[Any]:
    """Every response of one of the eight methods."""
    asked: Any = ASKED if "chat" in method else "What is 6*7?"

    async def run() -> list[Any]:
        made = await getattr(llm, method)(asked, **kwargs)
        return [r async for r in made] if "stream" in method else [made]

    if method.startswith("a"):
        return asyncio.run(run())
    made = getattr(llm, method)(asked, **kwargs)
    return list(made) if "stream" in method else [made]


def text_of(response: Any) -> str:
    return response.message.content if hasattr(response, "message") else response.text


METHODS = [f"{a}{s}{m}" for a in ("", "a") for s in ("", "stream_") for m in ("chat", "complete")]


@pytest.mark.parametrize("chat_model", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_stops_and_answers(method, chat_model):
    """All eight, on chat and on completion models: the last response has the answer, the outcome, and both requests' tokens."""
    with Loopback(field_name="reasoning" if chat_model else "") as server:
        responses = ask_all(wrapped(server, inner={"is_chat_model": chat_model}), method)
        assert stopped(server)
        told = responses[-1].additional_kwargs
        made = server.calls[1].made
    assert text_of(responses[-1]).endswith(ANSWER)
    assert (told["early_stop_stopped"], told["early_stop_step"], told["early_stop_active"]) == (True, 3, True)
    assert told["completion_tokens"] == told["early_stop_tokens"] == (120 if chat_model else 122) + made  # <think> is two more
    assert told["total_tokens"] == told["prompt_tokens"] + told["completion_tokens"]
    if "stream" in method:
        assert "".join(r.delta or "" for r in responses) == text_of(responses[-1])
        assert responses[-1].delta == ""


def test_the_stream_looks_like_the_inner_llms_own(server):
    """Thinking arrives as ThinkingBlock and ``thinking_delta``, the answer in ``content``, blocks in the inner class's order."""
    responses = ask_all(wrapped(server), "stream_chat")
    thought = "".join(r.additional_kwargs.get("thinking_delta", "") for r in responses)
    blocks = responses[-1].message.blocks
    assert [type(b) for b in blocks] == [ThinkingBlock, TextBlock]
    assert blocks[0].content == thought
    assert thought.count("\n") == 3
    assert responses[-1].message.additional_kwargs == {}


def test_thinking_inside_the_content_is_closed_there():
    """Where the inner LLM leaves the tags in the text, a stopped reply reads as one whose thinking ended by itself."""
    with Loopback(field_name="") as server:
        text = text_of(ask_all(wrapped(server), "chat")[-1])
    assert text.startswith("<think>\n")
    assert text.endswith(f"step3\n</think>\n\n{ANSWER}")


@pytest.mark.parametrize("off", ["environment", "field", "call", "holdout", "no policy"])
@pytest.mark.parametrize("method", ["chat", "astream_chat"])
def test_switched_off_it_runs_in_full_and_says_why(server, monkeypatch, off, method):
    """One request, read to its end, the server's own count, and the step where it would have stopped."""
    settings = {"field": {"early_stop": False}, "holdout": {"holdout": 1.0}, "no policy": {"policy": None}}.get(off, {})
    if off == "environment":
        monkeypatch.setenv("ENTROPY_CHAINS_STOP", "0")
    llm = wrapped(server, **settings)
    told = ask_all(llm, method, **({"early_stop": False} if off == "call" else {}))[-1].additional_kwargs
    assert [c.gone for c in server.calls] == [False]
    assert "early_stop" not in server.calls[0].body
    assert (told["early_stop_active"], told["early_stop_stopped"]) == (False, False)
    assert told["early_stop_reason"].split(":")[0] in ("stopping is switched off", "holdout", "no policy")
    assert told["completion_tokens"] == server.made
    assert told.get("early_stop_step") == (None if off == "no policy" else 3)


def test_a_run_keeps_its_side_of_the_holdout(server):
    """Calls under one ``run_id`` share their side; the share drawn is about the one asked for; without a name it warns."""
    llm = wrapped(server, holdout=0.5)
    sides = []
    for n in range(12):
        with instrument_tags({"run_id": f"run {n}"}):
            sides.append({llm._held() for _ in range(3)})
    assert all(len(s) == 1 for s in sides)
    assert {frozenset(s) for s in sides} == {frozenset({True}), frozenset({False})}
    with pytest.warns(UserWarning, match="run_id"):
        llm.chat(ASKED)


STRUCTURED = {
    "response_format": {"response_format": {"type": "json_object"}},
    "extra_body": {"extra_body": {"structured_outputs": {"regex": "a+"}}},
    "forced tool": {"tools": [TOOL], "tool_choice": "required"},
}


@pytest.mark.parametrize("where", ["call", "llm"])
@pytest.mark.parametrize("form", STRUCTURED)
def test_structured_output_is_never_cut(server, form, where):
    """Wherever it is asked for, per call or on the inner LLM, the reply is one whole request."""
    given = STRUCTURED[form]
    if where == "llm" and form == "forced tool":
        pytest.skip("tools come with a call")
    llm = wrapped(server, inner={"additional_kwargs": given} if where == "llm" else {})
    told = llm.chat(ASKED, **(given if where == "call" else {})).additional_kwargs
    assert [c.gone for c in server.calls] == [False]
    assert "never cut" in told["early_stop_reason"]


class Product(BaseModel):
    """What 6*7 is."""

    value: int


@pytest.mark.parametrize("asynchronously", [False, True])
def test_structured_predict_is_the_inner_llms(asynchronously):
    """A demanded tool call is made by one request without logprobs, as without the wrapper."""
    with Loopback(lambda body: Reply(said(""), tools=[("Product", {"value": 42})])) as server:
        llm, asked = wrapped(server), (Product, PromptTemplate("6*7?"))
        made = asyncio.run(llm.astructured_predict(*asked)) if asynchronously else llm.structured_predict(*asked)
        (call,) = server.calls
    assert made == Product(value=42)
    assert not call.body.get("logprobs")
    assert llm.as_structured_llm(Product).llm is llm


def with_tool(body: dict[str, Any]) -> Reply:
    """Thinks, sure from the third line on, then calls; after a stop it calls at once."""
    if is_answer_call(body):
        return Reply(tools=[("multiply", {"a": 6})])
    return Reply(thinking(UNSURE, UNSURE, SURE, SURE, SURE, answer="x").tokens[:-1], tools=[("multiply", {"a": 6})], pace=0.0005)


@pytest.mark.parametrize("owner", ["vllm", "unknown"])
@pytest.mark.parametrize("method", ["chat", "astream_chat"])
def test_a_tool_call_after_a_stop_passes_through(method, owner):
    """The thinking before it is cut, the call is whole, and a server without prefill is not told to give up the call."""
    with Loopback(with_tool, owned_by=owner) as server:
        llm = wrapped(server)
        response = ask_all(llm, method, tools=[TOOL])[-1]
        assert stopped(server)
        if owner == "unknown":
            assert "call a tool" in server.calls[1].body["messages"][-1]["content"]
        assert server.calls[1].body["tools"] == [TOOL]
    (call,) = llm.get_tool_calls_from_response(response)
    assert (call.tool_name, call.tool_kwargs) == ("multiply", {"a": 6})


@pytest.mark.parametrize("method", ["chat", "astream_chat"])
def test_llama_cpp_refuses_logprobs_with_tools_so_the_call_is_whole(method):
    """Its 400 would break an agent that worked before: no logprobs are asked for, the call runs in full, and says why."""

    def script(body: dict[str, Any]) -> Reply:
        if body.get("tools") and body.get("logprobs"):
            return Reply(status=400, message="logprobs is not supported with tools + stream")
        return with_tool(body)

    with Loopback(script, owned_by="llamacpp") as server:
        llm = wrapped(server)
        with pytest.warns(UserWarning, match="no logprobs on reasoning tokens"):
            response = ask_all(llm, method, tools=[TOOL])[-1]
        assert [(c.gone, "top_logprobs" in c.body) for c in server.calls] == [(False, False)]
    assert [c.tool_name for c in llm.get_tool_calls_from_response(response)] == ["multiply"]
    told = response.additional_kwargs
    assert (told["early_stop_active"], told["early_stop_stopped"]) == (False, False)
    assert told["early_stop_reason"].startswith("llama.cpp sends no logprobs on a streamed call with tools")


def test_text_before_a_tool_call_after_a_stop_is_kept():
    """Both are in the last response, also where the text is settled only at the stream's end."""

    def script(body: dict[str, Any]) -> Reply:
        return Reply(said("I call"), tools=[("multiply", {"a": 6})]) if is_answer_call(body) else with_tool(body)

    with Loopback(script) as server:
        llm = wrapped(server)
        response = llm.chat(ASKED, tools=[TOOL])
    assert response.message.content == "I call"
    assert [c.tool_name for c in llm.get_tool_calls_from_response(response)] == ["multiply"]


def test_nothing_is_cut_once_a_tool_call_has_begun():
    """A call that comes without any answer is handed on as it is, and the reason says so."""

    def script(body: dict[str, Any]) -> Reply:
        return Reply(thinking(UNSURE).tokens[:-1], tools=[("multiply", {"a": 6})])

    with Loopback(script) as server:
        response = wrapped(server).chat(ASKED, tools=[TOOL])
        assert len(server.calls) == 1
    assert response.additional_kwargs["early_stop_reason"] == "a tool call has begun"
    assert response.message.additional_kwargs["tool_calls"]


def test_the_callers_history_is_not_appended_to(server):
    """OpenAI's class appends the user's message to the list that it is given; through the wrapper the list stays."""
    history: list[ChatMessage] = []
    wrapped(server).chat_with_tools([], user_msg="6*7?", chat_history=history)
    assert history == []


@pytest.mark.parametrize("field", ["reasoning", ""])
@pytest.mark.parametrize("method", ["stream_chat", "astream_chat"])
def test_a_rule_that_reads_answers_probes_beside_the_stream(method, field):
    """Two probes agree: the second one's answer is the run's, the stream is closed, and all tokens are counted."""
    policy = Policy("scripted", (9.0,), rule="entropy+agreement", segmentation=Segmentation("line", 32))
    with Loopback(field_name=field) as server:
        responses = ask_all(wrapped(server, policy), method)
        server.settled()
        assert [is_answer_call(c.body) for c in server.calls] == [False, True, True]
        assert server.calls[0].gone
    assert text_of(responses[-1]).endswith(ANSWER)
    assert "".join(r.delta or "" for r in responses) == text_of(responses[-1])
    assert text_of(responses[-1]).count("</think>") == (field == "")
    assert responses[-1].additional_kwargs["early_stop_step"] == 2


@pytest.mark.parametrize("method", ["chat", "astream_chat"])
def test_the_entropy_of_a_tried_answer_stops(method):
    """The first probe is sure enough: it was asked for with logprobs, its answer is the run's, and the stream is closed."""
    policy = Policy("scripted", (9.0,), signal="trial_entropy", segmentation=Segmentation("line", 32))
    with Loopback() as server:
        response = ask_all(wrapped(server, policy), method)[-1]
        server.settled()
        assert [is_answer_call(c.body) for c in server.calls] == [False, True]
        assert (server.calls[1].body["logprobs"], server.calls[1].body["top_logprobs"]) == (True, 20)
        assert server.calls[0].gone
    assert text_of(response) == ANSWER
    assert (response.additional_kwargs["early_stop_step"], response.additional_kwargs["early_stop_threshold"]) == (1, 9.0)
    assert response.additional_kwargs["early_stop_entropy"] <= 9.0


def test_a_malformed_answer_is_replaced_by_a_full_run():
    """An empty answer after the stop is none: the question is run in full, and both are counted."""

    def script(body: dict[str, Any]) -> Reply:
        return Reply(said("")) if is_answer_call(body) else sums(body)

    with Loopback(script) as server:
        response = wrapped(server).chat(ASKED)
        assert len(server.calls) == 3
        assert response.additional_kwargs["completion_tokens"] == 120 + server.calls[1].made + server.calls[2].made
    assert response.message.content == ANSWER
    assert response.additional_kwargs["early_stop_stopped"] is False


def test_a_server_without_prefill_is_asked_in_another_way():
    """The first way is refused with 400: the answer comes by a turn, and the run is still a stopped one."""

    def script(body: dict[str, Any]) -> Reply:
        return Reply(status=400, message="no prefill") if body.get("continue_final_message") else sums(body)

    with Loopback(script) as server:
        response = wrapped(server).chat(ASKED)
        assert [bool(c.body.get("continue_final_message")) for c in server.calls] == [False, True, False]
    assert (response.message.content, response.additional_kwargs["early_stop_stopped"]) == (ANSWER, True)


def test_the_answer_keeps_the_callers_settings(server):
    """Body settings of LLM and call, the rest of the token limit, and sampling stand in the answer's request too."""
    inner = {"max_tokens": 200, "temperature": 0.6, "additional_kwargs": {"extra_body": {"top_k": 5}}}
    wrapped(server, inner=inner).chat(ASKED, extra_body={"min_p": 0.1}, seed=3)
    first, second = (c.body for c in server.calls)
    for body in (first, second):
        assert (body["top_k"], body["min_p"], body["seed"], body["temperature"]) == (5, 0.1, 3, 0.6)
    assert (first["max_tokens"], second["max_tokens"]) == (200, 80)
    assert (first["logprobs"], first["top_logprobs"]) == (True, 20)
    assert second["continue_final_message"] is True
    assert "logprobs" not in second


def test_an_inner_llm_with_logprobs_of_its_own_is_asked_for_the_policys_k(server):
    """``logprobs=True, top_logprobs=2`` on the inner LLM would win over the call's."""
    wrapped(server, inner={"logprobs": True, "top_logprobs": 2}).chat(ASKED)
    assert server.calls[0].body["top_logprobs"] == 20


def test_logprobs_are_kept_only_on_request(server):
    """Off by default: a trace of a reply would be two kilobytes a token."""
    assert wrapped(server).chat(ASKED).logprobs is None
    kept = wrapped(server, return_logprobs=True).chat(ASKED, early_stop=False).logprobs
    assert len(kept) == server.calls[-1].planned
    assert kept[0][0].token == "step1 "


@pytest.mark.parametrize("asynchronously", [False, True])
def test_token_counts_are_the_servers(server, asynchronously):
    """TokenCountingHandler sees one event a request: the tokens read of one that was closed, the server's own count of others."""
    counter = TokenCountingHandler(tokenizer=str.split)
    llm = EarlyStopLLM(llm=inside(server, callback_manager=CallbackManager([counter])), policy=POLICY)
    ask_all(llm, "achat" if asynchronously else "chat")
    stopped_run, answer = counter.llm_token_counts
    assert stopped_run.completion_token_count == 120
    assert answer.completion_token_count == server.calls[1].made
    counter.reset_counts()
    ask_all(llm, "achat" if asynchronously else "chat", early_stop=False)
    assert [e.completion_token_count for e in counter.llm_token_counts] == [server.calls[2].planned]


def test_a_callback_manager_set_later_reaches_the_inner_llm(server):
    """Engines and ``Settings`` set it on the LLM that they see."""
    llm, counter = wrapped(server), TokenCountingHandler(tokenizer=str.split)
    llm.callback_manager = CallbackManager([counter])
    llm.chat(ASKED)
    assert len(counter.llm_token_counts) == 2


@pytest.mark.parametrize("method", METHODS)
def test_both_requests_are_children_of_the_wrappers_span(server, method):
    """Spans of the inner LLM, the late one of the answer too, begin under the wrapper's."""
    spans, dispatcher = SimpleSpanHandler(), get_dispatcher()
    dispatcher.add_span_handler(spans)
    try:
        ask_all(wrapped(server), method)
    finally:
        dispatcher.span_handlers.remove(spans)
    (ours,) = [s.id_ for s in spans.completed_spans if s.id_.startswith(f"EarlyStopLLM.{method}-")]
    under = [s for s in spans.completed_spans if s.parent_id == ours]
    assert len(under) == 2
    assert not spans.open_spans


def test_two_hundred_calls_at_once_do_not_mix():
    """Four policies around one LLM, 200 calls on one loop: each call stops where its own policy says."""
    policies = {step: Policy("scripted", (9.0,), min_steps=step, segmentation=Segmentation("line", 32)) for step in (1, 2, 3)}

    def script(body: dict[str, Any]) -> Reply:
        return Reply(said(ANSWER)) if is_answer_call(body) else thinking(UNSURE, UNSURE, SURE, SURE, answer=ANSWER)

    async def run(server: Loopback) -> list[Any]:
        inner = inside(server)
        llms = [EarlyStopLLM(llm=inner, policy=p) for p in policies.values()] + [EarlyStopLLM(llm=inner)]
        return await asyncio.gather(*(llms[n % 4].achat(ASKED) for n in range(200)))

    with Loopback(script) as server:
        told = [r.additional_kwargs for r in asyncio.run(run(server))]
    assert [t.get("early_stop_step") for t in told] == [1, 2, 3, None] * 50
    assert [t["completion_tokens"] for t in told] == [44, 84, 124, 164] * 50


def test_one_llm_in_two_event_loops(server):
    """Connections belong to a loop: a second ``asyncio.run`` gets its own, and the first one's does not break it."""
    llm = wrapped(server)
    answers = [asyncio.run(llm.achat(ASKED)).message.content for _ in range(3)]
    assert answers == [ANSWER] * 3


# --- the refine loop


def loop_script(body: dict[str, Any]) -> Reply:
    """The first answer unsure and wrong, the second sure and right."""
    said_already = sum(m["role"] == "assistant" for m in body["messages"])
    return Reply(said("It is 41" if not said_already else "It is 42", SURE if said_already else UNSURE))


@pytest.mark.parametrize("method", METHODS)
def test_the_refine_loop_ends_when_it_is_sure(method):
    """Two of four calls are made; the answer is the last one's, the tokens those of both."""
    with Loopback(loop_script) as server:
        response = ask_all(wrapped(server, LOOP, mode="refine", max_steps=4), method)[-1]
        assert len(server.calls) == 2
        assert response.additional_kwargs["completion_tokens"] == server.made
    assert text_of(response) == "It is 42"
    assert response.additional_kwargs["early_stop_stopped"] is True
    assert response.additional_kwargs["early_stop_calls"] == 2


def test_the_refine_loop_makes_all_its_calls_when_switched_off():
    """Four calls, and the step where it would have ended."""
    with Loopback(loop_script) as server:
        told = wrapped(server, LOOP, mode="refine").chat(ASKED, early_stop=False).additional_kwargs
        assert len(server.calls) == 4
    assert (told["early_stop_stopped"], told["early_stop_step"]) == (False, 2)


def test_a_call_with_tools_is_not_repeated():
    """An agent's call runs once, and says why."""
    with Loopback(loop_script) as server:
        told = wrapped(server, LOOP, mode="refine").chat(ASKED, tools=[TOOL]).additional_kwargs
        assert len(server.calls) == 1
    assert "tools" in told["early_stop_reason"]


# --- bad input, missing logprobs, secrets


@pytest.mark.parametrize(
    ("settings", "error", "named"),
    [
        ({"mode": "fast"}, SettingsError, "fast"),
        ({"polcy": POLICY}, SettingsError, "polcy"),
        ({"max_steps": 0}, SettingsError, "max_steps"),
        ({"continuation": "guess"}, SettingsError, "guess"),
        ({"continuation": "control"}, SettingsError, "control"),
        ({"without_logprobs": "hope"}, SettingsError, "hope"),
        ({"holdout": 2}, ValueError, "2"),
        ({"policy": {"thresholds": [1]}}, SettingsError, "dict"),
        ({"policy": "nowhere.json"}, PolicyError, "nowhere.json"),
        ({"policy": LOOP}, PolicyMismatch, "refine"),
        ({"policy": Policy("another", (0.2,))}, PolicyMismatch, "another"),
    ],
)
def test_bad_settings_fail_at_the_door(server, settings, error, named):
    """Each names the value, before any request."""
    with pytest.raises(error, match=named):
        wrapped(server, **settings)
    assert server.calls == []


def test_a_mismatch_may_be_a_warning(server):
    """``on_mismatch="warn"`` goes on."""
    with pytest.warns(UserWarning, match="another"):
        assert wrapped(server, Policy("another", (0.2,)), on_mismatch="warn").llm is not None


def test_an_llm_without_logprobs_is_named():
    """Its calls run in full: a warning names the class and what to do, and each reply says so. ``error`` refuses it."""
    with pytest.raises(NoLogprobsError, match=r"MockLLM.*OpenAILike"):
        EarlyStopLLM(llm=MockLLM(), policy=POLICY, without_logprobs="error")
    with pytest.warns(UserWarning, match=r"MockLLM.*OpenAILike"):
        llm = EarlyStopLLM(llm=MockLLM(), policy=POLICY.for_model("unknown"))
    response = llm.chat(ASKED)
    assert response.message.content == "user: What is 6*7?\nassistant: "
    assert response.additional_kwargs["early_stop_reason"] == "MockLLM takes no logprobs: run in full"


def test_a_wrapper_is_not_wrapped(server):
    """Nor is a structured LLM: both hold the LLM to wrap."""
    llm = wrapped(server)
    for outer in (llm, llm.as_structured_llm(Product)):
        with pytest.raises(SettingsError, match="inside"):
            EarlyStopLLM(llm=outer)


@pytest.mark.parametrize("method", ["chat", "achat"])
def test_a_server_that_sends_no_logprobs_is_told(method):
    """Never a silent full run: it goes on and says so, or, with ``error``, raises after sixteen reasoning tokens."""
    with Loopback(lambda body: thinking(None, None, None)) as server:
        with pytest.raises(NoLogprobsError, match="reasoning"):
            ask_all(wrapped(server, without_logprobs="error"), method)
        with pytest.warns(UserWarning, match="no logprobs"):
            (response,) = ask_all(wrapped(server), method)
    assert response.message.content == "42"
    assert response.additional_kwargs["early_stop_active"] is False


def test_the_responses_api_is_loud_and_never_stops_reasoning():
    """It warns when wrapped; a reply whose reasoning has no logprobs is whole."""
    with Loopback() as server:
        inner = OpenAIResponses(model="gpt-4o", api_base=server.url, api_key=KEY)
        with pytest.warns(UserWarning, match="OpenAIResponses: the Responses API gives no logprobs"):
            llm = EarlyStopLLM(llm=inner, policy=POLICY.for_model("gpt-4o"))
        with pytest.warns(UserWarning, match="gives no logprobs on reasoning"):
            response = llm.chat(ASKED)
        assert [c.gone for c in server.calls] == [False]
        assert server.calls[0].body["include"] == ["message.output_text.logprobs"]
    assert response.message.content == ANSWER
    assert response.additional_kwargs["early_stop_stopped"] is False


def test_no_key_is_shown(server):
    """Not in ``to_dict``, its JSON, the repr, or the string; the inner LLM's own would show it."""
    llm = wrapped(server)
    assert KEY in str(llm.llm.to_dict())
    for shown in (
        str(llm.to_dict()),
        llm.to_json(),
        repr(llm),
        str(llm),
        json.dumps(getattr(llm, "to_payload", llm.to_dict)(), default=str),
    ):
        assert KEY not in shown


def test_the_inner_llms_own_errors_come_through():
    """A refused first request raises what the inner LLM raises."""
    import openai

    with Loopback(lambda body: Reply(status=429, message="slow down")) as server, pytest.raises(openai.RateLimitError):
        wrapped(server, inner={"max_retries": 0}).chat(ASKED)
