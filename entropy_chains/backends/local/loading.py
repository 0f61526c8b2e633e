"""A model and its tokenizer from a folder or a hub id: both of the same place and revision, and one error for what fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from entropy_chains.errors import SettingsError, reason, short

TOKENIZER_TOO = (
    "cache_dir",
    "code_revision",
    "force_download",
    "gguf_file",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
    "trust_remote_code",
)
"""Arguments of ``from_pretrained`` that say where files are and whether code in them may run: the tokenizer's files as well."""

SHOWN_ARGUMENTS = ("device", "device_map", "dtype", "torch_dtype", "attn_implementation", "gguf_file", "revision", "subfolder")
"""Arguments whose value a message repeats; another may hold a key."""


NOT_A_MODEL = ("output_loading_info", "return_unused_kwargs")
"""Arguments under which ``from_pretrained`` gives something else than a model."""


def load(path_or_id: str | Path, device: str | None, arguments: dict[str, Any]) -> tuple[Any, Any]:
    """The model, on its device, and the tokenizer.

    Args:
        path_or_id: a checkpoint folder or a hub id.
        device: where the model goes; None: where ``from_pretrained`` puts it.
        arguments: for ``from_pretrained``.

    Raises:
        SettingsError: whatever the libraries stumble over: files, arguments, a device, a package that is missing.
    """
    place = str(path_or_id)
    for name in NOT_A_MODEL:
        if arguments.get(name):
            raise SettingsError(f"{name}={short(arguments[name])}: with it transformers gives more than a model; leave it out")
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **{name: arguments[name] for name in TOKENIZER_TOO if name in arguments})
        model = AutoModelForCausalLM.from_pretrained(place, **arguments)
        return (model.to(device) if device else model), tokenizer
    except Exception as error:  # each library that is asked has errors of its own
        values = {name: value for name, value in ({"device": device} | arguments).items() if value is not None}
        settings = [f"{name}={value!r}" if name in SHOWN_ARGUMENTS else name for name, value in values.items()]
        details = f" with {', '.join(settings)}" if settings else ""
        remedy = (
            "give a folder with config.json, weights and tokenizer, or a hub id, and arguments of transformers' from_pretrained"
        )
        raise SettingsError(f"model {place!r} cannot be loaded{details}: {_first(error)} ({remedy})") from error


def _first(error: Exception) -> str:
    """What an error says in its first line; these libraries go on for pages."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[0].strip() if isinstance(error, OSError | ValueError) else reason(type(error)(lines[0]))
