"""What :func:`.drive.drive` is told to do, as small frozen events, and what tells it. Pure: no I/O.

The idea is that of h11: whoever sends and receives says what came, and is told what follows. There is no flag to look at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from entropy_chains.backends import Chunk
from entropy_chains.backends.remote.readers import NOTHING, Update
from entropy_chains.errors import BackendError

R = TypeVar("R")
"""A request."""


@dataclass(frozen=True, slots=True)
class Send(Generic[R]):
    """Send this request, and feed the updates of the stream that comes."""

    request: R


@dataclass(frozen=True, slots=True)
class Show:
    """Pass this on to whoever reads the run.

    Attributes:
        chunks: what a reader sees; often nothing.
        update: what it was made of, with a framework's own chunk as its ``raw``; empty for text that no single chunk brought.
        closing: the stream is closed after it.
    """

    chunks: Sequence[Chunk]
    update: Update = NOTHING
    closing: bool = False


@dataclass(frozen=True, slots=True)
class Try:
    """Drive this probe to its end beside the running stream, then call :meth:`Exchange.tried`."""

    probe: Exchange[Any]


@dataclass(frozen=True, slots=True)
class Control:
    """Tell the server to end the thinking of the running stream, then call :meth:`Exchange.controlled`.

    Attributes:
        stream: the stream's id, as the server names it.
    """

    stream: str | None


@dataclass(frozen=True, slots=True)
class Close:
    """Close the running stream, so that the server stops."""


@dataclass(frozen=True, slots=True)
class Finish:
    """Nothing more is to be sent."""


Event = Show | Try | Control | Close
"""What may follow from an update."""


class Exchange(Generic[R]):
    """One or more requests to a server, each sent when the stream of the one before is over.

    These are the defaults of an exchange that asks for no probe, and does not survive an error.
    """

    def start(self) -> Send[R]:
        """The first request."""
        raise NotImplementedError

    def feed(self, update: Update) -> list[Event]:
        """An update of the running stream has come: what to show of it, then at most one thing to do."""
        raise NotImplementedError

    def tried(self) -> list[Event]:
        """The probe of a :class:`Try` is over: as for :meth:`feed`."""
        return []

    def controlled(self, done: bool) -> None:
        """The server was told to end the thinking. ``done``: it says that it did."""

    def over(self) -> tuple[list[Show], Send[R] | Finish]:
        """The running stream has ended, or was closed: what is left to show, and what follows."""
        return [], Finish()

    def failed(self, error: BackendError) -> Send[R] | Finish:
        """The running stream broke, or could not be had: what follows; raises ``error`` where nothing can."""
        raise error
