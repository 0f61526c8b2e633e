"""A chat model around any other: it stops the thinking where a policy says so, and still answers."""

from __future__ import annotations

import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Sequence
from contextlib import aclosing, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_core.language_models import BaseChatModel, LanguageModelInput  # noqa: TC002 (pydantic reads annotations)
from langchain_core.language_models.chat_models import generate_from_stream
from langchain_core.runnables import Runnable, RunnableConfig, ensure_config
from langchain_core.runnables.config import merge_configs
from pydantic import Field, InstanceOf, PrivateAttr

from entropy_chains import Policy, Segmentation, ThinkTags, arun_refine, run_refine, stopping_enabled
from entropy_chains.adapters import (
    IN_AN_APP,
    Continuation,
    Mode,
    OnMismatch,
    TemperatureMode,
    WithoutLogprobs,
    adrive,
    check_holdout,
    drive,
    forms,
    known,
    without_logprobs,
    without_secrets,
)
from entropy_chains.errors import SettingsError
from langchain_entropy_chains._call import Call, result_as_stream, with_token_usage
from langchain_entropy_chains._config import HOLDOUT, OFF, STRUCTURED, switch_of
from langchain_entropy_chains._inner import InnerModel
from langchain_entropy_chains._inner_fields import InnerFields
from langchain_entropy_chains._model_info import can_stream, check_ways, model_name, refusal, without_any_logprobs
from langchain_entropy_chains._opening import checked, open_inner, unbound
from langchain_entropy_chains._traced import computing
from langchain_entropy_chains._tree import replaced

if TYPE_CHECKING:
    from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
    from langchain_core.language_models.base import LangSmithParams
    from langchain_core.messages import AIMessage, BaseMessage
    from langchain_core.outputs import ChatGenerationChunk, ChatResult

COPIED = ("cache", "callbacks", "custom_get_token_ids", "disable_streaming", "metadata", "name", "output_version", "profile",
          "rate_limiter", "tags", "verbose")  # fmt: skip
"""What LangChain reads on the model that is called, and would read no more on the inner one."""

NOT_STOPPED = "this call is not stopped early: "

INHERITED = ("callbacks", "metadata", "tags")
"""Those of them that a binding's config has too."""


class EarlyStopChatModel(InnerFields):
    """A chat model that stops thinking when it is sure.

    Setup: ``pip install 'langchain-entropy-chains[openai]'`` and a policy, see ``docs/langchain-providers.md``. Instantiate::

        from langchain_entropy_chains import EarlyStopChatModel
        from langchain_openai import ChatOpenAI
        model = EarlyStopChatModel(ChatOpenAI(model="demo"), "policy.json")

    Invoke, stream, ``asyncio``::

        message = model.invoke("What is 6*7?")
        text = "".join(chunk.text for chunk in model.stream("What is 6*7?"))
        message = await model.ainvoke("What is 6*7?")

    Tools and structured output: thinking before a call is stopped, the call and the value never::

        message = model.bind_tools([multiply]).invoke("What is 6*7?")
        value = model.with_structured_output(Answer).invoke("What is 6*7?")

    Metadata, and the usage of all that was computed::

        message.response_metadata["early_stop_stopped"], message.usage_metadata["output_tokens"]

    Whatever the policy, nothing is stopped where the form of the reply is given (structured output, a forced tool call), with
    ``n`` > 1, the Responses API, ``disable_streaming`` and models that cannot stream: the metadata and a warning say so.

    The inner model's fields can be read and set on it (``model.temperature``); what is set holds for this model alone. Where
    ``isinstance(model, ChatOpenAI)`` must hold, use :func:`instrument`.

    Args:
        inner: the model: any chat model, one with settings bound, or a name such as ``openai:gpt-4o`` for ``init_chat_model``.
        policy: when to stop, or the path of its file; None only measures.
        settings: the attributes below; of a model given by its name also the model's own.

    Attributes:
        bound: settings of every call, as bound to ``inner``.
        mode: ``thinking``; ``refine`` asks up to ``max_steps`` times, each call reading the earlier ones.
        max_steps: calls scheduled in ``refine``.
        k: alternatives asked for where there is no policy.
        think_tags: the family's thinking tags, where the server does not tell them.
        segmentation: how steps are cut where there is no policy.
        opened: the prompt opens the thinking, and the server does not split the reasoning off.
        continuation: how the answer is got after a stop: ``auto``, ``prefill``, ``completion``, ``turn``, or several in order.
        temperature_mode: ``raw`` if the logprobs are those before temperature, else ``scaled``.
        without_logprobs: where there are none: ``full`` (never stop), ``agreement`` (stop when two answers agree) or ``error``.
        on_mismatch: ``error`` or ``warn`` where the policy was calibrated for something else.
        holdout: share of the root runs that run in full on purpose, so that the saving can be measured.
        holdout_salt: another salt draws another holdout.
    """

    policy: InstanceOf[Policy] | None = Field(default=None, repr=False)
    mode: Mode = "thinking"
    max_steps: int = 4
    k: int = 20
    think_tags: InstanceOf[ThinkTags] | None = None
    segmentation: InstanceOf[Segmentation] | None = None
    opened: bool = False
    continuation: Continuation | Sequence[Continuation] = "auto"
    temperature_mode: TemperatureMode = "raw"
    without_logprobs: WithoutLogprobs = IN_AN_APP
    on_mismatch: OnMismatch = "error"
    holdout: float = 0.0
    holdout_salt: str = ""

    _owner: BaseChatModel | None = PrivateAttr(default=None)  # the user's model, where ``inner`` is made of it for one call
    _choices: Any = PrivateAttr(default=None)  # a model with configurable fields, which makes the inner one of every call
    _intended: str | None = PrivateAttr(default=None)  # the model that the policy was named for: another one runs in full

    def __init__(self, inner: BaseChatModel | Runnable[Any, Any] | str, policy: Policy | str | Path | None = None, **settings: Any):
        fields = {name: settings.pop(name) for name in list(settings) if name in type(self).model_fields}
        choices, chat, bound, config = open_inner(inner, settings)
        copied = {name: getattr(chat, name, None) for name in COPIED if name in type(self).model_fields}
        copied |= merge_configs({name: copied[name] for name in INHERITED if copied[name]}, config)  # type: ignore[arg-type]
        copied = {name: value for name, value in copied.items() if name in COPIED}
        policy = Policy.of(policy)
        values = {"bound": bound, **copied, **fields, "inner": chat, "policy": policy}
        with checked(fields):
            super().__init__(**{name: value for name, value in values.items() if value is not None})
        self._choices = choices
        self._check_settings()

    def _check_settings(self) -> None:
        if self.k < 1:
            raise SettingsError(f"k is {self.k}; it must be at least 1")
        if self.max_steps < 1:
            raise SettingsError(f"max_steps is {self.max_steps}; the loop needs at least 1 call")
        check_ways(self.continuation)
        self._inner_model(None, {}).check_ways()
        check_holdout(self.holdout)
        if self.policy is not None:
            self.policy.check(mode=self.mode, on_mismatch=self.on_mismatch)
            if self.policy.active and self.policy.stop_rule.reads_signal and (why := without_any_logprobs(self.inner)):
                known(self._owner or self.inner, type(self.inner)).warn(why)

    def __repr__(self) -> str:  # LangSmith gets it: the inner's own may hold headers
        policy = self.policy.fingerprint if self.policy else None
        return f"EarlyStopChatModel(inner={type(self.inner).__name__}({model_name(self.inner)!r}), policy={policy!r})"

    # --- what LangChain asks a model

    @property
    def _llm_type(self) -> str:
        return self.inner._llm_type  # LangChain's middleware decides by it which provider is asked

    @property
    def model_name(self) -> str:
        """The inner model's name."""
        return model_name(self.inner, self.bound)

    @property
    def model(self) -> str:
        """The same, as other models call it."""
        return self.model_name

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model_name": self.model_name, **self._entropy_chains_params}

    @property
    def _entropy_chains_params(self) -> dict[str, Any]:
        """What tells a cached reply of this policy from another's."""
        policy = self.policy.fingerprint if self.policy else None
        return {"early_stop_policy": policy, "early_stop_mode": self.mode, "early_stop_enabled": stopping_enabled()}

    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        params = self.inner._get_invocation_params(**self._with_bound(stop, kwargs))
        return {**without_secrets(params), **self._entropy_chains_params}

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        return super()._get_llm_string(**self._with_bound(stop, kwargs))  # replies under other headers are other replies

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return self.inner._get_ls_params(**self._with_bound(stop, kwargs))

    def _with_bound(self, stop: list[str] | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The settings of a call: its own, and those bound to the model."""
        kwargs = {**self.bound, **kwargs}
        bound_stop = kwargs.pop("stop", None)
        return {"stop": bound_stop if stop is None else stop, **kwargs}

    def _combine_llm_outputs(self, llm_outputs: list[dict[str, Any] | None]) -> dict[str, Any]:
        return self.inner._combine_llm_outputs(llm_outputs)

    def get_token_ids(self, text: str) -> list[int]:
        return self.inner.get_token_ids(text)

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Any = None) -> int:
        return self.inner.get_num_tokens_from_messages(messages, **({} if tools is None else {"tools": tools}))

    def bind_tools(self, tools: Any, *, tool_choice: Any = None, **kwargs: Any) -> Runnable[LanguageModelInput, AIMessage]:
        """As the inner model does it."""
        choice = {} if tool_choice is None else {"tool_choice": tool_choice}
        return self._around(self.inner.bind_tools(tools, **choice, **kwargs))

    def with_structured_output(self, schema: Any, **kwargs: Any) -> Runnable[LanguageModelInput, Any]:
        """As the inner model does it; such calls are never stopped."""
        return self._around(self.inner.with_structured_output(schema, **kwargs))

    def _around(self, runnable: Runnable[Any, Any]) -> Runnable[Any, Any]:
        """What the inner made, with this model in the place of the inner one: it may have made a copy of itself."""

        def swap(chat: BaseChatModel) -> BaseChatModel:
            return chat if isinstance(chat, EarlyStopChatModel) else self.model_copy(update={"inner": chat})

        around: Runnable[Any, Any] = replaced(runnable, swap)
        return around

    def _entropy_chains_holdout(self) -> tuple[float, str]:
        return self.holdout, self.holdout_salt

    def _entropy_chains_chosen(self, config: RunnableConfig | None) -> EarlyStopChatModel:
        if self._choices is None:
            return self
        chat, bound, _ = unbound(self._choices._model(config))
        return self.model_copy(update={"inner": chat, "bound": {**bound, **self.bound}})

    def _inner_model(self, stop: Sequence[str] | None, kwargs: dict[str, Any], *, wanted: bool = True) -> InnerModel:
        return InnerModel(
            self.inner,
            stop,
            kwargs,
            owner=self._owner,
            k=(self.policy.k if self.policy else None) or self.k,
            think_tags=self.think_tags,
            segmentation=self.segmentation,
            opened=self.opened,
            continuation=self.continuation,
            temperature_mode=self.temperature_mode,
            without_logprobs=without_logprobs(self.without_logprobs, self.policy, stop=wanted),
        )

    def _call(self, stop: list[str] | None, kwargs: dict[str, Any], *, asynchronous: bool = False) -> Call:
        computing()
        kwargs = self._with_bound(stop, {**switch_of(ensure_config()), **kwargs})
        stop = kwargs.pop("stop")
        wanted, holdout = kwargs.pop(OFF, True), kwargs.pop(HOLDOUT, False)
        structured = kwargs.pop(STRUCTURED, False)
        kwargs.pop("stream", None)
        active = bool(self.policy and self.policy.active and wanted and stopping_enabled())
        refused = self._other_model(kwargs) or (forms.STRUCTURED if structured else None)
        refused = refused or refusal(self.inner, kwargs, self.mode, asynchronous=asynchronous)
        if refused and active:
            warnings.warn(NOT_STOPPED + refused, stacklevel=2)
        inner = self._inner_model(stop, kwargs, wanted=wanted)
        terms = {"stop": wanted, "on_mismatch": self.on_mismatch}
        return Call(inner, {"stop": stop, **kwargs}, terms, bool(holdout), refused, self.policy)

    def _other_model(self, kwargs: dict[str, Any]) -> str | None:
        """Why a copy or binding of an instrumented model runs in full: it is of a model that nobody named a policy for."""
        name, policy = model_name(self.inner, kwargs), self.policy
        if policy is None or self.on_mismatch != "error" or name in (self._intended or name, policy.model, *policy.aliases):
            return None
        return f"the policy is for model {policy.model!r}, and this is another one, {name!r}: run in full"

    def _checked_call(self, call: Call) -> Call:
        """The same call, or a refused one where its server, now known, cannot serve it."""
        why = call.inner.in_full
        if why is None:
            return call
        if self.policy and self.policy.active and call.terms["stop"] and stopping_enabled():
            warnings.warn(NOT_STOPPED + why, stacklevel=2)
        return replace(call, refused=why)

    def _dialogue(self, call: Call, messages: list[BaseMessage]) -> Any:
        return call.inner.dialogue(messages, self.policy, segmentation=self.segmentation, holdout=call.holdout, **call.terms)

    def _refining(self, call: Call) -> dict[str, Any]:
        settings = {"policy": self.policy, "steps": self.max_steps, "sampling": call.inner.sampling}
        return {**settings, "holdout": [call.holdout], **call.terms}

    # --- the two shells

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = self._call(stop, kwargs)
        if call.refused:
            return call.passed(self.inner._generate(messages, **call.kwargs))
        with closing(self._chunks(call, messages)) as chunks:
            return with_token_usage(generate_from_stream(chunks))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = self._call(stop, kwargs, asynchronous=True)
        if call.refused:
            return call.passed(await self.inner._agenerate(messages, **call.kwargs))
        async with aclosing(self._achunks(call, messages)) as chunks:
            return with_token_usage(generate_from_stream(iter([chunk async for chunk in chunks])))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with closing(self._chunks(self._call(stop, kwargs), messages)) as chunks:
            for chunk in chunks:
                if run_manager:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        async with aclosing(self._achunks(self._call(stop, kwargs, asynchronous=True), messages)) as chunks:
            async for chunk in chunks:
                if run_manager:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    def _chunks(self, call: Call, messages: list[BaseMessage]) -> Generator[ChatGenerationChunk, None, None]:
        if not call.refused:
            call.inner.connect()
            call = self._checked_call(call)
        if call.refused:
            if can_stream(self.inner, asynchronous=False):
                yield from self.inner._stream(messages, **call.kwargs)
            else:
                yield from result_as_stream(self.inner._generate(messages, **call.kwargs))
            yield call.end(call.passed_metadata(None))
            return
        if self.mode == "refine":
            yield call.refined(run_refine(call.inner, [messages], **self._refining(call))[0])  # type: ignore[arg-type,list-item]
            return
        dialogue = self._dialogue(call, messages)
        with closing(drive(dialogue, call.inner.updates)) as events:
            for event in events:
                yield from call.chunks(event)
        yield call.finished(dialogue.result())

    async def _achunks(self, call: Call, messages: list[BaseMessage]) -> AsyncGenerator[ChatGenerationChunk, None]:
        if not call.refused:
            await call.inner.aconnect()
            call = self._checked_call(call)
        if call.refused:
            if can_stream(self.inner, asynchronous=True):
                async for chunk in self.inner._astream(messages, **call.kwargs):
                    yield chunk
            else:
                for chunk in result_as_stream(await self.inner._agenerate(messages, **call.kwargs)):
                    yield chunk
            yield call.end(call.passed_metadata(None))
            return
        if self.mode == "refine":
            yield call.refined((await arun_refine(call.inner, [messages], **self._refining(call)))[0])  # type: ignore[arg-type,list-item]
            return
        dialogue = self._dialogue(call, messages)
        async with aclosing(adrive(dialogue, call.inner.aupdates)) as events:
            async for event in events:
                for chunk in call.chunks(event):
                    yield chunk
        yield call.finished(dialogue.result())


def for_model(name: str | None, wrapper: EarlyStopChatModel, owner: BaseChatModel | None = None) -> EarlyStopChatModel:
    """The wrapper, whose policy was named for one model: calls of another one, which the policy is not for, run in full.

    Args:
        name: the model's name; None where the policy is for whatever model there is.
        wrapper: it is changed, and returned.
        owner: the user's model, where the inner one is made of it for one call.
    """
    wrapper._intended = name
    if owner is not None:
        wrapper._owner = owner
    return wrapper
