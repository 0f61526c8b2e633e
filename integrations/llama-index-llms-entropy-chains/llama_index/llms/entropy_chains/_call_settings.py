"""The settings of a call, wherever they stand: on the LLM, in its ``additional_kwargs``, in the call, in ``extra_body``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from entropy_chains.adapters import forms


def additional_kwargs_of(llm: Any) -> dict[str, Any]:
    """What an LLM puts into every request, over the call's own settings."""
    return dict(getattr(llm, "additional_kwargs", None) or {})


def extra_body(llm: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What stands in the body of a call besides its settings: the LLM's, and over it the call's."""
    return {**(additional_kwargs_of(llm).get("extra_body") or {}), **(kwargs.get("extra_body") or {})}


def never_cut(llm: Any, kwargs: Mapping[str, Any]) -> str | None:
    """Why nothing may be cut in a call of an LLM with these settings; None where it may."""
    return forms.never_cut(call_settings(llm, kwargs))


def call_settings(llm: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a call as its request has them."""
    return forms.merged(forms.of_model(llm), kwargs, additional_kwargs_of(llm), {"extra_body": extra_body(llm, kwargs)})


def unreadable(llm: Any, kwargs: Mapping[str, Any]) -> str | None:
    """Why the reply to a call cannot be followed as one stream, if it cannot: the LLM is to make the call by itself."""
    if "audio" in (getattr(llm, "modalities", None) or ()):
        return "the reply has audio, which LlamaIndex does not stream: run in full"
    return forms.several(call_settings(llm, kwargs))


class Limit(NamedTuple):
    """The limit on a reply's tokens: in which place it stands, under which name, and how many they are."""

    place: str
    name: str
    tokens: int


def limit_of(llm: Any, kwargs: Mapping[str, Any]) -> Limit | None:
    """The token limit that a server goes by; None where nobody set one. One below 1 is none: so servers write that there is none.

    Of two names the one counts that wins; of two places the one that the body of the request has last.
    """
    places = {
        "extra_body": extra_body(llm, kwargs),
        "additional_kwargs": additional_kwargs_of(llm),
        "llm": dict(llm),
        "call": kwargs,
    }
    for name in forms.LIMITS:
        for place, settings in places.items():
            tokens = settings.get(name)
            if tokens is not None:
                return Limit(place, name, tokens) if not isinstance(tokens, int) or tokens > 0 else None
    return None
