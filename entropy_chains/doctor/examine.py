"""Examine a server with a handful of small real requests: what it can do, and what that means for stopping.

What to ask and what it means is pure, in :mod:`entropy_chains.doctor.server`; here it is sent.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from functools import partial

from entropy_chains.backends.remote.drive import drive
from entropy_chains.backends.remote.errors import failures
from entropy_chains.backends.remote.model import ended
from entropy_chains.backends.remote.readers import ChatReader, CompletionReader, Update, read_message
from entropy_chains.backends.remote.servers import CONTROL, end_thinking, is_done
from entropy_chains.backends.remote.transfer import Transfer
from entropy_chains.doctor.asking import Ask, Heard, StreamedReply
from entropy_chains.doctor.findings import Examination, Finding
from entropy_chains.doctor.server import examination
from entropy_chains.errors import BackendError, MissingExtraError, NoLogprobsError, SettingsError

try:
    import openai
except ImportError as error:
    raise MissingExtraError("openai", "openai") from error

__all__ = ["Examination", "Finding", "examine"]


def examine(client: openai.OpenAI, model: str) -> Examination:
    """Examine the model that a server has under this name.

    Args:
        client: its settings are the user's; its key is looked at only to keep it out of what is told.
        model: the served model's name.

    Raises:
        SettingsError: there is no server, it refuses the key, or it does not know the model.
    """
    asking = examination(str(client.base_url), model)
    try:
        ask = next(asking)
        while True:
            ask = asking.send(_send(client, ask))
    except StopIteration as done:
        result: Examination = done.value
        return result


def _send(client: openai.OpenAI, ask: Ask) -> Heard:
    time.sleep(ask.wait)
    try:
        with failures(client, logprobs=ask.measured):
            if ask.body is None:
                return Heard(content=client.get(ask.address, cast_to=object))
            if ask.body.get("stream"):
                reading = StreamedReply(ask)
                for _ in drive(reading, partial(_updates, client), partial(_control, client)):
                    pass
                return reading.heard
            response = client.post(ask.address, body=ask.body, cast_to=object)
            update = read_message(response)
            return Heard(response, update.pieces, update.usage, update.finish_reason)
    except BackendError as error:
        if isinstance(error.__cause__, openai.APIConnectionError):
            raise SettingsError(str(error)) from error
        status = getattr(error.__cause__, "status_code", None)
        if isinstance(error, NoLogprobsError):
            return Heard(refused=error.said or str(error), status=status, blind=True)
        return Heard(refused=str(error), status=status)


def _updates(client: openai.OpenAI, ask: Ask) -> Generator[Update, None, None]:
    reader = ChatReader() if ask.address.startswith("/chat") else CompletionReader()
    transfer = Transfer()
    stream = client.post(ask.address, body=ask.body, cast_to=object, stream=True, stream_cls=openai.Stream[object])
    with transfer.listen(stream):
        for chunk in stream:
            yield reader.feed(chunk)
        yield ended(reader, transfer)


def _control(client: openai.OpenAI, stream: str | None) -> bool:
    return is_done(client.post(CONTROL, body=end_thinking(stream), cast_to=object))
