"""Early stopping for chains that exist: a copy with every chat model wrapped, or the models themselves changed in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.configurable import DynamicRunnable
from pydantic import BaseModel

from entropy_chains.errors import SettingsError
from entropy_chains.policy import Policy
from langchain_entropy_chains.chat_models import EarlyStopChatModel
from langchain_entropy_chains.local import ChatTransformers
from langchain_entropy_chains.refusals import without_headers
from langchain_entropy_chains.switches import Switched

if TYPE_CHECKING:
    from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
    from langchain_core.messages import BaseMessage
    from langchain_core.outputs import ChatResult

Swap = Callable[[BaseChatModel], BaseChatModel]
R = TypeVar("R", bound=Runnable[Any, Any])
M = TypeVar("M", bound=BaseChatModel)


def with_early_stop(runnable: R, policy: Policy | str | Path | None = None, **settings: Any) -> R:
    """A copy of a chain in which every chat model stops thinking when it is sure; the chain given stays as it is.

    Models inside functions and closures are out of reach, and so are those of agents that were built before.

    Args:
        runnable: a chat model, or whatever holds chat models: sequences, parallels, bindings, fallbacks, retries, branches, …
        policy: when to stop, or the path of its file; None only measures.
        settings: those of :class:`EarlyStopChatModel`, or of a :class:`ChatTransformers`, which stops by itself.

    Raises:
        SettingsError: there is no chat model in reach.
    """
    policy = Policy.load(policy) if isinstance(policy, str | Path) else policy
    found: list[BaseChatModel] = []

    def swap(chat: BaseChatModel) -> BaseChatModel:
        found.append(chat)
        if isinstance(chat, ChatTransformers):  # stops by itself
            return chat.model_copy(update={"policy": policy, **settings})
        return EarlyStopChatModel(chat, policy, **settings)

    copy: R = replaced(runnable, swap)
    if not found:
        raise SettingsError(f"no chat model is in reach in this {type(runnable).__name__}: {_remedy(runnable)}")
    return copy


def _remedy(runnable: Any) -> str:
    if any(kind.__name__ == "Pregel" for kind in type(runnable).__mro__):
        return (
            "an agent keeps its model inside functions; build it with create_agent(…, middleware=[EarlyStopMiddleware(policy)]), "
            "or change the model itself: instrument(model, policy)"
        )
    return "if a function holds it, change the model itself: instrument(model, policy)"


def replaced(value: Any, swap: Swap) -> Any:
    """A copy of a tree of runnables with every chat model swapped; the value itself where it holds none."""
    if isinstance(value, EarlyStopChatModel):
        return value
    if isinstance(value, BaseChatModel):
        return swap(value)
    if isinstance(value, DynamicRunnable):
        fields = replaced({name: getattr(value, name) for name in type(value).model_fields}, swap)
        # What is chosen by the config is known when it is called; the fields that it may set are the model's own.
        same = all(fields[name] is getattr(value, name) for name in fields)
        return value if same else _Chosen(default=value, swap=swap)
    if isinstance(value, Runnable) and isinstance(value, BaseModel):
        changed = {
            name: new for name in type(value).model_fields if (new := replaced(old := getattr(value, name), swap)) is not old
        }
        return value.model_copy(update=changed) if changed else value
    if isinstance(value, Mapping):
        made = {name: replaced(each, swap) for name, each in value.items()}
        return made if any(made[name] is not value[name] for name in made) else value
    if isinstance(value, list | tuple):
        swapped = [replaced(each, swap) for each in value]
        return type(value)(swapped) if any(a is not b for a, b in zip(swapped, value, strict=True)) else value
    return value


class _Chosen(DynamicRunnable[Any, Any]):
    """Chooses by the config as ``default`` does, then wraps what was chosen."""

    default: Any
    swap: Swap

    @property
    def config_specs(self) -> list[Any]:
        specs: list[Any] = self.default.config_specs
        return specs

    def _prepare(self, config: RunnableConfig | None = None) -> tuple[Runnable[Any, Any], RunnableConfig]:
        chosen, config = self.default.prepare(config)
        return replaced(chosen, self.swap), config


# --- in place


class _Instrumented(Switched):
    """What :func:`instrument` puts before a model's class: its calls go through an EarlyStopChatModel around itself."""

    _early_stop: EarlyStopChatModel  # on the class: the instance has the fields it was made with, and nothing else

    def _holdout(self) -> tuple[float, str]:
        return self._early_stop._holdout()

    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        return {**without_headers(super()._get_invocation_params(stop=stop, **kwargs)), **self._early_stop._early_stop_params}

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        return super()._get_llm_string(stop=stop, **kwargs) + str(sorted(self._early_stop._early_stop_params.items()))

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return self._early_stop._generate(messages, stop, run_manager, **kwargs)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return await self._early_stop._agenerate(messages, stop, run_manager, **kwargs)

    def _stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._early_stop._stream(*args, **kwargs)

    def _astream(self, *args: Any, **kwargs: Any) -> Any:
        return self._early_stop._astream(*args, **kwargs)


def instrument(model: M, policy: Policy | str | Path | None = None, **settings: Any) -> M:
    """Make a chat model stop when it is sure, in place: also inside closures, bindings and agents that were built before.

    Its class becomes a subclass of its own; its fields stay. :func:`uninstrument` takes it back. Do either while no call is
    running.

    Args:
        model: the model; it is changed, and returned.
        policy: when to stop, or the path of its file; None only measures.
        settings: those of :class:`EarlyStopChatModel`.

    Raises:
        SettingsError: it is no chat model, or stops early already.
    """
    if not isinstance(model, BaseChatModel):
        raise SettingsError(f"model is a {type(model).__name__}, not a chat model: for a chain use with_early_stop()")
    if isinstance(model, _Instrumented | EarlyStopChatModel):
        raise SettingsError("the model stops early already: uninstrument() it first, or set its policy")
    kind = type(model)
    plain = kind.__new__(kind)  # the same model under its old class: fields set later are seen by both
    for slot in ("__dict__", "__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__"):
        object.__setattr__(plain, slot, getattr(model, slot))
    changed: Any = type(kind.__name__, (_Instrumented, kind), {"__module__": kind.__module__, "__doc__": kind.__doc__})
    changed._early_stop = EarlyStopChatModel(plain, policy, **settings)
    object.__setattr__(model, "__class__", changed)
    return model


def uninstrument(model: M) -> M:
    """Take back what :func:`instrument` did. Raises SettingsError where it did nothing."""
    if not isinstance(model, _Instrumented):
        raise SettingsError(f"this {type(model).__name__} was not changed by instrument()")
    object.__setattr__(model, "__class__", type(model._early_stop.inner))
    return model
