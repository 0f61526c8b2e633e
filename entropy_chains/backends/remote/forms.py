"""Which requests ask for a reply of a given form, of which nothing may be cut: the one list, of all servers and frameworks.

With it stands what else is known about the names of request settings: what a limit on the reply's tokens is called.
"""

from __future__ import annotations

import re
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
    "guided_decoding": (),
    "json_schema": (),  # SGLang, llama.cpp, TabbyAPI
    "regex": (),  # SGLang
    "ebnf": (),
    "structural_tag": (),  # SGLang, vLLM before 0.12
    "grammar": (),  # llama.cpp, TGI
    "grammar_path": (),  # llama.cpp's class in LangChain
    "grammar_string": (),  # TabbyAPI, text-generation-webui
    "regex_pattern": (),  # TabbyAPI
    "response_mime_type": ("text/plain",),  # Gemini
    "response_schema": (),
    "response_json_schema": (),
    "output_format": ("text",),  # Anthropic
    "output_config.format": ("text",),
    "output_config.text_format": ("text",),  # Bedrock
}
"""Settings that give the reply's form, and the words (the value, or its ``type``) under which they give none."""

SCHEMAS = ("format", "guided_json", "json_schema", "response_schema", "response_json_schema")
"""Those of them that are a JSON schema themselves: an object switches them on, whatever it holds."""

MANNERS = (
    "backend",
    "disable_additional_properties",
    "disable_any_whitespace",
    "disable_fallback",
    "whitespace_pattern",
)
"""What such a setting may hold besides the form: how the server keeps to it."""

CHOICES = ("tool_choice", "function_call", "function_calling_config")
"""Settings that may force a tool call; the last one is Gemini's."""

UNFORCED = ("auto", "none", "mode_unspecified", "validated")
"""The words (the value, its ``type``, or its ``mode``) under which the model is free to answer in text."""

COUNTS = ("n", "best_of", "candidate_count")
"""How many replies are made of one request."""

CONTAINERS = ("extra_body", "nvext", "generation_config", "tool_config", "additional_model_request_fields")
"""Settings whose content counts as if it stood beside them: the body itself, and parts of it of NVIDIA NIM, Gemini and Bedrock."""

STRUCTURED = "structured output is never cut"
"""Why nothing may be cut, where no setting says so but the framework does."""

NAMES = frozenset(name.partition(".")[0] for name in (*FORMATS, *CHOICES, *COUNTS, *CONTAINERS))
"""Every name that is looked at."""


def of_model(model: Any) -> dict[str, Any]:
    """The settings of a request that stand in the fields of a framework's model."""
    return {name: value for name, value in dict(model).items() if _snake(name) in NAMES}


def merged(*places: Mapping[str, Any] | None) -> dict[str, Any]:
    """The settings of a request as its body has them: what stands in ``extra_body`` stands beside the others, and wins.

    Names are told as Python writes them: ``responseSchema`` is ``response_schema``.

    Args:
        places: where settings stand, the strongest last (the model's own, those bound to it, the call's).
    """
    body: dict[str, Any] = {}
    for place in places:
        body |= _settings(place) or {}
    inside = [body.pop(name) for name in CONTAINERS if _settings(body.get(name)) is not None]
    for settings in inside:
        body |= merged(settings)
    return body


def never_cut(settings: Mapping[str, Any]) -> str | None:
    """Why nothing may be cut in a request with these settings; None where its reply is free text.

    Args:
        settings: as :func:`merged` gives them. A setting that is there, but switched off, counts for nothing.
    """
    if count := several(settings):
        return count
    for name, free in FORMATS.items():
        if _is_on(_at(settings, name), free, name):
            return f"the form of the reply is given ({name}): {STRUCTURED}"
    if any(_is_on(settings.get(name), UNFORCED) for name in CHOICES):
        return "a tool call is forced: it is never cut"
    return None


def several(settings: Mapping[str, Any]) -> str | None:
    """Why a request with these settings gives no reply that can be followed: it gives several; None where it gives one.

    Args:
        settings: as :func:`merged` gives them.
    """
    names = (name for name in COUNTS if _several(settings.get(name)))
    return next((f"{name} is {settings[name]}: only one stream can be followed" for name in names), None)


def _settings(value: Any) -> dict[str, Any] | None:
    """What an object holds, be it a mapping or a class of an SDK; None for what is no object."""
    if hasattr(value, "model_dump") and not isinstance(value, type):
        value = dict(value)
    return {_snake(name): each for name, each in value.items()} if isinstance(value, Mapping) else None


def _snake(name: Any) -> str:
    """A name as Python writes it; Gemini's and Bedrock's are in camel case."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", str(name)).lower()


def _several(count: Any) -> bool:
    """Whether a count, which may come as a text, is above one."""
    try:
        return not isinstance(count, bool) and float(count) > 1
    except (TypeError, ValueError):
        return False


def _at(settings: Mapping[str, Any], name: str) -> Any:
    """The value of a setting; a dot leads into it."""
    outer, _, inner = name.partition(".")
    value = settings.get(outer)
    return (_settings(value) or {}).get(inner) if inner else value


def _is_on(value: Any, free: tuple[str, ...], name: str = "") -> bool:
    """Whether a value switches its setting on: it says something, and no word of ``free``."""
    held = _settings(value)
    if held is None:
        return bool(value) and _word(value) not in free
    if name in SCHEMAS:  # an empty schema is any JSON
        return True
    entries = {key: each for key, each in held.items() if each is not None and each is not False and key.strip("_") not in MANNERS}
    return bool(entries) and not any(word in free for word in _words(entries))


def _words(value: Mapping[str, Any]) -> list[str]:
    """What a value that is an object calls itself: its type or mode; of Bedrock's, ``{"auto": {}}``, its one name.

    A choice among some of the tools says by its mode whether it is forced.
    """
    inner = _settings(value.get("allowed_tools")) or value
    return [_word(inner[name]) for name in ("type", "mode") if name in inner] or list(inner)


def _word(value: Any) -> str:
    """A word, which may be a member of an enumeration."""
    return str(getattr(value, "value", value)).lower()
