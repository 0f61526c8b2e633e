"""LLMs of other APIs: they stop, or say when wrapped that they cannot, and what to use. The servers are scripted (fakes)."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from llama_index.core import SummaryIndex
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, TextBlock, ThinkingBlock
from llama_index.core.llms import MockLLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.schema import TextNode
from llama_index.llms.entropy_chains import EarlyStopLLM, attach
from llama_index.llms.entropy_chains._native import UNASKED
from llama_index.llms.openai_like import OpenAILike
from loopback import Loopback, Reply, Tok, sums

from entropy_chains import Segmentation
from entropy_chains.core.policy import Policy
from entropy_chains.errors import NoLogprobsError

ASKED = [ChatMessage(role="user", content="What is 6*7?")]
POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))
ANY = Policy("unknown", (0.2,), segmentation=Segmentation("line", 32))
ASK = {"logprobs": True, "top_logprobs": 20}


def like(name: str) -> MockLLM:
    """A class of that name, which takes no logprobs."""
    return type(name, (MockLLM,), {})()


@pytest.mark.parametrize("ask", [None, ASK])
@pytest.mark.parametrize("name", UNASKED)
def test_a_class_that_cannot_be_asked_says_what_to_use(name, ask):
    """When it is wrapped, with ``ask=`` as well, which it would not pass on; then its replies are whole, with the reason."""
    remedy = UNASKED[name].partition("(")[0]
    with pytest.raises(NoLogprobsError, match=f"{name}.*use .*{remedy}"):
        EarlyStopLLM(like(name), ANY, ask=ask, without_logprobs="error")
    with pytest.warns(UserWarning, match=f"{name}.*run in full.*{remedy}"):
        llm = EarlyStopLLM(like(name), ANY, ask=ask)
    told = llm.chat(ASKED).additional_kwargs
    assert (told["early_stop_stopped"], told["early_stop_reason"]) == (False, f"{name} takes no logprobs: run in full")


def test_attach_says_it_too():
    """The same words, and the engine goes on answering."""
    engine = SummaryIndex([TextNode(text="x")]).as_query_engine(llm=like("LlamaCPP"))
    with pytest.warns(UserWarning, match="LlamaCPP.*OpenAILike"):
        attach(engine, ANY)
    assert "takes no logprobs" in engine.query("q").metadata["early_stop_reason"]


class Foreign(FunctionCallingLLM):
    """Another provider's class: its ``raw`` is a form of its own, with Ollama's list of logprobs where they came."""

    url: str

    @property
    def metadata(self) -> Any:
        return OpenAILike(model="scripted", is_chat_model=True).metadata

    def _responses(self, messages: Any, kwargs: dict[str, Any]) -> Any:
        text = thinking = ""
        turns = [{"role": m.role.value, "content": m.content} for m in messages]
        client = openai.OpenAI(base_url=self.url, api_key="none")
        for chunk in client.chat.completions.create(model="scripted", messages=turns, stream=True, **kwargs):
            choice = chunk.choices[0]
            found = (choice.delta.content or "", getattr(choice.delta, "reasoning_content", None) or "")
            text, thinking = text + found[0], thinking + found[1]
            entries = [e.model_dump() for e in choice.logprobs.content] if choice.logprobs else None
            yield ChatResponse(
                message=ChatMessage(role="assistant", blocks=[ThinkingBlock(content=thinking), TextBlock(text=text)]),
                delta=found[0],
                raw={"logprobs": entries, "done_reason": choice.finish_reason},
                additional_kwargs={"thinking_delta": found[1]},
            )

    def stream_chat(self, messages: Any, **kwargs: Any) -> Any:
        return self._responses(messages, kwargs)

    async def astream_chat(self, messages: Any, **kwargs: Any) -> Any:
        async def made() -> Any:
            for response in self._responses(messages, kwargs):
                yield response

        return made()

    def chat(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    achat = complete = acomplete = stream_complete = astream_complete = _prepare_chat_with_tools = chat


def silent(body):
    """No logprobs, whatever was asked."""
    return Reply([Tok(token.text, None, token.reasoning) for token in sums(body).tokens], pace=0.0005)


def answered(llm: Any, how: str) -> Any:
    return asyncio.run(llm.achat(ASKED)) if how == "achat" else llm.chat(ASKED)


@pytest.mark.parametrize("how", ["chat", "achat"])
def test_one_that_can_be_asked_stops(how):
    """Whatever its ``raw`` is, if the logprobs are in it."""
    with Loopback() as server:
        last = answered(EarlyStopLLM(Foreign(url=server.url), POLICY, ask=ASK), how)
    assert (last.message.content, last.additional_kwargs["early_stop_stopped"]) == ("The answer is 42", True)


@pytest.mark.filterwarnings("ignore:.*gives no logprobs")
@pytest.mark.parametrize("how", ["chat", "achat"])
def test_one_that_was_asked_in_vain_says_so(how):
    """An error before the reply is paid for, or the whole reply with that reason: never a run that was silently not followed."""
    with Loopback(silent) as server:
        with pytest.raises(NoLogprobsError):
            answered(EarlyStopLLM(Foreign(url=server.url), POLICY, ask=ASK, without_logprobs="error"), how)
        last = answered(EarlyStopLLM(Foreign(url=server.url), POLICY, ask=ASK), how)
    told = last.additional_kwargs
    assert last.message.content == "The answer is 42"
    assert "no logprobs" in told["early_stop_reason"]
    assert told["early_stop_tokens"] == server.calls[-1].planned
