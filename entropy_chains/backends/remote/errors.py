"""What goes wrong between the SDK's client and a server, as one kind of error: what happened, where, and what to check.

The cause is chained. The user's key is in no message of ours: some servers repeat the key that they refuse.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from entropy_chains.backends.remote.logprob_entries import fields
from entropy_chains.backends.remote.redaction import hiding
from entropy_chains.backends.remote.refused import refusals
from entropy_chains.errors import BackendError, EntropyChainsError, MissingExtraError, UnreachableError, quoted

try:
    import openai
except ImportError as error:
    raise MissingExtraError("openai", "openai") from error

HTTP = ("httpx", "httpx2", "httpcore", "httpcore2")
"""What the SDK lets through of its HTTP library, whichever it is built on."""

REMEDIES = {
    401: "; check the client's api_key",
    403: "; check what the client's api_key may do",
    404: "; check the client's base_url, which mostly ends in /v1, and the model's name",
    429: "; wait, lower concurrency, or raise the client's max_retries",
}

REFUSES_ALL = (401, 402, 404)
"""Statuses that refuse the client, its account or the model, whatever is asked. A 403 may be about one prompt."""

NOT_CONNECTED = ("ConnectError", "ConnectTimeout", "ConnectionRefusedError")
"""Errors from before a request was sent. A connection that breaks later may be one request's own fault."""


@contextmanager
def failures(*holders: Any, logprobs: bool = False) -> Iterator[None]:
    """Turns what SDK and connection raise into a BackendError; where ``logprobs`` were asked for and refused, NoLogprobsError.

    No message holds a secret of ``holders``: client and settings.
    """
    with hiding(*holders), _ours(logprobs):
        yield


@contextmanager
def _ours(logprobs: bool) -> Iterator[None]:
    try:
        with refusals(logprobs):
            yield
    except (openai.OpenAIError, OSError, ValueError, RecursionError) as error:
        if isinstance(error, EntropyChainsError):
            raise
        raise _kind(error)(_description(error)) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] in HTTP:
            raise _kind(error)(_description(error)) from error
        raise


def not_connected(error: BaseException) -> bool:
    """Whether there was no connection at all."""
    return bool({type(error).__name__, type(error.__cause__).__name__} & set(NOT_CONNECTED))


def _kind(error: Exception) -> type[BackendError]:
    """Whether it says something of the server, or of this request only."""
    if isinstance(error, openai.APIStatusError):
        refused = error.status_code in REFUSES_ALL or error.code == "insufficient_quota"
    else:
        refused = not_connected(error)
    return UnreachableError if refused else BackendError


def _description(error: Exception) -> str:
    if isinstance(error, openai.APIStatusError):
        if moved := _redirected(error.response):
            return f"{moved}, which answers {error.status_code}: {_message(error)}"
        remedy = REMEDIES.get(error.status_code, "; the server itself failed: try again" if error.status_code >= 500 else "")
        return f"the server refused the request ({error.status_code}): {_message(error)}{remedy}"
    if isinstance(error, openai.APIError) and not isinstance(error, openai.APIConnectionError):
        return f"the server sent an error in the stream: {_message(error)}"
    cause = error.__cause__ or error
    named = ": ".join(filter(None, [type(cause).__name__, quoted(str(cause))]))
    if isinstance(cause, UnicodeEncodeError):
        return "the request holds characters that HTTP does not carry; check the client's api_key and headers"
    if isinstance(error, ValueError | RecursionError):
        remedy = "check that the client's base_url is that of an OpenAI-compatible API, and that no proxy changes what it sends"
        return f"the server sent what cannot be read ({named}); {remedy}"
    if type(cause).__name__ == "TooManyRedirects":
        return (
            f"the server redirects without end ({quoted(str(cause))}); set the client's base_url to the address of the API itself"
        )
    url = getattr(getattr(error, "request", None), "url", None)
    place = f"{url.scheme}://{url.netloc.decode().rpartition('@')[2]}" if url is not None else "the server"
    if any("Timeout" in type(each).__name__ for each in (error, cause)):
        return f"{place} was silent for longer than the client's timeout ({named}); raise that, or check the server"
    return f"the connection to {place} failed ({named}); check the address, and that the server runs"


def _redirected(response: Any) -> str | None:
    """Where a request was sent on to, or would have been; None where it was not. A redirected POST mostly comes as a GET."""
    first = response.history[0] if getattr(response, "history", None) else response
    if not 300 <= first.status_code < 400:
        return None
    url = first.headers.get("location") or response.url
    return f"the server redirects the request (to {quoted(str(url))}; set the client's base_url to the address of the API itself)"


def _message(error: openai.APIError) -> str:
    """What the server said, without what the SDK adds."""
    message = error.body if isinstance(error.body, str) else fields(error.body).get("message")
    text = message if isinstance(message, str) and message else str(error.message)
    return "a web page, no answer of an API" if text.lstrip().startswith("<") else quoted(text)
