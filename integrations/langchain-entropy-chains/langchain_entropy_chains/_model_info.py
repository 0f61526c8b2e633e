"""What a LangChain chat model says of itself: its name, its limits, and why calls of it run in full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.language_models import BaseChatModel, BaseLanguageModel

from entropy_chains.adapters import Continuation, Mode, forms, of_class
from entropy_chains.errors import SettingsError

NAMES = ("model_name", "model", "model_id", "deployment_name")
"""Fields in which a model has its name; the last one is an Azure deployment's."""

OPTIONS = "options"
"""A setting of a call that holds settings itself (Ollama's)."""


BODY = "extra_body"
"""A setting, of a call or a model, that holds further fields of the request: they win over those beside it."""


@dataclass(frozen=True, slots=True)
class Limit:
    """The limit on a reply's tokens.

    Attributes:
        name: what it is called.
        value: tokens.
        place: where it stands: in the ``extra_body``, in the ``call``, in its ``options``, or on the ``model``.
    """

    name: str
    value: int
    place: str

    def put(self, tokens: int, chat: BaseChatModel, kwargs: dict[str, Any]) -> tuple[BaseChatModel, dict[str, Any]]:
        """Model and settings of a call with another limit, in the same place."""
        if self.place == "model":
            return chat.model_copy(update={self.name: tokens}), kwargs
        if self.place == BODY:
            return chat, {**kwargs, BODY: {**extra_body(chat, kwargs), self.name: tokens}}
        if self.place == OPTIONS:
            return chat, {**kwargs, OPTIONS: {**kwargs[OPTIONS], self.name: tokens}}
        return chat, {**kwargs, self.name: tokens}


def model_name(chat: BaseChatModel, kwargs: Mapping[str, Any] = {}) -> str:
    """What a model calls itself; of one that has no name its class."""
    names = (kwargs.get("model"), *(getattr(chat, name, None) for name in NAMES))
    return next((name for name in names if isinstance(name, str) and name), type(chat).__name__)


def can_stream(chat: BaseChatModel, *, asynchronous: bool) -> bool:
    """Whether the model has a stream of its own; an asynchronous call makes do with a synchronous one."""
    kind = type(chat)
    return kind._stream is not BaseChatModel._stream or (asynchronous and kind._astream is not BaseChatModel._astream)


def call_settings(model: BaseLanguageModel[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a call's request: those in the model's fields, and over them the call's."""
    return forms.merged(forms.of_model(model), _defaults(model), getattr(model, "model_kwargs", {}), kwargs)


def _defaults(model: BaseLanguageModel[Any]) -> Mapping[str, Any]:
    return getattr(model, "_default_params", {})


def drops_reasoning(chat: BaseChatModel) -> bool:
    """Whether it reads chunks as ``ChatOpenAI`` does, which passes on no text of the reasoning: it, and classes made of it."""
    reads = getattr(type(chat), "_convert_chunk_to_generation_chunk", None)
    return str(getattr(reads, "__module__", "")).startswith("langchain_openai.")


def without_any_logprobs(chat: BaseChatModel) -> str | None:
    """What to say of a model of a class that passes on no logprobs; None of all others."""
    row = of_class(kind := type(chat).__name__)
    return None if row is None else f"{kind} passes on no logprobs, so every call runs in full ({row.name}: {row.use})"


def refusal(chat: BaseChatModel, kwargs: Mapping[str, Any], mode: Mode = "thinking", *, asynchronous: bool = False) -> str | None:
    """Why nothing may be stopped in this call; None where it may."""
    settings = call_settings(chat, kwargs)
    uncut = forms.never_cut(settings)
    if uncut:
        return uncut
    responses = getattr(chat, "_use_responses_api", None)
    if responses is not None and responses({**_defaults(chat), **kwargs}):
        return "LangChain passes on no logprobs of the Responses API: set use_responses_api=False"
    if chat.disable_streaming is True or (chat.disable_streaming and settings.get("tools")):
        return f"the model has disable_streaming={chat.disable_streaming!r}"
    if not can_stream(chat, asynchronous=asynchronous):
        only = " but in asynchronous calls" if can_stream(chat, asynchronous=True) else ""
        return f"{type(chat).__name__} cannot stream{only}"
    if mode == "refine" and settings.get("tools"):
        return "tools are bound: a loop of several calls would call them more than once"
    return None


def limit(chat: BaseChatModel, kwargs: Mapping[str, Any]) -> Limit | None:
    """The limit on the reply's tokens: the call's, else the model's; None where there is none."""
    fields = {name: numeric_field(chat, name) for name in forms.LIMITS}
    options = kwargs.get(OPTIONS)
    options = options if isinstance(options, Mapping) else {}
    body = {name: value for name, value in extra_body(chat, kwargs).items() if isinstance(value, int | float)}
    places = {BODY: body, "call": kwargs, OPTIONS: options, "model": fields}
    limits = (Limit(name, int(place[name]), where) for where, place in places.items() for name in forms.LIMITS if place.get(name))
    return next((each for each in limits if each.value > 0), None)  # Ollama's -1 is none


def extra_body(chat: BaseChatModel, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Further fields of the request: the call's, in the place of the model's."""
    body = kwargs.get(BODY) or getattr(chat, BODY, None)
    return body if isinstance(body, Mapping) else {}


def check_ways(continuation: Continuation | Sequence[Continuation]) -> None:
    """Raises SettingsError for a way to the answer that cannot be had through LangChain."""
    if "control" in ([continuation] if isinstance(continuation, str) else continuation):
        raise SettingsError("continuation is 'control', which LangChain cannot pass on: use auto, prefill, completion or turn")


def numeric_field(chat: BaseChatModel, name: str) -> Any:
    """A setting of the model that is a number; None where it has none."""
    value = getattr(chat, name, None)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def with_reply_ids(chat: BaseChatModel) -> BaseChatModel:
    """The same model, whose chunks keep the reply's id where its class drops that in streams and tells it of whole replies."""
    convert = getattr(chat, "_convert_chunk_to_generation_chunk", None)  # langchain-openai's, and of all that build on it
    if convert is None:
        return chat

    def keeping(chunk: Any, *args: Any, **kwargs: Any) -> Any:
        generation = convert(chunk, *args, **kwargs)
        if generation is not None and isinstance(chunk, Mapping) and chunk.get("id"):
            generation.generation_info = {**(generation.generation_info or {}), "id": chunk["id"]}
        return generation

    copy = chat.model_copy()
    copy.__dict__["_convert_chunk_to_generation_chunk"] = keeping
    return copy
