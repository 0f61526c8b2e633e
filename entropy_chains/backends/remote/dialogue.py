"""One reply of a server, from the first request to the answer: what to send, what the chunks mean, when to close the stream.

Pure: no I/O. A shell (sync, async, LangChain's, LlamaIndex's) sends :attr:`Dialogue.request`, feeds what comes back, closes the
stream when :attr:`Dialogue.closing` says so, and asks :meth:`Dialogue.next` for the request that follows. So the logic of a stop
is written once::

    request = dialogue.first()
    while request:
        for update in send(request):        # closed in any case
            chunks = dialogue.feed(update)
            if dialogue.closing:
                break
        request = dialogue.next()
    run = dialogue.result()
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from entropy_chains.backends import Chunk, GeneratedStep, Generation, Message, Probe
from entropy_chains.backends.remote.continuations import Continuation, Request, begun
from entropy_chains.backends.remote.readers import Piece, Update
from entropy_chains.backends.remote.refused import REMEDY, UNREAD, Known
from entropy_chains.backends.remote.reply import Reply
from entropy_chains.backends.text.answer import MALFORMED, broken_off, run_instead
from entropy_chains.backends.text.markup import AnswerMarkup, Markup, Span, as_chunks, text_in
from entropy_chains.core.entropy import EntropyBounds, token_entropy
from entropy_chains.core.families import ThinkTags
from entropy_chains.core.finish_reasons import finish_reason
from entropy_chains.core.monitor import Decision, Monitor
from entropy_chains.core.policy import Policy
from entropy_chains.core.signals import StepRecord
from entropy_chains.core.steps import Phase, Segmentation
from entropy_chains.errors import BackendError, NoLogprobsError, PolicyMismatch

PATIENCE = 16
"""Reasoning tokens without any logprobs after which they are given up."""

NO_LOGPROBS = "the server gives no logprobs on reasoning tokens"
AGAIN = "the model began to think again after the stop: run in full"
INTERLEAVED = "thinking goes on after the answer has begun: run in full"
NOT_CLOSED = "the server's plug-in did not close the thinking, so the stream was closed"


@dataclass(frozen=True, slots=True)
class Plan:
    """What the replies of one backend have in common.

    Attributes:
        tags: the family's thinking tags.
        ways: how to get the answer after a stop, in order.
        k: alternatives asked for.
        opened: the prompt opens the thinking, and the server does not split it off.
        control: the server can close the thinking of a running stream (llama.cpp).
        engine: settings of the run's request under which the server closes the thinking itself (vLLM with the plug-in).
        without_logprobs: ``error``, ``agreement`` (stop when two answers in a row agree), ``full``, or ``unread``: none are needed.
        on_mismatch: ``error`` or ``warn``.
        model: the model's name, for warnings.
        known: what is known about its logprobs, shared by all of its replies.
        uncut: why nothing may be cut; None where something may.
    """

    tags: ThinkTags
    ways: tuple[Continuation, ...]
    k: int = 20
    opened: bool = False
    control: bool = False
    engine: Mapping[str, Any] | None = None
    without_logprobs: str = "error"
    on_mismatch: str = "error"
    model: str = "the model"
    known: Known = field(default_factory=Known)
    uncut: str | None = None


class _Attempt:
    """The state of one attempt at the reply: with stopping, or in full after a stop whose answer was malformed."""

    def __init__(self, monitor: Monitor, markup: Markup):
        self.monitor, self.markup = monitor, markup
        self.steps: list[GeneratedStep] = []
        self.thinking: list[str] = []  # raw texts of the tokens, tags included where the server sends them
        self.reasoning: list[str] = []  # what is shown of it
        self.answer: list[str] = []
        self.streams: list[Reply] = []  # the running one last
        self.probes: list[Reply] = []
        self.fed = self.reasoned = self.blind = 0
        self.sighted = False  # logprobs were seen, or given up
        self.again = False  # after a stop the model thinks anew
        self.called = False  # a tool call or a refusal is an answer without text
        self.cut: str | None = None  # the thinking that the answer is asked for after
        self.due = ""  # closing text that the server is still to put in by itself
        self.start = self.since = time.perf_counter()


class Dialogue:
    """One reply. ``messages`` are asked; the rest as in :class:`entropy_chains.backends.Backend` and :class:`Plan`.

    Attributes:
        closing: close the running stream now.
        wants_control: tell the server to end the thinking of the running stream (``id``), then call :meth:`controlled`.
        wants_probe: a request to send beside the running stream: its updates go to :meth:`feed_probe`, then :meth:`probed`.
        id: the running stream's, as the server names it.
    """

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
        self._messages, self._plan, self._policy, self._max_tokens = list(messages), plan, policy, max_tokens
        self._segmentation, self._holdout = segmentation, holdout
        self._ways = list(plan.ways)
        self._why: str | None = None
        self._stopped: _Attempt | None = None  # the attempt that the full run replaces
        self._probe: Reply | None = None
        self._probe_answer: str | None = None
        self._undone = False  # the stop had no effect
        self._note = ""  # what the reason says besides
        self._refused: str | None = None  # why requests ask for no logprobs, if so
        self._unproved = False  # whether that is so shows when one of them is answered
        self._unread = plan.without_logprobs == UNREAD or bool(policy and not policy.stop_rule.reads_signal)
        self._shown = AnswerMarkup(plan.tags)
        self.closing = self.wants_control = False
        self.wants_probe: Request | None = None
        self.id: str | None = None
        self._now = self._attempt(stop)

    def _attempt(self, stop: bool) -> _Attempt:
        monitor = Monitor(
            self._policy,
            segmentation=self._segmentation,
            tags=self._plan.tags,
            thinking=self._plan.opened,
            stop=stop,
            holdout=self._holdout,
        )
        if self._plan.uncut:
            monitor.switch_off(self._plan.uncut)
        return _Attempt(monitor, Markup(self._plan.tags, Phase.THINKING if self._plan.opened else Phase.BEFORE))

    @property
    def k(self) -> int:
        """Alternatives to ask for."""
        return self._plan.k

    # --- requests

    def first(self) -> Request:
        """The request to begin with."""
        if self._plan.known.refused and not self._needs_logprobs:
            self._refused = self._plan.known.refused
            self._do_without(self._refused)
        return self._run("reason")

    def _run(self, purpose: str) -> Request:
        """The request for the whole reply."""
        self._now.streams.append(Reply(purpose))
        engine = self._plan.engine if purpose == "reason" and not self._refused else None
        return Request(purpose, self._messages, self._max_tokens, engine or {}, logprobs=not self._refused)

    def next(self) -> Request | None:
        """After a stream has ended or was closed: the request that follows, or None when the run is over."""
        now = self._now
        if now.again:
            self.closing = False
            return self._in_full(AGAIN)
        if self._probe_answer is None and self.closing:
            return self._ask()
        if now.monitor.done and self._answer() is None and not now.called and self._stopped is None:
            return self._in_full(MALFORMED)
        return None

    def failed(self, error: BackendError) -> Request:
        """The stream broke: the request in its place, or raises ``error``.

        The same without logprobs where those were refused, another way to the answer, or the full run where a stop is at fault.
        """
        stream = self._now.streams[-1]
        if isinstance(error, NoLogprobsError) and not (self._needs_logprobs or stream.pieces or self._refused):
            self._refused, self._unproved = f"the server refuses logprobs ({error.said or error})", True
            return self._run(self._now.streams.pop().purpose)
        if stream.purpose != "answer" or any(self._now.answer) or self._now.called:
            # Of a run, or of an answer that was shown in part: no second one is put beside it.
            raise broken_off(error, self._so_far())
        self._ways.pop(0)
        return self._ask() if self._ways else self._in_full(f"the answer after the stop could not be had ({error}): run in full")

    def _ask(self) -> Request:
        now = self._now
        self.closing, self._shown = False, AnswerMarkup(self._plan.tags)
        now.streams.append(Reply("answer", before=now.fed))
        return self._way("answer", now.cut or "")

    def _way(self, purpose: str, thinking: str) -> Request:
        left = max(self._max_tokens - self._now.fed, 1)
        return self._ways[0].request(purpose, self._messages, thinking, self._plan.tags, left)

    def _in_full(self, why: str) -> Request:
        self._why, self._stopped, self._now = why, self._now, self._attempt(stop=False)
        return self._run("full")

    @property
    def _needs_logprobs(self) -> bool:
        return self._plan.without_logprobs == "error" and not self._unread

    # --- chunks

    def feed(self, update: Update) -> list[Chunk]:
        """Take what one chunk says; returns what a reader of the run sees of it."""
        now = self._now
        if self._refused and self._unproved:
            self._plan.known.refused, self._unproved = self._refused, False
            self._do_without(self._refused)
        stream = now.streams[-1]
        stream.take(update)
        self.id = update.id or self.id
        if update.tool_call or update.refusal:
            now.called = True
            now.monitor.release("a tool call has begun" if update.tool_call else "the model refuses")
        if stream.purpose == "answer":
            return self._answered(update.pieces)
        shown: list[Chunk] = []
        for n, piece in enumerate(update.pieces):
            shown += self._take(piece)
            if self.closing:
                now.fed += len(update.pieces) - n - 1  # computed, and not read: the answer is asked for after the boundary
                break
        return shown

    def _answered(self, pieces: Sequence[Piece]) -> list[Chunk]:
        """Tokens of the answer's own request. Where the model thinks anew before it answers, the attempt is thrown away."""
        now, shown = self._now, list[Chunk]()
        for piece in pieces:
            now.fed += 1
            if piece.phase is Phase.THINKING:
                now.again = now.again or (bool(piece.text.strip()) and not any(map(str.strip, now.answer)))
            else:
                now.answer.append(self._shown.take(piece.text))
                shown.append(Chunk(now.answer[-1], Phase.ANSWER, piece.token))
        now.again = now.again or self._shown.again
        self.closing = now.again
        return shown

    def rest(self) -> list[Chunk]:
        """The running stream has ended by itself: what a reader sees of the text that was kept back."""
        return [Chunk(text, phase) for phase, text in self._rest]

    @property
    def _rest(self) -> list[Span]:
        if self._now.streams[-1].purpose == "answer":
            return [(Phase.ANSWER, self._shown.rest)] if self._shown.rest else []
        return self._now.markup.rest

    def _take(self, piece: Piece) -> list[Chunk]:
        now, plan = self._now, self._plan
        before, bounds = now.monitor.phase, None
        if before is not Phase.ANSWER and piece.phase is not Phase.ANSWER and piece.token.alternatives:
            bounds = token_entropy(piece.token, k=plan.k)
        forced = self._is_forced(piece.token.text)
        began = now.markup.phase
        spans = now.markup.take(piece.text, piece.phase) if piece.text else now.markup.silent(piece.token.text)
        token = piece.token
        if now.markup.phase is Phase.BEFORE and not piece.text:  # a special token, say: the output's text has not begun
            token = replace(token, text="")
        decision = now.monitor.feed(token, bounds, forced=forced, phase=piece.phase)
        now.fed += 1
        phase = now.monitor.phase
        late = now.cut is not None and phase is not Phase.ANSWER  # made before the server heard that it is to end the thinking
        if late and plan.engine is not None and not forced:
            self.closing, self._note = True, NOT_CLOSED
        answer = text_in(spans, Phase.ANSWER)
        if piece.phase is Phase.THINKING and not now.monitor.done and any(map(str.strip, now.answer)):
            now.monitor.release(INTERLEAVED)
        if now.markup.phase is not Phase.ANSWER or (began is Phase.THINKING and piece.phase is not Phase.ANSWER):
            now.reasoned += 1
            if not late:
                now.thinking.append((piece.token.text or piece.text).removesuffix(answer))
                unseen = not piece.text and began is now.markup.phase is Phase.THINKING  # a client may drop the text
                now.reasoning.append(piece.token.text if unseen else text_in(spans, Phase.THINKING))
        elif began is Phase.BEFORE:  # there is no thinking: what looked like the beginning of its tag is answer as well
            now.thinking.clear()
            now.reasoned = 0
        else:
            now.reasoning.append(text_in(spans, Phase.THINKING))  # what was kept back
        now.answer.append(answer)
        if phase is Phase.THINKING and not now.sighted:
            self._look(bounds)
        record = now.monitor.last
        if record is not None and record.step > len(now.steps):
            self._step_ended(record)
        if decision is Decision.PROBE:
            request = self._way("probe", self._raw())
            reads = self._policy is not None and self._policy.reads_probes
            self._probe, self.wants_probe = Reply("probe", before=now.fed), replace(request, logprobs=reads)
        elif decision is Decision.CLOSE:
            now.cut = self._raw()
            if plan.engine is not None:  # the server has decided the same, by the same policy
                now.markup.force()
                now.due = plan.tags.close + plan.tags.after
            else:
                self.wants_control, self.closing = plan.control, not plan.control
        return as_chunks([] if late or forced else spans, now.markup.phase, piece.token, bounds, forced=forced)

    def _is_forced(self, text: str) -> bool:
        """Whether a token is of the closing text that the server puts in after its decision."""
        now = self._now
        forced = bool(now.due) and now.due.startswith(text)
        now.due = now.due[len(text) :] if forced else ""
        return forced

    def _look(self, bounds: EntropyBounds | None) -> None:
        """A stop that silently never happens is the worst bug: say early where there is nothing to stop by."""
        now = self._now
        if bounds is not None:
            now.sighted = True
            self._check_k(bounds)
            return
        now.blind += 1
        if now.blind == PATIENCE:
            self._do_without(NO_LOGPROBS)

    def _do_without(self, what: str) -> None:
        """There are no logprobs: stop by what needs none, or run in full; raises where neither was allowed."""
        self._now.sighted = True
        policy, plan = self._policy, self._plan
        if self._unread:
            return
        if plan.without_logprobs == "error":
            self._now.monitor.switch_off(what)
            raise NoLogprobsError(f"{what}, so there is no entropy: {REMEDY}")
        if policy is not None and policy.active and plan.without_logprobs == "agreement":
            plan.known.warn(f"{plan.model}: {what}: stopping where two answers in a row agree (without_logprobs='agreement')")
            self._policy, self._unread = policy.by_agreement(), True
            self._now.monitor.judge_by(self._policy)
        else:
            plan.known.warn(f"{plan.model}: {what}: {'running in full' if policy else 'nothing is measured'}")
            self._now.monitor.switch_off(f"{what}: run in full")

    def _look_at(self, probe: Reply, found: Probe) -> None:
        """The same for a signal of tried answers: each of them costs tokens, and the server may tell none of it."""
        policy = self._policy
        if policy is None or not policy.reads_probes or found.answer is None:
            return
        if policy.signal == "eat" or not any(p.token.alternatives for p in probe.said):
            self._do_without(f"the server does not tell {policy.signal} of an answer")

    def _check_k(self, bounds: EntropyBounds) -> None:
        """A threshold belongs to its k. One fewer is what engines give that list the sampled token in the place of the k-th."""
        policy = self._policy
        if policy is None or policy.k is None or bounds.k >= policy.k - 1 or bounds.mass > 0.9999:
            return
        remedy = f"raise the server's limit, or calibrate with k={bounds.k}; on_mismatch='warn' goes on regardless"
        mismatch = PolicyMismatch("k", policy.k, bounds.k, remedy)
        if self._plan.on_mismatch == "error":
            raise mismatch
        warnings.warn(str(mismatch), stacklevel=2)

    def _step_ended(self, record: StepRecord) -> None:
        now, at = self._now, time.perf_counter()
        text = "".join(now.thinking[-record.tokens :])
        now.steps.append(GeneratedStep(record, text, now.fed, at - now.since))
        now.since = at

    def _raw(self) -> str:
        """The thinking so far."""
        return begun("".join(self._now.thinking), self._plan.tags, self._plan.opened)

    def controlled(self, done: bool) -> None:
        """The server was told to end the thinking; where it did not, the run goes on, and is a full one."""
        self.wants_control = False
        if done:
            self._now.markup.force()
        else:
            self._now.cut, self._undone = None, True
            self._why = "the server did not end the thinking: run in full"

    def feed_probe(self, update: Update) -> None:
        """A chunk of the probe's answer."""
        if self._probe is not None:
            self._probe.take(update)

    def probed(self) -> list[Chunk]:
        """The probe has ended: judge its answer; where that stops the run, it is the run's answer."""
        probe, self.wants_probe, self._probe = self._probe, None, None
        if probe is None:
            return []
        self._now.probes.append(probe)
        found = probe.probe(self._plan.tags, self._plan.k, self._policy.mass_floor if self._policy else None)
        self._look_at(probe, found)
        if self._now.monitor.answer(found.answer, found.signals) is not Decision.CLOSE or found.answer is None:
            return []
        self._probe_answer, self.closing = found.answer, True
        return [Chunk(found.answer, Phase.ANSWER)]

    # --- the run

    def _answer(self) -> str | None:
        now = self._now
        if self._probe_answer is not None:
            return self._probe_answer
        if now.again or now.markup.again:
            return None
        return ("".join(now.answer) + text_in(self._rest, Phase.ANSWER)).strip() or None

    def result(self) -> Generation:
        """The finished run."""
        now = self._now
        if now.monitor.segmentation.boundary == "call" and not now.steps:
            now.monitor.end_step()
            if now.monitor.last is not None:
                self._step_ended(now.monitor.last)
        return self._so_far()

    def _so_far(self) -> Generation:
        """The run as it is now."""
        run = self._generation(self._now, self._answer())
        if self._stopped is None:
            return run
        return run_instead(run, self._generation(self._stopped, None), self._stopped.monitor.finish(self._why))

    def _generation(self, now: _Attempt, answer: str | None) -> Generation:
        own = sum(s.tokens for s in now.streams)
        tokens = own + sum(s.tokens for s in now.probes)
        asked = now.streams[0].prompt
        again = (*now.streams[1:], *now.probes)
        outcome = now.monitor.finish(self._why, tokens=tokens)
        if self._undone:
            outcome = replace(outcome, stopped=False, tokens_saved=None)
        if self._note:
            outcome = replace(outcome, reason=f"{outcome.reason}; {self._note}")
        thought = now.markup.phase is not Phase.BEFORE  # else what was kept back is answer
        prefill = sum(max(0, s.prompt - asked) if s.prompt and asked else s.before for s in again)
        return Generation(
            reasoning="".join([*now.reasoning, text_in(now.markup.rest, Phase.THINKING)]).strip("\n"),
            answer=answer,
            steps=tuple(now.steps),
            outcome=outcome,
            tokens=tokens,
            reasoning_tokens=now.reasoned if thought else 0,
            prompt_tokens=asked or 0,
            rest_tokens=max(0, own - (now.steps[-1].end if now.steps else 0)),
            seconds=time.perf_counter() - now.start,
            finish_reason=finish_reason(now.streams[-1].finish),
            finish_raw=now.streams[-1].finish,
            prefill_tokens=prefill,
        )
