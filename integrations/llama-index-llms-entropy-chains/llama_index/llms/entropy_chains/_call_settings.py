"""The settings of a call, wherever they stand: on the LLM, in its ``additional_kwargs``, in the call, in ``extra_body``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
