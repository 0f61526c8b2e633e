"""Local models in LangChain: a chat model on transformers that stops its own thinking.

The model, its entropies and its stops are :class:`entropy_chains.backends.transformers.TransformersBackend`'s; here its runs become
LangChain messages.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_core.globals import get_llm_cache
from langchain_core.runnables.config import ensure_config, get_config_list
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import Field, InstanceOf, PrivateAttr

from entropy_chains import Policy, Segmentation, SettingsError, stopping_enabled
from entropy_chains.adapters import (
    OnMismatch,
    astream,
    check_holdout,
    check_options,
    check_settings,
    forms,
    in_thread,
    offered,
    tags_of,
)
from entropy_chains.backends import Generation, Sampling
from langchain_entropy_chains._config import HOLDOUT, OFF, STRUCTURED, Switched, switch_of
from langchain_entropy_chains._local_messages import conversation
from langchain_entropy_chains._local_requests import BatchRuns, LocalRequest
from langchain_entropy_chains._opening import checked
from langchain_entropy_chains._traced import computing

if TYPE_CHECKING:
    from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
    from langchain_core.language_models import LanguageModelInput
    from langchain_core.language_models.base import LangSmithParams
    from langchain_core.messages import AIMessage, BaseMessage
    from langchain_core.outputs import ChatGenerationChunk, ChatResult
    from langchain_core.runnables import Runnable, RunnableConfig

SAMPLING = tuple(Sampling.__dataclass_fields__)
CALL_SETTINGS = {*SAMPLING, OFF, HOLDOUT, STRUCTURED, "tools", "tool_choice", "chat_template_kwargs"}
"""What a call may set besides ``stop``."""


OF_SERVERS = ("api_key", "base_url", "max_retries", "streaming", "timeout")
"""LangChain's standard settings that any chat model takes; a local one has no use for them."""


class ChatTransformers(Switched):
    """A local model that thinks, is stopped early where its policy says so, and answers.

    Setup: ``pip install 'langchain-entropy-chains[transformers]'``, and a policy.

    Instantiate::

        from langchain_entropy_chains import ChatTransformers

        llm = ChatTransformers.from_model_id("Qwen/Qwen3-0.6B", policy="policy.json", device_map="auto")

    Invoke, stream, and ``asyncio``::

        message = llm.invoke("34*7=?")
        text = "".join(chunk.text for chunk in llm.stream("34*7=?"))
        message = await llm.ainvoke("34*7=?")

    Tools, through the chat template; a local model cannot be made to call one::

        message = llm.bind_tools([multiply]).invoke("34*7=?")

    Structured output: none; ask for JSON in the prompt, and parse the answer.

    Metadata, usage, and counts by the model's own tokenizer::

        message.response_metadata["early_stop_stopped"]
        message.usage_metadata["output_tokens"]
        llm.get_num_tokens("34*7=?")

    ``early_stop=False`` in a call, or in a config's ``configurable``, runs that call in full; ``ENTROPY_CHAINS_STOP=0`` all calls.
    Requests may run in several threads at once; a seed repeats a run only where no other runs beside it.

    Attributes:
        backend: the loaded model; whatever has the calls of :class:`entropy_chains.backends.Backend`.
        policy: when to stop; None never stops.
        temperature, top_p, top_k, max_tokens, seed: how tokens are drawn, see :class:`entropy_chains.backends.Sampling`.
        stop: texts before which the answer ends; the tokens of an answer are computed to its own end all the same.
        early_stop: False runs in full and keeps the figures of where it would have stopped.
        on_mismatch: ``error`` or ``warn`` where the policy was calibrated for something else.
        holdout: share of the root runs that run in full on purpose, so that the saving can be measured.
        holdout_salt: another salt draws another holdout.
        batch_size: most prompts of a ``batch()`` that one call of the backend takes.
    """

    backend: Any = Field(repr=False, exclude=True)
    policy: InstanceOf[Policy] | None = Field(default=None, repr=False)
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int = 4096
    seed: int | None = None
    stop: list[str] | None = None
    early_stop: bool = True
    on_mismatch: OnMismatch = "error"
    holdout: float = 0.0
    holdout_salt: str = ""
    batch_size: int = 64

    _rows: BatchRuns | None = PrivateAttr(default=None)  # only on the copy that serves one batch()

    def __init__(self, *, policy: Policy | str | Path | None = None, **settings: Any):
        fields = {name: value for name, value in settings.items() if name not in OF_SERVERS}
        check_settings(type(self).__name__, fields, type(self).model_fields)
        fields["policy"] = Policy.of(policy)
        with checked(fields):
            super().__init__(**fields)
        check_holdout(self.holdout)

    @classmethod
    def from_model_id(
        cls,
        model_id: str | Path,
        *,
        policy: Policy | str | Path | None = None,
        name: str | None = None,
        device: str | None = None,
        k: int | None = 20,
        **settings: Any,
    ) -> ChatTransformers:
        """Load a checkpoint folder or hub id.

        Args:
            model_id: the folder or id.
            policy: when to stop, or the path of its file.
            name: the label compared with the policy's model; ``model_id`` by default.
            device: moves the model there once it is loaded.
            k: alternatives that entropy is computed from where there is no policy; None = the whole vocabulary.
            settings: this class's own attributes; what else there is goes to ``from_pretrained`` (``dtype``, ``device_map``,
                ``quantization_config``).
        """
        from entropy_chains import TransformersBackend

        fields = {n: settings.pop(n) for n in list(settings) if n in cls.model_fields}
        check_options(fields)  # before the model is loaded
        rows = fields.get("batch_size", cls.model_fields["batch_size"].default)
        backend = TransformersBackend.from_pretrained(model_id, name=name, device=device, k=k, batch_size=rows, **settings)
        return cls(backend=backend, policy=policy, **fields)

    @property
    def model_name(self) -> str:
        """The model's label."""
        return str(self.backend.model)

    @property
    def _llm_type(self) -> str:
        return "entropy-chains-transformers"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        params: dict[str, Any] = {name: getattr(self, name) for name in SAMPLING}
        policy = self.policy.fingerprint if self.policy else None
        on = self.early_stop and stopping_enabled()  # a cached reply belongs to it
        return {"model_name": self.model_name, **params, "early_stop_policy": policy, "early_stop_enabled": on}

    def _entropy_chains_holdout(self) -> tuple[float, str]:
        return self.holdout, self.holdout_salt

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop or self.stop, **kwargs)  # reads our fields
        params["ls_provider"] = "transformers"
        return params

    def get_token_ids(self, text: str) -> list[int]:
        """The text's tokens by the model's own tokenizer, without those that a template adds; nothing is loaded for it."""
        tokenize = getattr(self.backend, "token_ids", None)
        if self.custom_get_token_ids is not None or tokenize is None:
            return super().get_token_ids(text)
        ids: list[int] = tokenize(text)
        return ids

    def bind_tools(
        self, tools: Sequence[Any], *, tool_choice: str | dict[str, Any] | bool | None = None, **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Offer tools through the chat template.

        A local model cannot be made to call one: ``any`` is a wish, a name offers that tool alone, ``none`` offers none.
        """
        return self.bind(tools=[convert_to_openai_tool(t) for t in tools], tool_choice=tool_choice, **kwargs)

    # --- requests

    def _request(self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]) -> LocalRequest:
        computing()
        unknown = sorted(kwargs.keys() - CALL_SETTINGS)
        if unknown:
            raise SettingsError(
                f"{unknown[0]}={kwargs[unknown[0]]!r} is not known here; a call may set {', '.join(sorted(CALL_SETTINGS))}"
            )
        tools = offered(kwargs.get("tools"), kwargs.get("tool_choice"))
        template = {**(kwargs.get("chat_template_kwargs") or {}), **({"tools": tools} if tools else {})}
        backend = self.backend.with_template(**template) if template else self.backend
        switches = {OFF: self.early_stop, **switch_of(ensure_config()), **kwargs}
        sampling = Sampling(**{name: kwargs.get(name, getattr(self, name)) for name in SAMPLING})
        uncut = forms.STRUCTURED if switches.get(STRUCTURED) else forms.never_cut({"tool_choice": kwargs.get("tool_choice")})
        tags = tags_of(backend)
        plain = tags is None and self.policy is None  # an ordinary model: all its text is answer
        return LocalRequest(
            backend,
            conversation(messages),
            {
                "policy": self.policy,
                "sampling": sampling,
                "stop": self.early_stop and switches[OFF] and not uncut,
                "on_mismatch": self.on_mismatch,
                **({"segmentation": Segmentation("call")} if plain else {}),
            },
            tuple(stop or self.stop or ()),
            tags,
            holdout=bool(switches.get(HOLDOUT)),
            has_tools=bool(tools),
            uncut=uncut,
        )

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        request = self._request(messages, stop, kwargs)
        return request.result(self._run(request))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        request = self._request(messages, stop, kwargs)
        return request.result(await in_thread(lambda cancelled: self._run(request, cancelled)))

    def _run(self, request: LocalRequest, cancelled: threading.Event | None = None) -> Generation:
        if self._rows is not None:
            return self._rows.take(request, cancelled)
        return request.generate([request.messages], [request.holdout], cancelled)[0]

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        request = self._request(messages, stop, kwargs)
        reply_text = request.reply_text()
        with closing(request.stream()) as chunks:
            for chunk in chunks:
                yield from request.chunks(chunk, reply_text)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        request = self._request(messages, stop, kwargs)
        reply_text = request.reply_text()
        async with aclosing(astream(request.stream())) as chunks:
            async for chunk in chunks:
                for message_chunk in request.chunks(chunk, reply_text):
                    yield message_chunk

    # --- batches

    def batch(self, inputs: list[Any], config: Any = None, **kwargs: Any) -> list[Any]:
        """Answer every input, ``batch_size`` (or ``max_concurrency``) of them in one call of the backend."""
        replies: list[Any] = []
        for model, part, configs in self._parts(inputs, config, kwargs):
            replies += super(ChatTransformers, model).batch(part, configs, **kwargs)
        return replies

    async def abatch(self, inputs: list[Any], config: Any = None, **kwargs: Any) -> list[Any]:
        """See :meth:`batch`."""
        replies: list[Any] = []
        for model, part, configs in self._parts(inputs, config, kwargs):
            replies += await super(ChatTransformers, model).abatch(part, configs, **kwargs)
        return replies

    def _parts(
        self, inputs: list[Any], config: Any, kwargs: dict[str, Any]
    ) -> Iterator[tuple[ChatTransformers, list[Any], list[RunnableConfig]]]:
        """The parts of a batch, each with the model to run it on: a copy that knows all its prompts."""
        calls = [self._entropy_chains_switched(c, kwargs) for c in get_config_list(config, len(inputs))] if inputs else []
        configs = [c for c, _ in calls]
        cache = get_llm_cache() if self.cache is None else self.cache
        if (
            cache or len({settings.get(OFF) for _, settings in calls}) > 1
        ):  # each by itself: some need not run, or not in the same way
            yield self, inputs, configs
            return
        size = (configs[0].get("max_concurrency") if configs else None) or self.batch_size
        for start in range(0, len(inputs), size):
            part = slice(start, start + size)
            model = self.model_copy()
            conversations = [conversation(self._convert_input(i).to_messages()) for i in inputs[part]]
            model._rows = BatchRuns(conversations, [bool(settings.get(HOLDOUT)) for _, settings in calls[part]])
            # All prompts wait for the one call, so each needs a place.
            yield model, inputs[part], [{**c, "max_concurrency": size} for c in configs[part]]
