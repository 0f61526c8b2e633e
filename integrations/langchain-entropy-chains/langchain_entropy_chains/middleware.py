"""Early stopping for ``create_agent``: thinking is closed inside each model call; an agent's loop, only by a policy for agents."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NotRequired

try:
    from langchain.agents.middleware import AgentMiddleware, AgentState
    from langchain.agents.middleware.types import ExtendedModelResponse, ModelRequest, ModelResponse, OmitFromInput
except ImportError as error:
    remedy = "pip install 'langchain-entropy-chains[agents]'"
    raise ImportError(f"agents need langchain 1.2.9 or later ({error}); it comes with: {remedy}") from error
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.types import Command

from entropy_chains import Policy
from entropy_chains.adapters import check_settings, forms
from langchain_entropy_chains._config import STRUCTURED
from langchain_entropy_chains.attachment import stopping
from langchain_entropy_chains.chat_models import EarlyStopChatModel
from langchain_entropy_chains.local import ChatTransformers

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

STOPPED = "early_stop_stopped"
NOT_ITS_OWN = {"backend", "bound", "inner", "policy"}
"""Settings of the models that a middleware has no use for."""

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

    Args:
        policy: when to stop, or the path of its file; None only measures.
        settings: of the :class:`langchain_entropy_chains.EarlyStopChatModel` put around the model. A model that stops by itself
            (one of those, a ``ChatTransformers``) is given policy and settings instead.
    """

    state_schema = EarlyStopState

    def __init__(self, policy: Policy | str | Path | None = None, **settings: Any):
        super().__init__()
        self._policy = Policy.of(policy)
        check_settings(
            type(self).__name__, settings, {*EarlyStopChatModel.model_fields, *ChatTransformers.model_fields} - NOT_ITS_OWN
        )
        self._settings = settings

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ExtendedModelResponse[Any]:
        """Run one model call, stopped early where the policy says so."""
        return self._told(request, handler(self._asked(request)))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ExtendedModelResponse[Any]:
        """See :meth:`wrap_model_call`."""
        return self._told(request, await handler(self._asked(request)))

    def _asked(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        asked = request.override(model=self._stopping(request.model, structured=request.response_format is not None))
        return asked.override(tool_choice="none") if self._is_over(request) else asked

    def _stopping(self, model: BaseChatModel, *, structured: bool) -> BaseChatModel:
        made = stopping(model, self._policy, self._settings)
        if structured and isinstance(made, EarlyStopChatModel):  # not every model's settings will show it
            made.bound = {**made.bound, STRUCTURED: True}
        elif structured and isinstance(made, ChatTransformers):
            made.early_stop = False
        return made

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

    def _told(self, request: ModelRequest[Any], response: ModelResponse[Any]) -> ExtendedModelResponse[Any]:
        found = [m.response_metadata for m in response.result if isinstance(m, AIMessage) and STOPPED in m.response_metadata]
        for metadata in found:
            request.runtime.stream_writer({"early_stop": {k: v for k, v in metadata.items() if k.startswith("early_stop_")}})
        totals = {name: sum(m.get(name) or 0 for m in found) for name in SUMMED}
        return ExtendedModelResponse(response, Command(update={"early_stop_calls": len(found), **totals}))
