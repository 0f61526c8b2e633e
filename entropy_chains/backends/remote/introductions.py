"""Asks a server who it is, through an SDK's client, sync or async.

The user did not ask for this. So whatever comes in reply, the user's own request is sent; a reply that cannot be read makes the
server an unknown one. Only where there is no connection at all an error is raised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from inspect import isawaitable
from typing import Any

from entropy_chains.backends.remote.errors import not_connected
from entropy_chains.backends.remote.plugin import VERSION_PATH, hello, may_be_greeted, version_in
from entropy_chains.backends.remote.servers import Server, identify

LONGEST_WAIT = 3.0
"""Most seconds to wait for a server that is silent; less where the client's own timeout is shorter."""


def who(client: Any, model: str, *, plugin: bool = False, needed: bool = True) -> Server | None:
    """Returns what is known about the server of a client.

    Args:
        client: an ``openai.OpenAI``.
        model: the served model's name.
        plugin: ask a vLLM for this package's plug-in as well.
        needed: False asks once, and returns None where nobody can be reached: it may be asked again later.

    Raises:
        openai.APIConnectionError: nobody can be reached, though ``needed``.
    """
    try:
        awho(client, model, plugin=plugin, needed=needed).send(None)  # with a sync client it never waits
    except StopIteration as done:
        server: Server | None = done.value
        return server
    raise TypeError(f"client is {type(client).__name__}, which has to be awaited; give an openai.OpenAI")


async def awho(client: Any, model: str, *, plugin: bool = False, needed: bool = True) -> Server | None:
    """The same for an ``openai.AsyncOpenAI``."""
    options = {"timeout": _patience(client), "max_retries": 0}  # the SDK would wait that long again and again
    asking, reply = identify(str(client.base_url), model), None
    while True:
        try:
            address = asking.send(reply)
        except StopIteration as done:
            server: Server = done.value
            break
        reply = await _reply(client.get, address, options=options)
        if isinstance(reply, Exception) and not_connected(reply):
            if not needed:
                return None
            reply = await _reply(client.get, address)  # nobody there yet? as often as the user's client tries it
            if isinstance(reply, Exception) and not_connected(reply):
                raise reply
    if plugin and server.can.plugin and may_be_greeted(await _reply(client.get, f"{server.root}{VERSION_PATH}", options=options)):
        refusal = await _reply(client.post, "/completions", body=hello(model), options=options)
        server = replace(server, plugin=version_in(str(getattr(refusal, "message", ""))))
    return server


async def _reply(send: Callable[..., Any], address: str, **arguments: Any) -> Any:
    """Returns the JSON that comes, or the error that comes instead. Raises nothing."""
    try:
        response = send(address, cast_to=object, **arguments)
        return await response if isawaitable(response) else response
    except Exception as error:  # noqa: BLE001 (whatever a server answers to us must not stop the user's own request)
        return error


def _patience(client: Any) -> float:
    timeout = getattr(client.timeout, "read", client.timeout)  # seconds, one for each phase, or None
    return min(timeout, LONGEST_WAIT) if isinstance(timeout, int | float) else LONGEST_WAIT
