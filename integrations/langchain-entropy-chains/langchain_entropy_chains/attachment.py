"""Early stopping for chains that exist: a copy with every chat model wrapped, or the models themselves changed in place."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from langchain_core.language_models import BaseChatModel, FakeListChatModel
from langchain_core.runnables import Runnable

from entropy_chains import Policy
from entropy_chains.adapters import Added, check_settings, give_class, own_class, subclass, unpickled, without_secrets
from entropy_chains.errors import SettingsError
from langchain_entropy_chains._config import Switched
from langchain_entropy_chains._model_info import model_name
from langchain_entropy_chains._tree import Replacing, chat_models_in, is_configurable, is_graph, replaced
from langchain_entropy_chains.chat_models import EarlyStopChatModel, for_model
from langchain_entropy_chains.local import ChatTransformers

if TYPE_CHECKING:
    from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
    from langchain_core.messages import BaseMessage
    from langchain_core.outputs import ChatResult

ALREADY = "the model stops early already: uninstrument() it first, or set its policy"

R = TypeVar("R", bound=Runnable[Any, Any])
M = TypeVar("M", bound=BaseChatModel)


def with_early_stop(runnable: R, policy: Policy | str | Path | None = None, **settings: Any) -> R:
    """A copy of a chain in which every chat model stops thinking when it is sure; the chain given stays as it is.

    Functions of the user's (``@chain`` too) and agents that were built before are left as they are; a warning names those that use
    or make a model. A model that stops early already is left as it is. Beside a model that the policy is for, any other one (a
    fallback, an alternative) runs in full, and a warning names both.

    Args:
        runnable: a chat model, or whatever holds chat models: sequences, parallels, bindings, fallbacks, retries, branches, …
        policy: when to stop, or the path of its file; None only measures.
        settings: those of :class:`EarlyStopChatModel`, or of a :class:`ChatTransformers`, which stops by itself.

    Raises:
        SettingsError: there is no chat model in reach.
    """
    policy = Policy.of(policy)
    chats = chat_models_in(runnable)
    intended = _intended_model(chats, policy)

    def swap(chat: BaseChatModel) -> BaseChatModel:
        if isinstance(chat, EarlyStopChatModel | _Instrumented):
            return chat
        stopping_chat = stopping_model(chat, policy, settings)
        return for_model(intended, stopping_chat) if isinstance(stopping_chat, EarlyStopChatModel) else stopping_chat

    tree = Replacing(swap)
    copy: R = tree(runnable)
    if copy is runnable and not chats:
        raise SettingsError(f"no chat model is in reach in this {type(runnable).__name__}: {_remedy(runnable)}")
    if tree.missed:
        holders = ", ".join(dict.fromkeys(tree.missed))
        remedy = "to reach them, change the models themselves: instrument(model, policy)"
        warnings.warn(f"early stopping passes over chat models in {holders}: {remedy}", stacklevel=2)
    if tree.makers:
        makers, remedy = ", ".join(dict.fromkeys(tree.makers)), "wrap them where they are made: EarlyStopChatModel(model, policy)"
        warnings.warn(f"early stopping passes over chat models that may be made in {makers}: {remedy}", stacklevel=2)
    if policy is not None and intended is not None and settings.get("on_mismatch", "error") == "error":
        names = dict.fromkeys(model_name(chat) for chat in chats if not isinstance(chat, EarlyStopChatModel | _Instrumented))
        if others := ", ".join(repr(name) for name in names if not _is_for(policy, name)):
            remedy = "if it is the same checkpoint, use policy.for_model(name)"
            warnings.warn(f"the policy is for model {policy.model!r}, so {others} will run in full: {remedy}", stacklevel=2)
    return copy


def _intended_model(chats: list[BaseChatModel], policy: Policy | None) -> str | None:
    """The policy's model, where one of the chain's is that: the others run in full. None: a mismatch is an error."""
    if policy is None or not any(_is_for(policy, model_name(chat)) for chat in chats):
        return None
    return policy.model


def _is_for(policy: Policy, name: str) -> bool:
    return name in (policy.model, *policy.aliases)


def check_wrapper(policy: Policy | None, settings: Mapping[str, Any]) -> None:
    """Raises what :class:`EarlyStopChatModel` would for these settings, before there is a model."""
    EarlyStopChatModel(FakeListChatModel(responses=[""]), policy, **settings)


def stopping_model(chat: BaseChatModel, policy: Policy | None, settings: Mapping[str, Any]) -> BaseChatModel:
    """A chat model that stops by this policy: of one that stops by itself a copy, around any other one a wrapper.

    Raises:
        SettingsError: it does not have one of the settings, or not this word of it.
    """
    if not isinstance(chat, EarlyStopChatModel | ChatTransformers):
        return EarlyStopChatModel(chat, policy, **settings)
    kind, changes = type(chat), {"policy": policy, **settings}
    check_settings(kind.__name__, settings, kind.model_fields)
    kind(**{**dict(chat), **changes})  # checks the values, which a copy does not
    return chat.model_copy(update=changes)


def _remedy(runnable: Any) -> str:
    if is_graph(runnable):
        return (
            "an agent keeps its model inside functions; build it with create_agent(…, middleware=[EarlyStopMiddleware(policy)]), "
            "or change the model itself: instrument(model, policy)"
        )
    return "if a function holds it, change the model itself: instrument(model, policy)"


# --- in place


@dataclass(frozen=True, slots=True)
class EarlyStopping:
    """What :func:`instrument` was told.

    Attributes:
        model: the name of the model that it was told for.
        policy, settings: those of the :class:`EarlyStopChatModel` that serves every call.
    """

    model: str
    policy: Policy | None
    settings: Mapping[str, Any]

    def around(self, plain: BaseChatModel, owner: BaseChatModel) -> EarlyStopChatModel:
        """The wrapper of one call; ``owner`` is the model that the user has, ``plain`` the same under its own class."""
        return for_model(self.model, EarlyStopChatModel(plain, self.policy, **self.settings), owner)


class _Instrumented(Added, Switched):
    """What :func:`instrument` puts before a model's class: its calls go through an EarlyStopChatModel around itself.

    The class is made for one call of :func:`instrument`, and holds its terms; the model's fields stay as they are. A copy
    has the class and fields of its own: it stops too, with its own settings, address and key.
    """

    _entropy_chains_terms: ClassVar[EarlyStopping]

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if not _is_copy(type(self), kwargs):
            give_class(self, own_class(self))

    @classmethod
    def model_construct(cls, _fields_set: set[str] | None = None, **values: Any) -> Any:
        model = super().model_construct(_fields_set, **values)
        if not _is_copy(cls, values):
            give_class(model, own_class(model))
        return model

    @classmethod
    def is_lc_serializable(cls) -> bool:
        return False  # what is loaded would be the plain model, and stop nothing

    def to_json_not_implemented(self) -> Any:
        data = super().to_json_not_implemented()
        return {**data, "repr": repr(self._entropy_chains_wrapper())}  # traces get it: the model's own may hold headers

    def __reduce__(self) -> Any:
        return _instrumented_as, (own_class(self), self._entropy_chains_terms, self.__getstate__())

    def _entropy_chains_wrapper(self) -> EarlyStopChatModel:
        """The wrapper of one call, around the same model under its own class: fields set later are seen by both."""
        kind = own_class(self)
        plain = kind.__new__(kind)
        for slot in ("__dict__", "__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__"):
            object.__setattr__(plain, slot, getattr(self, slot))
        return self._entropy_chains_terms.around(plain, self)

    def _entropy_chains_holdout(self) -> tuple[float, str]:
        return self._entropy_chains_wrapper()._entropy_chains_holdout()

    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        params = without_secrets(super()._get_invocation_params(stop=stop, **kwargs))
        return {**params, **self._entropy_chains_wrapper()._entropy_chains_params}

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        params = self._entropy_chains_wrapper()._entropy_chains_params
        return super()._get_llm_string(stop=stop, **kwargs) + str(sorted(params.items()))

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return self._entropy_chains_wrapper()._generate(messages, stop, run_manager, **kwargs)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return await self._entropy_chains_wrapper()._agenerate(messages, stop, run_manager, **kwargs)

    def _stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._entropy_chains_wrapper()._stream(*args, **kwargs)

    def _astream(self, *args: Any, **kwargs: Any) -> Any:
        return self._entropy_chains_wrapper()._astream(*args, **kwargs)


def _is_copy(kind: type[BaseChatModel], values: Mapping[str, Any]) -> bool:
    """Whether a model is made of all the fields of another one, as configurable fields do it, and not anew."""
    return values.keys() >= kind.model_fields.keys()


def _instrumented(kind: type[BaseChatModel], terms: EarlyStopping) -> Any:
    """The class of a model of class ``kind``, and of its copies, that is instrumented."""
    remedy = "use with_early_stop(chain, policy) or EarlyStopChatModel(model, policy)"
    return subclass(kind, _Instrumented, remedy, _entropy_chains_terms=terms)


def _instrumented_as(kind: type[BaseChatModel], terms: EarlyStopping, state: dict[str, Any]) -> BaseChatModel:
    """An instrumented model as it was pickled."""
    model: BaseChatModel = unpickled(kind, state, _instrumented(kind, terms))
    return model


def instrument(model: M, policy: Policy | str | Path | None = None, **settings: Any) -> M:
    """Make a chat model stop when it is sure, in place: also inside closures, bindings and agents that were built before.

    Its class becomes a subclass of its own; its fields stay. Copies of it stop too, each with its own settings, address and key;
    one of another model, which the policy is not for, runs in full. :func:`uninstrument` takes it back. Do either while no call
    is running.

    Args:
        model: the model; it is changed, and returned.
        policy: when to stop, or the path of its file; None only measures.
        settings: those of :class:`EarlyStopChatModel`.

    Raises:
        SettingsError: it is no chat model, stops early already, or its class allows no subclass.
    """
    if is_configurable(model):
        _instrument_choices(model, policy, settings)
        return model
    if not isinstance(model, BaseChatModel):
        raise SettingsError(f"model is a {type(model).__name__}, not a chat model: for a chain use with_early_stop()")
    if isinstance(model, _Instrumented | EarlyStopChatModel):
        raise SettingsError(ALREADY)
    policy = Policy.of(policy)
    terms = EarlyStopping(model_name(model), policy, settings)
    terms.around(model, model)  # what is wrong with the settings is said now
    give_class(model, _instrumented(type(model), terms))
    return model


def _instrument_choices(model: Any, policy: Policy | str | Path | None, settings: Mapping[str, Any]) -> None:
    """The same for a model that is made for each call."""
    from langchain_entropy_chains._configurable import StoppingConfigurable, change_in_place

    if isinstance(model, StoppingConfigurable):
        raise SettingsError(ALREADY)
    policy = Policy.of(policy)
    check_wrapper(policy, settings)
    change_in_place(model, lambda inner: replaced(inner, lambda chat: EarlyStopChatModel(chat, policy, **settings)))


def uninstrument(model: M) -> M:
    """Take back what :func:`instrument` did. Raises SettingsError where it did nothing."""
    if is_configurable(model):
        from langchain_entropy_chains._configurable import StoppingConfigurable, undo_change

        if isinstance(model, StoppingConfigurable):
            undo_change(model)
            return model
    if not isinstance(model, _Instrumented):
        raise SettingsError(f"this {type(model).__name__} was not changed by instrument()")
    give_class(model, own_class(model))
    return model
