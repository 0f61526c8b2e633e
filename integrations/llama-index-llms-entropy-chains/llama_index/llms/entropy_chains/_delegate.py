"""What a wrapper leaves to the LLM inside: what it is, its tools, its structured output."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from llama_index.core.bridge.pydantic import Field, field_serializer
from llama_index.core.llms import LLM
from llama_index.core.llms.function_calling import FunctionCallingLLM

from entropy_chains import Policy
from entropy_chains.adapters import secrets_of, without_secrets
from entropy_chains.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llama_index.core.base.llms.types import ChatMessage, ChatResponse, LLMMetadata
    from llama_index.core.llms.llm import ToolSelection
    from llama_index.core.tools.types import BaseTool

MIRRORED = tuple(name for name in LLM.model_fields if name != "llm")
"""What every LLM has: ``predict`` and engines read it from the LLM that they are given."""


class Delegate(FunctionCallingLLM):
    """An LLM around an LLM: what every LLM has (prompts, rate limiter, callback manager) is the inner one's where none is given.

    The inner one's own settings (``model``, ``temperature`` …) are read and set through it.
    """

    llm: LLM = Field(frozen=True, repr=False)

    def __init__(self, llm: LLM, **settings: Any):
        super().__init__(llm=llm, **({name: getattr(llm, name) for name in MIRRORED} | settings))
        self.llm.callback_manager = self.callback_manager

    def __setattr__(self, name: str, value: Any) -> None:
        if self._is_inner(name):
            setattr(self.llm, name, value)
            return
        super().__setattr__(name, value)
        if name == "callback_manager":  # engines set it on the LLM that they see; it is the inner one that calls it
            self.llm.callback_manager = value

    def __getattr__(self, name: str) -> Any:
        if self._is_inner(name):
            return getattr(self.llm, name)
        return super().__getattr__(name)  # type: ignore[misc]  # pydantic's, which type checkers are not shown

    def __copy__(self) -> Self:
        duplicate = super().__copy__()
        duplicate._set_inner(copy.copy(self.llm))
        return duplicate

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with an inner LLM of its own; ``update`` may hold settings of either."""
        inner_values = {name: value for name, value in (update or {}).items() if self._is_inner(name)}
        own_values = {name: value for name, value in (update or {}).items() if name not in inner_values}
        duplicate = super().model_copy(update=own_values, deep=deep)
        if "llm" not in own_values:
            duplicate._set_inner(self.llm.model_copy(update=inner_values, deep=deep))
        return duplicate

    def _set_inner(self, inner: LLM) -> None:
        """Give a copy an inner LLM of its own, on which a setting of this copy is set."""
        self.__dict__["llm"] = inner

    def _is_inner(self, name: str) -> bool:
        """Whether it is a setting that only the inner LLM has."""
        inner = self.__dict__.get("llm")
        return inner is not None and name not in type(self).model_fields and name in type(inner).model_fields

    @property
    def _shared(self) -> dict[str, Any]:
        """What every LLM has, where it is not the inner one's."""
        return {name: getattr(self, name) for name in MIRRORED if getattr(self, name) is not getattr(self.llm, name)}

    @property
    def _inner_with_shared(self) -> LLM:
        """The inner LLM, with these."""
        return self.llm.model_copy(update=self._shared) if self._shared else self.llm

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
        """The inner LLM's own ``to_dict`` holds its key: without that."""
        data: dict[str, Any] = _redacted(llm.to_dict(), secrets_of(llm))
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self:
        """Returns the LLM that ``to_dict`` was of.

        No key is in it: the inner LLM finds its key as it does when it is made, or ``api_key=…`` is given here.

        Args:
            data: of ``to_dict``.
            kwargs: settings in place of those in ``data``, of this LLM or of the one inside, which may be given whole as ``llm``.

        Raises:
            SettingsError: no class of the inner LLM's name was imported.
        """
        fields = {name: value for name, value in {**data, **kwargs}.items() if name in cls.model_fields}
        inner = fields["llm"]
        if not isinstance(inner, LLM):
            inner_settings = {name: value for name, value in kwargs.items() if name not in cls.model_fields}
            inner = _class_of(inner["class_name"]).from_dict(inner, **inner_settings)
        policy = fields.get("policy")
        return cls(**fields | {"llm": inner, "policy": Policy.from_dict(policy) if isinstance(policy, dict) else policy})

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
        return self._inner_with_shared.structured_predict(*args, **kwargs)

    async def astructured_predict(self, *args: Any, **kwargs: Any) -> Any:
        """See :meth:`structured_predict`."""
        return await self._inner_with_shared.astructured_predict(*args, **kwargs)

    def stream_structured_predict(self, *args: Any, **kwargs: Any) -> Any:
        """See :meth:`structured_predict`."""
        return self._inner_with_shared.stream_structured_predict(*args, **kwargs)

    async def astream_structured_predict(self, *args: Any, **kwargs: Any) -> Any:
        """See :meth:`structured_predict`."""
        return await self._inner_with_shared.astream_structured_predict(*args, **kwargs)


def _redacted(value: Any, secrets: list[str]) -> Any:
    """A setting without the secrets in it."""
    if isinstance(value, dict):
        return {name: _redacted(each, secrets) for name, each in without_secrets(value).items()}
    for secret in secrets if isinstance(value, str) else ():
        value = value.replace(secret, "")
    return value


def _class_of(name: str) -> type[LLM]:
    """The class of LLMs that writes this name into files, of those that were imported."""
    waiting = [LLM]
    for kind in waiting:
        if "class_name" in vars(kind) and kind.class_name() == name:
            return kind
        waiting.extend(kind.__subclasses__())
    raise SettingsError(f"no LLM class {name} was imported: import it first, or give the LLM itself as llm=…")
