"""One reply of a server, from the first request to the answer: what to send, what the chunks mean, when to close the stream.

A pure state machine, without I/O. It is told what came and returns events that say what to do (:mod:`.events`); the two loops of
:mod:`.drive` do it. Who cannot send a request of his own, as a callback, reads the events of :meth:`Dialogue.feed` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from entropy_chains.backends import Chunk, Generation, Message
from entropy_chains.backends.remote.attempt import Attempt
from entropy_chains.backends.remote.continuations import Request
from entropy_chains.backends.remote.criterion import Criterion
from entropy_chains.backends.remote.events import Close, Control, Event, Exchange, Finish, Send, Show, Try
from entropy_chains.backends.remote.plan import Plan
from entropy_chains.backends.remote.readers import Piece, Update
from entropy_chains.backends.remote.refused import RETHINKS, RefusedError
from entropy_chains.backends.remote.reply import Reply
from entropy_chains.backends.remote.trial import Trial
from entropy_chains.backends.text.answer import MALFORMED, broken_off, run_instead
from entropy_chains.core.monitor import Decision
from entropy_chains.core.phases import Phase
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import BackendError

THINKS_AGAIN = "the model began to think again after the stop: run in full"
UNFINISHED = "replies end without a finish reason; they are taken as whole, for the stream ends in order ([DONE])"
NO_ANSWER = "the stream broke off: no finish reason came, and no answer"
NOT_CONTROLLED = "the server did not end the thinking: run in full"


class Dialogue(Exchange[Request]):
    """One reply. ``messages`` are asked; the rest as in :class:`entropy_chains.backends.Backend` and :class:`.plan.Plan`."""

    def __init__(
        self,
        messages: Sequence[Message],
        plan: Plan,
        *,
        policy: Policy | None = None,
        max_tokens: int = 4096,
        segmentation: Segmentation | None = None,
        stop: bool = True,
        holdout: bool = False,
    ):
        self._messages, self._plan, self._max_tokens = list(messages), plan, max_tokens
        self._segmentation, self._holdout = segmentation, holdout
        self._criterion = Criterion(plan, policy)
        self._ways = list(plan.ways)
        self._stopped: Attempt | None = None  # the attempt that the full run replaces
        self._trial: Trial | None = None  # the probe that runs
        self._closing = False  # the running stream is closed, or about to be
        self._id: str | None = None  # the running stream's
        self._now = self._attempt(stop)

    def _attempt(self, stop: bool) -> Attempt:
        return Attempt(self._plan, self._criterion, segmentation=self._segmentation, stop=stop, holdout=self._holdout)

    # --- requests

    def start(self) -> Send[Request]:
        """The request to begin with."""
        if self._criterion.refusal:
            self._now.do_without(self._criterion.refusal)
        return self._run("reason")

    def _run(self, purpose: str) -> Send[Request]:
        """The request for the whole reply."""
        self._now.streams.append(Reply(purpose, limit=self._limit(self._max_tokens)))
        criterion = self._criterion
        engine = self._plan.engine if purpose == "reason" and criterion.refusal is None else None
        request = Request(purpose, self._messages, self._max_tokens, engine or {}, logprobs=criterion.asks, k=criterion.k)
        return Send(criterion.reduced(request))

    def _ask(self) -> Send[Request]:
        """The request for the answer after the thinking that was cut."""
        self._closing = False
        request = self._asked("answer", self._now.cut or "")[0]
        self._now.ask(self._limit(request.max_tokens))
        return Send(request)

    def _asked(self, purpose: str, thinking: str) -> list[Request]:
        """The requests for an answer after this thinking, in each way that is left."""
        left = max(self._max_tokens - self._now.fed, 1)
        requests = [way.request(purpose, self._messages, thinking, self._plan.tags, left) for way in self._ways]
        return [self._criterion.reduced(request) for request in requests]

    def _limit(self, tokens: int) -> int | None:
        """How many tokens a reply may have; None where somebody else sends the requests."""
        return tokens if self._plan.ways else None

    def _in_full(self, why: str) -> Send[Request]:
        """The request for the whole reply, in place of a stop that went wrong."""
        self._closing = False
        self._now.why, self._stopped, self._now = why, self._now, self._attempt(stop=False)
        return self._run("full")

    def _rethought(self) -> bool:
        """The model thought again: whether it does so always, as where a new turn asks for the answer. That is remembered."""
        always = not self._ways[0].exact
        if always:
            self._plan.known.thinks_again(self._plan.ways, self._plan.model)
        return always

    # --- what came

    def feed(self, update: Update) -> list[Event]:
        """An update of the running stream: what to show of it, then a probe, a control or a close."""
        now = self._now
        if refusal := self._criterion.proved():
            now.do_without(refusal)
        if update.whole:
            now.whole()
        stream = now.streams[-1]
        stream.take(update)
        self._id = update.id or self._id
        now.unread = now.unread or update.unread
        if update.tool_call or update.refusal:
            now.called = True
            now.monitor.release("a tool call has begun" if update.tool_call else "the model refuses")
        follows: Event | None = None
        if stream.purpose == "answer":
            chunks = now.answered(update.pieces)
            self._closing = now.again
        else:
            chunks, follows = self._take(update.pieces)
        if update.unfinished:
            if stream.before + stream.tokens >= self._max_tokens:
                stream.full = True  # it has all that it was allowed: it was cut
            elif now.answer is None and not now.called:
                raise BackendError(NO_ANSWER)
            self._plan.known.warn(f"{self._plan.model}: {UNFINISHED}", about="no finish reason")
        show = Show(chunks, update, self._closing)
        if self._closing:
            return [show, Close()]
        return [show] if follows is None else [show, follows]

    def _take(self, pieces: Sequence[Piece]) -> tuple[list[Chunk], Event | None]:
        """Tokens of the run: what is shown of them, and what follows besides a close."""
        now, output, follows = self._now, list[Chunk](), None
        for n, piece in enumerate(pieces, 1):
            chunks, decision = now.take(piece)
            output += chunks
            if decision is not Decision.GO_ON:
                follows = self._decided(decision) or follows
            if self._closing or now.overrun:
                self._closing = True
                now.fed += len(pieces) - n  # computed, and not read: the answer is asked for after the boundary
                break
        if self._trial is not None and (now.said or now.monitor.phase is Phase.ANSWER):  # the run's own answer is under way
            self._trial, follows = None, None
            now.monitor.answer(None)
        return output, follows

    def _decided(self, decision: Decision) -> Event | None:
        """What follows from a decision of the monitor; None where the stream is closed, or the engine closes the thinking."""
        if decision is Decision.PROBE:
            reads = self._criterion.policy is not None and self._criterion.policy.reads_probes
            k = self._criterion.k
            # Where the client drops the text of a thinking that begins again, only logprobs show it.
            measured = reads or (self._plan.dropped and self._criterion.asks)
            requests = [replace(request, logprobs=measured, k=k) for request in self._asked("probe", self._now.raw)]
            self._trial = Trial(requests, before=self._now.fed, spare=True)
            return Try(self._trial)
        if self._plan.engine is not None:
            return None
        if self._plan.control:
            return Control(self._id)
        self._closing = True
        return None

    def controlled(self, done: bool) -> None:
        """The server was told to end the thinking; where it did not, the run goes on, and is a full one."""
        now = self._now
        if done:
            now.markup.force()
        else:
            now.cut, now.undone, now.why = None, True, NOT_CONTROLLED

    def tried(self) -> list[Event]:
        """The probe is over: judge its answer; where that stops the run, it is the run's answer. After a lost one nothing stops."""
        trial, self._trial = self._trial, None
        if trial is None:
            return []
        now, policy = self._now, self._criterion.policy
        now.probes.append(trial.reply)
        del self._ways[: trial.failed_ways]
        if trial.lost is not None:
            now.monitor.answer(None)
            now.monitor.release(f"the answer after a step could not be had ({trial.lost}): run in full")
            return []
        if trial.reply.again and self._rethought():
            now.monitor.answer(None)
            now.monitor.release(RETHINKS)
            return []
        probe = trial.reply.probe(self._plan.tags, self._criterion.k, policy.mass_floor if policy else None)
        if missing := self._criterion.missing_of(trial.reply, probe):
            now.do_without(missing)
        if now.monitor.answer(probe.answer, probe.signals) is not Decision.CLOSE or probe.answer is None:
            return []
        now.probed, self._closing = probe.answer, True
        return [Show([Chunk(probe.answer, Phase.ANSWER)], closing=True), Close()]

    def over(self) -> tuple[list[Show], Send[Request] | Finish]:
        """The running stream has ended, or was closed: text that was kept back, and what follows."""
        now, rest = self._now, list[Show]()
        if not self._closing and (spans := now.rest):
            rest.append(Show([Chunk(text, phase) for phase, text in spans]))
        if now.again:
            self._rethought()
            return rest, self._in_full(THINKS_AGAIN)
        if self._closing and now.probed is None:
            return rest, self._ask()
        if now.monitor.done and now.answer is None and not now.called and self._stopped is None:
            return rest, self._in_full(MALFORMED)
        if now.was_silent:
            self._criterion.was_silent(now.monitor)
        self.check_measured()
        return rest, Finish()

    def check_measured(self) -> None:
        """The run is over: say so, once a model, where its tokens could not be counted, or no step could be judged."""
        now = self._now
        if doubt := now.streams[-1].doubt:
            self._plan.known.warn(f"{self._plan.model}: {doubt}", about="usage")
        if now.unjudged:
            self._criterion.was_unjudged(now.monitor)

    def failed(self, error: BackendError) -> Send[Request]:
        """The running stream broke: the request in its place.

        The same without logprobs where those were refused, another way to the answer, or the full run where a stop is at fault.

        Raises:
            BackendError: ``error``, of a run, or of an answer that was shown in part: no second one is put beside it.
            Exception: the error of the app's own client, where the request was at fault without what was added.
        """
        now, stream = self._now, self._now.streams[-1]
        if self._criterion.gives_in(error, stream):
            return self._run(now.streams.pop().purpose)
        if isinstance(error, RefusedError):
            own = self._criterion.own(error)
            raise own from own.__cause__
        if stream.purpose != "answer" or now.answering:
            raise broken_off(error, self._so_far())
        self._ways.pop(0)
        return self._ask() if self._ways else self._in_full(f"the answer after the stop could not be had ({error}): run in full")

    # --- the run

    def result(self) -> Generation:
        """The finished run."""
        self._now.end_call()
        return self._so_far()

    def _so_far(self) -> Generation:
        """The run as it is now."""
        run, stopped = self._now.generation(self._now.answer), self._stopped
        if stopped is None:
            return run
        return run_instead(run, stopped.generation(None), stopped.monitor.finish(stopped.why))
