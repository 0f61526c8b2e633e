"""Early stopping for ``create_agent``: thinking is closed inside each model call; an agent's loop, only by a policy for agents."""

from __future__ import annotations

import warnings
from collections.abc import Awaitable, Callable
from dataclasses import fields
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NotRequired, cast

try:
    from langchain.agents.middleware import AgentMiddleware, AgentState
    from langchain.agents.middleware.types import ExtendedModelResponse, ModelRequest, ModelResponse, OmitFromInput
except ImportError as error:
    remedy = "pip install 'langchain-entropy-chains[agents]'"
    raise ImportError(f"agents need langchain 1.2.9 or later ({error}); it comes with: {remedy}") from error
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.types import Command

from entropy_chains import Policy
from entropy_chains.adapters import FLAT, check_settings, forms
from langchain_entropy_chains._config import STRUCTURED, Switched
from langchain_entropy_chains._tree import replaced
from langchain_entropy_chains.attachment import check_wrapper, stopping_model
from langchain_entropy_chains.chat_models import NOT_STOPPED, EarlyStopChatModel, for_model
from langchain_entropy_chains.local import ChatTransformers

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

STOPPED = "early_stop_stopped"
NOT_ITS_OWN = {"backend", "bound", "inner", "policy"}
"""Settings of the wrapper that a middleware has no use for."""

SUMMED = (STOPPED, "early_stop_tokens", "early_stop_tokens_saved_estimate")


class EarlyStopState(AgentState[Any]):
    """Totals of an agent's model calls, over all turns of its thread. No input: the middleware alone writes them."""

    # LangGraph takes the last item for the reducer.
    early_stop_calls: NotRequired[Annotated[int, OmitFromInput, add]]
    early_stop_stopped: NotRequired[Annotated[int, OmitFromInput, add]]
    early_stop_tokens: NotRequired[Annotated[int, OmitFromInput, add]]
    early_stop_tokens_saved_estimate: NotRequired[Annotated[int, OmitFromInput, add]]


class EarlyStopMiddleware(AgentMiddleware[EarlyStopState, Any, Any]):
    """Stops thinking inside each model call of an agent; the user's model is not changed.

    ::

        agent = create_agent(model, tools, middleware=[EarlyStopMiddleware("policy.json")])

    With a policy of scope ``agent`` the loop ends, too, once a call of the turn was stopped because it was sure: the next call is
    asked with ``tool_choice="none"``, so the model answers from what it has, and no tool call is left without its result. A
    structured response is never given up for that.

    Each call's figures are added up in the agent's state (``early_stop_calls``, ``early_stop_stopped``, ``early_stop_tokens``,
    ``early_stop_tokens_saved_estimate``) and told as ``{"early_stop": …}`` in the stream mode ``custom``.

    It may stand anywhere in the list: a model that another middleware puts in (selection, fallback) is stopped as well. One that
    the policy is not for runs in full, and so does what holds no chat model; a warning says so. None of that breaks the agent.

    Args:
        policy: when to stop, or the path of its file; None only measures.
        settings: of the :class:`langchain_entropy_chains.EarlyStopChatModel` put around the model. A model that stops by itself
            (one of those, a ``ChatTransformers``) is given the policy instead, and those of the settings that it has.

    Raises:
        SettingsError: a setting is unknown, or has a wrong value.
    """

    state_schema = EarlyStopState

    def __init__(self, policy: Policy | str | Path | None = None, **settings: Any):
        super().__init__()
        self._policy = Policy.of(policy)
        check_settings(type(self).__name__, settings, EarlyStopChatModel.model_fields.keys() - NOT_ITS_OWN)
        check_wrapper(self._policy, settings)  # not in the middle of a run
        self._settings = settings
        self._local = {name: value for name, value in settings.items() if name in ChatTransformers.model_fields}

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ExtendedModelResponse[Any]:
        """Run one model call, stopped early where the policy says so."""
        stopping_request = self._stopping_request(request)
        return self._with_totals(request, stopping_request, handler(stopping_request))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ExtendedModelResponse[Any]:
        """See :meth:`wrap_model_call`."""
        stopping_request = self._stopping_request(request)
        return self._with_totals(request, stopping_request, await handler(stopping_request))

    def _stopping_request(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        values = {field.name: getattr(request, field.name) for field in fields(request)}
        stopping_request = _Asked(**values).stopped_by(self)
        return stopping_request.override(tool_choice="none") if self._is_over(request) else stopping_request

    def stopping(self, model: Any, *, structured: bool = False) -> Any:
        """The model of a call, whatever holds it, with every chat model in it stopping; as it is, with a warning, where none is."""
        chats: list[BaseChatModel] = []

        def swap(chat: BaseChatModel) -> BaseChatModel:
            chats.append(chat)
            if isinstance(chat, Switched) and not isinstance(chat, EarlyStopChatModel | ChatTransformers):
                return chat  # instrumented
            stopping_chat = stopping_model(
                chat, self._policy, self._local if isinstance(chat, ChatTransformers) else self._settings
            )
            if isinstance(stopping_chat, EarlyStopChatModel):
                for_model(self._policy.model if self._policy else None, stopping_chat)
                if structured:  # not every model's settings will show it
                    stopping_chat.bound = {**stopping_chat.bound, STRUCTURED: True}
            elif structured and isinstance(stopping_chat, ChatTransformers):
                stopping_chat.early_stop = False
            return stopping_chat

        copy = replaced(model, swap)
        if copy is model and not chats:
            warnings.warn(f"{NOT_STOPPED}no chat model is in reach in this {type(model).__name__}", stacklevel=2)
        return copy

    def _is_over(self, request: ModelRequest[Any]) -> bool:
        """Whether the agent was sure in this turn, and its policy was calibrated for ending the loop."""
        if self._policy is None or self._policy.scope != "agent" or request.response_format is not None or not request.tools:
            return False
        if forms.never_cut(forms.merged(request.model_settings, {"tool_choice": request.tool_choice})):
            return False
        for message in reversed(request.messages):
            if isinstance(message, HumanMessage):
                return False
            if isinstance(message, AIMessage) and message.response_metadata.get(STOPPED):
                return True
        return False

    def _with_totals(
        self, request: ModelRequest[Any], stopping_request: ModelRequest[Any], response: ModelResponse[Any]
    ) -> ExtendedModelResponse[Any]:
        replies = [m.response_metadata for m in response.result if isinstance(m, AIMessage)]
        tables = [metadata for metadata in replies if STOPPED in metadata]
        if replies and not tables and stopping_request.model is not request.model:
            remedy = "put EarlyStopMiddleware last in the list"
            warnings.warn(f"{NOT_STOPPED}another middleware answered, or asked another model: {remedy}", stacklevel=2)
        for table in tables:
            request.runtime.stream_writer({"early_stop": {k: v for k, v in table.items() if k.startswith(FLAT)}})
        totals = {name: sum(m.get(name) or 0 for m in tables) for name in SUMMED}
        return ExtendedModelResponse(response, Command(update={"early_stop_calls": len(tables), **totals}))


class _Asked(ModelRequest[Any]):
    """A request whose model stops early, also where a middleware further in sets another one."""

    def stopped_by(self, middleware: EarlyStopMiddleware) -> _Asked:
        object.__setattr__(self, "_middleware", middleware)
        return self.override(model=self.model)

    def override(self, **overrides: Any) -> _Asked:
        middleware: EarlyStopMiddleware | None = getattr(self, "_middleware", None)  # who copies it otherwise loses that
        if middleware and overrides.keys() & {"model", "response_format"}:
            form = overrides.get("response_format", self.response_format)
            overrides["model"] = middleware.stopping(overrides.get("model", self.model), structured=form is not None)
        request: Any = super().override(**overrides)
        object.__setattr__(request, "_middleware", middleware)
        return cast("_Asked", request)
