"""``EarlyStopLLM`` over real HTTP against the scripted server of the tests (a fake: it thinks nothing)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from llama_index.core.base.llms.types import ThinkingBlock
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.llms import ChatMessage, TextBlock
from llama_index.llms.entropy_chains import EarlyStopLLM
from llama_index_instrumentation.dispatcher import instrument_tags
from llms import ANSWER, ASKED, LOOP, METHODS, POLICY, TOOL, ask_all, inside, stopped, text_of, wrapped
from loopback import SURE, UNSURE, Loopback, Reply, is_answer_call, said, sums, thinking

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation


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
            sides.append({llm._in_holdout() for _ in range(3)})
    assert all(len(s) == 1 for s in sides)
    assert {frozenset(s) for s in sides} == {frozenset({True}), frozenset({False})}
    with pytest.warns(UserWarning, match="run_id"):
        llm.chat(ASKED)


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
