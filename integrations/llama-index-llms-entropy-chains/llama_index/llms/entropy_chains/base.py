"""``EarlyStopLLM``: any LLM of an OpenAI-compatible API, stopped when it is sure, in place of the LLM itself."""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    MessageRole,
)
from llama_index.core.bridge.pydantic import Field, PrivateAttr, ValidationError, field_serializer
from llama_index.core.instrumentation.span import active_span_id
from llama_index.core.llms import LLM
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.llms.entropy_chains._delegate import Delegate
from llama_index.llms.entropy_chains._inner import Call
from llama_index.llms.entropy_chains._native import instead_of
from llama_index.llms.entropy_chains._passed import Passing, apassed, passed
from llama_index.llms.entropy_chains._replacement import Replacement
from llama_index.llms.entropy_chains._responses import alast_of, as_completion, last_of
from llama_index.llms.entropy_chains._run import RunTerms, arefine, arun, refine, run
from llama_index.llms.entropy_chains._runs import follow_spans
from llama_index.llms.entropy_chains._streams import async_client_of, uses_sdk
from llama_index_instrumentation.dispatcher import active_instrument_tags

from entropy_chains import Policy, Segmentation, ThinkTags, is_holdout, stopping_enabled
from entropy_chains.adapters import (
    IN_AN_APP,
    Introduction,
    Mode,
    OnMismatch,
    Server,
    TemperatureMode,
    WithoutLogprobs,
    check_settings,
    without_logprobs,
)
from entropy_chains.errors import NoLogprobsError, SettingsError

RUN = "run_id"
"""The instrument tag that names a root run, for the holdout."""


_LEARNING = threading.Lock()
"""Held while a wrapper looks up what was learnt: threads that call it first at once share it."""


@dataclass(slots=True)
class Learnt:
    """What was learnt through an LLM, and is true of it alone: a copy of the wrapper may be given another one.

    Attributes:
        llm: the LLM inside.
        address: its server's, which may be set later.
        introduction: asks who its server is.
        clients: its async clients by event loop.
    """

    llm: LLM
    address: str | None = None
    introduction: Introduction = field(default_factory=Introduction)
    clients: WeakKeyDictionary[Any, Any] = field(default_factory=WeakKeyDictionary)

    @property
    def server(self) -> Server | None:
        """Who its server is, once it was asked."""
        return self.introduction.server

    def __deepcopy__(self, memo: dict[int, Any]) -> Learnt:
        """Nothing is learnt through a copy of the LLM yet; connections cannot be copied."""
        return Learnt(deepcopy(self.llm, memo), self.address)


class EarlyStopLLM(Delegate, Replacement):
    """An LLM that closes its reasoning when it is sure, and still answers.

    ``chat`` and ``complete`` stream inside; at the boundary where the policy stops, the server's request is ended, and the answer
    follows. Only thinking is ever cut: never a tool call, structured output, or text outside of the thinking. The last
    response's ``additional_kwargs`` say what happened (``early_stop_*``), and count the tokens of all requests.

    Args:
        llm: the LLM inside: ``OpenAI``, ``OpenAILike`` and their relatives. It is not changed, but for its callback manager.
        policy: a Policy or its file; None only measures.
        mode: ``thinking`` (end a reply's thinking) or ``refine`` (the paper's loop: ask again until sure).
        max_steps: calls of the refine loop.
        on_mismatch: ``error`` or ``warn``, where the policy is for something else.
        without_logprobs: where there are none: ``full`` (never stop), ``agreement`` (stop when two answers agree) or ``error``.
        continuation: how the answer is got after a stop: ``auto``, ``prefill``, ``completion``, ``turn``, or several in order.
        holdout: share of the runs that run in full on purpose, 0 to 1. A run is named by ``instrument_tags({"run_id": …})``.
        holdout_salt: another salt draws another holdout.
        early_stop: False only watches, as ``ENTROPY_CHAINS_STOP=0`` does; every method takes ``early_stop=False`` too.
        k: alternatives asked for when there is no policy.
        think_tags, segmentation, opened, temperature_mode, name: as in :class:`entropy_chains.backends.openai.OpenAIBackend`.
        ask: settings of a call that make an LLM send logprobs whose class does not say how.
        return_logprobs: fill ``logprobs`` of the last response.
        settings: those of every LLM (``system_prompt``, ``callback_manager`` …); the inner LLM's by default.
    """

    policy: Any = Field(default=None, frozen=True)
    mode: Mode = "thinking"
    max_steps: int = 4
    on_mismatch: OnMismatch = "error"
    without_logprobs: WithoutLogprobs = IN_AN_APP
    continuation: Any = "auto"
    holdout: float = 0.0
    holdout_salt: str = ""
    early_stop: bool = True
    k: int = 20
    think_tags: ThinkTags | None = None
    segmentation: Segmentation | None = None
    opened: bool = False
    temperature_mode: TemperatureMode = "raw"
    name: str | None = None
    ask: dict[str, Any] | None = None
    return_logprobs: bool = False

    _last_learnt: Learnt | None = PrivateAttr(default=None)
    _setting_names: tuple[str, ...] = PrivateAttr(default=())

    def __init__(self, llm: LLM, policy: Policy | str | Path | None = None, **settings: Any):
        if not isinstance(llm, LLM):
            raise SettingsError(f"llm is {type(llm).__name__}; give the LLM to wrap, such as an OpenAILike")
        if isinstance(llm, EarlyStopLLM | StructuredLLM):
            raise SettingsError(f"llm is {type(llm).__name__}; wrap the LLM inside it")
        check_settings("EarlyStopLLM", settings, type(self).model_fields)
        policy = Policy.of(policy)
        try:
            super().__init__(llm, policy=policy, **settings)
        except ValidationError as error:
            raise SettingsError(_fault_in(error)) from None
        self._setting_names = tuple(settings)
        self._check()

    def _set_inner(self, inner: LLM) -> None:
        if self._original is self.llm:
            self._original = inner
        super()._set_inner(inner)

    @property
    def settings(self) -> dict[str, Any]:
        """What was set when it was made, beside the LLM and the policy, as it is now."""
        return {name: getattr(self, name) for name in self._setting_names}

    def _check(self) -> None:
        if self.max_steps < 1:
            raise SettingsError(f"max_steps is {self.max_steps}; the loop needs at least 1 call")
        if not (self.policy is None or isinstance(self.policy, Policy)):
            raise SettingsError(f"policy is {type(self.policy).__name__}; give a Policy, its file, or None")
        if "control" in self.continuation:
            raise SettingsError("continuation is 'control', which LlamaIndex's streams have no room for; use auto")
        if self.mode == "refine" and not self.llm.metadata.is_chat_model:
            raise SettingsError("mode is 'refine', which asks in turns; it needs a chat model (is_chat_model=True)")
        if not 0 <= self.holdout <= 1:
            raise SettingsError(f"holdout is {self.holdout}; it must be between 0 (no holdout) and 1 (all runs)")
        call = self._call((), None, {})
        kind, other = type(self.llm).__name__, instead_of(self.llm)
        instead = f"use {other}" if other else None
        takes = "passes no wish for logprobs on, with ask= neither" if other else "is not known to take logprobs"
        if not call.sighted and call.without_logprobs == "error":
            remedy = instead or "wrap an OpenAILike or OpenAI, or say how to ask with ask={…}"
            raise NoLogprobsError(
                f"{kind} {takes}, so there is no entropy: {remedy}; or take full runs with without_logprobs='full'"
            )
        if not call.sighted and call.without_logprobs == "full" and self.policy is not None:
            remedy = instead or "say how to ask with ask={…}, or wrap an OpenAILike or OpenAI"
            warnings.warn(f"{kind} {takes}, so all its calls run in full: {remedy}", stacklevel=3)
        self._check_policy(call)
        follow_spans()
        call.dialogue(self.policy if self.mode == "thinking" else None, True, False, self.on_mismatch)  # its settings are checked
        if call.responses:
            remedy = "only thinking in its output text (<think>) can be stopped, all else runs in full; use OpenAI or OpenAILike"
            warnings.warn(f"{kind}: the Responses API gives no logprobs on reasoning: {remedy}", stacklevel=3)

    def _check_policy(self, call: Call) -> None:
        if self.policy is not None and self.mode == "thinking":
            call.check(self.policy, self.on_mismatch)
        elif self.policy is not None:
            self.policy.check(mode="refine", model=call.model, on_mismatch=self.on_mismatch)

    @field_serializer("policy")
    def _as_file(self, policy: Policy | None) -> dict[str, Any] | None:
        return policy.to_dict() if policy else None

    # --- the eight methods

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """See :class:`llama_index.core.llms.LLM`."""
        return last_of(self._run(*self._chat_input(messages), kwargs, streams=False))

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """See :class:`llama_index.core.llms.LLM`; the last response has no delta, and says what happened."""
        return self._run(*self._chat_input(messages), kwargs)

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """See :class:`llama_index.core.llms.LLM`."""
        return as_completion(last_of(self._run(*self._completion_input(prompt, formatted), kwargs, streams=False)))

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """See :class:`llama_index.core.llms.LLM`; the last response has no delta, and says what happened."""
        run = self._run(*self._completion_input(prompt, formatted), kwargs)
        return (as_completion(response) for response in run)

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """See :meth:`chat`."""
        return await alast_of(await self._arun(*self._chat_input(messages), kwargs, streams=False))

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """See :meth:`stream_chat`."""
        return await self._arun(*self._chat_input(messages), kwargs)

    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """See :meth:`complete`."""
        return as_completion(await alast_of(await self._arun(*self._completion_input(prompt, formatted), kwargs, streams=False)))

    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """See :meth:`stream_complete`."""
        run = await self._arun(*self._completion_input(prompt, formatted), kwargs)
        return (as_completion(response) async for response in run)

    def _chat_input(self, messages: Sequence[ChatMessage]) -> tuple[Sequence[ChatMessage], str | None]:
        if self.metadata.is_chat_model:
            return messages, None
        assert self.messages_to_prompt is not None  # noqa: S101 (LLM's own validator sees to it)
        return (), self.messages_to_prompt(messages)

    def _completion_input(self, prompt: str, formatted: bool) -> tuple[Sequence[ChatMessage], str | None]:
        """A chat model is asked the prompt as a message, as the inner LLM would do."""
        if not formatted and self.completion_to_prompt is not None:
            prompt = self.completion_to_prompt(prompt)
        if self.metadata.is_chat_model:
            return [ChatMessage(role=MessageRole.USER, content=prompt)], None
        return (), prompt

    # --- one call

    def _call(
        self,
        messages: Sequence[ChatMessage],
        prompt: str | None,
        kwargs: Mapping[str, Any],
        server: Server | None = None,
        client: Any = None,
    ) -> Call:
        return Call(
            self.llm,
            messages,
            prompt,
            {name: value for name, value in kwargs.items() if name != "early_stop"},
            ask=self.ask,
            server=server,
            client=client,
            limiter=getattr(self, "rate_limiter", None),
            name=self.name,
            k=(self.policy.k if self.policy else None) or self.k,
            think_tags=self.think_tags,
            segmentation=self.segmentation,
            opened=self.opened,
            continuation=self.continuation,
            temperature_mode=self.temperature_mode,
            without_logprobs=without_logprobs(self.without_logprobs, self.policy, stop=self._wants(kwargs)),
        )

    def _run(
        self, messages: Sequence[ChatMessage], prompt: str | None, kwargs: Mapping[str, Any], *, streams: bool = True
    ) -> ChatResponseGen:
        learnt = self._learnt
        call = self._call(messages, prompt, kwargs, learnt.server)
        if call.unreadable:
            passing = Passing(call, self._terms(call, kwargs, streams))
            return call.run.streamed(passed(passing, passing.ask()))
        if learnt.server is None:
            call.connect(learnt.introduction)
            self._check_policy(call)
        if self._refines(call):
            return call.run.streamed(refine(call, self._terms(call, kwargs, streams)))
        # The inner LLM is called now, not with the first chunk: its span begins inside of ours.
        terms = self._terms(call, kwargs, streams)
        return call.run.streamed(run(call, terms, call.open(terms.first(call))))

    async def _arun(
        self, messages: Sequence[ChatMessage], prompt: str | None, kwargs: Mapping[str, Any], *, streams: bool = True
    ) -> ChatResponseAsyncGen:
        learnt = self._learnt
        call = self._call(messages, prompt, kwargs, learnt.server, self._client(learnt))
        if call.unreadable:
            passing = Passing(call, self._terms(call, kwargs, streams))
            responses = apassed(passing, await passing.aask())
        else:
            if learnt.server is None:
                await call.aconnect(learnt.introduction)
                self._check_policy(call)
            terms = self._terms(call, kwargs, streams)
            responses = arefine(call, terms) if self._refines(call) else arun(call, terms, await call.aopen(terms.first(call)))
        responses = call.run.streamed(responses)
        owns_client = self._once and getattr(self.llm, "_async_http_client", None) is None
        return _then_closed(call.client, responses) if owns_client else responses

    def _refines(self, call: Call) -> bool:
        return self.mode == "refine" and not call.uncut and not call.tools

    def _wants(self, kwargs: Mapping[str, Any]) -> bool:
        """Whether a call may be stopped, by the settings."""
        wanted = kwargs.get("early_stop", True)
        if not isinstance(wanted, bool):
            raise SettingsError(f"early_stop is {wanted!r}; it must be True or False")
        return self.early_stop and wanted

    def _terms(self, call: Call, kwargs: Mapping[str, Any], streams: bool) -> RunTerms:
        why = call.uncut
        if self.mode == "refine" and call.tools:
            why = why or "a call with tools is not repeated"
        stop = self._wants(kwargs) and stopping_enabled() and why is None
        return RunTerms(
            policy=None if self.mode == "refine" and why else self.policy,
            stop=stop,
            holdout=stop and self._in_holdout(),
            on_mismatch=self.on_mismatch,
            steps=self.max_steps,
            why=why,
            logprobs=self.return_logprobs,
            streams=streams,
        )

    def _in_holdout(self) -> bool:
        """Whether this run is in the holdout."""
        if self.holdout in (0, 1):
            return bool(self.holdout)
        run = active_instrument_tags.get().get(RUN)
        if run is None:
            remedy = f"name the run around all of its calls: with instrument_tags({{{RUN!r}: …}})"
            warnings.warn(
                f"holdout is {self.holdout}, but calls are drawn one by one, as their run has no name: {remedy}", stacklevel=2
            )
        return is_holdout(str(run or active_span_id.get()), share=self.holdout, salt=self.holdout_salt)

    @property
    def _learnt(self) -> Learnt:
        """What was learnt through the LLM inside."""
        address = getattr(self.llm, "api_base", None)
        with _LEARNING:
            learnt = self._last_learnt
            if learnt is None or learnt.llm is not self.llm or learnt.address != address:
                learnt = self._last_learnt = Learnt(self.llm, address)
        return learnt

    @property
    def _once(self) -> bool:
        """Whether the LLM inside makes a client for every call, with the key and address that it has then."""
        return uses_sdk(self.llm) and not getattr(self.llm, "reuse_client", True)

    def _client(self, learnt: Learnt) -> Any:
        """The inner LLM's async client for the running loop; connections cannot be used in another loop than their own."""
        if not uses_sdk(self.llm):
            return None
        if self._once:
            return async_client_of(self.llm)
        loop, clients = asyncio.get_running_loop(), learnt.clients
        if loop not in clients:
            client = async_client_of(self.llm)
            if clients and getattr(self.llm, "_async_http_client", None) is None:
                from openai import DefaultAsyncHttpxClient

                client = client.with_options(http_client=DefaultAsyncHttpxClient())
            clients[loop] = client
        return clients[loop]


async def _then_closed(client: Any, responses: ChatResponseAsyncGen) -> ChatResponseAsyncGen:
    """The responses; then the client, which was made for this call, is closed."""
    async with client, aclosing(responses):
        async for response in responses:
            yield response


def _fault_in(error: ValidationError) -> str:
    """What is wrong with the first setting that is, in the words of this package's other errors."""
    fault = error.errors()[0]
    name, words = ".".join(map(str, fault["loc"])), fault["msg"].replace("Input should be", "it must be")
    return f"{name} is {fault['input']!r}; {words}"
