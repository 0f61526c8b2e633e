"""A tree of runnables: the chat models in it, found and swapped."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable, RunnableConfig, RunnableGenerator, RunnableLambda
from langchain_core.runnables.configurable import DynamicRunnable
from pydantic import BaseModel

from langchain_entropy_chains._config import Switched
from langchain_entropy_chains._functions import makes_models, models_of, name_of, renewed

Swap = Callable[[BaseChatModel], BaseChatModel]

FUNCTIONS = {RunnableLambda: ("func", "afunc"), RunnableGenerator: ("_transform", "_atransform")}
"""Runnables around a function of the user, and where they keep it."""


def replaced(value: Any, swap: Swap) -> Any:
    """A copy of a tree of runnables with every chat model swapped; the value itself where nothing is."""
    return Replacing(swap)(value)


def chat_models_in(value: Any) -> list[BaseChatModel]:
    """The chat models of a tree that can be swapped; one that is used twice may stand there twice."""
    chats: list[BaseChatModel] = []

    def same(chat: BaseChatModel) -> BaseChatModel:
        chats.append(chat)
        return chat

    replaced(value, same)
    return chats


class Replacing:
    """Swaps the chat models of a tree.

    Attributes:
        missed: what holds chat models that it could not swap, in words.
        makers: what makes chat models itself, as far as can be seen.
    """

    def __init__(self, swap: Swap):
        self._swap = swap
        self._under_way: set[int] = set()  # a chain may hold itself: one with message history does
        self.missed: list[str] = []
        self.makers: list[str] = []

    def __call__(self, value: Any) -> Any:
        """See :func:`replaced`."""
        if id(value) in self._under_way:
            return value
        self._under_way.add(id(value))
        try:
            return self._replaced(value)
        finally:
            self._under_way.discard(id(value))

    def _replaced(self, value: Any) -> Any:
        if isinstance(value, BaseChatModel):
            return self._swap(value)
        if isinstance(value, DynamicRunnable):
            fields = self({name: getattr(value, name) for name in type(value).model_fields})
            # What is chosen by the config is known when it is called; the fields that it may set are the model's own.
            same = all(fields[name] is getattr(value, name) for name in fields)
            return value if same else _Chosen(default=value, swap=self._swap)
        if is_configurable(value):
            from langchain_entropy_chains._configurable import with_change

            return with_change(value, lambda model: replaced(model, self._swap))
        for kind, names in FUNCTIONS.items():
            if isinstance(value, kind):
                return self._with_functions(value, names)
        if is_graph(value):
            self.missed.append(f"the graph {value.name!r}")
            return value
        if isinstance(value, Runnable) and isinstance(value, BaseModel):
            for name, part in {**dict(value), **(value.__pydantic_private__ or {})}.items():
                if callable(part) and not isinstance(part, Runnable | type):
                    self._report(part, f"the function {name_of(part)!r}")
                elif name not in type(value).model_fields and isinstance(part, Runnable):
                    self._report(part, f"the private {name!r} of a {type(value).__name__}")
            changes = {name: new for name in type(value).model_fields if (new := self(old := getattr(value, name))) is not old}
            return value.model_copy(update=changes) if changes else value
        if isinstance(value, Runnable):
            self._report(value, f"a {type(value).__name__}")
            return value
        return self._with_items(value) if isinstance(value, Mapping | list | tuple) else value

    def _with_items(self, value: Any) -> Any:
        """A container of the same kind, with other items."""
        if isinstance(value, Mapping):
            changes = {name: new for name, each in value.items() if (new := self(each)) is not each}
            if not changes:
                return value
            container = copy.copy(value) if isinstance(value, MutableMapping) else dict(value)
            container.update(changes)
            return container
        items = [self(each) for each in value]
        if all(a is b for a, b in zip(items, value, strict=True)):
            return value
        return value._make(items) if hasattr(value, "_make") else type(value)(items)

    def _report(self, value: Any, what: str) -> None:
        """Tell of what cannot be swapped, if it uses a chat model that does not stop."""
        if not all(isinstance(chat, Switched) for chat in models_of(value)):
            self.missed.append(what)
        elif makes_models(value):
            self.makers.append(what)

    def _with_functions(self, value: Any, names: tuple[str, ...]) -> Any:
        functions = {name: function for name in names if (function := getattr(value, name, None)) is not None}
        new_functions = {name: renewed(function, self) for name, function in functions.items()}
        for name, function in new_functions.items():
            if function is functions[name]:
                self._report(function, f"the function {name_of(function)!r}")
        if all(new_functions[name] is functions[name] for name in functions):
            return value
        new = copy.copy(value)
        new.__dict__.pop("deps", None)  # what LangChain found in the function that was
        for name, function in new_functions.items():
            setattr(new, name, function)
        return new


def is_graph(value: Any) -> bool:
    """Whether it is a graph of LangGraph, an agent say: it keeps its models inside functions."""
    return any(kind.__name__ == "Pregel" for kind in type(value).__mro__)


def is_configurable(value: Any) -> bool:
    """Whether it is a model of ``init_chat_model(configurable_fields=…)``, which is made anew for every call."""
    kind = getattr(sys.modules.get("langchain.chat_models.base"), "_ConfigurableModel", None)
    return kind is not None and isinstance(value, kind)


class _Chosen(DynamicRunnable[Any, Any]):
    """Chooses by the config as ``default`` does, then wraps what was chosen."""

    default: Any
    swap: Swap

    @property
    def config_specs(self) -> list[Any]:
        specs: list[Any] = self.default.config_specs
        return specs

    def _prepare(self, config: RunnableConfig | None = None) -> tuple[Runnable[Any, Any], RunnableConfig]:
        runnable, config = self.default.prepare(config)
        return replaced(runnable, self.swap), config
