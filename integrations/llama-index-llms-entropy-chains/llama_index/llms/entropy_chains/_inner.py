"""The adapter between the core and an LLM inside: the core's requests become calls of the LLM, its responses the core's updates.

A :class:`Call` is one call of the wrapper with all that belongs to it; nothing in it is shared with another call.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.instrumentation.span import active_span_id
from llama_index.llms.entropy_chains._call_settings import (
    additional_kwargs_of,
    call_settings,
    extra_body,
    limit_of,
    never_cut,
    unreadable,
)
from llama_index.llms.entropy_chains._native import ForeignReader, instead_of
from llama_index.llms.entropy_chains._ollama import SINCE, Asking, model_of, settings_of, speaks_ollama
from llama_index.llms.entropy_chains._requests import (
    Opened,
    RawResponse,
    afailing,
    aunstreamed,
    deferred_refusal,
    failing,
    request_errors,
    unstreamed,
    update_of,
)
from llama_index.llms.entropy_chains._runs import Asked, Run, current_request
from llama_index.llms.entropy_chains._streams import (
    End,
    afinish_stream,
    async_endable,
    client_of,
    copied,
    endable,
    finish_stream,
    is_openai_class,
    uses_sdk,
)

from entropy_chains import Policy, Segmentation
from entropy_chains.adapters import (
    OLLAMA,
    WAYS,
    ChatReader,
    CompletionReader,
    Dialogue,
    Introduction,
    Known,
    OnMismatch,
    Reply,
    Request,
    ResponsesReader,
    ServedModel,
    Server,
    Turn,
    Update,
    Way,
    additions,
    awho,
    ended,
    held_back,
    hiding,
    known,
    prompt_of,
    who,
)
from entropy_chains.backends import Message, Sampling

if TYPE_CHECKING:
    from llama_index.core.llms import LLM

NO_LIMIT = 2**31
"""Most tokens of a reply where nobody set a limit; never sent."""

INSTEAD = "use an OpenAILike with the server's api_base, or another class whose raw responses are OpenAI's"


CALL_NOW = "Go on without further reasoning: call a tool, or give the final answer now."
"""The turn after a stop where there are tools: an agent that is told to answer would not call them."""


class Call(ServedModel):
    """One call of the wrapper.

    Args:
        llm: the LLM inside.
        messages: what a chat model is asked.
        prompt: what a completion model is asked, instead.
        kwargs: the caller's settings of this call.
        ask: settings that make an LLM send logprobs whose class does not say how.
        server: what is known about the server.
        client: for async calls, the SDK's client of the running loop.
        limiter: the wrapper's ``rate_limiter``, which is asked before every request.
        settings: as in :class:`entropy_chains.adapters.ServedModel`.
    """

    _plain = True

    def __init__(
        self,
        llm: LLM,
        messages: Sequence[ChatMessage] = (),
        prompt: str | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        ask: Mapping[str, Any] | None = None,
        server: Server | None = None,
        client: Any = None,
        limiter: Any = None,
        **settings: Any,
    ):
        self.responses = is_openai_class(llm, "OpenAIResponses")
        if self.responses and settings.get("without_logprobs") == "error":
            settings["without_logprobs"] = "full"  # its reasoning never has any, and the wrapper has said so
        self._ollama = speaks_ollama(llm)
        super().__init__(llm, model_of(llm), **settings)
        self.llm: Any = llm
        self._chunks_of, self._since = (type(llm).__name__, INSTEAD), (SINCE,) if self._ollama else ()
        self.messages, self.prompt, self.kwargs = list(messages), prompt, dict(kwargs or {})
        self._ask, self._server, self.client, self._limiter = ask, server or (OLLAMA if self._ollama else None), client, limiter
        self.run = Run()

    # --- what this call is

    @property
    def sampling(self) -> Sampling:
        """Temperature and token limit of the LLM inside."""
        limit = limit_of(self.llm, self.kwargs)
        return Sampling(temperature=getattr(self.llm, "temperature", None), max_tokens=limit.tokens if limit else NO_LIMIT)

    @property
    def tools(self) -> bool:
        """The model may call tools."""
        return bool(self.kwargs.get("tools"))

    @property
    def unreadable(self) -> str | None:
        """Why its reply cannot be followed as one stream, if it cannot: the LLM inside is to make the call by itself."""
        return unreadable(self.llm, self.kwargs)

    @property
    def uncut(self) -> str | None:
        """Why this call may not be stopped, if it may not."""
        if why := self.unreadable or never_cut(self.llm, self.kwargs):
            return why
        if getattr(self.llm, "track_previous_responses", False):
            return "the server keeps the conversation, and a stopped reply would be missing in it"
        if why := self.blind or self.vain:
            return why
        if not self.sighted and self.without_logprobs == "full":
            return f"{type(self.llm).__name__} takes no logprobs: run in full"
        return None

    @property
    def sighted(self) -> bool:
        """It is known how to ask the LLM for logprobs."""
        return uses_sdk(self.llm) or self._ollama or (self._ask is not None and instead_of(self.llm) is None)

    @property
    def blind(self) -> str | None:
        """Why the server gives no logprobs in this call, if that is known of its kind."""
        return _run_in_full(self._server.no_logprobs(tools=self.tools)) if self._server else None

    @property
    def vain(self) -> str | None:
        """Why no call is worth a stop, if that is known of the model."""
        return _run_in_full(self._server.always_thinks(self._served)) if self._server else None

    def _known(self, k: int) -> Known:
        """See :class:`entropy_chains.adapters.ServedModel`. Some servers refuse logprobs of calls with tools only."""
        return known(self.llm, (getattr(self.llm, "api_base", None), self._served, k, self.tools))

    def dialogue(self, policy: Policy | None, stop: bool, holdout: bool, on_mismatch: OnMismatch) -> Dialogue:
        """What to say. The messages stay here; the dialogue's own turns come after them."""
        if self.blind:
            self.without_logprobs = "full"
        return self._dialogue([], policy, self.sampling, None, stop, holdout, on_mismatch)

    def step(self, turns: Sequence[Message], sampling: Sampling, segmentation: Segmentation) -> Dialogue:
        """One call of the refine loop: its turns come after the messages."""
        return self._dialogue(turns, None, sampling, segmentation, False, False, "error")

    def check(self, policy: Policy | None, on_mismatch: OnMismatch) -> None:
        """Raises PolicyMismatch where the policy is for something else; warns, once, where it can stop nothing."""
        self._check(policy, self.sampling, None, on_mismatch)
        if self.vain and policy is not None and policy.active:
            self._known(self._k).warn(f"{type(self.llm).__name__}: {self.vain}", about="stops")

    def _ways(self) -> tuple[Way, ...]:
        if self.prompt is not None:
            return (WAYS["completion"],)  # a completion model just goes on from its own text
        able = {"turn"} if self.responses or self._ollama else {"prefill", "turn"}
        if "is_chat_model" in type(self.llm).model_fields and not self.tools:
            able.add("completion")  # a rendered prompt names no tools, and a call in it would come as text
        ways = [w for w in super()._ways() if w.name in able] or [WAYS["turn"]]
        return tuple(replace(w, ask=CALL_NOW) if self.tools and isinstance(w, Turn) else w for w in ways)

    # --- the server

    def connect(self, introduction: Introduction) -> None:
        """Ask the server who it is. One that cannot be reached is met by the call itself."""
        introduction.server = introduction.server or self._server_by_class
        self._server = introduction.who(lambda: who(client_of(self.llm), self._served, needed=False))

    async def aconnect(self, introduction: Introduction) -> None:
        """The same for ``asyncio``."""
        introduction.server = introduction.server or self._server_by_class
        self._server = await introduction.awho(lambda: awho(self.client, self._served, needed=False))

    @property
    def _server_by_class(self) -> Server | None:
        """A server that is known by the class of the LLM alone; None where it has to be asked."""
        return None if uses_sdk(self.llm) else OLLAMA if self._ollama else Server()

    # --- requests

    def _stream_call(self, request: Request, llm: Any, rendered: Any = None) -> tuple[Any, Any, dict[str, Any]]:
        """The LLM to call, what it is asked, and the settings of the call."""
        kwargs, fields = dict(self.kwargs), dict[str, Any]()
        body, extra = additional_kwargs_of(llm), {**extra_body(llm, kwargs), **request.extra}
        body.pop("extra_body", None)
        kwargs.pop("extra_body", None)
        if request.logprobs:
            kwargs |= self._logprobs(request.k, raw=not self._as_chat(request))
            if "logprobs" in type(llm).model_fields:
                fields["logprobs"] = None  # it would win over the call's own
        if uses_sdk(llm) and not self.responses and request.usage and request.streamed:
            continuous = {"continuous_usage_stats": True} if self._server and self._server.can.usage_on_close else {}
            kwargs["stream_options"] = {"include_usage": True, **continuous, **(kwargs.get("stream_options") or {})}
        if request.purpose != "reason" and (limit := limit_of(llm, self.kwargs)):
            places = {"extra_body": extra, "additional_kwargs": body, "llm": fields, "call": kwargs}
            places[limit.place][limit.name] = request.max_tokens
        if extra and not self._ollama:  # its client is told
            kwargs["extra_body"] = extra
        fields |= self.own_limiter(llm)
        if body != additional_kwargs_of(llm):
            fields["additional_kwargs"] = body
        turns = [ChatMessage(role=t["role"], content=t["content"]) for t in request.messages]
        content: Any = [*self.messages, *turns]
        if self.prompt is not None:
            content = self.prompt + (request.prefix or "")
        elif request.prefix is not None:
            fields["is_chat_model"] = False
            content = prompt_of(rendered, request)
            kwargs = {name: value for name, value in kwargs.items() if value is not None}  # tools=None is for chat only
        return llm.model_copy(update=fields) if fields else llm, content, kwargs

    def _logprobs(self, k: int, *, raw: bool) -> dict[str, Any]:
        """Settings that ask for logprobs with so many alternatives. ``raw``: of the completions endpoint, which takes a number."""
        if self.blind:
            return {}
        if self._ask is not None:
            return dict(self._ask)
        if self.responses:
            return {"include": ["message.output_text.logprobs"], "top_logprobs": k}
        if not uses_sdk(self.llm):
            return {}
        return {"logprobs": k} if raw else {"logprobs": True, "top_logprobs": k}

    @property
    def _rendering(self) -> dict[str, Any]:
        from llama_index.llms.openai.utils import to_openai_message_dicts

        return {"body": {"messages": to_openai_message_dicts(self.messages, model=self._served)}, "cast_to": object}

    def _as_chat(self, request: Request) -> bool:
        return self.prompt is None and request.prefix is None

    def open(self, request: Request) -> Opened:
        """Call the LLM inside; its stream is sent for with its first chunk."""
        end, rendered = End(), None
        if self.prompt is None and request.prefix is not None:
            rendered = client_of(self.llm).post(self._template_url, **self._rendering)
        llm, content, kwargs = self._stream_call(request, self.endable(request, end), rendered)
        run_request = self.run.ask(request.purpose)
        with self.inside(run_request):
            try:
                reply = self._method(llm, request, content)(**kwargs)
                chunks = reply if request.streamed else unstreamed(reply)
            except Exception as error:  # noqa: BLE001 (all but a refusal of logprobs is raised again)
                chunks = failing(deferred_refusal(error, request))
        return Opened(chunks, end, request, run_request, Reply(request.purpose))

    async def aopen(self, request: Request) -> Opened:
        """The same for ``asyncio``."""
        end, rendered = End(), None
        if self.prompt is None and request.prefix is not None:
            rendered = await self.client.post(self._template_url, **self._rendering)
        llm, content, kwargs = self._stream_call(request, self.async_endable(request, end), rendered)
        run_request = self.run.ask(request.purpose)
        with self.inside(run_request):
            try:
                reply = await self._method(llm, request, content, "a")(**kwargs)
                chunks = reply if request.streamed else aunstreamed(reply)
            except Exception as error:  # noqa: BLE001 (all but a refusal of logprobs is raised again)
                chunks = afailing(deferred_refusal(error, request))
        return Opened(chunks, end, request, run_request, Reply(request.purpose))

    def _method(self, llm: Any, request: Request, content: Any, prefix: str = "") -> Any:
        """What is called for this request; ``prefix``: of the names of asynchronous methods."""
        chat = self._as_chat(request)
        method = getattr(llm, f"{prefix}{'stream_' if request.streamed else ''}{'chat' if chat else 'complete'}")
        return partial(method, content) if chat else partial(method, content, True)

    def own_limiter(self, llm: Any) -> dict[str, Any]:
        """The field of the LLM inside that the wrapper's ``rate_limiter`` goes into, where it is another one."""
        return {} if self._limiter is getattr(llm, "rate_limiter", None) else {"rate_limiter": self._limiter}

    def endable(self, request: Request, end: End) -> Any:
        """A copy of the LLM inside that makes this request, and whose stream obeys ``end``."""
        if self._ollama:
            return copied(self.llm, _client=Asking(self.llm.client, settings_of(request), end))
        return endable(self.llm, end)

    def async_endable(self, request: Request, end: End) -> Any:
        """The same for ``asyncio``."""
        if self._ollama:
            return copied(self.llm, _async_client=Asking(self.llm.async_client, settings_of(request), end))
        return async_endable(self.llm, end, self.client)

    @contextmanager
    def inside(self, run_request: Asked) -> Iterator[None]:
        """Spans that begin here are children of the wrapper's, and the request's."""
        span, token = active_span_id.set(self.run.span_id), current_request.set(run_request)
        try:
            yield
        finally:
            current_request.reset(token)
            active_span_id.reset(span)

    # --- streams

    def updates(self, request: Request, first: Opened | None = None) -> Generator[Update, None, None]:
        """One request's stream; closing this ends it, so that the server stops."""
        reader = self._reader(request)
        with hiding(self.llm, self.kwargs), additions(request), request_errors(request):
            opened = first if first and first.request == request else self.open(request)
            try:
                for response in opened.chunks:
                    yield update_of(reader, response, opened)
                yield replace(self._rest(reader, opened.end), raw=RawResponse(request.purpose, None))
            finally:
                finish_stream(opened.chunks, opened.end)
                opened.run_request.over()

    async def aupdates(self, request: Request, first: Opened | None = None) -> AsyncGenerator[Update, None]:
        """The same for ``asyncio``."""
        reader = self._reader(request)
        with hiding(self.llm, self.kwargs), additions(request), request_errors(request):
            opened = first if first and first.request == request else await self.aopen(request)
            try:
                async for response in opened.chunks:
                    yield update_of(reader, response, opened)
                yield replace(self._rest(reader, opened.end), raw=RawResponse(request.purpose, None))
            finally:
                await afinish_stream(opened.chunks, opened.end)
                opened.run_request.over()

    def _rest(self, reader: Any, end: End) -> Update:
        """Returns what is left when a stream is over. Raises BackendError where it broke off: LlamaIndex does not see that."""
        return reader.finish() if self.responses or not uses_sdk(self.llm) else ended(reader, end.transfer)

    def _reader(self, request: Request) -> ChatReader | CompletionReader | ResponsesReader | ForeignReader:
        if self.responses:
            return ResponsesReader()
        held = held_back(call_settings(self.llm, self.kwargs).get("stop"))
        reader = ChatReader(held, request.begun) if self._as_chat(request) else CompletionReader(held)
        foreign = self._ollama or (not uses_sdk(self.llm) and self._ask is not None)
        return ForeignReader(reader) if foreign else reader


def _run_in_full(why: str | None) -> str | None:
    return f"{why}: run in full; use vLLM" if why else None
