"""A LangChain chat model that a dialogue's requests are sent to: they become calls of its ``_stream`` and ``_astream``.

The model's own methods below the callbacks are called, so that one call is one run in every trace.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing, contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from langchain_core.messages import AIMessageChunk, BaseMessage, convert_to_messages
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGenerationChunk

from entropy_chains import Segmentation
from entropy_chains.adapters import (
    FAMILIES,
    OLLAMA,
    Dialogue,
    Introduction,
    Known,
    Listening,
    OnMismatch,
    Request,
    ServedModel,
    Update,
    additions,
    adrive,
    drive,
    forms,
    held_back,
    hiding,
    known,
    prompt_of,
    refusals,
)
from entropy_chains.backends import Generation, Message, Sampling
from entropy_chains.errors import BackendError, EntropyChainsError, quoted
from langchain_entropy_chains._chunks import ChunkReader, ChunkWriter
from langchain_entropy_chains._closing import aclosing_response, closing_response
from langchain_entropy_chains._model_info import BODY, drops_reasoning, extra_body, limit, model_name, numeric_field, with_reply_ids
from langchain_entropy_chains._ollama import SINCE, settings_of, speaks_ollama, with_seed

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

NO_LIMIT = 2**31

AFTER_A_STOP = ("answer", "probe")
"""Purposes of the requests for an answer after thinking that was cut; all others are for a whole reply."""

INSTEAD = "use langchain-openai's ChatOpenAI with the server's base_url, or another class that passes logprobs on"

CLIENTS = ("client", "async_client")
"""Where an OpenAI-compatible model keeps the SDK's resources."""

RAW_SETTINGS = ("model", "temperature", "top_p", "seed", "stop", "presence_penalty", "frequency_penalty", "logit_bias")
"""Settings that a raw completion shares with a chat."""

_SERVERS: WeakKeyDictionary[Any, dict[str, Introduction]] = WeakKeyDictionary()
"""What servers said of themselves, for as long as the user's client lives: it does not change from call to call."""


class InnerModel(ServedModel):
    """One call of a chat model: its messages are LangChain's, and it is a backend for the refine loop.

    Args:
        chat: the model.
        stop: the call's stop texts.
        kwargs: the call's settings.
        owner: the user's model, where ``chat`` is made of it for one call.
        settings: those of :class:`entropy_chains.adapters.ServedModel`.

    Attributes:
        readers: one for every request sent.
        writer: of the chunks that the user sees.
    """

    _plain = True

    def __init__(
        self,
        chat: BaseChatModel,
        stop: Sequence[str] | None,
        kwargs: Mapping[str, Any],
        owner: BaseChatModel | None = None,
        **settings: Any,
    ):
        super().__init__(None, model_name(chat, kwargs), **settings)
        self._owner = getattr(chat, "root_client", None) or owner or chat
        self._chat, self._stop, self._kwargs = chat, list(stop) if stop else None, dict(kwargs)
        self._speaks_openai = hasattr(chat, "root_client") and hasattr(chat, "_get_request_payload")
        self._drops_reasoning = drops_reasoning(chat)
        if not self._drops_reasoning:
            self._chunks_of = type(chat).__name__, INSTEAD
        if speaks_ollama(chat):
            self._server, self._since = OLLAMA, (SINCE,)
        self._limit = limit(chat, kwargs)
        self._named = with_reply_ids(chat)
        wants_logprobs = bool(kwargs.get("logprobs", getattr(chat, "logprobs", None)))
        alternatives = self._alternatives_wanted if wants_logprobs else None
        self.readers: list[ChunkReader] = []
        self._run: ChunkReader | None = None  # of the last request for a whole reply
        self.writer = ChunkWriter(alternatives=alternatives)

    @property
    def sampling(self) -> Sampling:
        """The model's own temperature, seed and token limit, as far as it has them."""
        settings = {name: self._kwargs.get(name, numeric_field(self._chat, name)) for name in ("temperature", "seed")}
        return Sampling(**settings, max_tokens=self._limit.value if self._limit else NO_LIMIT)

    @property
    def unclosed(self) -> str:
        """The content of the last whole reply, as the inner model gives it; "" where it is blank, closed, or beside a tool call."""
        reader = self._run
        if not reader or reader.called or not reader.content.strip():
            return ""
        begins = (tags for tags in (self.tags, *FAMILIES) if tags.open and reader.content.lstrip().startswith(tags.open))
        return "" if next(begins, self.tags).close in reader.content else reader.content

    @property
    def _alternatives_wanted(self) -> int:
        """Alternatives of a token that the user asked for."""
        return self._kwargs.get("top_logprobs") or numeric_field(self._chat, "top_logprobs") or 0

    @property
    def in_full(self) -> str | None:
        """Why this call runs in full, if that is known of its kind of server: no logprobs, or a stop would be in vain."""
        server, tools = self._server, bool(self._kwargs.get("tools"))
        why = (server.no_logprobs(tools=tools) or server.always_thinks(self._served)) if server else None
        return f"{why}; use vLLM" if why else None

    def _known(self, k: int) -> Known:
        """See :class:`entropy_chains.adapters.ServedModel`. Some servers refuse logprobs of calls with tools only."""
        return known(self._owner, (self._served, k, bool(self._kwargs.get("tools"))))

    def check_ways(self) -> None:
        """Raises SettingsError where no way to the answer is left of those wanted."""
        self._ways()

    @property
    def _control_wanted(self) -> bool:
        return False  # the stream's id does not come through LangChain

    def dialogue(
        self, messages: Sequence[BaseMessage], policy: Any, *, segmentation: Any, stop: bool, holdout: bool, on_mismatch: OnMismatch
    ) -> Dialogue:
        """One reply. Raises PolicyMismatch where the policy is for something else."""
        self._check(policy, self.sampling, None, on_mismatch)
        return self._dialogue(
            messages,  # type: ignore[arg-type]  # a dialogue passes them on as they are
            policy=policy,
            sampling=self.sampling,
            segmentation=segmentation,
            stop=stop,
            holdout=holdout,
            on_mismatch=on_mismatch,
        )

    # --- sending

    def updates(self, request: Request, seed: int | None = None) -> Generator[Update, None, None]:
        """One request; closing this closes the connection, so that the server stops."""
        reader = self._reader(request)
        with hiding(self._chat, self._kwargs), additions(request), _request_errors(request):
            if not request.streamed:
                chat, kwargs = self._stream_call(request, seed)
                yield reader.whole(chat._generate(**kwargs))
                return
            if request.prefix is None:
                chat, kwargs = self._stream_call(request, seed)
                stream = self._listening(chat, reader)._stream(**kwargs)
            else:
                stream = self._completion(request, reader)
            with closing_response(stream) as chunks:
                for chunk in chunks:
                    yield reader.feed(chunk)
            yield reader.finish()

    async def aupdates(self, request: Request, seed: int | None = None) -> AsyncGenerator[Update, None]:
        """The same for ``asyncio``."""
        reader = self._reader(request)
        with hiding(self._chat, self._kwargs), additions(request), _request_errors(request):
            if not request.streamed:
                chat, kwargs = self._stream_call(request, seed)
                yield reader.whole(await chat._agenerate(**kwargs))
                return
            if request.prefix is None:
                chat, kwargs = self._stream_call(request, seed)
                stream = self._listening(chat, reader)._astream(**kwargs)
            else:
                stream = self._acompletion(request, reader)
            async with aclosing_response(stream) as chunks:
                async for chunk in chunks:
                    yield reader.feed(chunk)
            yield reader.finish()

    def _reader(self, request: Request) -> ChunkReader:
        stop = self._stop or self._kwargs.get("stop") or getattr(self._chat, "stop", None)
        reader = ChunkReader(held=held_back(stop), strict=self._speaks_openai and request.streamed, turn=request.begun)
        self.readers.append(reader)
        if request.purpose not in AFTER_A_STOP:
            self._run = reader
        return reader

    def _listening(self, chat: BaseChatModel, reader: ChunkReader) -> BaseChatModel:
        """The model; where it is known how, a copy of it whose streams tell how they end."""
        if not self._speaks_openai:
            return chat
        ears = {name: Listening(getattr(chat, name), reader.transfer) for name in CLIENTS if getattr(chat, name, None)}
        return chat.model_copy(update=ears)

    def _stream_call(self, request: Request, seed: int | None) -> tuple[BaseChatModel, dict[str, Any]]:
        """The model, and the settings of its ``_stream``."""
        kwargs = dict(self._kwargs)
        if request.logprobs:
            wanted = max(request.k, self._alternatives_wanted)
            kwargs |= {"logprobs": True, "top_logprobs": self._known(self._k).within(wanted)}
        if self._speaks_openai and request.streamed:
            kwargs |= self._usage_settings(kwargs, wanted=request.usage)
        if request.extra:
            kwargs |= self._extra_settings(request.extra, kwargs)
        chat = self._named
        if seed is not None and self._server is OLLAMA:
            chat, kwargs = with_seed(chat, kwargs, seed)
        elif seed is not None:
            kwargs["seed"] = seed
        kwargs = {"messages": convert_to_messages(request.messages), "stop": self._stop, **kwargs}
        return self._limit.put(request.max_tokens, chat, kwargs) if self._limit else (chat, kwargs)

    def _usage_settings(self, kwargs: Mapping[str, Any], *, wanted: bool) -> dict[str, Any]:
        """What makes a stream of ``langchain-openai`` tell its usage, where the user has not settled that; ``wanted``: it may."""
        if not wanted:
            return {"stream_usage": False}
        own = (kwargs, getattr(self._chat, "model_kwargs", None) or {})
        settled = getattr(self._chat, "stream_usage", None) is False or any("stream_options" in each for each in own)
        return {} if settled or "stream_usage" in kwargs else {"stream_usage": True}

    def _extra_settings(self, extra: Mapping[str, Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of a request besides the user's own, as this class takes them."""
        if self._speaks_openai:
            return {BODY: {**extra_body(self._chat, kwargs), **extra}}
        further = settings_of(extra) if self._server is OLLAMA else None
        if further is None:
            raise BackendError(f"{type(self._chat).__name__} cannot go on from a given text: use continuation='turn'")
        return further

    def _completion(self, request: Request, reader: ChunkReader) -> Generator[ChatGenerationChunk, None, None]:
        client, template_body, settings = self._chat.root_client, *self._completion_call(request)  # type: ignore[attr-defined]  # looked up before
        rendered = client.post(self._template_url, body=template_body, cast_to=object)
        response = client.completions.create(prompt=prompt_of(rendered, request), **settings)
        with closing(reader.transfer.listen(response)) as stream:
            for event in stream:
                yield _completion_chunk(event)

    async def _acompletion(self, request: Request, reader: ChunkReader) -> AsyncGenerator[ChatGenerationChunk, None]:
        client, template_body, settings = self._chat.root_async_client, *self._completion_call(request)  # type: ignore[attr-defined]
        rendered = await client.post(self._template_url, body=template_body, cast_to=object)
        stream = reader.transfer.listen(await client.completions.create(prompt=prompt_of(rendered, request), **settings))
        try:
            async for event in stream:
                yield _completion_chunk(event)
        finally:
            await stream.close()

    def _completion_call(self, request: Request) -> tuple[dict[str, Any], dict[str, Any]]:
        """What to render, and the settings of a raw completion."""
        if not self._speaks_openai or self._kwargs.get("tools"):
            raise BackendError("a raw completion knows no tools, and needs an OpenAI-compatible model: use continuation='turn'")
        messages = convert_to_messages(request.messages)
        payload = self._chat._get_request_payload(messages, stop=self._stop, **self._kwargs)  # type: ignore[attr-defined]
        settings = {name: payload[name] for name in RAW_SETTINGS if payload.get(name) is not None}
        body = {name: value for name, value in (payload.get(BODY) or {}).items() if name not in forms.LIMITS}
        settings |= {BODY: body} if body else {}
        limit = request.max_tokens if self._limit else Sampling().max_tokens  # without one most servers give 16 tokens
        usage = {"stream": True, **({"stream_options": {"include_usage": True}} if request.usage else {})}
        logprobs = {"logprobs": request.k} if request.logprobs else {}
        return {"messages": payload["messages"]}, {**settings, **usage, **logprobs, "max_tokens": limit}

    # --- who the server is

    def connect(self) -> None:
        """Ask an OpenAI-compatible server who it is, once a client. One that cannot be reached is met by the call itself."""
        client = getattr(self._chat, "root_client", None)
        if client is not None:
            from entropy_chains.adapters import who

            self._server = self._met_by(client).who(lambda: who(client, self._served, needed=False))

    async def aconnect(self) -> None:
        """The same for ``asyncio``."""
        client = getattr(self._chat, "root_async_client", None)
        if client is not None:
            from entropy_chains.adapters import awho

            self._server = await self._met_by(client).awho(lambda: awho(client, self._served, needed=False))

    def _met_by(self, client: Any) -> Introduction:
        """What this client's server said of itself; the sync and the async client of a model ask the same one."""
        return _SERVERS.setdefault(getattr(self._chat, "root_client", None) or client, {}).setdefault(self._served, Introduction())

    # --- a backend for the refine loop

    def generate(
        self, conversations: Sequence[Sequence[Message]], *, sampling: Sampling, segmentation: Segmentation, **_: Any
    ) -> list[Generation]:
        """See :class:`entropy_chains.backends.Backend`. Measured, and never stopped."""
        runs = []
        for messages in conversations:
            dialogue = self._unstopped_dialogue(messages, sampling, segmentation)
            with closing(drive(dialogue, lambda request: self.updates(request, sampling.seed))) as events:
                for event in events:
                    self.writer.chunk(event)
            runs.append(dialogue.result())
        return runs

    async def agenerate(
        self, conversations: Sequence[Sequence[Message]], *, sampling: Sampling, segmentation: Segmentation, **_: Any
    ) -> list[Generation]:
        """The same for ``asyncio``."""
        runs = []
        for messages in conversations:
            dialogue = self._unstopped_dialogue(messages, sampling, segmentation)
            async with aclosing(adrive(dialogue, lambda request: self.aupdates(request, sampling.seed))) as events:
                async for event in events:
                    self.writer.chunk(event)
            runs.append(dialogue.result())
        return runs

    def _unstopped_dialogue(self, messages: Sequence[Message], sampling: Sampling, segmentation: Segmentation) -> Dialogue:
        return self._dialogue(
            messages,
            policy=None,
            sampling=sampling,
            segmentation=segmentation,
            stop=False,
            holdout=False,
            on_mismatch="error",
        )


@contextmanager
def _request_errors(request: Request) -> Iterator[None]:
    """Errors of a request that follows a stop as BackendError, which the dialogue judges; a run's own stay the inner model's."""
    try:
        with refusals(request.logprobs):
            yield
    except Exception as error:
        if request.purpose not in AFTER_A_STOP or isinstance(error, EntropyChainsError):
            raise
        raise BackendError(f"{type(error).__name__}: {quoted(str(error))}") from error


def _completion_chunk(event: Any) -> ChatGenerationChunk:
    """An event of a raw completion as a chat's chunk."""
    choice = event.choices[0] if event.choices else None
    usage = event.usage
    counts = (
        {"input_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens, "total_tokens": usage.total_tokens}
        if usage
        else {}
    )
    message = AIMessageChunk(
        content=(choice.text if choice else None) or "",
        usage_metadata=UsageMetadata(**counts) if usage else None,  # type: ignore[typeddict-item]
        response_metadata={"model_provider": "openai"},
    )
    finish = choice.finish_reason if choice else None
    info = {"finish_reason": finish, "model_name": event.model} if finish else {}
    if choice and choice.logprobs:
        info["logprobs"] = choice.logprobs
    return ChatGenerationChunk(message=message, generation_info=info or None)
