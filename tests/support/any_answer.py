"""Any answer text through both frameworks, over HTTP: what the server sent is what the user gets, letter for letter.

The server is the scripted one of the tests (a fake: it thinks nothing).
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st
from langchain_deepseek import ChatDeepSeek
from langchain_entropy_chains import EarlyStopChatModel, EarlyStopped, EntropyCallbackHandler
from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI
from llama_index.core.llms import ChatMessage
from llama_index.llms.entropy_chains import EarlyStopLLM
from llama_index.llms.openai_like import OpenAILike
from loopback import SURE, UNSURE, Loopback, Reply, Tok, is_answer_call, line
from ollama_loopback import Ollama

from entropy_chains.core.families import FAMILIES, ThinkTags
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation

TAGS = ThinkTags()
POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 8))
QUESTION = "What is 6*7?"

MENTIONS = st.sampled_from([t for tags in FAMILIES for t in (tags.open, tags.close, tags.after) if t])
CODE = st.sampled_from(
    [
        "```python\nprint('<think>')\n```\n",
        '{"a": "</think>"}',
        "`<think>`",
        '"quoted"',
        "<",
        "</thin",
        "data: [DONE]\n\n",
        "<|im_end|>",
    ]
)
ODD = st.sampled_from(
    ["\ufeff", "\ufffd", "\u2028", "\u0085", "\x00", "\x1b[31m", "\r\n", "\r", "e\u0301", "👩‍👩‍👧", "مرحبا", "\u202e", "\U0010ffff"]
)
BLANKS = st.sampled_from(["", " ", "\n", "\n\n", "\t ", "\u00a0"])
ANSWERS = st.builds(
    lambda first, parts, last: first + "".join(parts) + last,
    BLANKS,
    st.lists(MENTIONS | CODE | ODD | st.text(st.characters(codec="utf-8"), max_size=8), max_size=8),
    BLANKS,
)
OWNERS = ("vllm", "somebody")
CUTS = st.lists(st.integers(1, 9), max_size=20)


@dataclass(frozen=True)
class Case:
    """What the server does.

    Attributes:
        answer: its text.
        cuts: lengths of its tokens; what is left is one.
        thought: it thinks before.
        sure: so that the thinking is stopped.
        inline: the thinking stands in tags in the text; else in a field of its own.
        owner: the kind of server: one that goes on from a given text, or one that is asked in a turn.
        escaped: characters that are no ASCII are escaped in what it sends.
    """

    answer: str
    cuts: tuple[int, ...] = ()
    thought: bool = True
    sure: bool = False
    inline: bool = False
    owner: str = "vllm"
    escaped: bool = True

    @property
    def due(self) -> str:
        """What the user is to get: blanks at the beginning are the tags' where those stand before them."""
        blank = self.thought and (self.sure or self.inline)
        return self.answer.lstrip() if blank else self.answer

    @property
    def told(self) -> bool:
        """Whether it can be told what is answer: not where it begins as thinking does, or with what a close leaves behind."""
        begun = self.answer.lstrip()
        if self.thought and self.sure:
            return bool(begun) and not begun.startswith((TAGS.open, TAGS.close))
        return self.thought or not (TAGS.open.startswith(begun[: len(TAGS.open)]) or begun.startswith(TAGS.open))

    def script(self, body: dict[str, Any]) -> Reply:
        """The reply to a request."""
        said, at = list[Tok](), 0
        for length in (*self.cuts, len(self.answer)):
            if text := self.answer[at : at + length]:
                said.append(Tok(text, SURE, reasoning=False))
            at += length
        if is_answer_call(body):
            return Reply(said)
        thought = [t for h in (UNSURE, *[SURE if self.sure else UNSURE] * 2) for t in line("so it goes on and on and on then", h)]
        return Reply([*(thought if self.thought else ()), *said])


CASES = st.builds(
    Case,
    ANSWERS,
    CUTS.map(tuple),
    thought=st.booleans(),
    sure=st.booleans(),
    inline=st.booleans(),
    owner=st.sampled_from(OWNERS),
    escaped=st.booleans(),
).filter(lambda case: case.told)

ALL = (
    "\n Say <think> or </think>, `[THINK]`, <|im_end|>:\n```python\nprint('</think>\\n<think>', \"data: [DONE]\")\n```\n"
    "\ufeff\ufffd\u2028\u0085\x00\r\ne\u0301 👩‍👩‍👧 مرحبا \U0010ffff </thin < \n\n"
)
CUT = (1, 3, 2, 5, 1, 1, 8, 2, 1, 4, 6)
TELLING = [
    Case(ALL, CUT, thought=False),
    Case(ALL, thought=False, inline=True, escaped=False),
    Case(ALL, CUT),
    Case(ALL, CUT, inline=True, escaped=False),
    Case(ALL, CUT, sure=True),
    Case(ALL, CUT, sure=True, inline=True, owner="somebody", escaped=False),
]
"""Every kind of run, with an answer that has everything in it."""


# --- what users have, by each of the ways: the whole message, and the stream put together


class LangChain:
    """The wrapper around a model of a class."""

    def __init__(self, kind: Any, url: str, loop: asyncio.AbstractEventLoop):
        self._model, self._loop = EarlyStopChatModel(chat(kind, url), POLICY), loop

    def got(self, case: Case) -> list[str]:
        """The answer, asked for in every form."""

        async def both() -> list[str]:
            awaited = await self._model.ainvoke(QUESTION)
            return [str(awaited.content), "".join([str(chunk.content) async for chunk in self._model.astream(QUESTION)])]

        streamed = "".join(str(chunk.content) for chunk in self._model.stream(QUESTION))
        return [str(self._model.invoke(QUESTION).content), streamed, *self._loop.run_until_complete(both())]


class Callback:
    """The handler, which leaves messages as they are; the answer after its stop is the model's message."""

    def __init__(self, kind: Any, url: str, loop: asyncio.AbstractEventLoop):
        self._model = chat(kind, url, logprobs=True, top_logprobs=20)

    def got(self, case: Case) -> list[str]:
        """The answer after a stop; nothing of a run that is not stopped, which is compared with the model's own."""
        plain = str(self._model.invoke(QUESTION).content)
        watching, stopping = ({"callbacks": [EntropyCallbackHandler(POLICY, stop=stop)]} for stop in (False, True))
        assert "".join(str(chunk.content) for chunk in self._model.stream(QUESTION, config=watching)) == plain
        try:
            assert "".join(str(chunk.content) for chunk in self._model.stream(QUESTION, config=stopping)) == plain
        except EarlyStopped as stopped:
            assert case.thought
            assert case.sure
            answer = str(stopped.finish(self._model).content)
            return [case.due if answer == case.answer else answer]
        return []


class LlamaIndex:
    """The wrapper. An LLM of LlamaIndex leaves tags in the content, and the wrapper does as well."""

    def __init__(self, kind: Any, url: str, loop: asyncio.AbstractEventLoop):
        settings = {"is_chat_model": True, "context_window": 8000, "max_retries": 0}
        if kind is OpenAILike:
            inner = OpenAILike(model="scripted", api_base=url, api_key="none", **settings)
        else:
            inner = kind(model="scripted", base_url=url, context_window=8000)
        self._llm, self._loop = EarlyStopLLM(inner, POLICY), loop

    def got(self, case: Case) -> list[str]:
        """The answer, asked for in every form."""
        asked = [ChatMessage(QUESTION)]

        async def both() -> list[str]:
            whole = await self._llm.achat(asked)
            return [whole.message.content or "", "".join([r.delta or "" async for r in await self._llm.astream_chat(asked)])]

        streamed = [*self._llm.stream_chat(asked)]
        texts = [self._llm.chat(asked).message.content or "", streamed[-1].message.content or ""]
        texts += ["".join(r.delta or "" for r in streamed), *self._loop.run_until_complete(both())]
        tagged = case.inline and case.thought and isinstance(self._llm.llm, OpenAILike)
        return [text.partition(TAGS.close)[2].lstrip() for text in texts] if tagged else texts


def chat(kind: Any, url: str, **settings: Any) -> Any:
    """A plain model of a class of LangChain."""
    if kind is ChatOllama:
        return ChatOllama(model="scripted", base_url=url, reasoning=True, **settings)
    address = {"api_base": url} if kind is ChatDeepSeek else {"base_url": url}
    return kind(model="scripted", api_key="none", max_retries=0, **address, **settings)


WAYS: dict[str, tuple[Any, Any]] = {
    "ChatOpenAI": (LangChain, ChatOpenAI),
    "ChatDeepSeek": (LangChain, ChatDeepSeek),
    "callback": (Callback, ChatDeepSeek),
    "LlamaIndex": (LlamaIndex, OpenAILike),
    "ChatOllama": (LangChain, ChatOllama),
}
with suppress(ImportError):
    from llama_index.llms.ollama import Ollama as OllamaLLM

    WAYS["LlamaIndex, Ollama"] = (LlamaIndex, OllamaLLM)


class Checks:
    """One way, with a server of each kind that is there for all cases; a context manager."""

    def __init__(self, way: str):
        asker, kind = WAYS[way]
        self._loop = asyncio.new_event_loop()
        self._ollama = "Ollama" in way  # splits its tags off, and the blanks around them
        made = {owner: Ollama(Case("").script, tags=True) if self._ollama else Loopback(owned_by=owner) for owner in OWNERS}
        self._servers: dict[str, Any] = made
        self._askers = {owner: asker(kind, server.url, self._loop) for owner, server in self._servers.items()}

    def __enter__(self) -> Checks:
        for server in self._servers.values():
            server.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        for server in self._servers.values():
            server.__exit__()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def check(self, case: Case) -> None:
        """The user gets what the server sent, in every form of this way."""
        server = self._servers[case.owner]
        case = replace(case, inline=True) if self._ollama else case
        server.script, server.field_name = case.script, "" if case.inline else "reasoning_content"
        server.ascii = case.escaped
        bodies = server.bodies if self._ollama else server.calls
        bodies.clear()
        got = self._askers[case.owner].got(case)
        assert any(is_answer_call(b if self._ollama else b.body) for b in bodies) is (case.thought and case.sure), "stopped"
        assert got == [case.due] * len(got), case
