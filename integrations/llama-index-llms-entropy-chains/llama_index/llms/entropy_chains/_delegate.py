"""What a wrapper leaves to the LLM inside: what it is, its tools, its structured output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llama_index.core.bridge.pydantic import Field, field_serializer
from llama_index.core.llms import LLM  # noqa: TC002 (pydantic reads the field's type)
from llama_index.core.llms.function_calling import FunctionCallingLLM

from entropy_chains.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llama_index.core.base.llms.types import ChatMessage, ChatResponse, LLMMetadata
    from llama_index.core.llms.llm import ToolSelection
    from llama_index.core.tools.types import BaseTool

MIRRORED = (
    "callback_manager",
    "completion_to_prompt",
    "messages_to_prompt",
    "output_parser",
    "pydantic_program_mode",
    "query_wrapper_prompt",
    "system_prompt",
)
"""What ``predict`` and engines read from the LLM that they are given."""


class Delegate(FunctionCallingLLM):
    """An LLM around an LLM. Prompt settings and callback manager are the inner one's where none are given."""

    llm: LLM = Field(frozen=True, repr=False)

    def __init__(self, llm: LLM, **settings: Any):
        super().__init__(llm=llm, **({name: getattr(llm, name) for name in MIRRORED} | settings))
        self.llm.callback_manager = self.callback_manager

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "callback_manager":  # engines set it on the LLM that they see; it is the inner one that calls it
            self.llm.callback_manager = value

    @classmethod
    def class_name(cls) -> str:
        """The name that LlamaIndex writes into events and files."""
        return "EarlyStopLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """The inner LLM's."""
        return self.llm.metadata

    @field_serializer("llm")
    def _without_secrets(self, llm: LLM) -> dict[str, Any]:
        """The inner LLM's own ``to_dict`` holds its key; what it is stands in its metadata."""
        return {"class_name": llm.class_name(), **llm.metadata.model_dump()}

    # --- tools and structured output: the inner LLM's own ways

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
        prepared: dict[str, Any] = self._caller._prepare_chat_with_tools_compat(
            tools,
            user_msg=user_msg,
            chat_history=None if chat_history is None else list(chat_history),  # some LLMs append to what they are given
            verbose=verbose,
            allow_parallel_tool_calls=allow_parallel_tool_calls,
            tool_required=tool_required,
            **kwargs,
        )
        return prepared

    def _validate_chat_with_tools_response(
        self, response: ChatResponse, tools: Sequence[BaseTool], allow_parallel_tool_calls: bool = False, **kwargs: Any
    ) -> ChatResponse:
        return self._caller._validate_chat_with_tools_response(
            response, tools, allow_parallel_tool_calls=allow_parallel_tool_calls, **kwargs
        )

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The inner LLM's reading of a response; none where it calls no tools."""
        if not isinstance(self.llm, FunctionCallingLLM):
            return []
        return self.llm.get_tool_calls_from_response(response, error_on_no_tool_call=error_on_no_tool_call, **kwargs)

    @property
    def _caller(self) -> FunctionCallingLLM:
        if not isinstance(self.llm, FunctionCallingLLM):
            raise SettingsError(f"{type(self.llm).__name__} calls no tools; wrap an LLM that does")
        return self.llm

    def structured_predict(self, *args: Any, **kwargs: Any) -> Any:
        """The inner LLM's: structured output is never cut."""
        return self.llm.structured_predict(*args, **kwargs)

    async def astructured_predict(self, *args: Any, **kwargs: Any) -> Any:
        """See :meth:`structured_predict`."""
        return await self.llm.astructured_predict(*args, **kwargs)

    def stream_structured_predict(self, *args: Any, **kwargs: Any) -> Any:
        """See :meth:`structured_predict`."""
        return self.llm.stream_structured_predict(*args, **kwargs)

    async def astream_structured_predict(self, *args: Any, **kwargs: Any) -> Any:
        """See :meth:`structured_predict`."""
        return await self.llm.astream_structured_predict(*args, **kwargs)
