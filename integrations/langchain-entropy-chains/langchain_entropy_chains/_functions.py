"""Functions in a chain: those of LangChain's own get another model, and of all others the chat models that they use are told.

A user's function is never copied. Its variables may be shared with other functions and set anew later, and it may use its model as
what it is: a copy with a wrapper in it would be another program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable

DEPTH = 4
"""Functions called by functions are looked at as far as this."""

RUNS = ("invoke", "ainvoke", "stream", "astream", "batch", "abatch", "transform", "atransform")
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
    if isinstance(function, MethodType) and isinstance(function.__self__, Runnable) and function.__name__ in RUNS:
        owner = renew(function.__self__)
        return function if owner is function.__self__ else getattr(owner, function.__name__)
    own = isinstance(function, FunctionType) and str(function.__module__).partition(".")[0].startswith("langchain")
    return _copied(function, renew) if own else function


def _copied(function: FunctionType, renew: Callable[[Any], Any]) -> FunctionType:
    """A copy with the runnables in its closure renewed."""
    cells = function.__closure__ or ()
    closure = [_cell(cell, renew) for cell in cells]
    if all(a is b for a, b in zip(closure, cells, strict=True)):
        return function
    made = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, tuple(closure))
    made.__kwdefaults__, made.__annotations__ = function.__kwdefaults__, function.__annotations__
    made.__dict__.update(function.__dict__)
    made.__doc__, made.__qualname__, made.__module__ = function.__doc__, function.__qualname__, function.__module__
    return made


def _cell(cell: CellType, renew: Callable[[Any], Any]) -> CellType:
    held = cell.cell_contents if _is_set(cell) else None
    made = renew(held) if isinstance(held, Runnable) else held
    return cell if made is held else CellType(made)


# --- what is out of reach


def models_of(function: Any) -> Iterator[BaseChatModel]:
    """The chat models that a function can be seen to use: in its closure and defaults, and by the names in its code."""
    yield from _seen(function, DEPTH, set())


def _seen(value: Any, depth: int, known: set[int], names: frozenset[str] = frozenset()) -> Iterator[BaseChatModel]:
    if depth < 0 or id(value) in known:
        return
    known.add(id(value))
    parts: Iterable[Any] = ()
    if isinstance(value, BaseChatModel):
        yield value
    elif isinstance(value, partial):
        parts = (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, MethodType):
        parts = (value.__self__, value.__func__)
    elif isinstance(value, FunctionType):
        names = frozenset(_names(value.__code__))
        own = [cell.cell_contents for cell in value.__closure__ or () if _is_set(cell)]
        used = [value.__globals__[name] for name in names if name in value.__globals__]
        own += [each for each in used if not isinstance(each, FunctionType) or each.__globals__ is value.__globals__]
        parts = (*own, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values())
    elif isinstance(value, ModuleType):
        parts = [vars(value)[name] for name in names if isinstance(vars(value).get(name), BaseChatModel)]
    elif isinstance(value, Mapping):
        parts = list(value.values())
    elif isinstance(value, list | tuple | set):
        parts = list(value)
    elif not isinstance(value, type):
        parts = list(getattr(value, "__dict__", {}).values())
    for part in parts:
        yield from _seen(part, depth - 1, known, names)


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
