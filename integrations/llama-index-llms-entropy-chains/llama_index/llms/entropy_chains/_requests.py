"""One request to the LLM inside: its stream, what came of it, and what its errors mean."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from llama_index.llms.entropy_chains._native import ForeignReader
from llama_index.llms.entropy_chains._raw import reasoning_field

from entropy_chains.adapters import Reply, Request, Update, doubted, refusal, refusals
from entropy_chains.errors import BackendError, EntropyChainsError, quoted

if TYPE_CHECKING:
    from llama_index.llms.entropy_chains._runs import Asked
    from llama_index.llms.entropy_chains._streams import End


class RawResponse(NamedTuple):
    """An update's ``raw``: what the request was for, and the response of the LLM inside."""

    purpose: str
    response: Any


def update_of(reader: Any, response: Any, opened: Opened) -> Update:
    """The update that a response of the LLM inside is; the request's tokens so far are written on the response."""
    foreign = isinstance(reader, ForeignReader)
    update: Update = reader.feed(response if foreign else response.raw)
    unread = not foreign and bool(response.delta) and not reader.begun  # its text stands where no OpenAI-compatible API has it
    opened.reply.take(update)
    run = opened.run_request.run
    run.refusal += update.refusal
    run.reasoning_field = run.reasoning_field or reasoning_field(response.raw)
    opened.run_request.count(response, opened.reply.tokens, opened.reply.prompt)
    whole = opened.end.transfer.whole or not opened.request.streamed
    return replace(update, raw=RawResponse(opened.request.purpose, response), unread=unread, whole=whole)


@dataclass(slots=True)
class Opened:
    """A stream of the LLM inside, its end, its request, and what it came to so far."""

    chunks: Any
    end: End
    request: Request
    run_request: Asked
    reply: Reply


def deferred_refusal(error: Exception, request: Request) -> Exception:
    """Returns an error that may be due to what was added, which is raised where the stream is read; raises any other at once."""
    if (request.logprobs and refusal(error)) or doubted(error, request):
        return error
    raise error


def unstreamed(response: Any) -> Generator[Any, None, None]:
    """A whole response in the place of a stream."""
    yield response


async def aunstreamed(response: Any) -> AsyncGenerator[Any, None]:
    """The same for ``asyncio``."""
    yield response


def failing(error: Exception) -> Generator[Any, None, None]:
    raise error
    yield


async def afailing(error: Exception) -> AsyncGenerator[Any, None]:
    raise error
    yield


@contextmanager
def request_errors(request: Request) -> Iterator[None]:
    """Errors of a request that follows a stop as BackendError, which the dialogue judges; a run's own stay the LLM's."""
    try:
        with refusals(request.logprobs):
            yield
    except EntropyChainsError:
        raise
    except Exception as error:
        if request.purpose not in ("answer", "probe"):
            raise
        reason = quoted(str(error))
        raise BackendError(f"the request for the {request.purpose} failed ({type(error).__name__}: {reason})") from error
