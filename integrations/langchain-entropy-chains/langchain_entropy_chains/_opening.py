"""What a user gives as the inner model, opened: the chat model itself, and what is bound to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableBinding
from langchain_core.runnables.config import merge_configs
from pydantic import ValidationError

from entropy_chains.adapters import check_options
from entropy_chains.errors import SettingsError, short
from langchain_entropy_chains._config import Switched
from langchain_entropy_chains._tree import is_configurable

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig


def open_inner(inner: Any, settings: dict[str, Any]) -> tuple[Any, BaseChatModel, dict[str, Any], RunnableConfig]:
    """What chooses the chat model by the config (None: nothing does), the chat model, and the settings and config bound to it."""
    if isinstance(inner, str):
        try:
            from langchain.chat_models import init_chat_model
        except ImportError as error:
            remedy = "pip install 'langchain-entropy-chains[agents]', or give the model itself"
            raise SettingsError(f"inner is {inner!r}, and langchain is not installed: {remedy}") from error
        inner, settings = init_chat_model(inner, **settings), {}
    if settings:
        names = ", ".join(sorted(settings))
        raise SettingsError(f"EarlyStopChatModel knows no {names}; a setting of the model is set on the model itself")
    inner, bound, config = unbound(inner)
    choices = None
    if is_configurable(inner):
        choices = inner
        try:
            inner, inner_settings, inner_config = unbound(inner._model(config))
        except Exception as error:  # without a model of its own it cannot be made
            remedy = "give it one (model=…), or use with_early_stop(model, policy), which waits for the call"
            raise SettingsError(f"inner is made by the call's config alone ({type(error).__name__}): {remedy}") from error
        bound, config = {**inner_settings, **bound}, merge_configs(inner_config, config)
    if not isinstance(inner, BaseChatModel):
        remedy = "give a chat model, or use with_early_stop() for a chain that holds one"
        raise SettingsError(f"inner is a {type(inner).__name__}, not a chat model: {remedy}")
    if isinstance(inner, Switched):
        remedy = "set its policy and settings on it, or use with_early_stop(model, policy), which does so"
        raise SettingsError(f"inner is a {type(inner).__name__}, which stops by itself: {remedy}")
    return choices, inner, bound, config


TYPES = {"think_tags": 'ThinkTags("<think>", "</think>")', "segmentation": 'Segmentation("line", 32)'}
"""Settings that are objects, and what such an object looks like."""


@contextmanager
def checked(settings: Mapping[str, Any]) -> Iterator[None]:
    """A model is made of these settings: one that it does not take is a SettingsError that names it, its value and the remedy."""
    check_options(settings)
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        remedy = f"give an object, {TYPES[name]} say" if name in TYPES else first["msg"].replace("Input should", "it must")
        raise SettingsError(f"{name} is {short(first['input'])}; {remedy}") from error


def unbound(inner: Any) -> tuple[Any, dict[str, Any], RunnableConfig]:
    """A runnable without its bindings, their settings, and their config."""
    bound: dict[str, Any] = {}
    config: RunnableConfig = {}
    while isinstance(inner, RunnableBinding):
        bound, config, inner = {**inner.kwargs, **bound}, merge_configs(inner.config, config), inner.bound
    return inner, bound, config
