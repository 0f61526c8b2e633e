"""A stop reaches the server whatever the inner model's generator hides, and nothing silent is passed over."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import httpx
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_entropy_chains import EarlyStopChatModel
from loopback import Loopback, sums

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import NoLogprobsError

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32), calibration={"remaining_tokens": [200, 160, 120]})
FULL = 244


@pytest.fixture
def server():
    with Loopback(lambda body: replace(sums(body), pace=0.002), owned_by="someone") as running:
        yield running


class Hidden:
    """A stream of some SDKs: it holds itself in a circle, so that leaving it closes nothing until memory is tidied up."""

    def __init__(self, response: httpx.Response):
        self.response = response
        self._iterator = self._events()

    def _events(self) -> Any:
        for line in self.response.iter_lines():
            if line.startswith("data: {"):
                yield json.loads(line[6:])

    def __iter__(self) -> Any:
        for event in self._iterator:  # noqa: UP028 (closing this does not close that one)
            yield event


class Hiding(BaseChatModel):
    """A chat model over such a stream."""

    url: str
    model: str = "scripted"
    http: Any = httpx
    kept: list[Any] = []  # noqa: RUF012 (pydantic copies it)
    bare: bool = False

    @property
    def _llm_type(self) -> str:
        return "hiding"

    def _body(self, messages: list[Any], settings: dict[str, Any]) -> dict[str, Any]:
        asked = [{"role": "user" if m.type == "human" else "assistant", "content": m.text} for m in messages]
        return {"model": self.model, "messages": asked, "stream": True, **settings}

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage("42"))])

    def _stream(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        client = self.http.Client(timeout=10)
        request = client.build_request("POST", f"{self.url}/chat/completions", json=self._body(messages, kwargs))
        events = Hidden(client.send(request, stream=True))
        self.kept += [client, events]  # no tidying up of memory comes to help
        for event in events:
            choice = event["choices"][0]
            delta = choice["delta"]
            thought = delta.get("reasoning_content") or delta.get("reasoning")
            shown = {"reasoning_content": thought} if thought and not self.bare else {}
            message = AIMessageChunk(delta.get("content") or "", additional_kwargs=shown)
            info = {"logprobs": choice.get("logprobs")} if not self.bare else {}
            if choice.get("finish_reason"):
                info["finish_reason"] = choice["finish_reason"]
            yield ChatGenerationChunk(message=message, generation_info={n: v for n, v in info.items() if v} or None)


@pytest.mark.parametrize("library", ["httpx", "httpx2"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_hidden_response_is_closed_at_the_stop(server, asynchronous, library):
    """The server stops, by its own count, though the model's generator leaves the connection open; async over a thread as well.

    The SDK of OpenAI is built on httpx up to version 2, and on httpx2 since.
    """
    model = EarlyStopChatModel(Hiding(url=server.url, http=pytest.importorskip(library)), POLICY)
    message = asyncio.run(model.ainvoke("q")) if asynchronous else model.invoke("q")
    assert message.response_metadata["early_stop_stopped"]
    server.settled()
    assert server.calls[0].gone
    assert server.calls[0].made < FULL - 60


def test_a_stream_that_ran_to_its_end_is_left_alone(server):
    """Nothing is closed twice, and the answer is the whole one."""
    message = EarlyStopChatModel(Hiding(url=server.url), None).invoke("q")
    assert (message.content, server.calls[0].made) == ("The answer is 42", FULL)


def test_a_class_that_drops_thinking_and_logprobs_is_said(server):
    """Its empty chunks are counted as the tokens they were; a warning, or the error that was asked for, says that nothing stops."""
    with pytest.warns(UserWarning, match="without early stopping"):
        message = EarlyStopChatModel(Hiding(url=server.url, bare=True), POLICY).invoke("q")
    told = message.response_metadata
    assert (message.content, told["early_stop_active"], told["early_stop_tokens"]) == ("The answer is 42", False, FULL)
    with pytest.raises(NoLogprobsError):
        EarlyStopChatModel(Hiding(url=server.url, bare=True), POLICY, without_logprobs="error").invoke("q")
