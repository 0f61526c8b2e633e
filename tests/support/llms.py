"""LLMs of the scripted server, plain and in EarlyStopLLM, asked in every way."""

from __future__ import annotations

import asyncio
from typing import Any

from llama_index.core.llms import ChatMessage
from llama_index.llms.entropy_chains import EarlyStopLLM
from llama_index.llms.openai_like import OpenAILike
from loopback import Loopback, is_answer_call
from pydantic import BaseModel

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32), calibration={"remaining_tokens": [200, 160, 120]})
LOOP = Policy("scripted", (0.2,), mode="refine", segmentation=Segmentation("call", 1))
QUESTION = "What is 6*7?"
ASKED = [ChatMessage(role="user", content=QUESTION)]
ANSWER = "The answer is 42"
KEY = "sk-do-not-show-me"
TOOL = {"type": "function", "function": {"name": "multiply", "parameters": {"type": "object", "properties": {}}}}


class Product(BaseModel):
    """What 6*7 is."""

    value: int


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
    asked: Any = ASKED if "chat" in method else QUESTION

    async def run() -> list[Any]:
        made = await getattr(llm, method)(asked, **kwargs)
        return [r async for r in made] if "stream" in method else [made]

    if method.startswith("a"):
        return asyncio.run(run())
    made = getattr(llm, method)(asked, **kwargs)
    return list(made) if "stream" in method else [made]


def text_of(response: Any) -> str:
    """The text of a chat's or a completion's response."""
    return response.message.content if hasattr(response, "message") else response.text


METHODS = [f"{a}{s}{m}" for a in ("", "a") for s in ("", "stream_") for m in ("chat", "complete")]


def llm_at(server, **settings):
    """An LLM with logprobs of its own, as the event handler needs it."""
    given = {"logprobs": True, "top_logprobs": 20, "is_chat_model": True} | settings
    return OpenAILike(model="scripted", api_base=server.url, api_key="sk-hidden-in-tests", **given)


def asking(method):
    """A function that gives the last response of one of the eight methods of an LLM."""

    def ask(llm):
        return ask_all(llm, method)[-1]

    ask.__name__ = method
    return ask


EIGHT = [asking(method) for method in METHODS]
chat, complete, stream_chat, stream_complete, achat, acomplete, astream_chat, astream_complete = EIGHT
STREAMS = [stream_chat, stream_complete, astream_chat, astream_complete]
