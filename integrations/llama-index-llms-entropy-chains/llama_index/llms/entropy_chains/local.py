"""``TransformersLLM``: a local model that stops its own thinking, on :mod:`entropy_chains.backends.transformers`."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.bridge.pydantic import Field
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.llms.entropy_chains._local_messages import conversation, read_calls, selection
from llama_index.llms.entropy_chains._replacement import Replacement
from llama_index.llms.entropy_chains._responses import as_completion
from llama_index.llms.entropy_chains._runs import Run, follow_spans
from llama_index.llms.entropy_chains.tracing import current_span, mark_request

from entropy_chains import Policy, Segmentation
from entropy_chains.adapters import (
    TOOL_CALL,
    OnMismatch,
    Shown,
    ToolCall,
    astream,
    calls_in,
    check_options,
    forms,
    in_thread,
    offered,
    tags_of,
    text_before,
)
from entropy_chains.backends import Backend, Chunk, Generation, Sampling
from entropy_chains.errors import SettingsError

if TYPE_CHECKING:
    from llama_index.core.llms.llm import ToolSelection
    from llama_index.core.tools import BaseTool

SAMPLING = tuple(Sampling.__dataclass_fields__)
CALL_SETTINGS = {*SAMPLING, "early_stop", "stop", "chat_template_kwargs"}
TOOLS = {"tools", "tool_choice"}
"""What a call may set. LlamaIndex's own ``formatted`` is none of it."""


class TransformersLLM(FunctionCallingLLM, Replacement):
    """A local model that thinks, is stopped early where its policy says so, and answers.

    ::

        llm = TransformersLLM("Qwen/Qwen3-0.6B", policy="policy.json", device_map="auto")

    The thinking is a ``ThinkingBlock`` of the message, the answer its text. The last response's ``additional_kwargs`` say what
    happened (``early_stop_*``) and count tokens. The async methods leave the event loop free, and a cancelled task ends the work.

    Args:
        model: a checkpoint folder or hub id; not needed with ``backend``.
        policy: a Policy or its file; None never stops.
        backend: a loaded model; whatever has the calls of :class:`entropy_chains.backends.Backend`.
        settings: this class's attributes; with ``model``, what else there is goes to the backend's ``from_pretrained`` (``name``,
            ``device``, ``k``, ``dtype``, ``device_map``, ``quantization_config``).

    Attributes:
        temperature, top_p, top_k, max_tokens, seed: how tokens are drawn, see :class:`entropy_chains.backends.Sampling`.
        stop: texts before which the answer ends; the tokens of an answer are computed to its own end all the same.
        early_stop: False runs in full; every method takes it too, and ``ENTROPY_CHAINS_STOP=0`` is for all calls.
        on_mismatch: ``error`` or ``warn`` where the policy was calibrated for something else.
        context_window: tokens of prompt and reply together; the model's own by default.
        is_function_calling_model: its chat template takes tools, and agents call them by it. Whatever LlamaIndex does otherwise
            for such models (a router's choice, say), it does so then.
    """

    backend: Any = Field(default=None, exclude=True, repr=False)
    policy: Any = Field(default=None, exclude=True, repr=False)
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int = 1024
    seed: int | None = None
    stop: list[str] = Field(default_factory=list)
    early_stop: bool = True
    on_mismatch: OnMismatch = "error"
    context_window: int | None = None
    is_function_calling_model: bool = False

    def __init__(
        self, model: str | Path | None = None, policy: Policy | str | Path | None = None, *, backend: Any = None, **settings: Any
    ):
        fields = {n: settings.pop(n) for n in list(settings) if n in type(self).model_fields}
        check_options(fields)
        if (model is None) == (backend is None):
            raise SettingsError("give either model (a checkpoint folder or hub id) or backend (a loaded one)")
        if backend is None:
            from entropy_chains import TransformersBackend

            backend = TransformersBackend.from_pretrained(str(model), **settings)
        elif settings:
            raise SettingsError(f"TransformersLLM has no {', '.join(sorted(settings))}; a loaded backend has its settings already")
        fields |= {"backend": backend, "policy": Policy.of(policy)}
        super().__init__(**fields)
        follow_spans()

    @classmethod
    def class_name(cls) -> str:
        """The name in a serialised form."""
        return "TransformersLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """What engines ask of a model."""
        window = self.context_window or self.backend.context_window or LLMMetadata().context_window
        return LLMMetadata(
            context_window=window,
            num_output=self.max_tokens,
            is_chat_model=True,
            is_function_calling_model=self.is_function_calling_model,
            model_name=self.backend.model,
        )

    # --- the eight methods

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """See :class:`llama_index.core.llms.LLM`."""
        return _Request(self, messages, kwargs).response()

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """See :class:`llama_index.core.llms.LLM`; the last response says what happened."""
        return _Request(self, messages, kwargs).stream()

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """See :meth:`chat`."""
        return await in_thread(_Request(self, messages, kwargs).response)

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """See :meth:`stream_chat`."""
        return _Request(self, messages, kwargs).astream()

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """The prompt asked as a message of the user."""
        return as_completion(_Request(self, self._completion_input(prompt, formatted), kwargs).response())

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """See :meth:`complete`."""
        stream = _Request(self, self._completion_input(prompt, formatted), kwargs).stream()

        def responses() -> CompletionResponseGen:
            with closing(stream):
                for response in stream:
                    yield as_completion(response)

        return responses()

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """See :meth:`complete`."""
        return as_completion(await in_thread(_Request(self, self._completion_input(prompt, formatted), kwargs).response))

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """See :meth:`complete`."""
        stream = _Request(self, self._completion_input(prompt, formatted), kwargs).astream()

        async def responses() -> CompletionResponseAsyncGen:
            async with aclosing(stream):
                async for response in stream:
                    yield as_completion(response)

        return responses()

    # --- tools, through the chat template

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The arguments of a chat with tools. A local model cannot be made to call one: ``tool_required`` is a wish."""
        user = ChatMessage(role=MessageRole.USER, content=user_msg) if isinstance(user_msg, str) else user_msg
        told = [tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools]
        return {"messages": [*(chat_history or []), *([user] if user else [])], **({"tools": told} if told else {}), **kwargs}

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """See :class:`llama_index.core.llms.function_calling.FunctionCallingLLM`. Raises ValueError where none was called."""
        blocks = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
        if error_on_no_tool_call and not blocks:
            raise ValueError("expected at least one tool call, and the reply has none: use error_on_no_tool_call=False")
        return [selection(block) for block in blocks]

    # --- structured output, which is never stopped: its request shows nothing of it

    def structured_predict(self, output_cls: Any, prompt: Any, llm_kwargs: Any = None, **prompt_args: Any) -> Any:
        """See :class:`llama_index.core.llms.LLM`."""
        return super().structured_predict(output_cls, prompt, _in_full(llm_kwargs), **prompt_args)

    async def astructured_predict(self, output_cls: Any, prompt: Any, llm_kwargs: Any = None, **prompt_args: Any) -> Any:
        """See :class:`llama_index.core.llms.LLM`."""
        return await super().astructured_predict(output_cls, prompt, _in_full(llm_kwargs), **prompt_args)

    def stream_structured_predict(self, output_cls: Any, prompt: Any, llm_kwargs: Any = None, **prompt_args: Any) -> Any:
        """See :class:`llama_index.core.llms.LLM`."""
        return super().stream_structured_predict(output_cls, prompt, _in_full(llm_kwargs), **prompt_args)

    async def astream_structured_predict(self, output_cls: Any, prompt: Any, llm_kwargs: Any = None, **prompt_args: Any) -> Any:
        """See :class:`llama_index.core.llms.LLM`."""
        return await super().astream_structured_predict(output_cls, prompt, _in_full(llm_kwargs), **prompt_args)

    def _completion_input(self, prompt: str, formatted: bool) -> list[ChatMessage]:
        if not formatted and self.completion_to_prompt is not None:
            prompt = self.completion_to_prompt(prompt)
        return [ChatMessage(role=MessageRole.USER, content=prompt)]


def _in_full(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """The settings of a call that is not stopped."""
    return {**(settings or {}), "early_stop": False}


class _Request:
    """One call: what is asked of the backend, and how its run is told."""

    def __init__(self, llm: TransformersLLM, messages: Sequence[ChatMessage], kwargs: dict[str, Any]):
        allowed = CALL_SETTINGS | TOOLS if llm.is_function_calling_model else CALL_SETTINGS
        unknown = sorted(kwargs.keys() - allowed)
        if unknown:
            also = "; with is_function_calling_model=True tools as well" if unknown[0] in TOOLS else ""
            raise SettingsError(
                f"{unknown[0]}={kwargs[unknown[0]]!r} is not known here; a call may set {', '.join(sorted(allowed))}{also}"
            )
        tools, choice = offered(kwargs.get("tools"), kwargs.get("tool_choice")), kwargs.get("tool_choice")
        template = {**(kwargs.get("chat_template_kwargs") or {}), **({"tools": tools} if tools else {})}
        self._uncut = forms.never_cut({"tool_choice": choice}) if tools else None
        self._backend: Backend = llm.backend.with_template(**template) if template else llm.backend
        self._messages = conversation(messages)
        self._settings: dict[str, Any] = {
            "policy": llm.policy,
            "sampling": Sampling(**{name: kwargs.get(name, getattr(llm, name)) for name in SAMPLING}),
            "stop": bool(kwargs.get("early_stop", llm.early_stop)) and self._uncut is None,
            "on_mismatch": llm.on_mismatch,
        }
        tags = tags_of(self._backend)
        if tags is None and llm.policy is None:  # an ordinary model: all its text is answer
            self._settings["segmentation"] = Segmentation("call")
        self._endings, self._has_tools = tuple(kwargs.get("stop") or llm.stop), bool(tools)
        self._reply_text = Shown(tags, (*self._endings, TOOL_CALL) if tools else self._endings)
        self._run, self._span = Run(), current_span()

    def response(self, cancelled: threading.Event | None = None) -> ChatResponse:
        backend = self._backend.worker(cancelled) if cancelled else self._backend
        (run,) = backend.generate([self._messages], **self._settings)
        return self._final(run, None)

    def stream(self) -> Generator[ChatResponse, None, None]:
        return self._run.streamed(self._responses())

    def astream(self) -> AsyncGenerator[ChatResponse, None]:
        return self._run.streamed(self._aresponses())

    def _responses(self) -> Generator[ChatResponse, None, None]:
        thinking = text = ""
        with closing(self._backend.stream(self._messages, **self._settings)) as chunks:
            for chunk in chunks:
                reasoning, answer = self._take(chunk)
                thinking, text = thinking + reasoning, text + answer
                if chunk.final is not None:
                    yield self._final(chunk.final, answer)
                elif reasoning or answer:
                    yield self._part(thinking, text, reasoning, answer)

    async def _aresponses(self) -> AsyncGenerator[ChatResponse, None]:
        async with aclosing(astream(self._responses())) as responses:
            async for response in responses:
                yield response

    def _take(self, chunk: Chunk) -> tuple[str, str]:
        return self._reply_text.take(chunk) if chunk.final is None else self._reply_text.finish(chunk.final)

    def _part(self, thinking: str, text: str, reasoning: str, answer: str) -> ChatResponse:
        additional_kwargs = {"thinking_delta": reasoning} if reasoning else {}  # where agents look for it
        return ChatResponse(message=_message(thinking, text), delta=answer, additional_kwargs=additional_kwargs)

    def _final(self, run: Generation, delta: str | None) -> ChatResponse:
        usage = {
            "prompt_tokens": run.prompt_tokens,
            "completion_tokens": run.tokens,
            "total_tokens": run.prompt_tokens + run.tokens,
        }
        outcome = replace(run.outcome, active=False, reason=self._uncut) if self._uncut else run.outcome
        additional_kwargs = {
            **outcome.metadata(),
            **usage,
            "reasoning_tokens": run.reasoning_tokens,
            "finish_reason": run.finish_reason,
        }
        calls, unread = read_calls(self._calls(run))
        text = "\n".join(filter(None, (self._reply_text.answer(run), unread)))
        message = _message(self._reply_text.reasoning(run), text, run.reasoning_tokens, calls)
        mark_request(outcome.metadata(), run.tokens, self._span, run.prompt_tokens)
        self._run.finish(outcome)
        # LlamaIndex's own counters read the raw reply's usage.
        return ChatResponse(message=message, delta=delta, additional_kwargs=additional_kwargs, raw={"usage": usage})

    def _calls(self, run: Generation) -> Sequence[ToolCall]:
        """The calls that the backend read, or those of an answer that still holds their text."""
        return run.tool_calls or (calls_in(text_before(run.answer or "", self._endings)) if self._has_tools else ())


def _message(thinking: str, text: str, tokens: int | None = None, calls: Sequence[ToolCallBlock] = ()) -> ChatMessage:
    thinking_blocks = [ThinkingBlock(content=thinking, num_tokens=tokens)] if thinking else []
    return ChatMessage(role=MessageRole.ASSISTANT, blocks=[*thinking_blocks, TextBlock(text=text), *calls])
