"""Functions in a chain: the chat models that they hold, swapped where a copy of the function can be made, and else told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable

DEPTH = 4
"""Functions called by functions are looked at as far as this."""


def name_of(function: Any) -> str:
    """What a function is called, for people."""
    inner = function.func if isinstance(function, partial) else function
    return str(getattr(inner, "__qualname__", None) or type(inner).__qualname__)


def renewed(function: Any, renew: Callable[[Any], Any]) -> Any:
    """A copy of a function with what it holds renewed: runnables in its closure, its defaults, its fixed arguments.

    Args:
        function: whatever can be called.
        renew: gives a runnable with other models, or the very same.
    """
    if isinstance(function, partial):
        fixed = [_one(each, renew) for each in function.args], {n: _one(each, renew) for n, each in function.keywords.items()}
        inner = renewed(function.func, renew)
        same = inner is function.func and _same(fixed[0], function.args) and _same(fixed[1].values(), function.keywords.values())
        return function if same else partial(inner, *fixed[0], **fixed[1])
    if isinstance(function, MethodType) and isinstance(function.__self__, Runnable):
        owner = renew(function.__self__)
        return function if owner is function.__self__ else getattr(owner, function.__name__)
    return _copied(function, renew) if isinstance(function, FunctionType) else function


def _copied(function: FunctionType, renew: Callable[[Any], Any]) -> FunctionType:
    cells = function.__closure__ or ()
    closure = [_cell(cell, renew) for cell in cells]
    defaults = [_one(each, renew) for each in function.__defaults__ or ()]
    named = {name: _one(each, renew) for name, each in (function.__kwdefaults__ or {}).items()}
    kept = _same(defaults, function.__defaults__ or ()) and _same(named.values(), (function.__kwdefaults__ or {}).values())
    if kept and _same(closure, cells):
        return function
    made = FunctionType(function.__code__, function.__globals__, function.__name__, tuple(defaults) or None, tuple(closure) or None)
    made.__kwdefaults__ = named or None
    made.__dict__.update(function.__dict__)
    made.__doc__, made.__qualname__, made.__module__ = function.__doc__, function.__qualname__, function.__module__
    made.__annotations__ = function.__annotations__
    return made


def _cell(cell: CellType, renew: Callable[[Any], Any]) -> CellType:
    try:
        held = cell.cell_contents
    except ValueError:  # not set yet
        return cell
    made = _one(held, renew)
    return cell if made is held else CellType(made)


def _one(held: Any, renew: Callable[[Any], Any]) -> Any:
    """A list or a dict is left as it is: others may change it later."""
    if isinstance(held, Runnable):
        return renew(held)
    return renewed(held, renew) if isinstance(held, partial | MethodType | FunctionType) else held


def _same(made: Iterable[Any], given: Iterable[Any]) -> bool:
    return all(a is b for a, b in zip(made, given, strict=True))


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
