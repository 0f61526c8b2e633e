"""A probe of a server: a request for an answer that may be thrown away. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from entropy_chains.backends.remote.continuations import Request
from entropy_chains.backends.remote.events import Close, Event, Exchange, Finish, Send, Show
from entropy_chains.backends.remote.readers import Update
from entropy_chains.backends.remote.reply import Reply
from entropy_chains.errors import BackendError, NoLogprobsError


class Trial(Exchange[Request]):
    """One probe, asked again without logprobs where those are refused, for the answer alone may do, and else in the next way.

    Args:
        requests: what is asked, in each way that there is.
        before: tokens of the run before it.
        refused: is told of the refusal.
        spare: a run goes on without it, so an error ends it and is kept in ``lost``.

    Attributes:
        failed_ways: how many ways could not be had.
        reply: what came of it.
        lost: the error that ended it, or None.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        *,
        before: int = 0,
        refused: Callable[[NoLogprobsError], None] | None = None,
        spare: bool = False,
    ):
        self._requests, self._before, self._refused, self._spare = list(requests), before, refused, spare
        self.failed_ways = 0
        self.lost: BackendError | None = None
        self.reply = self._begun()

    @property
    def request(self) -> Request:
        """What is asked now."""
        return self._requests[self.failed_ways]

    def start(self) -> Send[Request]:
        """See :class:`.events.Exchange`."""
        return Send(self.request)

    def feed(self, update: Update) -> list[Event]:
        """Keep it. Nothing of it is for a reader. Thinking that begins again gives no answer: the stream is closed."""
        self.reply.take(update)
        show = Show((), update)
        return [show, Close()] if self.reply.again else [show]

    def failed(self, error: BackendError) -> Send[Request] | Finish:
        """The same without logprobs, if they were asked for and refused; the next way, if nothing of an answer came."""
        if isinstance(error, NoLogprobsError) and self.request.logprobs:
            if self._refused is not None:
                self._refused(error)
            self._requests = [replace(request, logprobs=False) for request in self._requests]
        elif self.failed_ways + 1 < len(self._requests) and not self.reply.tokens:
            self.failed_ways += 1
        elif self._spare:
            self.lost = error
            return Finish()
        else:
            raise error
        self.reply = self._begun()
        return self.start()

    def _begun(self) -> Reply:
        return Reply("probe", before=self._before, limit=self.request.max_tokens)
