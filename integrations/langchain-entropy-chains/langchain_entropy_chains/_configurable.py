"""Models of ``init_chat_model(configurable_fields=…)``: made anew for every call, from the call's config.

Imported only where LangChain's class is loaded already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain.chat_models.base import _DECLARATIVE_METHODS, _ConfigurableModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from langchain_core.runnables import Runnable, RunnableConfig


class StoppingConfigurable(_ConfigurableModel):
    """One whose model is changed as soon as it is made; what is derived from it (tools, structured output, a config), too."""

    def _model(self, config: RunnableConfig | None = None) -> Runnable[Any, Any]:
        model: Runnable[Any, Any] = self._entropy_chains_change(super()._model(config))
        return model

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_entropy_chains"):
            raise AttributeError(name)
        value = super().__getattr__(name)
        if name not in _DECLARATIVE_METHODS:
            return value
        return lambda *args, **kwargs: with_change(value(*args, **kwargs), self._entropy_chains_change)

    def with_config(self, config: RunnableConfig | None = None, **kwargs: Any) -> StoppingConfigurable:
        return with_change(super().with_config(config, **kwargs), self._entropy_chains_change)


def with_change(model: _ConfigurableModel, change: Callable[[Any], Any]) -> StoppingConfigurable:
    """The same model, of which ``change`` gets what it makes; the one given stays as it is."""
    copy = StoppingConfigurable.__new__(StoppingConfigurable)
    copy.__dict__.update(model.__dict__)
    copy.__dict__["_entropy_chains_change"] = change
    return copy


def change_in_place(model: _ConfigurableModel, change: Callable[[Any], Any]) -> None:
    """The same, in place."""
    model.__dict__["_entropy_chains_change"] = change
    object.__setattr__(model, "__class__", StoppingConfigurable)


def undo_change(model: StoppingConfigurable) -> None:
    """Take it back."""
    del model.__dict__["_entropy_chains_change"]
    object.__setattr__(model, "__class__", _ConfigurableModel)
