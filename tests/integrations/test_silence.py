"""A reply of which nothing can be measured says so, once, and its outcome is not active; asked in every way."""

from __future__ import annotations

import warnings

import pytest
from frameworks import QUESTION, WAYS, Asker
from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk
from langchain_entropy_chains import EarlyStopChatModel
from langchain_openai import ChatOpenAI
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, LLMMetadata
from llama_index.core.llms import CustomLLM
from llama_index.llms.entropy_chains import EarlyStopLLM
from loopback import Loopback, Reply, said, thinking

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 8))
IN_ALL_WAYS = pytest.mark.parametrize("way", WAYS)


def told(caught):
    return [str(w.message) for w in caught if "logprobs" in str(w.message)]


@IN_ALL_WAYS
def test_a_server_that_gives_none_with_an_answer_at_once(way):
    """Logprobs were asked for and did not come: nobody could ever be stopped here. The answer is the server's all the same."""
    with Loopback(lambda body: Reply(said("The answer is 42", None))) as server:
        asker = Asker(way, server.url, POLICY)
        with pytest.warns(UserWarning, match="nothing was measured") as caught:
            both = [asker.ask() for _ in range(2)]
    assert len(told(caught)) == 1
    assert [(got.answer, got.told["early_stop_active"]) for got in both] == [("The answer is 42", False)] * 2


@IN_ALL_WAYS
def test_an_answer_at_once_with_logprobs_is_none_to_speak_of(way):
    """There was just nothing to stop."""
    with Loopback(lambda body: Reply(said("The answer is 42"))) as server, warnings.catch_warnings():
        warnings.simplefilter("error")
        got = Asker(way, server.url, POLICY).ask()
    assert got.told["early_stop_active"] is True


class Dropping(ChatOpenAI):
    """A class that passes on neither reasoning nor logprobs, as those of some providers."""

    def _convert_chunk_to_generation_chunk(self, chunk, *args, **kwargs):
        text = "".join(c["delta"].get("content") or "" for c in chunk["choices"])
        info = {"finish_reason": c["finish_reason"]} if (c := (chunk["choices"] or [{}])[0]).get("finish_reason") else None
        return ChatGenerationChunk(message=AIMessageChunk(content=text), generation_info=info)


def test_a_class_that_drops_reasoning_and_logprobs_is_named():
    """With what to use instead."""
    with Loopback(lambda body: thinking(0.1, 0.1, words=20, answer="42")) as server:
        model = EarlyStopChatModel(Dropping(model="scripted", base_url=server.url, api_key="none"), POLICY)
        with pytest.warns(UserWarning, match=r"Dropping gives no logprobs .*use langchain-openai's ChatOpenAI"):
            message = model.invoke(QUESTION)
    assert (message.content, message.response_metadata["early_stop_active"]) == ("42", False)


@pytest.mark.parametrize(("name", "warned"), [("ChatMistralAI", True), ("ChatGroq", False), ("ChatOllama", False)])
def test_a_class_that_never_passes_logprobs_on_is_named_when_it_is_wrapped(name, warned):
    """Once a model; classes that pass on what their server gives are not blamed for what it refuses."""
    model = type(name, (ChatOpenAI,), {})(model="m", base_url="http://127.0.0.1:9/v1", api_key="none")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            EarlyStopChatModel(model, POLICY)
    told = [str(w.message) for w in caught]
    assert [text.startswith(f"{name} passes on no logprobs") for text in told] == [True] * warned


class Otherwise(CustomLLM):
    """An LLM whose raw responses are no OpenAI-compatible API's, as Ollama's."""

    @property
    def metadata(self):
        return LLMMetadata(model_name="scripted", is_chat_model=True)

    def chat(self, messages, **kwargs):
        return [*self.stream_chat(messages)][-1]

    def stream_chat(self, messages, **kwargs):
        text = ""
        for word in ("The", " answer", " is", " 42"):
            text += word
            raw = {"message": {"content": word}, "logprobs": [{"token": word, "logprob": -0.1}], "done": word == " 42"}
            yield ChatResponse(message=ChatMessage(text, role="assistant"), delta=word, raw=raw)

    def complete(self, prompt, **kwargs):
        return CompletionResponse(text="The answer is 42")

    def stream_complete(self, prompt, **kwargs):
        yield CompletionResponse(text="The answer is 42", delta="The answer is 42", raw={})


def test_an_llm_whose_responses_cannot_be_read_is_named():
    """It was said how to ask for logprobs, and nothing that came could be read: the reply, and one warning with what to use."""
    llm = EarlyStopLLM(Otherwise(), POLICY, ask={"logprobs": True})
    with pytest.warns(UserWarning, match=r"Otherwise gives no logprobs .*use an OpenAILike") as caught:
        both = [llm.chat([ChatMessage(QUESTION)]) for _ in range(2)]
    assert len(told(caught)) == 1
    assert {(r.message.content, r.additional_kwargs["early_stop_active"]) for r in both} == {("The answer is 42", False)}
