"""A probe of a server: one request for an answer that may be thrown away. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from entropy_chains.backends.remote.continuations import Request
from entropy_chains.backends.remote.events import Event, Exchange, Finish, Send, Show
from entropy_chains.backends.remote.readers import Update
from entropy_chains.backends.remote.reply import Reply
from entropy_chains.errors import BackendError, NoLogprobsError


class Trial(Exchange[Request]):
    """One probe, asked again without logprobs where those are refused: the answer alone may do.

    Args:
        request: what is asked.
        before: tokens of the run before it.
        refused: is told of the refusal.
        spare: a run goes on without it, so an error ends it and is kept in ``lost``.

    Attributes:
        request: what was sent last.
        reply: what came of it.
        lost: the error that ended it, or None.
    """

    def __init__(
        self,
        request: Request,
        *,
        before: int = 0,
        refused: Callable[[NoLogprobsError], None] | None = None,
        spare: bool = False,
    ):
        self.request, self._before, self._refused, self._spare = request, before, refused, spare
        self.lost: BackendError | None = None
        self.reply = Reply("probe", before=before)

    def start(self) -> Send[Request]:
        """See :class:`.events.Exchange`."""
        return Send(self.request)

    def feed(self, update: Update) -> list[Event]:
        """Keep it. Nothing of it is for a reader."""
        self.reply.take(update)
        return [Show((), update)]

    def failed(self, error: BackendError) -> Send[Request] | Finish:
        """The same request without logprobs, if it asked for any and they were refused."""
        if not (isinstance(error, NoLogprobsError) and self.request.logprobs):
            if not self._spare:
                raise error
            self.lost = error
            return Finish()
        if self._refused is not None:
            self._refused(error)
        self.request, self.reply = replace(self.request, logprobs=False), Reply("probe", before=self._before)
        return Send(self.request)
