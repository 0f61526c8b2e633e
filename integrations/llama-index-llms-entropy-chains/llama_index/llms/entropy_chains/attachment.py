"""Early stopping for engines, agents and workflows that exist already: their LLMs are swapped in place."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, MutableSequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

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
from llama_index.llms.entropy_chains.base import EarlyStopLLM
from llama_index.llms.entropy_chains.local import TransformersLLM

from entropy_chains import Policy
from entropy_chains.adapters import check_settings
from entropy_chains.errors import SettingsError

logger = logging.getLogger(__name__)

T = TypeVar("T")
Exclude = Iterable[type | str] | type | str

LIBRARIES = ("llama_index", "workflows")
"""Objects of these are looked into, and those of classes made from theirs."""

STORES = (BaseDocumentStore, BasePydanticVectorStore, GraphStore, PropertyGraphStore, StorageContext)
LEAVES = (BaseLLM, BaseEmbedding, BaseNode, IndexStruct, *STORES)
"""Not looked into: an index may hold a million nodes, and no LLM among them."""


class Place(NamedTuple):
    """Where an LLM stands: what holds it, under which key, and its path from the start."""

    holder: Any
    key: Any
    path: str

    @property
    def llm(self) -> Any:
        """The LLM that stands there."""
        return self.holder[self.key]


def attach(target: T, policy: Policy | str | Path | None, *, exclude: Exclude = (), **settings: Any) -> T:
    """Swap every LLM of an engine, agent or workflow for one that stops early; returns the same object.

    That is an :class:`EarlyStopLLM` around it, or a copy of a :class:`TransformersLLM` that has the policy.

    Do it before the first use. How many LLMs were swapped, and where, is logged (INFO). Judges, selectors and extractors are better
    left alone: their replies are short, and no policy was calibrated on them.

    Args:
        target: a query engine, chat engine, agent, workflow, tool, or ``Settings``.
        policy: a Policy or its file; None only measures.
        exclude: types of objects, or names of attributes, whose LLMs stay as they are.
        settings: as in :class:`EarlyStopLLM`, of a local model those of :class:`TransformersLLM`.

    Raises:
        SettingsError: there is no LLM in it. NoLogprobsError: with ``without_logprobs="error"``, one cannot be stopped; exclude it.
            Nothing is swapped then.
    """
    policy = Policy.of(policy)
    places = list(_places(target, exclude, lambda llm: not isinstance(llm, StructuredLLM) and _before(llm) is None))
    if not places:
        remedy = "give the LLM itself: EarlyStopLLM(llm=…, policy=…), as llm= of the engine or as Settings.llm"
        raise SettingsError(f"no LLM was found in {type(target).__name__}: {remedy}")
    inner = {id(place.llm): place.llm for place in places}
    around = {name: _stopping(llm, policy, settings) for name, llm in inner.items()}  # all are made before one is swapped
    for place in places:
        place.holder[place.key] = around[id(place.llm)]
    logger.info("early stopping attached to %d LLM(s): %s", len(places), ", ".join(p.path for p in places))
    return target


def detach(target: T) -> T:
    """Undo :func:`attach`: every LLM stands where it stood. Returns the same object."""
    for place in list(_places(target, (), lambda llm: _before(llm) is not None)):
        place.holder[place.key] = _before(place.llm)
    return target


def _stopping(llm: Any, policy: Policy | None, settings: Mapping[str, Any]) -> LLM:
    """What takes an LLM's place."""
    if not isinstance(llm, TransformersLLM):
        return EarlyStopLLM(llm, policy, **settings)
    kind = type(llm)
    check_settings(kind.__name__, settings, kind.model_fields)
    copy = kind(**{**dict(llm), "policy": policy, **settings})
    copy._before = llm
    return copy


def _before(llm: Any) -> LLM | None:
    """The LLM that stood in this one's place before; None where nothing was swapped."""
    return llm.llm if isinstance(llm, EarlyStopLLM) else getattr(llm, "_before", None)


def _places(target: Any, exclude: Exclude, wanted: Callable[[LLM], bool]) -> Iterator[Place]:
    """Every place below ``target`` with an LLM that is wanted."""
    named = {exclude} if isinstance(exclude, str | type) else set(exclude)
    kinds = tuple(e for e in named if isinstance(e, type))
    waiting, seen = [(target, type(target).__name__)], {id(target)}
    while waiting:
        thing, path = waiting.pop()
        for holder, key, found, where in _parts(thing, path):
            if key in named or isinstance(found, kinds):
                continue
            if isinstance(found, LLM):
                if wanted(found):
                    yield Place(holder, key, where)
            elif id(found) not in seen and _is_looked_into(found):
                seen.add(id(found))
                waiting.append((found, where))


def _parts(thing: Any, path: str) -> Iterator[tuple[Any, Any, Any, str]]:
    """What a container or object holds: where it can be replaced, the key, the value and its path."""
    if isinstance(thing, MutableMapping | MutableSequence):
        items = thing.items() if isinstance(thing, MutableMapping) else enumerate(thing)
        yield from ((thing, key, value, f"{path}[{key!r}]") for key, value in list(items))
        return
    for fields in (getattr(thing, "__dict__", None), getattr(thing, "__pydantic_private__", None)):
        yield from ((fields, key, value, f"{path}.{key}") for key, value in list((fields or {}).items()))


def _is_looked_into(thing: Any) -> bool:
    if isinstance(thing, dict | list):
        return True
    if isinstance(thing, (type, *LEAVES)):
        return False
    return any(cls.__module__.partition(".")[0] in LIBRARIES for cls in type(thing).__mro__)
