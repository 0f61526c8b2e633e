"""A tree of runnables: the chat models in it, found and swapped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.configurable import DynamicRunnable
from pydantic import BaseModel

Swap = Callable[[BaseChatModel], BaseChatModel]


def replaced(value: Any, swap: Swap) -> Any:
    """A copy of a tree of runnables with every chat model swapped; the value itself where nothing is."""
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
