"""A chat model around another one, on which the inner model's fields are read and set as on the inner model itself."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from langchain_core.language_models import BaseChatModel  # noqa: TC002 (pydantic reads annotations)
from pydantic import Field, InstanceOf

from langchain_entropy_chains._config import Switched


class InnerFields(Switched):
    """Has an ``inner`` model, whose public fields and properties are its own too where it has none of that name.

    What is bound to the inner model is read first, for calls use it. A field is set on a copy of the inner model: the user's own
    stays as it is.
    """

    inner: InstanceOf[BaseChatModel] = Field(repr=False, exclude=True)
    bound: dict[str, Any] = Field(default_factory=dict, repr=False, exclude=True)

    if not TYPE_CHECKING:  # so that a misspelt name is an error to type checkers

        def __getattr__(self, name: str) -> Any:
            if self._entropy_chains_is_inner(name, fields_only=False):
                return self.bound[name] if name in self.bound else getattr(self.inner, name)
            return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not self._entropy_chains_is_inner(name):
            super().__setattr__(name, value)
            return
        inner = self.inner.model_copy()
        setattr(inner, name, value)
        self.inner, self.bound = inner, {each: bound for each, bound in self.bound.items() if each != name}

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy, with other fields of its own or of the inner model."""
        inner_values = {name: value for name, value in (update or {}).items() if self._entropy_chains_is_inner(name)}
        own_values = {name: value for name, value in (update or {}).items() if name not in inner_values}
        copy = super().model_copy(update=own_values, deep=deep)
        for name, value in inner_values.items():
            setattr(copy, name, value)
        return copy

    def _entropy_chains_is_inner(self, name: str, *, fields_only: bool = True) -> bool:
        """Whether a name is that of a public field of the inner model, or of a property. Its methods would not stop."""
        if name.startswith("_") or name in type(self).model_fields or "inner" not in self.__dict__:  # it is being made
            return False
        kind = type(self.inner)
        is_property = isinstance(getattr(kind, name, None), property | cached_property)
        return name in kind.model_fields or (is_property and not fields_only)
