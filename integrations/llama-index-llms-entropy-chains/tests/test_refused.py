"""Servers that refuse logprobs, met through the wrapper and ``attach``: the app goes on working. And copies of the wrapper."""

from __future__ import annotations

import asyncio
import copy
import warnings
from typing import Any

import pytest
from llama_index.core import SummaryIndex
from llama_index.core.schema import TextNode
from llama_index.llms.entropy_chains import EarlyStopLLM, EntropyEventHandler, TransformersLLM, attach, detach
from llama_index.llms.openai_like import OpenAILike
from llms import ASKED, METHODS, ask_all
from loopback import REFUSALS, Loopback, Reply, asks_logprobs, refusing

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import NoLogprobsError
from scripts import quick

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))
FIXED = Policy("scripted", (None,), rule="fixed-step", min_steps=2, segmentation=POLICY.segmentation)
LOOP = Policy("scripted", (0.2,), mode="refine", segmentation=Segmentation("call", 1))
AGREEING = Policy("scripted", (None,), rule="agreement", mode="refine", segmentation=LOOP.segmentation)
ASK = {"logprobs": True, "top_logprobs": 20}
KEY = "sk-of-the-first"


def refused_by(refused: Reply = REFUSALS["not allowed"]) -> Loopback:
    return Loopback(refusing(refused, quick), owned_by="unknown")


def inside(server: Loopback, key: str = KEY, kind: Any = OpenAILike, **settings: Any) -> Any:
    given = {"is_chat_model": True, "is_function_calling_model": True, "context_window": 8000, "max_retries": 0} | settings
    return kind(model="scripted", api_base=server.url, api_key=key, **given)


def ask(llm: Any, method: str, **kwargs: Any) -> Any:
    """The last response of one of the eight methods."""
    return ask_all(llm, method, **kwargs)[-1]


def text_of(response: Any) -> str:
    return str(response.message.content if hasattr(response, "message") else response.text).rpartition("</think>")[2].strip()


SHELLS = pytest.mark.parametrize("method", ["chat", "achat"])


class Eager(OpenAILike):
    """A class of another provider: its request is sent with the call, not with the first chunk."""

    def stream_chat(self, messages: Any, **kwargs: Any) -> Any:
        chunks = super().stream_chat(messages, **kwargs)
        first = next(chunks)
        return (chunk for part in ([first], chunks) for chunk in part)

    async def astream_chat(self, messages: Any, **kwargs: Any) -> Any:
        chunks = await super().astream_chat(messages, **kwargs)
        first = await anext(chunks)

        async def all_of() -> Any:
            yield first
            async for chunk in chunks:
                yield chunk

        return all_of()


@pytest.mark.parametrize(("method", "chat_model"), [*((m, True) for m in METHODS), ("complete", False), ("astream_chat", False)])
def test_the_wrapper_never_breaks_the_app(method, chat_model):
    """The plain reply, twice; only the first one is asked for twice; one warning; not active, with the reason."""
    with Loopback(refusing(script=quick), field_name="reasoning_content" if chat_model else "") as server:
        llm = EarlyStopLLM(inside(server, is_chat_model=chat_model), POLICY)
        with pytest.warns(UserWarning, match="refuses logprobs") as caught:
            responses = [ask(llm, method), ask(llm, method)]
    assert [asks_logprobs(call.body) for call in server.calls] == [True, False, False]
    assert len([w for w in caught if "refuses" in str(w.message)]) == 1
    for response in responses:
        told = response.additional_kwargs
        assert (text_of(response), told["early_stop_active"], told["early_stop_stopped"]) == ("42", False, False)
        assert "You are not allowed to request logprobs" in told["early_stop_reason"]


@pytest.mark.parametrize("refused", REFUSALS.values(), ids=REFUSALS)
@SHELLS
def test_in_whatever_way_it_is_refused(method, refused):
    """A status, or an error in the stream of a 200."""
    with refused_by(refused) as server, pytest.warns(UserWarning, match="refuses logprobs"):
        assert text_of(ask(EarlyStopLLM(inside(server), POLICY), method)) == "42"
    assert len(server.calls) == 2


@SHELLS
def test_an_llm_that_calls_at_once(method):
    """Its error comes before there is a stream: it is asked again all the same."""
    with refused_by() as server, pytest.warns(UserWarning, match="refuses logprobs"):
        assert text_of(ask(EarlyStopLLM(inside(server, kind=Eager), POLICY), method)) == "42"
    with (
        Loopback(lambda body: Reply(status=400, message="no such model")) as server,
        pytest.raises(Exception, match="no such model"),
    ):
        ask(EarlyStopLLM(inside(server, kind=Eager), POLICY), method)
    assert len(server.calls) == 1


@SHELLS
def test_error_says_what_helps(method):
    """Chosen by name, it is raised before anything is paid for; the client's error is its cause."""
    with refused_by() as server, pytest.raises(NoLogprobsError, match=r"not allowed.*without_logprobs") as caught:
        ask(EarlyStopLLM(inside(server), POLICY, without_logprobs="error"), method)
    assert (len(server.calls), server.made, type(caught.value.__cause__).__name__) == (1, 0, "PermissionDeniedError")


@SHELLS
def test_agreement_stops(method):
    """Two answers in a row agree; no request but the first asks for logprobs."""
    with refused_by() as server, pytest.warns(UserWarning, match="agree"):
        response = ask(EarlyStopLLM(inside(server), POLICY, without_logprobs="agreement"), method)
    assert [asks_logprobs(call.body) for call in server.calls] == [True, False, False, False]
    assert (text_of(response), response.additional_kwargs["early_stop_reason"]) == ("42", "answers agree")


@pytest.mark.parametrize("off", ["environment", "setting", "call", "policy=None", "not active"])
@pytest.mark.parametrize("missing", ["refused", "not sent"])
def test_off_means_off(monkeypatch, off, missing):
    """Though ``error`` was chosen for missing logprobs: nothing needs them."""
    policy = Policy("scripted", (0.2,), active=False, reason="no_signal", segmentation=POLICY.segmentation)
    settings: dict[str, Any] = {"policy": {"policy=None": None, "not active": policy}.get(off, POLICY), "without_logprobs": "error"}
    if off == "environment":
        monkeypatch.setenv("ENTROPY_CHAINS_STOP", "0")
    script = refusing(script=quick)
    silent = Loopback(lambda body: script({**body, "logprobs": None, "top_logprobs": None}))
    with silent if missing == "not sent" else refused_by() as server:
        llm = EarlyStopLLM(inside(server), **settings, **({"early_stop": False} if off == "setting" else {}))
        with pytest.warns(UserWarning, match="logprobs"):
            response = ask(llm, "chat", **({"early_stop": False} if off == "call" else {}))
    assert (text_of(response), response.additional_kwargs["early_stop_active"]) == ("42", False)


@SHELLS
def test_the_loop(method):
    """In full all calls are made, and the table says why; by agreement the second call ends it."""
    with refused_by() as server, pytest.warns(UserWarning, match="refuses logprobs"):
        full = ask(EarlyStopLLM(inside(server), LOOP, mode="refine", max_steps=3), method)
    assert (text_of(full), full.additional_kwargs["early_stop_active"], len(server.calls)) == ("42", False, 4)
    assert "no logprobs" in full.additional_kwargs["early_stop_reason"]
    with refused_by() as server, pytest.warns(UserWarning, match="refuses logprobs"):
        agreed = ask(EarlyStopLLM(inside(server), LOOP, mode="refine", without_logprobs="agreement"), method)
    assert (text_of(agreed), agreed.additional_kwargs["early_stop_reason"], len(server.calls)) == ("42", "answers agree", 3)


@pytest.mark.parametrize("chosen", ["error", "full"])
def test_a_rule_that_reads_no_entropy_needs_none(chosen):
    """A fixed step, and agreement in the loop: they stop, and nothing is said of logprobs."""
    with warnings.catch_warnings(), refused_by() as server:
        warnings.filterwarnings("error", message=".*logprobs")
        fixed = EarlyStopLLM(inside(server), FIXED, without_logprobs=chosen).chat(ASKED)
        agreed = EarlyStopLLM(inside(server), AGREEING, mode="refine", without_logprobs=chosen).chat(ASKED)
    assert fixed.additional_kwargs["early_stop_reason"] == "step 2 is the fixed step"
    assert agreed.additional_kwargs["early_stop_reason"] == "answers agree"


def test_attach_never_breaks_the_app():
    """A query engine answers as before."""
    with refused_by() as server:
        engine = attach(SummaryIndex([TextNode(text="x")]).as_query_engine(llm=inside(server)), POLICY)
        with pytest.warns(UserWarning, match="refuses logprobs"):
            response = engine.query("q")
    assert str(response) == "42"


def test_an_event_handler_judges_a_rule_that_reads_no_entropy():
    """It asks for nothing itself; and a policy that reads entropy is not active there."""
    from llama_index.core.instrumentation import get_dispatcher

    dispatcher, handlers = get_dispatcher(), [EntropyEventHandler(FIXED), EntropyEventHandler(POLICY)]
    for handler in handlers:
        dispatcher.add_event_handler(handler)
    try:
        with refused_by() as server:
            list(inside(server).stream_chat(ASKED))
    finally:
        dispatcher.event_handlers = [h for h in dispatcher.event_handlers if h not in handlers]
    (judged,), (blind,) = (handler.summary().rows for handler in handlers)
    assert judged.outcome.step == 2
    assert (blind.outcome.active, blind.outcome.step) == (False, None)


# --- what belongs to one LLM


def test_a_copy_with_another_llm_asks_that_ones_server():
    """The copy of a wrapper that was used knows nothing of the first LLM's server, client and key."""
    with Loopback(quick) as one, Loopback(quick, owned_by="llamacpp", rendered="<user>q</user>") as two:

        async def both() -> None:
            first = EarlyStopLLM(inside(one), POLICY)
            await first.achat(ASKED)
            since = len(one.calls)
            second = first.model_copy(update={"llm": inside(two, "sk-of-the-second")})
            for response in (await second.achat(ASKED), second.chat(ASKED)):
                assert response.additional_kwargs["early_stop_stopped"]
            assert len(one.calls) == since

        asyncio.run(both())
        assert {call.headers["Authorization"] for call in two.calls} == {"Bearer sk-of-the-second"}
        assert {call.path for call in two.calls} == {"/v1/chat/completions", "/v1/completions"}  # llama.cpp's way


def test_no_class_holds_anything_of_an_instance():
    """Whatever was wrapped or attached: no LLM, client, policy or key stands on a class."""
    with Loopback(quick) as server:
        wrapped = EarlyStopLLM(inside(server), POLICY)
        asyncio.run(wrapped.achat(ASKED))
        engine = attach(SummaryIndex([TextNode(text="x")]).as_query_engine(llm=inside(server)), POLICY)
        engine.query("q")
        detach(engine)
    for kind in {*type(wrapped).__mro__, *TransformersLLM.__mro__, *EntropyEventHandler.__mro__}:
        for name, value in vars(kind).items():
            assert not isinstance(value, OpenAILike | EarlyStopLLM | Policy), (kind, name)
            assert KEY not in repr(value), (kind, name)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda wrapped: wrapped.model_copy(deep=True)], ids=["deepcopy", "model_copy"])
@pytest.mark.parametrize("method", ["chat", "achat", "astream_chat"])
def test_a_deep_copy_asks_its_own_server(method, how):
    """With its own key, also after calls; the first one goes on as before."""
    with Loopback(quick) as server, Loopback(quick) as other:
        wrapped = EarlyStopLLM(inside(server, reuse_client=False), POLICY)
        ask(wrapped, method)
        copied = how(wrapped)
        copied.llm.api_base, copied.llm.api_key = other.url, "sk-of-the-second"
        for llm in (copied, wrapped):
            assert ask(llm, method).additional_kwargs["early_stop_stopped"]
        for one, key in ((server, KEY), (other, "sk-of-the-second")):
            assert {call.headers["Authorization"] for call in one.calls} == {f"Bearer {key}"}


@pytest.mark.parametrize("method", ["chat", "achat"])
def test_address_and_key_may_be_set_later(method):
    """Where the LLM inside makes its client anew for each call: what is known of the first server is not said of the second."""
    with refused_by() as server, Loopback(quick) as other:
        wrapped = EarlyStopLLM(inside(server, reuse_client=False), POLICY)
        with pytest.warns(UserWarning, match="refuses"):
            ask(wrapped, method)
        since = len(server.calls)
        wrapped.llm.api_base, wrapped.llm.api_key = other.url, "sk-of-the-second"
        assert ask(wrapped, method).additional_kwargs["early_stop_stopped"]
        assert len(server.calls) == since
        assert {call.headers["Authorization"] for call in other.calls} == {"Bearer sk-of-the-second"}
        assert wrapped._learnt.server.kind == "vllm"
