"""Numbers and names that a wrapped model tells: token counts, limits, ids, labels."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, trim_messages
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_entropy_chains import ChatTransformers, EarlyStopChatModel, EntropyCallbackHandler
from langchain_entropy_chains._model_info import limit
from langchain_ollama import ChatOllama
from langchain_openai import AzureChatOpenAI, ChatOpenAI
from loopback import Loopback, sums
from pydantic import Field

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.demo import MODEL_FOLDER, MODEL_NAME

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32), calibration={"remaining_tokens": [200, 160, 120]})


@pytest.fixture
def server():
    with Loopback(lambda body: replace(sums(body), pace=0.001)) as running:
        yield running


def chat(server, **settings):
    return ChatOpenAI(model="scripted", base_url=server.url, api_key="none", max_retries=0, **settings)


def test_a_summary_of_one_run_is_in_numbers(server):
    """Its counts are integers, printed and as JSON, from the first run on."""
    handler = EntropyCallbackHandler(POLICY)
    chat(server, logprobs=True, top_logprobs=20).invoke("q", {"callbacks": [handler]})
    summary = handler.summary()
    assert str(summary) == "1 runs, 1 measured, 244 tokens: 0 stopped, 1 would have been, saving about 120 tokens"
    assert not any(isinstance(value, bool) for value in json.loads(json.dumps(summary.to_dict())).values())


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_a_whole_reply_tells_stays(server, asynchronous):
    """``token_usage`` and ``id`` as the plain model has them, the usage that of all that was computed; ``llm_output`` too."""
    plain, model = chat(server), EarlyStopChatModel(chat(server), POLICY)
    message = asyncio.run(model.ainvoke("q")) if asynchronous else model.invoke("q")
    before = plain.invoke("q").response_metadata
    assert message.response_metadata["id"] == before["id"] == "c1"
    told, usage = message.response_metadata["token_usage"], message.usage_metadata
    assert told.keys() <= before["token_usage"].keys()
    assert told["completion_tokens"] == usage["output_tokens"] == message.response_metadata["early_stop_tokens"] < 244
    output = model.generate([[HumanMessage("q")]]).llm_output
    assert output["token_usage"]["completion_tokens"] == usage["output_tokens"]


def test_deployments_have_labels_of_their_own():
    """An Azure deployment without a model's name is called as it is deployed, not as its class."""
    settings = {"azure_endpoint": "https://example.openai.azure.com", "api_version": "2024-10-21", "api_key": "none"}
    names = [EarlyStopChatModel(AzureChatOpenAI(azure_deployment=name, **settings)).model_name for name in ("one", "two")]
    assert names == ["one", "two"]


class Numbered(BaseChatModel):
    """A model whose token limit has a name of its own; it streams as many tokens as that allows."""

    num_predict: int | None = None
    max_new_tokens: int | None = None
    seen: list[Any] = Field(default_factory=list)

    @property
    def _llm_type(self):
        return "numbered"

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        return ChatResult(generations=[ChatGeneration(message=AIMessage("42"))])

    def _stream(self, messages, stop=None, run_manager=None, *, options=None, **kwargs):
        self.seen.append((self.num_predict, self.max_new_tokens, options))
        yield ChatGenerationChunk(message=AIMessageChunk("42"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("settings", "call", "sent"),
    [
        ({"num_predict": 300}, {}, (300, None, None)),
        ({"max_new_tokens": 200}, {}, (None, 200, None)),
        ({"num_predict": 300}, {"options": {"num_predict": 100, "seed": 1}}, (300, None, {"num_predict": 100, "seed": 1})),
        ({"num_predict": -1}, {}, (-1, None, None)),
    ],
)
def test_every_name_of_a_token_limit_is_one(settings, call, sent):
    """On the model or in the call's options: it is known, stays where it stands, and the run's own limit is not another one."""
    inner = Numbered(seen=[], **settings)
    EarlyStopChatModel(inner, Policy("Numbered", (0.2,))).invoke("q", **call)
    assert inner.seen == [sent]


def test_a_limit_is_lowered_in_its_place():
    """What is left after a stop is asked for under the limit's own name; the user's model keeps its own."""
    ollama = ChatOllama(model="m", num_predict=300, base_url="http://127.0.0.1:9")
    found = limit(ollama, {})
    lowered, given = found.put(120, ollama, {"a": 1})
    assert (found.name, found.value, lowered.num_predict, ollama.num_predict, given) == ("num_predict", 300, 120, 300, {"a": 1})
    found = limit(ollama, {"options": {"num_predict": 50}})
    assert found.put(20, ollama, {"options": {"num_predict": 50, "top_k": 1}})[1] == {"options": {"num_predict": 20, "top_k": 1}}


def test_counts_on_a_local_model_are_by_its_own_tokenizer(monkeypatch):
    """Offline and at once: no other tokenizer is asked for, and messages are trimmed by these counts."""
    from entropy_chains.backends.transformers import TransformersBackend  # torch: not where the oldest LangChain is tested

    monkeypatch.setattr("langchain_core.language_models.base.get_tokenizer", lambda: 1 / 0)
    backend = TransformersBackend.from_pretrained(MODEL_FOLDER, name=MODEL_NAME)
    model = ChatTransformers(backend=backend)
    assert model.get_num_tokens("34*7=?") == len(backend.token_ids("34*7=?")) == 6
    kept = trim_messages([HumanMessage("34*7=?") for _ in range(20)], max_tokens=50, token_counter=model)
    assert 0 < len(kept) <= 50 // 6
    assert ChatTransformers(backend=backend, custom_get_token_ids=lambda text: [1, 2]).get_num_tokens("34*7=?") == 2
