"""Which requests ask for a reply of a given form, of which nothing may be cut: the one list, of all servers and frameworks.

With it stands what else is known about the names of request settings: what a limit on the reply's tokens is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LIMITS = (
    "max_completion_tokens",  # chat completions
    "max_tokens",  # nearly all others
    "max_output_tokens",  # the Responses API, Gemini
    "num_predict",  # Ollama
    "n_predict",  # llama.cpp
    "max_new_tokens",  # Hugging Face
    "max_tokens_to_sample",  # Anthropic, before
)
"""What a limit on the reply's tokens is called, the one that wins first."""

FORMATS: dict[str, tuple[str, ...]] = {
    "response_format": ("text",),  # OpenAI, vLLM, SGLang, llama.cpp, TGI, Fireworks, Together, Mistral, Groq, …
    "text.format": ("text",),  # OpenAI's Responses API
    "format": (),  # Ollama
    "json_mode": (),  # Ollama's class in LlamaIndex
    "structured_outputs": (),  # vLLM
    "guided_json": (),  # vLLM before 0.12, NVIDIA NIM
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "json_schema": (),  # SGLang, llama.cpp
    "regex": (),  # SGLang
    "ebnf": (),
    "structural_tag": (),  # SGLang, vLLM before 0.12
    "grammar": (),  # llama.cpp, TGI
    "response_mime_type": ("text/plain",),  # Gemini
    "response_schema": (),
    "response_json_schema": (),
    "output_format": ("text",),  # Anthropic
    "output_config.format": ("text",),
}
"""Settings that give the reply's form, and the words (the value, or its ``type``) under which they give none."""

SCHEMAS = ("format", "guided_json", "json_schema", "response_schema", "response_json_schema")
"""Those of them that are a JSON schema themselves: an object switches them on, whatever it holds."""

CHOICES = ("tool_choice", "function_call")
"""Settings that may force a tool call."""

UNFORCED = ("auto", "none")
"""The words (the value, its ``type``, or its ``mode``) under which the model is free to answer in text."""

COUNTS = ("n", "best_of")
"""How many replies are made of one request."""

CONTAINERS = ("extra_body", "nvext")
"""Settings whose content stands in the request's body itself, and NVIDIA NIM's own part of it."""

STRUCTURED = "structured output is never cut"
"""Why nothing may be cut, where no setting says so but the framework does."""

NAMES = tuple(dict.fromkeys(name.partition(".")[0] for name in (*FORMATS, *CHOICES, *COUNTS, *CONTAINERS)))
"""Every name that is looked at, for those who read them as attributes of a model."""


def merged(*places: Mapping[str, Any] | None) -> dict[str, Any]:
    """The settings of a request as its body has them: what stands in ``extra_body`` stands beside the others, and wins.

    Args:
        places: where settings stand, the strongest last (the model's own, those bound to it, the call's).
    """
    made: dict[str, Any] = {}
    for place in places:
        made |= place or {}
    inside = [made.pop(name) for name in CONTAINERS if isinstance(made.get(name), Mapping)]
    for settings in inside:
        made |= merged(settings)
    return made


def never_cut(settings: Mapping[str, Any]) -> str | None:
    """Why nothing may be cut in a request with these settings; None where its reply is free text.

    Args:
        settings: as :func:`merged` gives them. A setting that is there, but switched off, counts for nothing.
    """
    for name in COUNTS:
        count = settings.get(name)
        if isinstance(count, int) and count > 1:
            return f"{name} is {count}: only one stream can be followed"
    for name, free in FORMATS.items():
        if _is_on(_at(settings, name), free, name):
            return f"the form of the reply is given ({name}): {STRUCTURED}"
    if any(_is_on(settings.get(name), UNFORCED) for name in CHOICES):
        return "a tool call is forced: it is never cut"
    return None


def _at(settings: Mapping[str, Any], name: str) -> Any:
    """The value of a setting; a dot leads into it."""
    outer, _, inner = name.partition(".")
    value = settings.get(outer)
    return (value.get(inner) if isinstance(value, Mapping) else None) if inner else value


def _is_on(value: Any, free: tuple[str, ...], name: str = "") -> bool:
    """Whether a value switches its setting on: it says something, and no word of ``free``."""
    if not isinstance(value, Mapping):
        return bool(value) and str(value).lower() not in free
    if name in SCHEMAS:  # an empty schema is any JSON
        return True
    says_something = any(each is not None and each is not False for each in value.values())
    return says_something and not any(word in free for word in _words(value))


def _words(value: Mapping[str, Any]) -> list[str]:
    """What a value that is an object calls itself. A choice among some of the tools says by its mode whether it is forced."""
    allowed = value.get("allowed_tools")
    inner = allowed if isinstance(allowed, Mapping) else value
    return [str(inner[name]).lower() for name in ("type", "mode") if name in inner]
