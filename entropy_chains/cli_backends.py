"""Which model a command is told to ask, with what settings: the options, once for all commands, and the backend they come to."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import click

from entropy_chains.backends.remote.redaction import shown_address
from entropy_chains.core.families import ThinkTags
from entropy_chains.errors import InputError, MissingExtraError, SettingsError
from entropy_chains.options import OPTIONS
from entropy_chains.validation import strict_json

if TYPE_CHECKING:
    import openai

    from entropy_chains.backends.openai import OpenAIBackend
    from entropy_chains.backends.transformers import TransformersBackend

C = TypeVar("C", bound=Callable[..., Any])

LONGEST_WAIT = 1_000_000
"""Seconds: longer ones do not fit into the clocks of some systems."""

RETRIES = "x-stainless-retry-count"
"""The header in which the SDK tells how often it has asked before."""

DEMO_MODEL = ("demo", "entropy-chains/demo")

WHICH = (
    click.option("--model", help="Checkpoint folder, hub id, or 'demo' for the bundled model; with --base-url the served name."),
    click.option("--base-url", help="OpenAI-compatible server. Its key is read from OPENAI_API_KEY."),
)
LOCAL = (
    click.option("--device", help="Of a local model: cpu, cuda, cuda:1, …"),
    click.option("--dtype", help="Of a local model's weights: auto, float32, bfloat16, float16."),
    click.option("--trust-remote-code", is_flag=True, default=None, help="Run code that comes with a local model."),
    click.option(
        "--template-kwargs", metavar="JSON", help='For a local model\'s chat template, such as {"enable_thinking": true}.'
    ),
)
TIMEOUT = click.option("--timeout", type=float, help="Seconds after which a silent server is given up; the SDK's own by default.")
SERVED = (
    click.option("--without-logprobs", type=click.Choice(OPTIONS["without_logprobs"]), help="Where a server gives none."),
    click.option(
        "--continuation", multiple=True, default=None, type=click.Choice(OPTIONS["continuation"]),
        help="How a server is asked for the answer after a stop; several are tried in order.",
    ),
    click.option("--temperature-mode", type=click.Choice(OPTIONS["temperature_mode"]), help="Of a server's logprobs."),
    click.option("--opened", is_flag=True, default=None, help="The prompt opens the thinking; the server does not split it off."),
    TIMEOUT,
)  # fmt: skip
TAGS = click.option(
    "--think-tags", nargs=3, metavar="OPEN CLOSE AFTER",
    help=r"The family's thinking tags and what stands before the answer (\n is a line end); found by themselves for most.",
)  # fmt: skip
ONLY_LOCAL = ("device", "dtype", "trust_remote_code", "template_kwargs")
ONLY_SERVED = ("without_logprobs", "continuation", "temperature_mode", "opened", "timeout")


def options(*groups: Any) -> Callable[[C], C]:
    """Put options before a command, in this order."""

    def around(command: C) -> C:
        for option in reversed([each for group in groups for each in (group if isinstance(group, tuple) else (group,))]):
            command = option(command)
        return command

    return around


def settings_of(base_url: str | None, values: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a backend from those options that were given.

    Raises:
        SettingsError: one of them is for the other kind of backend, or cannot be read.
    """
    settings = {name: value for name, value in values.items() if value not in (None, ())}
    for name in ONLY_LOCAL if base_url else ONLY_SERVED:
        if name in settings:
            kind, remedy = ("local", "set it where the server is started") if base_url else ("served", "it needs --base-url")
            raise SettingsError(f"--{name.replace('_', '-')} is for {kind} models: leave it out, or {remedy}")
    if "think_tags" in settings:
        settings["think_tags"] = ThinkTags(*(text.replace(r"\n", "\n") for text in settings["think_tags"]))
    if "template_kwargs" in settings:
        settings["template_kwargs"] = _object(settings["template_kwargs"])
    return settings


def _object(text: str) -> dict[str, Any]:
    try:
        value = strict_json(text)
    except InputError as error:
        raise SettingsError(f"--template-kwargs: {error}") from error
    if not isinstance(value, dict):
        raise SettingsError('--template-kwargs must be an object of JSON, such as {"enable_thinking": true}')
    return value


def load(model: str, k: int | None = 20, batch_size: int = 64, **settings: Any) -> TransformersBackend:
    """The backend of a model named on the command line."""
    from entropy_chains.backends.transformers import TransformersBackend

    if model in DEMO_MODEL:
        return bundled(k, batch_size, **settings)
    return TransformersBackend.from_pretrained(model, k=k, batch_size=batch_size, **settings)


def served(base_url: str, model: str, k: int, concurrency: int, timeout: float | None = None, **settings: Any) -> OpenAIBackend:
    """The backend of a served model."""
    client = client_of(base_url, timeout)
    from entropy_chains.backends.openai import OpenAIBackend

    backend = OpenAIBackend(client, model, k=k, concurrency=concurrency, **settings)
    backend.connect()
    return backend


def client_of(base_url: str, timeout: float | None = None) -> openai.OpenAI:
    """A client of the server at this address, with the user's key."""
    try:
        import openai
    except ImportError as error:
        raise MissingExtraError("openai", "openai") from error
    if not _is_address(base_url):
        raise SettingsError(f"--base-url is {shown_address(base_url)!r}; it must be an address such as http://127.0.0.1:8000/v1")
    if timeout is not None and not 0 < timeout <= LONGEST_WAIT:
        raise SettingsError(f"--timeout is {timeout:g}; it must be above 0 seconds, and {LONGEST_WAIT:,} at most")
    key = os.environ.get("OPENAI_API_KEY") or "none"
    if not (key.isascii() and key.isprintable()):
        raise SettingsError("OPENAI_API_KEY holds characters that no HTTP header may have: set it to the key alone, or unset it")
    if timeout is None:
        return openai.OpenAI(base_url=base_url, api_key=key)

    lost = threading.local()  # each thread has one request at a time

    class AskedOnce(openai.DefaultHttpxClient):  # which HTTP library it is of is the SDK's affair
        """Gives a silent server up after the timeout: the SDK would ask again, and wait as long each time."""

        def send(self, request: Any, **arguments: Any) -> Any:
            again, error = request.headers.get(RETRIES, "0") != "0", getattr(lost, "error", None)
            lost.error = error if again else None
            try:
                if lost.error is None:
                    return super().send(request, **arguments)
            except Exception as failed:
                if "Timeout" not in type(failed).__name__:
                    raise
                lost.error = failed
            # Newer SDKs ask again after all but their own errors, those before 2.40 after these as well.
            raise openai.APITimeoutError(request=request) from lost.error

    return openai.OpenAI(base_url=base_url, api_key=key, timeout=timeout, http_client=AskedOnce())


def _is_address(text: str) -> bool:
    """Whether it is that of a server."""
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def bundled(k: int | None = 20, batch_size: int = 64, **settings: Any) -> TransformersBackend:
    """The bundled reasoner, on one processor core: threads of so small a model wait for each other where there is other work."""
    import torch
    from transformers.utils import logging

    from entropy_chains.backends.transformers import TransformersBackend
    from entropy_chains.demo import MODEL_FOLDER, MODEL_NAME

    logging.disable_progress_bar()  # its weights load in no time
    torch.set_num_threads(1)
    return TransformersBackend.from_pretrained(MODEL_FOLDER, name=MODEL_NAME, k=k, batch_size=batch_size, **settings)
