"""One question asked in every way that users have: the core, LangChain and LlamaIndex, each plain and streamed, sync and async."""

from __future__ import annotations

import asyncio
import weakref
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

import openai
from langchain_entropy_chains import EarlyStopChatModel
from langchain_openai import ChatOpenAI
from llama_index.core.llms import ChatMessage
from llama_index.llms.entropy_chains import EarlyStopLLM
from llama_index.llms.openai_like import OpenAILike

from entropy_chains.backends.openai import AsyncOpenAIBackend, OpenAIBackend

if TYPE_CHECKING:
    from langchain_core.messages import AIMessageChunk

QUESTION = "What is 6*7?"

NUMBER = count()
"""Of an asker. LangChain's models with the same settings share their connections, which belong to one loop."""


@dataclass
class Got:
    """What a user has in the end: the answer, the finish reason as the server gave it, and the table of the outcome."""

    answer: str | None
    finish: str | None
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def stopped(self) -> bool:
        return bool(self.told.get("early_stop_stopped"))

    @property
    def reason(self) -> str:
        return str(self.told.get("early_stop_reason"))


class Asker:
    """Asks one server, by clients that are made once: what they learn of it holds for the next question.

    ``body``: further settings of every request, as users of each give them; ``begun``: the beginning of the assistant's turn, which
    the server goes on from; ``settings``: of what is tested.
    """

    def __init__(
        self,
        way: str,
        url: str,
        policy: Any,
        body: dict[str, Any] | None = None,
        *,
        model: str = "scripted",
        question: str = QUESTION,
        name: str | None = None,
        begun: str | None = None,
        **settings: Any,
    ):
        self._messages = [{"role": "user", "content": question}]
        self._messages += [{"role": "assistant", "content": begun}] if begun else []
        self._asked = [ChatMessage(m["content"], role=m["role"]) for m in self._messages]
        settings |= {"name": name} if name and not way.startswith("langchain") else {}
        policy = policy.for_model(model) if policy and name else policy
        self._way, self._loop = way, asyncio.new_event_loop()
        weakref.finalize(self, self._loop.close)
        common = {"api_key": "none", "max_retries": 0, "timeout": 30 + next(NUMBER) / 1000}
        if way.startswith("core"):
            kinds = (openai.AsyncOpenAI, AsyncOpenAIBackend) if way.endswith("async") else (openai.OpenAI, OpenAIBackend)
            self._model = kinds[1](kinds[0](base_url=url, **common), model, request=body, **settings)
        elif way.startswith("langchain"):
            inner = ChatOpenAI(model=model, base_url=url, **common)
            self._model = EarlyStopChatModel(inner.bind(**(body or {})), policy, **settings)
        else:
            common |= {"is_chat_model": True, "context_window": 8000, "additional_kwargs": body or {}}
            inside = OpenAILike(model=model, api_base=url, **common)
            self._model = EarlyStopLLM(inside, policy, **settings)
        self._policy = policy

    def ask(self, **given: Any) -> Got:
        """The answer. ``given`` goes to the core's call, which has its policy there."""
        return getattr(self, "_" + self._way.replace(" ", "_"))(**given)

    def _wait(self, awaitable: Any) -> Any:
        try:
            return self._loop.run_until_complete(awaitable)
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())

    def _core(self, **given: Any) -> Got:
        return _run(self._model.generate([self._messages], policy=self._policy, **given)[0])

    def _core_stream(self, **given: Any) -> Got:
        return _run([*self._model.stream(self._messages, policy=self._policy, **given)][-1].final)

    def _core_async(self, **given: Any) -> Got:
        return _run(self._wait(self._model.agenerate([self._messages], policy=self._policy, **given))[0])

    def _core_stream_async(self, **given: Any) -> Got:
        async def last() -> Any:
            return [chunk async for chunk in self._model.astream(self._messages, policy=self._policy, **given)][-1]

        return _run(self._wait(last()).final)

    def _langchain(self) -> Got:
        return _message(self._model.invoke(self._messages))

    def _langchain_stream(self) -> Got:
        return _message(_whole([*self._model.stream(self._messages)]))

    def _langchain_async(self) -> Got:
        return _message(self._wait(self._model.ainvoke(self._messages)))

    def _langchain_stream_async(self) -> Got:
        async def chunks() -> list[AIMessageChunk]:
            return [chunk async for chunk in self._model.astream(self._messages)]

        return _message(_whole(self._wait(chunks())))

    def _llama_index(self) -> Got:
        return _response(self._model.chat(self._asked))

    def _llama_index_stream(self) -> Got:
        return _response([*self._model.stream_chat(self._asked)][-1])

    def _llama_index_async(self) -> Got:
        return _response(self._wait(self._model.achat(self._asked)))

    def _llama_index_stream_async(self) -> Got:
        async def last() -> Any:
            return [response async for response in await self._model.astream_chat(self._asked)][-1]

        return _response(self._wait(last()))


WAYS = [f"{who}{how}" for who in ("core", "langchain", "llama index") for how in ("", " stream", " async", " stream async")]


def _run(run: Any) -> Got:
    return Got(run.answer, run.finish_told, run.outcome.metadata())


def _whole(chunks: list[AIMessageChunk]) -> AIMessageChunk:
    made = chunks[0]
    for chunk in chunks[1:]:
        made += chunk
    return made


def _message(message: Any) -> Got:
    told = message.response_metadata
    return Got(message.content or None, told.get("finish_reason"), told)


def _response(response: Any) -> Got:
    return Got(response.message.content or None, response.additional_kwargs.get("finish_reason"), response.additional_kwargs)
