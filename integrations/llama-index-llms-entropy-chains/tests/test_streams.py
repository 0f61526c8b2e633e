"""A stop really ends the server's request, by the server's own count (a scripted server over real HTTP: it thinks nothing)."""

from __future__ import annotations

import asyncio
import gc
import warnings
from typing import Any

import openai
import pytest
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.llms import ChatMessage
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.llms.entropy_chains import EarlyStopLLM
from llama_index.llms.entropy_chains._streams import AsyncSoftStream, End, client_of
from llama_index.llms.openai import OpenAI, OpenAIResponses
from llama_index.llms.openai_like import OpenAILike
from loopback import SURE, UNSURE, Loopback, Reply, said, thinking
from openai.types.chat import ChatCompletionChunk

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32), aliases=("gpt-4o", "gpt-3.5-turbo-instruct"))
ASKED = [ChatMessage(role="user", content="What is 6*7?")]
PLANNED = 244
BOUNDARY = 120

CASES = {
    "OpenAILike, chat": (OpenAILike, {"model": "scripted", "is_chat_model": True}, "reasoning_content"),
    "OpenAILike, chat, a client each": (
        OpenAILike,
        {"model": "scripted", "is_chat_model": True, "reuse_client": False},
        "reasoning_content",
    ),
    "OpenAILike, chat, inline": (OpenAILike, {"model": "scripted", "is_chat_model": True}, ""),
    "OpenAILike, completions": (OpenAILike, {"model": "scripted"}, ""),
    "OpenAILike, completions, a client each": (OpenAILike, {"model": "scripted", "reuse_client": False}, ""),
    "OpenAI": (OpenAI, {"model": "gpt-4o"}, "reasoning"),
    "OpenAI, a client each": (OpenAI, {"model": "gpt-4o", "reuse_client": False}, "reasoning"),
    "OpenAI, completions": (OpenAI, {"model": "gpt-3.5-turbo-instruct", "max_tokens": 2000}, ""),
    "OpenAIResponses, inline": (OpenAIResponses, {"model": "gpt-4o"}, ""),
}


def script(body: dict[str, Any]) -> Reply:
    """As the default one, slower: what is in the pipe when the client closes is little beside what is left."""
    if "</think>" in str(body) or "final answer now" in str(body):
        return Reply(said("The answer is 42"))
    return thinking(UNSURE, UNSURE, SURE, SURE, SURE, SURE, answer="The answer is 42", pace=0.003)


class Events(BaseEventHandler):
    """Keeps what LLM classes report."""

    seen: list[Any]

    @classmethod
    def class_name(cls) -> str:
        return "Events"

    def handle(self, event: Any, **_: Any) -> None:
        if event.class_name().startswith(("LLM", "Exception")):
            self.seen.append(event)

    @property
    def names(self) -> list[str]:
        """Without those for single chunks."""
        return [e.class_name() for e in self.seen if "InProgress" not in e.class_name()]


@pytest.fixture
def events():
    handler, dispatcher = Events(seen=[]), get_dispatcher()
    dispatcher.add_event_handler(handler)
    yield handler
    dispatcher.event_handlers.remove(handler)


@pytest.fixture(autouse=True)
def _no_luck():
    """The garbage collector may not do our work."""
    gc.disable()
    yield
    gc.enable()


def sync(llm: EarlyStopLLM) -> str:
    return str(llm.chat(ASKED).message.content)


def asynchronous(llm: EarlyStopLLM) -> str:
    async def run() -> str:
        return str((await llm.achat(ASKED)).message.content)

    return asyncio.run(run())


@pytest.mark.parametrize("run", [sync, asynchronous])
@pytest.mark.parametrize("case", CASES)
def test_the_servers_request_ends_at_the_stop_and_the_inner_llm_ends_well(case, run, events):
    """The client hangs up within what is in the pipe; two requests give two starts and two ends in order, and no exception."""
    cls, settings, field = CASES[case]
    with Loopback(script, field_name=field) as server, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of OpenAIResponses
        answer = run(EarlyStopLLM(llm=cls(api_base=server.url, api_key="none", **settings), policy=POLICY))
        server.settled()
        reasoned, answered = server.calls
    assert answer.endswith("The answer is 42")
    assert reasoned.gone
    assert BOUNDARY <= reasoned.made < PLANNED - 40
    assert not answered.gone
    kind = "LLMCompletion" if "completions" in case else "LLMChat"
    assert events.names == [f"{kind}StartEvent", f"{kind}EndEvent"] * 2
    told = [e.response.additional_kwargs for e in events.seen if e.class_name() == f"{kind}EndEvent"]
    assert [t.get("early_stop_stopped") for t in told] == [None, True]  # told once
    assert [t["early_stop_tokens"] for t in told] == [t["completion_tokens"] for t in told]  # each its own
    assert told[0]["early_stop_tokens"] > told[1]["early_stop_tokens"] > 0


@pytest.mark.parametrize("run", [sync, asynchronous])
def test_a_run_that_is_not_stopped_is_one_start_and_one_end(run, events):
    """The wrapper adds no events of its own; the last response, in the event too, says what happened."""
    with Loopback(script) as server:
        run(EarlyStopLLM(llm=OpenAILike(model="scripted", is_chat_model=True, api_base=server.url, api_key="none")))
    assert events.names == ["LLMChatStartEvent", "LLMChatEndEvent"]
    assert events.seen[-1].response.additional_kwargs["early_stop_reason"] == "no policy: measuring only"


@pytest.mark.parametrize("run", [sync, asynchronous])
def test_the_users_llm_and_client_stay_as_they_are(run):
    """No hook, attribute or field of the inner LLM or of its client is changed by a stopped call."""
    with Loopback(script) as server:
        inner = OpenAILike(model="scripted", is_chat_model=True, api_base=server.url, api_key="none")
        client, fields = client_of(inner), dict(inner)
        before = dict(vars(client)), dict(client._client.event_hooks)
        run(EarlyStopLLM(llm=inner, policy=POLICY))
        assert client_of(inner) is client
        after = {k: v for k, v in vars(client).items() if k in before[0]}
        assert (after, dict(client._client.event_hooks)) == before
        assert "request" not in vars(client)
        assert dict(inner) == fields


def test_leaving_a_stream_ends_the_request_without_the_collector():
    """Who breaks out of the loop has the server stop, which LlamaIndex's own stream does not."""
    with Loopback(script) as server:
        llm = EarlyStopLLM(llm=OpenAILike(model="scripted", is_chat_model=True, api_base=server.url, api_key="none"))
        stream = llm.stream_chat(ASKED)
        next(stream)
        stream.close()
        server.settled()
        assert server.calls[0].gone
        assert server.made < PLANNED / 2


def test_a_cancelled_task_ends_the_request():
    """``task.cancel()`` of the consumer reaches the server."""

    async def run(llm: EarlyStopLLM) -> None:
        began = asyncio.Event()

        async def read() -> None:
            async for _ in await llm.astream_chat(ASKED):
                began.set()

        task = asyncio.create_task(read())
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with Loopback(script) as server:
        asyncio.run(run(EarlyStopLLM(llm=OpenAILike(model="scripted", is_chat_model=True, api_base=server.url, api_key="none"))))
        server.settled()
        assert server.calls[0].gone
        assert server.made < PLANNED / 2


def test_the_first_chunk_of_an_async_stream_is_not_dropped():
    """LlamaIndex's async classes leave out a first chunk whose content is None (llama.cpp's): with an empty one it is kept."""

    class Stream:
        closed = False

        async def __aiter__(self) -> Any:
            for text in ("I", " think"):
                delta = {"role": "assistant", "content": None, "reasoning_content": text}
                choice = {"index": 0, "delta": delta, "finish_reason": None}
                chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
                yield ChatCompletionChunk.model_validate(chunk)

        async def close(self) -> None:
            self.closed = True

    async def run(stream: Stream) -> list[Any]:
        return [chunk.choices[0].delta.content async for chunk in AsyncSoftStream(stream, End())]

    stream = Stream()
    assert asyncio.run(run(stream)) == ["", None]
    assert stream.closed


class Other(FunctionCallingLLM):
    """Another provider's class: it speaks to the server by itself, and passes the chunks on."""

    url: str

    @property
    def metadata(self) -> Any:
        return OpenAILike(model="scripted", is_chat_model=True).metadata

    def _response(self, chunk: Any, text: str) -> Any:
        from llama_index.core.llms import ChatResponse

        delta = chunk.choices[0].delta.content or "" if chunk.choices else ""
        return ChatResponse(message=ChatMessage(role="assistant", content=text + delta), delta=delta, raw=chunk)

    def _asked(self, messages: Any, kwargs: Any) -> dict[str, Any]:
        turns = [{"role": m.role.value, "content": m.content} for m in messages]
        return {"model": "scripted", "messages": turns, "stream": True, **kwargs}

    def stream_chat(self, messages: Any, **kwargs: Any) -> Any:
        def made() -> Any:
            text = ""
            for chunk in openai.OpenAI(base_url=self.url, api_key="none").chat.completions.create(**self._asked(messages, kwargs)):
                response = self._response(chunk, text)
                text += response.delta
                yield response

        return made()

    async def astream_chat(self, messages: Any, **kwargs: Any) -> Any:
        async def made() -> Any:
            text, client = "", openai.AsyncOpenAI(base_url=self.url, api_key="none")
            async for chunk in await client.chat.completions.create(**self._asked(messages, kwargs)):
                response = self._response(chunk, text)
                text += response.delta
                yield response

        return made()

    def chat(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    achat = complete = acomplete = stream_complete = astream_complete = _prepare_chat_with_tools = chat


def test_another_providers_async_stream_is_cancelled():
    """A class that is not known is asked for logprobs as the user says; its async request ends at the stop."""
    with Loopback(script) as server:
        llm = EarlyStopLLM(llm=Other(url=server.url), policy=POLICY, ask={"logprobs": True, "top_logprobs": 20})
        assert asynchronous(llm) == "The answer is 42"
        server.settled()
        assert server.calls[0].gone
        assert server.calls[0].made < PLANNED - 40


def test_another_providers_sync_stream_is_answered_all_the_same():
    """Whether its server stops is not promised; that the answer is asked for and given is."""
    with Loopback(script) as server:
        llm = EarlyStopLLM(llm=Other(url=server.url), policy=POLICY, ask={"logprobs": True, "top_logprobs": 20})
        assert sync(llm) == "The answer is 42"
        assert len(server.calls) == 2
