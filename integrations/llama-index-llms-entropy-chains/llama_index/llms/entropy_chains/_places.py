"""Where the LLMs of an app stand: its objects are walked, and what cannot be reached from outside is named."""

from __future__ import annotations

import functools
import inspect
import sys
import sysconfig
from collections import ChainMap, UserDict
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, MutableSequence, Set
from pathlib import Path
from types import CodeType, FunctionType, MappingProxyType, MethodType, ModuleType, SimpleNamespace
from typing import Any, NamedTuple

from llama_index.core import Settings
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.data_structs.data_structs import IndexStruct
from llama_index.core.graph_stores.types import GraphStore, PropertyGraphStore
from llama_index.core.llms import LLM
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.schema import BaseNode
from llama_index.core.storage.docstore.types import BaseDocumentStore
from llama_index.core.storage.storage_context import StorageContext
from llama_index.core.vector_stores.types import BasePydanticVectorStore
from llama_index.core.workflow import Workflow
from llama_index.llms.entropy_chains._delegate import Delegate

from entropy_chains.errors import SettingsError

Exclude = Iterable[type | str] | type | str

LIBRARIES = ("llama_index", "workflows")
"""Objects of these are looked into, those of classes made from theirs, and those of the user's own classes."""

STORES = (BaseDocumentStore, BasePydanticVectorStore, GraphStore, PropertyGraphStore, StorageContext)
LEAVES = (BaseLLM, BaseEmbedding, BaseNode, IndexStruct, *STORES)
"""Not looked into: an index may hold a million nodes, and no LLM among them."""

CONTAINERS = (dict, list, tuple, set, frozenset, MutableSequence, MappingProxyType)
HOLDERS = (SimpleNamespace, UserDict, ChainMap)
"""Python's own classes whose objects hold things as the user's do: in their attributes."""

INSTALLED = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))

GIVE = "give it EarlyStopLLM(llm=…, policy=…)"


class Place(NamedTuple):
    """Where an LLM stands: what holds it, under which key, and its path from the start."""

    holder: Any
    key: Any
    path: str

    @property
    def llm(self) -> Any:
        """The LLM that stands there."""
        return self.holder[self.key]


class Found(NamedTuple):
    """The LLMs of an app.

    Attributes:
        places: where they stand.
        missed: the parts that cannot be reached, each with what to do.
        unused: what was to be excluded, and is nowhere.
    """

    places: list[Place]
    missed: list[str]
    unused: list[str]


class _Part(NamedTuple):
    """A part of an object. ``holder``: where it can be replaced by ``holder[key]``, or None; ``missed``: why not."""

    holder: Any
    key: Any
    value: Any
    path: str
    missed: str = ""


class _Slot:
    """An attribute that stands in no ``__dict__``."""

    def __init__(self, owner: Any):
        self._owner = owner

    def __getitem__(self, name: str) -> Any:
        return getattr(self._owner, name)

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self._owner, name, value)


class _OfClass:
    """An attribute of a class, as one object sees it: what is put there is that object's alone, and can be taken away again."""

    def __init__(self, owner: Any):
        self._owner = owner

    def __getitem__(self, name: str) -> Any:
        return getattr(self._owner, name)

    def __setitem__(self, name: str, value: Any) -> None:
        if value is getattr(type(self._owner), name, None):
            vars(self._owner).pop(name, None)
        else:
            vars(self._owner)[name] = value


class _InTuple:
    """A tuple that is replaced, where it stands, when one of its items is."""

    def __init__(self, holder: Any, key: Any):
        self._holder, self._key = holder, key

    def __getitem__(self, n: int) -> Any:
        return self._holder[self._key][n]

    def __setitem__(self, n: int, value: Any) -> None:
        before = self._holder[self._key]
        items = [*before[:n], value, *before[n + 1 :]]
        self._holder[self._key] = before._make(items) if hasattr(before, "_make") else type(before)(items)


class _Excluded:
    """What stays as it is: types of objects, names of attributes."""

    def __init__(self, exclude: Exclude):
        items = (exclude,) if isinstance(exclude, str | type) else tuple(exclude)
        for each in items:
            if not isinstance(each, str | type):
                raise SettingsError(f"exclude holds {each!r:.80}; it takes types of objects and names of attributes")
        self._names = {each for each in items if isinstance(each, str)}
        self._kinds = [each for each in items if isinstance(each, type)]
        self.unused: set[type | str] = {*items}

    def covers(self, name: Any, kind: type) -> bool:
        """Whether an attribute of this name, that holds an object of this class, is excluded."""
        matches = {each for each in self._kinds if issubclass(kind, each)} | ({name} & self._names)
        self.unused -= matches
        return bool(matches)


def find_llms(target: Any, exclude: Exclude) -> Found:
    """Returns every LLM below ``target`` that is not for structured output, and the parts that cannot be reached.

    Raises:
        SettingsError: ``exclude`` holds something else than types and names.
    """
    excluded, places, missed = _Excluded(exclude), list[Place](), list[str]()
    waiting = [_Part(None, None, target, type(target).__name__)]
    seen = {id(target): target}
    while waiting:
        thing = waiting.pop()
        for part in _parts(thing):
            if excluded.covers(part.key, type(part.value)) or isinstance(part.value, StructuredLLM):
                continue
            if isinstance(part.value, LLM):
                if part.holder is not None:
                    places.append(Place(part.holder, part.key, part.path))
                elif not isinstance(part.value, Delegate):  # that one stops already
                    missed.append(f"{part.path} ({part.missed})")
            elif part.value is Settings and target is not Settings:
                missed.append(f"{part.path} (uses Settings: attach(Settings, …))")
            elif not _is_looked_into(part.value):
                missed.extend(_in_others(part, excluded))
            elif id(part.value) not in seen:
                if not isinstance(part.value, tuple):  # which is replaced in every place where it stands
                    seen[id(part.value)] = part.value
                waiting.append(part)
        missed.extend(_resources(thing, excluded))
    unused = sorted(each if isinstance(each, str) else each.__name__ for each in excluded.unused)
    return Found(places, list(dict.fromkeys(missed)), unused)


def _parts(part: _Part) -> Iterator[_Part]:
    """What a container, object or function holds."""
    thing, path = part.value, part.path
    if isinstance(thing, FunctionType):
        yield from _of_function(thing, path)
    elif isinstance(thing, MethodType):
        yield _Part(None, "__self__", thing.__self__, path, f"a method of the LLM itself: {GIVE}'s")
        yield _Part(None, "__func__", thing.__func__, path)
    elif isinstance(thing, functools.partial):
        yield _Part(None, "func", thing.func, path)
        for name, value in [*((None, value) for value in thing.args), *thing.keywords.items()]:
            yield _Part(None, name, value, f"{path}({name or '…'})", f"fixed in a partial: {GIVE}")
    elif isinstance(thing, CONTAINERS):
        yield from _of_container(part)
    else:
        yield from _of_object(thing, path)


def _of_container(part: _Part) -> Iterator[_Part]:
    """What a container holds; an item of a set cannot be replaced, nor one of a tuple that no object or container holds."""
    thing, path = part.value, part.path
    if isinstance(thing, Set):
        yield from (_Part(None, None, value, f"{path}{{…}}", f"in a set: {GIVE}") for value in list(thing))
        return
    holder: Any = None
    missed = f"in a mapping that only reads: {GIVE} in the one behind it"
    if isinstance(thing, MutableMapping | MutableSequence):
        holder = thing
    elif isinstance(thing, tuple):
        holder = None if part.holder is None else _InTuple(part.holder, part.key)
        missed = "in a tuple: give a list, or EarlyStopLLM(llm=…, policy=…)"
    items = thing.items() if isinstance(thing, Mapping) else enumerate(thing)
    yield from (_Part(holder, key, value, f"{path}[{key!r}]", missed) for key, value in list(items))


def _of_object(thing: Any, path: str) -> Iterator[_Part]:
    dicts = [getattr(thing, name, None) or {} for name in ("__dict__", "__pydantic_private__", "__pydantic_extra__")]
    keys = {key for fields in dicts for key in fields}
    for fields in dicts:
        for key, value in list(fields.items()):
            of_class = isinstance(inspect.getattr_static(type(thing), key, None), LLM)
            yield _Part(_OfClass(thing) if of_class else fields, key, value, f"{path}.{key}")
    for kind in type(thing).__mro__:
        if not _is_users_module(kind.__module__):
            continue
        for key, value in list(vars(kind).items()):
            function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)  # a static method's
            if isinstance(function, FunctionType):
                yield from _of_function(function, f"{path}.{key}")
            elif inspect.ismemberdescriptor(value):  # a slot
                if hasattr(thing, key):
                    yield _Part(_Slot(thing), key, getattr(thing, key), f"{path}.{key}")
            elif key not in keys and not key.startswith("__"):  # of the class: replaced on this object alone
                yield _Part(_OfClass(thing) if hasattr(thing, "__dict__") else None, key, value, f"{path}.{key}", GIVE)


def _of_function(function: FunctionType, path: str) -> Iterator[_Part]:
    """What a function of the user's takes from outside of it, by name. No variable is set: others may use it as well."""
    inner = getattr(function, "__wrapped__", None)
    if isinstance(inner, FunctionType):  # a decorator's own variables, and then those of what it is around
        yield _Part(None, "__wrapped__", inner, path)
    if not _is_users_module(function.__module__):
        return
    defaults = (function.__defaults__ or (), (function.__kwdefaults__ or {}).values())
    for value in (each for values in defaults for each in values):
        yield _Part(None, None, value, f"{path}(…)", f"a default of the function {function.__code__.co_qualname}: {GIVE} there")
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            value = cell.cell_contents
        except ValueError:  # not set yet
            continue
        yield _Part(
            None, name, value, f"{path}:{name}", f"a variable of the function {function.__code__.co_qualname}: {GIVE} there"
        )
    names = _names(function.__code__)
    for name in sorted(names & function.__globals__.keys()):
        value = function.__globals__[name]
        if inspect.ismodule(value) or (value is Settings and ("llm" not in names or isinstance(Settings._llm, Delegate))):
            continue
        missed = f"a name of the module {function.__module__}: {GIVE} there"
        yield _Part(None, name, value, f"{path}:{name}", missed)


def _names(code: CodeType) -> set[str]:
    """Names that a function's code, and the functions in it, look up."""
    return set(code.co_names).union(*(_names(c) for c in code.co_consts if isinstance(c, CodeType)))


def _resources(part: _Part, excluded: _Excluded) -> Iterator[str]:
    """What a workflow's steps are given when they run."""
    if not isinstance(part.value, Workflow):
        return
    for step, function in part.value._get_steps().items():
        for resource in getattr(getattr(function, "_step_config", None), "resources", ()):
            annotation = getattr(resource, "type_annotation", None)
            about = annotation if isinstance(annotation, type) and annotation is not Any else object
            other = issubclass(about, BaseEmbedding | BaseNode) or not (about is object or _is_known(about))
            if other or excluded.covers(resource.name, about):
                continue
            factory = getattr(resource.resource, "name", resource.name)
            yield f"{part.path}.{step}:{resource.name} (the resource {factory} is made when the step runs: {GIVE} there)"


def _in_others(part: _Part, excluded: _Excluded) -> Iterator[str]:
    """LLMs in the attributes of an object that is not looked into: another package's, whose parts may not be changed."""
    if isinstance(part.value, (type, ModuleType, *LEAVES)):
        return
    for name, value in list((getattr(part.value, "__dict__", None) or {}).items()):
        if isinstance(value, LLM) and not isinstance(value, Delegate | StructuredLLM) and not excluded.covers(name, type(value)):
            yield f"{part.path}.{name} (held by a {type(part.value).__name__} of {type(part.value).__module__}: {GIVE})"


def _is_looked_into(thing: Any) -> bool:
    if isinstance(thing, (*CONTAINERS, *HOLDERS, functools.partial, MethodType)):
        return True
    if isinstance(thing, FunctionType):
        return _is_users_module(thing.__module__) or _is_users_module(inspect.unwrap(thing).__module__)
    if isinstance(thing, (type, *LEAVES)):
        return False
    return _is_known(type(thing))


def _is_known(kind: type) -> bool:
    return any(cls.__module__.partition(".")[0] in LIBRARIES or _is_users_module(cls.__module__) for cls in kind.__mro__)


@functools.cache
def _is_users_module(module: str | None) -> bool:
    """Whether a module is the app's own: neither Python's, nor of a package that was installed, nor of this project."""
    if module == "__main__":
        return True
    root = (module or "builtins").partition(".")[0]
    if root in (*LIBRARIES, "entropy_chains"):
        return False
    file = getattr(sys.modules.get(module or ""), "__file__", None)
    if file is None:
        return False
    path = Path(file)
    return not ({"site-packages", "dist-packages"} & {*path.parts} or any(path.is_relative_to(folder) for folder in INSTALLED))
