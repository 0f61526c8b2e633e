"""Early stopping for engines, agents and workflows that exist already: their LLMs are swapped in place."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from llama_index.llms.entropy_chains._places import Exclude, find_llms
from llama_index.llms.entropy_chains._replacement import original_of, put_in_place
from llama_index.llms.entropy_chains.base import EarlyStopLLM
from llama_index.llms.entropy_chains.local import TransformersLLM

from entropy_chains import Policy
from entropy_chains.adapters import check_settings
from entropy_chains.errors import SettingsError

if TYPE_CHECKING:
    from llama_index.core.llms import LLM

logger = logging.getLogger(__name__)

T = TypeVar("T")


def attach(target: T, policy: Policy | str | Path | None, *, exclude: Exclude = (), **settings: Any) -> T:
    """Swap every LLM of an engine, agent or workflow for one that stops early; returns the same object.

    That is an :class:`EarlyStopLLM` around it, or a copy of a :class:`TransformersLLM` that has the policy.

    Do it before the first use. How many LLMs were swapped, and where, is logged (INFO), and at WARNING what could not be reached,
    with what to do about it. Run again, it replaces what it did before: the new policy and settings hold. An ``EarlyStopLLM`` that
    you made yourself gets the new policy and keeps its other settings. Judges, selectors and extractors are better left alone:
    their replies are short, and no policy was calibrated on them.

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
    places, missed, unused = find_llms(target, exclude)
    if not places:
        remedy = "give the LLM itself: EarlyStopLLM(llm=…, policy=…), as llm= of the engine or as Settings.llm"
        out_of_reach = f"; out of reach: {'; '.join(missed)}" if missed else ""
        raise SettingsError(f"no LLM was found in {type(target).__name__}: {remedy}{out_of_reach}")
    inner = {id(place.llm): place.llm for place in places}
    around = {name: _replacement_for(llm, policy, settings) for name, llm in inner.items()}  # all are made before one is swapped
    swaps = [(place, around[id(place.llm)]) for place in places]
    for place, llm in swaps:
        place.holder[place.key] = llm
    logger.info("early stopping attached to %d LLM(s): %s", len(places), ", ".join(p.path for p in places))
    if unused:
        message = "exclude matches nothing with %s; it takes types of objects and names of attributes, and LLMs were at: %s"
        logger.warning(message, ", ".join(unused), ", ".join(p.path for p in places))
    if missed:
        logger.warning("early stopping could not reach %d part(s), which run in full: %s", len(missed), "; ".join(missed))
    return target


def detach(target: T) -> T:
    """Undo :func:`attach`: every LLM stands where it stood. Returns the same object."""
    for place in find_llms(target, ()).places:
        original = original_of(place.llm)
        if original is not None:
            place.holder[place.key] = original
    return target


def _replacement_for(llm: Any, policy: Policy | None, settings: Mapping[str, Any]) -> LLM:
    """What takes an LLM's place."""
    original = original_of(llm) or llm
    replacement: EarlyStopLLM | TransformersLLM
    if isinstance(original, TransformersLLM):
        kind = type(original)
        check_settings(kind.__name__, settings, kind.model_fields)
        replacement = kind(**{**dict(original), "policy": policy, **settings})
    elif isinstance(original, EarlyStopLLM):
        replacement = EarlyStopLLM(original.llm, policy, **{**original.settings, **settings})
    else:
        replacement = EarlyStopLLM(original, policy, **settings)
    put_in_place(replacement, original)
    return replacement
