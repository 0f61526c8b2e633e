"""Taking keys and passwords out of this package's messages, and out of the settings that traces are told.

Servers repeat the key that they refuse. A key has no sure form, so it is not enough to look for what looks like one.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

from entropy_chains.errors import EntropyChainsError

SHORTEST_SECRET = 6
"""Characters of the shortest secret that is looked for: a shorter one would be found in common words."""

HIDDEN = "[key]"
"""What stands in the place of a secret."""

_SECRET = re.compile(r"(?i)(key|token|secret|password|credentials?|authorization|cookie|headers?|query)$")
_ADDRESS = re.compile(r"(?i)(url|base|endpoint|proxy)$")
_HOLDER = re.compile(r"(?i)(client|auth)$")
_ASKER = re.compile(r"^([a-z0-9+.-]*:?//)?.*@", re.IGNORECASE | re.DOTALL)
"""What stands before the host; up to the last @, for passwords that were not escaped."""
_SCHEME = re.compile(r"(?i)^(?:bearer|basic|token|key)\s+")
_PLAIN = re.compile(r"(?i)^(accept|accept-encoding|connection|content-type|user-agent|api-version|x-stainless-.*)$")
"""Headers and query values that every client sends."""

UNTOLD = ("api_key", "openai_api_key", "headers", "default_headers", "extra_headers", "extra_query", "default_query")
"""Settings that may hold a key: traces and callbacks are not told them."""


def without_secrets(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a call as traces may have them."""
    return {name: value for name, value in settings.items() if name not in UNTOLD}


def secrets_of(*holders: Any) -> list[str]:
    """The keys, passwords, and values of headers and queries that clients, models and settings hold, longest first."""
    secrets: set[str] = set()
    seen: set[int] = set()
    for holder in holders:
        for secret in _in_holder(holder, seen):
            bare = _SCHEME.sub("", secret)
            secrets |= {text for text in (secret, bare, unquote(bare)) if len(text) >= SHORTEST_SECRET}
    return sorted(secrets, key=len, reverse=True)


def _in_holder(holder: Any, seen: set[int]) -> Iterator[str]:
    """Secrets among the attributes of an object, or the values of a mapping."""
    if holder is None or id(holder) in seen:
        return
    seen.add(id(holder))
    parts = (holder,) if isinstance(holder, Mapping) else (getattr(holder, n, None) for n in ("__dict__", "__pydantic_private__"))
    for part in parts:
        for name, value in dict(part or {}).items():
            yield from _in_value(str(name), value, seen)


def _in_value(name: str, value: Any, seen: set[int]) -> Iterator[str]:
    """Secrets in what has this name."""
    if callable(getattr(value, "get_secret_value", None)):  # pydantic's
        value, name = value.get_secret_value(), "secret"
    if _ADDRESS.search(name):
        yield from _in_address(str(value))
    elif isinstance(value, Mapping):
        secret = _SECRET.search(name)
        for key, inner in dict(value).items():
            if not _PLAIN.match(str(key)):
                yield from _in_value("secret" if secret else str(key), inner, seen)
    elif _HOLDER.search(name):
        yield from _in_holder(value, seen)
    elif isinstance(value, str) and _SECRET.search(name):
        yield value


def _in_address(address: str) -> Iterator[str]:
    try:
        parts = urlsplit(address)
    except ValueError:
        return
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    yield parts.password or parts.username or ""  # some put the key in the place of the user
    yield base64.b64encode(f"{user}:{password}".encode()).decode() if user or password else ""  # as it is sent
    for name, _, value in (pair.partition("=") for pair in parts.query.split("&")):
        if not _PLAIN.match(name):
            yield value


def shown_address(address: str) -> str:
    """An address as it may be printed: :data:`HIDDEN` for who asks, and for the values of its query. Bad ones are shown alike."""
    place, *query = re.split(r"([?&;#])", _ASKER.sub(rf"\1{HIDDEN}@", address))
    return place + "".join(part if part in "?&;#" else _shown_pair(part) for part in query)


def _shown_pair(pair: str) -> str:
    name, equals, value = pair.rpartition("=")
    return pair if _PLAIN.match(name) or not value else f"{name}{equals}{HIDDEN}"


@contextmanager
def hiding(*holders: Any) -> Iterator[None]:
    """Takes the secrets that these hold out of this package's own errors. Other errors pass as they are.

    Args:
        holders: clients, models, settings; read only where there is an error.
    """
    try:
        yield
    except EntropyChainsError as error:
        secrets = secrets_of(*holders)
        error.args = tuple(_without(each, secrets) for each in error.args)
        vars(error).update({name: _without(value, secrets) for name, value in vars(error).items()})
        raise


def _without(value: Any, secrets: list[str]) -> Any:
    for secret in secrets if isinstance(value, str) else ():
        value = value.replace(secret, HIDDEN)
    return value
