"""What a LangChain chat model says of itself: its name, its limits, and why calls of it run in full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel, BaseLanguageModel

from entropy_chains.adapters import Continuation, Mode, forms
from entropy_chains.errors import SettingsError


def model_name(chat: BaseChatModel, kwargs: Mapping[str, Any] = {}) -> str:
    """What a model calls itself; of one that has no name its class."""
    names = (kwargs.get("model"), getattr(chat, "model_name", None), getattr(chat, "model", None), getattr(chat, "model_id", None))
    return next((name for name in names if isinstance(name, str) and name), type(chat).__name__)


def can_stream(chat: BaseChatModel, *, asynchronous: bool) -> bool:
    """Whether the model has a stream of its own; an asynchronous call makes do with a synchronous one."""
    kind = type(chat)
    return kind._stream is not BaseChatModel._stream or (asynchronous and kind._astream is not BaseChatModel._astream)


def given_to(model: BaseLanguageModel[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a call's request: those in the model's fields, and over them the call's."""
    return forms.merged(forms.of_model(model), _defaults(model), getattr(model, "model_kwargs", {}), kwargs)


def _defaults(model: BaseLanguageModel[Any]) -> Mapping[str, Any]:
    return getattr(model, "_default_params", {})


def refusal(chat: BaseChatModel, kwargs: Mapping[str, Any], mode: Mode = "thinking", *, asynchronous: bool = False) -> str | None:
    """Why nothing may be stopped in this call; None where it may."""
    given = given_to(chat, kwargs)
    uncut = forms.never_cut(given)
    if uncut:
        return uncut
    responses = getattr(chat, "_use_responses_api", None)
    if responses is not None and responses({**_defaults(chat), **kwargs}):
        return "LangChain passes on no logprobs of the Responses API: set use_responses_api=False"
    if chat.disable_streaming is True or (chat.disable_streaming and given.get("tools")):
        return f"the model has disable_streaming={chat.disable_streaming!r}"
    if not can_stream(chat, asynchronous=asynchronous):
        only = " but in asynchronous calls" if can_stream(chat, asynchronous=True) else ""
        return f"{type(chat).__name__} cannot stream{only}"
    if mode == "refine" and given.get("tools"):
        return "tools are bound: a loop of several calls would call them more than once"
    return None


def limit(chat: BaseChatModel, kwargs: Mapping[str, Any]) -> tuple[str, int] | None:
    """What the limit on the reply's tokens is called, and the limit: the call's, else the model's; None where there is none."""
    own = {name: number(chat, name) for name in forms.LIMITS}
    found = ((name, place.get(name)) for place in (kwargs, own) for name in forms.LIMITS)
    return next(((name, int(value)) for name, value in found if value), None)


def checked_ways(continuation: Continuation | Sequence[Continuation]) -> None:
    """Raises SettingsError for a way to the answer that cannot be had through LangChain."""
    if "control" in ([continuation] if isinstance(continuation, str) else continuation):
        raise SettingsError("continuation is 'control', which LangChain cannot pass on: use auto, prefill, completion or turn")


def number(chat: BaseChatModel, name: str) -> Any:
    """A setting of the model that is a number; None where it has none."""
    value = getattr(chat, name, None)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
