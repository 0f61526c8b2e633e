"""Functions in a chain: those of LangChain's own get another model, and of all others the chat models that they use are told.

A user's function is never copied. Its variables may be shared with other functions and set anew later, and it may use its model as
what it is: a copy with a wrapper in it would be another program.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable

OBJECTS, ITEMS, THINGS = 4, 100, 10_000
"""Looked at, at most: objects in objects, items of a container, things in all. Functions and runnables are followed throughout."""

PLAIN = (str, bytes, int, float, complex, type(None))

MAKERS = ("init_chat_model",)
"""Functions of LangChain that make a chat model."""

RUN_METHODS = ("invoke", "ainvoke", "stream", "astream", "batch", "abatch", "transform", "atransform")
"""Methods that any runnable in the place of another one has as well."""


def name_of(function: Any) -> str:
    """What a function is called, for people."""
    inner = function.func if isinstance(function, partial) else function
    return str(getattr(inner, "__qualname__", None) or type(inner).__qualname__)


def renewed(function: Any, renew: Callable[[Any], Any]) -> Any:
    """A function with the runnables that it holds renewed: a method of a runnable, or one of LangChain's own; else the same.

    Args:
        function: whatever can be called.
        renew: gives a runnable with other models, or the very same.
    """
    if isinstance(function, MethodType) and isinstance(function.__self__, Runnable) and function.__name__ in RUN_METHODS:
        owner = renew(function.__self__)
        return function if owner is function.__self__ else getattr(owner, function.__name__)
    return _renewed_copy(function, renew) if isinstance(function, FunctionType) and _is_langchains(function) else function


def _renewed_copy(function: FunctionType, renew: Callable[[Any], Any]) -> FunctionType:
    """A copy with the runnables in its closure renewed."""
    cells = function.__closure__ or ()
    closure = [_cell(cell, renew) for cell in cells]
    if all(a is b for a, b in zip(closure, cells, strict=True)):
        return function
    copy = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, tuple(closure))
    copy.__kwdefaults__, copy.__annotations__ = function.__kwdefaults__, function.__annotations__
    copy.__dict__.update(function.__dict__)
    copy.__doc__, copy.__qualname__, copy.__module__ = function.__doc__, function.__qualname__, function.__module__
    return copy


def _cell(cell: CellType, renew: Callable[[Any], Any]) -> CellType:
    content = cell.cell_contents if _is_set(cell) else None
    new = renew(content) if isinstance(content, Runnable) else content
    return cell if new is content else CellType(new)


# --- what is out of reach


def models_of(function: Any) -> Iterator[BaseChatModel]:
    """The chat models that a function can be seen to use: in its closure and defaults, and by the names in its code."""
    for each in _models_and_makers(function):
        if isinstance(each, BaseChatModel):
            yield each


def makes_models(function: Any) -> bool:
    """Whether a function can be seen to name a class of chat models, or what makes one."""
    return any(not isinstance(each, BaseChatModel) for each in _models_and_makers(function))


def _models_and_makers(value: Any) -> Iterator[Any]:
    """Chat models, and what makes them."""
    waiting: deque[tuple[Any, int, frozenset[str]]] = deque([(value, OBJECTS, frozenset())])
    seen = set[int]()
    while waiting and len(seen) < THINGS:
        value, objects, names = waiting.popleft()
        if isinstance(value, PLAIN) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, BaseChatModel) or _makes_model(value):
            yield value
        elif isinstance(value, FunctionType):
            waiting.extendleft((part, objects, frozenset(_names(value.__code__))) for part in _parts_of_function(value))
        elif (parts := _parts(value)) is not None:
            waiting.extendleft((part, objects, names) for part in islice(parts, ITEMS))
        elif isinstance(value, ModuleType):
            waiting.extend(
                (vars(value)[name], objects, names) for name in names if isinstance(vars(value).get(name), BaseChatModel)
            )
        elif objects and not isinstance(value, type):
            waiting.extend((part, objects - 1, names) for part in list(getattr(value, "__dict__", {}).values()))


def _makes_model(value: Any) -> bool:
    if isinstance(value, type):
        return issubclass(value, BaseChatModel) and not value.__module__.startswith("langchain_core.")
    return isinstance(value, FunctionType) and value.__name__ in MAKERS and _is_langchains(value)


def _parts_of_function(function: FunctionType) -> Iterator[Any]:
    """What it holds, and what its names stand for: of other modules' functions nothing is looked at."""
    yield from (cell.cell_contents for cell in function.__closure__ or () if _is_set(cell))
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    for name in _names(function.__code__):
        value = function.__globals__.get(name)
        near = not isinstance(value, FunctionType) or value.__globals__ is function.__globals__ or _makes_model(value)
        if near and not (isinstance(value, type) and _is_langchains(function)):
            yield value


def _parts(value: Any) -> Iterator[Any] | None:
    """Of what belongs to a chain or holds several things; None of all else."""
    if isinstance(value, partial):
        return iter((value.func, *value.args, *value.keywords.values()))
    if isinstance(value, MethodType):
        is_internal = _is_langchains(value.__func__) and value.__func__.__name__ not in RUN_METHODS  # a part of how LangChain works
        return iter(() if is_internal else (value.__func__, value.__self__))
    if isinstance(value, Mapping):
        return iter(list(value.values()))
    if isinstance(value, list | tuple | set):
        return iter(list(value))
    if isinstance(value, Runnable):
        return iter([*vars(value).values(), *(getattr(value, "__pydantic_private__", None) or {}).values()])
    return None


def _is_langchains(function: Callable[..., Any]) -> bool:
    return str(function.__module__).partition(".")[0].startswith("langchain")


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)


def _is_set(cell: CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False
