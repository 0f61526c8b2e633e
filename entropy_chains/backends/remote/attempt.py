"""One attempt at a reply, token by token: what is shown of it, the steps that end, the run that it is. Pure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from entropy_chains.backends import Chunk, GeneratedStep, Generation
from entropy_chains.backends.remote.continuations import begun
from entropy_chains.backends.remote.criterion import Criterion
from entropy_chains.backends.remote.plan import Plan
from entropy_chains.backends.remote.readers import Piece
from entropy_chains.backends.remote.reply import Reply
from entropy_chains.backends.text.markup import AnswerMarkup, Markup, Span, as_chunks, text_in
from entropy_chains.core.entropy import EntropyBounds, token_entropy
from entropy_chains.core.finish_reasons import finish_reason
from entropy_chains.core.monitor import Decision, Monitor
from entropy_chains.core.phases import Phase
from entropy_chains.core.signals import StepRecord
from entropy_chains.core.steps import Segmentation

MOST_BARE_TOKENS = 16
"""Reasoning tokens without any logprobs after which they are given up."""

INTERLEAVED = "thinking goes on after the answer has begun: run in full"
NOT_CLOSED = "the server's plug-in did not close the thinking, so the stream was closed"


class Attempt:
    """One attempt: with stopping, or in full after a stop whose answer was malformed.

    Args:
        plan, criterion: how it is asked for and read, and what it is stopped by.
        segmentation: as in :class:`entropy_chains.core.monitor.Monitor`.
        stop, holdout: likewise.

    Attributes:
        streams: what came of its requests, the running one last; of its probes: ``probes``.
        fed: tokens taken.
        cut: the thinking that the answer is asked for after, or None.
        again: after a stop the model thinks anew.
        called: a tool call or a refusal is an answer without text; said: the answer has text.
        overrun: the engine went on after it was to close the thinking.
        undone: the stop had no effect.
        listed: a token has had logprobs.
        unread: text came that could not be read.
        why: replaces the outcome's reason.
        probed: the answer of a probe that stopped it.
    """

    def __init__(self, plan: Plan, criterion: Criterion, *, segmentation: Segmentation | None, stop: bool, holdout: bool = False):
        self._plan, self._criterion = plan, criterion
        self.monitor = Monitor(
            criterion.policy,
            segmentation=segmentation,
            tags=plan.tags,
            thinking=plan.opened,
            stop=stop,
            holdout=holdout,
        )
        if plan.uncut:
            self.monitor.switch_off(plan.uncut)
        self.markup = Markup(plan.tags, Phase.THINKING if plan.opened else Phase.BEFORE)
        self.streams: list[Reply] = []
        self.probes: list[Reply] = []
        self.fed = 0
        self.cut: str | None = None
        self.why: str | None = None
        self.probed: str | None = None
        self.again = self.called = self.overrun = self.undone = self.said = self.listed = self.unread = False
        self._steps: list[GeneratedStep] = []
        self._thinking: list[str] = []  # raw texts of the tokens, tags included where the server sends them
        self._shown: list[str] = []  # of the thinking
        self._answer: list[str] = []
        self._after = AnswerMarkup(plan.tags)  # of the answer's own request
        self._reasoned = self._blind = 0  # reasoning tokens; those without logprobs, before there were any
        self._dropped = 0  # those of which the client hands on nothing at all
        self._sighted = False  # logprobs were seen, or given up
        self._due = ""  # closing text that the engine is still to put in
        self._start = self._since = time.perf_counter()

    # --- tokens

    def take(self, piece: Piece) -> tuple[list[Chunk], Decision]:
        """The next token of the run: what is shown of it, and what the monitor decides.

        Raises:
            NoLogprobsError, PolicyMismatch: there is nothing to stop by, as :class:`.criterion.Criterion` has it.
        """
        plan, monitor, markup, token = self._plan, self.monitor, self.markup, piece.token
        bounds = None
        self.listed = self.listed or bool(token.alternatives)
        if token.alternatives and monitor.phase is not Phase.ANSWER and piece.phase is not Phase.ANSWER:
            bounds = token_entropy(token, k=self._criterion.k)
        forced = self._is_forced(token.text)
        began = markup.phase
        spans = markup.take(piece.text, piece.phase) if piece.text else markup.silent(token.text)
        if markup.phase is Phase.BEFORE and not piece.text:  # a special token, say: the output's text has not begun
            token = replace(token, text="")
        decision = monitor.feed(token, bounds, forced=forced, phase=piece.phase)
        self.fed += 1
        phase = monitor.phase
        late = self.cut is not None and phase is not Phase.ANSWER  # made before the server heard that it is to end the thinking
        self.overrun = self.overrun or (late and plan.engine is not None and not forced)
        if piece.phase is Phase.THINKING and self.said and not monitor.done:
            monitor.release(INTERLEAVED)
        self._keep(piece, spans, began, late)
        self._dropped += phase is Phase.THINKING and not (piece.text or token.text or token.alternatives)
        if phase is Phase.THINKING and not self._sighted:
            self._look(piece, bounds)
        record = monitor.last
        if record is not None and record.step > len(self._steps):
            self._step_ended(record)
        if decision is Decision.CLOSE:
            self.cut = self.raw
            if plan.engine is not None:  # it has decided the same, by the same policy
                markup.force()
                self._due = plan.tags.close + plan.tags.after
        return as_chunks([] if late or forced else spans, markup.phase, piece.token, bounds, forced=forced), decision

    def _is_forced(self, text: str) -> bool:
        """Whether a token is of the closing text that the engine puts in after its decision."""
        if not self._due:
            return False
        forced = self._due.startswith(text)
        self._due = self._due[len(text) :] if forced else ""
        return forced

    def _keep(self, piece: Piece, spans: Sequence[Span], began: Phase, late: bool) -> None:
        """Put a token's text where it belongs. ``began``: where the text before it ended."""
        now, answer = self.markup.phase, text_in(spans, Phase.ANSWER)
        if now is not Phase.ANSWER or (began is Phase.THINKING and piece.phase is not Phase.ANSWER):
            self._reasoned += 1
            if not late:
                self._thinking.append((piece.token.text or piece.text).removesuffix(answer))
                unseen = not piece.text and began is now is Phase.THINKING  # a client may drop the text
                self._shown.append(piece.token.text if unseen else text_in(spans, Phase.THINKING))
        elif began is Phase.BEFORE:  # there is no thinking: what looked like the beginning of its tag is answer as well
            self._thinking.clear()
            self._reasoned = 0
        else:
            self._shown.append(text_in(spans, Phase.THINKING))  # what was kept back
        self._say(answer)

    def _say(self, text: str) -> None:
        """Add to the answer."""
        self._answer.append(text)
        self.said = self.said or bool(text.strip())

    def _look(self, piece: Piece, bounds: EntropyBounds | None) -> None:
        """Check early that there is something to stop by: a stop that silently never happens is the worst bug."""
        if bounds is not None:
            self._sighted = True
            self._criterion.check_k(bounds)
            return
        self._blind += 1
        if self._blind == MOST_BARE_TOKENS:
            self.do_without(self._criterion.unlisted if piece.text else self._criterion.dropped)

    def do_without(self, what: str) -> None:
        """There are no logprobs; see :meth:`.criterion.Criterion.do_without`."""
        self._sighted = True
        self._criterion.do_without(what, self.monitor)

    def whole(self) -> None:
        """The reply comes in one piece: nothing can be stopped in it; see :meth:`.criterion.Criterion.came_whole`."""
        self._sighted = True
        self._criterion.came_whole(self.monitor)

    def _step_ended(self, record: StepRecord) -> None:
        at, text = time.perf_counter(), "".join(self._thinking[-record.tokens :])
        self._steps.append(GeneratedStep(record, text, self.fed, at - self._since))
        self._since = at

    @property
    def raw(self) -> str:
        """The thinking so far, as the model wrote it."""
        return begun("".join(self._thinking), self._plan.tags, self._plan.opened)

    # --- the answer

    def ask(self, limit: int | None) -> None:
        """A request for the answer follows, of so many tokens at most: what comes is :meth:`answered`."""
        self._after = AnswerMarkup(self._plan.tags)
        self.streams.append(Reply("answer", before=self.fed, limit=limit))

    def answered(self, pieces: Sequence[Piece]) -> list[Chunk]:
        """Tokens of the answer's own request: what is shown of them. ``again`` is set where the model thinks anew."""
        chunks = list[Chunk]()
        for piece in pieces:
            self.fed += 1
            if piece.phase is Phase.THINKING:
                self.again = self.again or (bool(piece.text.strip()) and not self.said)
            elif not self.again:  # text of one chunk: what follows the thinking is thrown away with it
                text = self._after.take(piece.text)
                self._say(text)
                chunks.append(Chunk(text, Phase.ANSWER, piece.token))
        self.again = self.again or self._after.again or (self.streams[-1].thinks_unseen and not self.said)
        return chunks

    @property
    def rest(self) -> list[Span]:
        """Text of the running stream that is kept back; shown where the stream ends by itself."""
        if self.streams[-1].purpose == "answer":
            return [(Phase.ANSWER, self._after.rest)] if self._after.rest else []
        return self.markup.rest

    @property
    def answer(self) -> str | None:
        """The answer so far; None where there is none, or thinking was begun again."""
        if self.probed is not None:
            return self.probed
        if self.again or self.markup.again:
            return None
        return ("".join(self._answer) + text_in(self.rest, Phase.ANSWER)).strip() or None

    @property
    def answering(self) -> bool:
        """A part of the answer was shown, or is a tool call or a refusal."""
        return any(self._answer) or self.called

    @property
    def was_silent(self) -> bool:
        """There was text, and nothing to measure in it."""
        return not self.listed and (self.unread or self.said or self._reasoned > 0)

    @property
    def unjudged(self) -> bool:
        """Logprobs came, and no step had enough of them for an entropy, or no step could be seen."""
        has_entropy = any(step.record.entropy is not None for step in self._steps)
        return self.listed and not has_entropy and (bool(self._steps) or self._dropped >= MOST_BARE_TOKENS)

    # --- the run

    def end_call(self) -> None:
        """The call of a loop has ended, which is one step."""
        if self.monitor.segmentation.boundary == "call" and not self._steps:
            self.monitor.end_step()
            if self.monitor.last is not None:
                self._step_ended(self.monitor.last)

    def generation(self, answer: str | None) -> Generation:
        """The run as it is now, with this answer."""
        stream_tokens = sum(s.tokens for s in self.streams)
        tokens = stream_tokens + sum(s.tokens for s in self.probes)
        prompt = self.streams[0].prompt
        later = (*self.streams[1:], *self.probes)
        outcome = self.monitor.finish(self.why, tokens=tokens)
        if self.undone:
            outcome = replace(outcome, stopped=False, tokens_saved=None)
        if self.overrun:
            outcome = replace(outcome, reason=f"{outcome.reason}; {NOT_CLOSED}")
        thought = self.markup.phase is not Phase.BEFORE  # else what was kept back is answer
        return Generation(
            reasoning="".join([*self._shown, text_in(self.markup.rest, Phase.THINKING)]).strip("\n"),
            answer=answer,
            steps=tuple(self._steps),
            outcome=outcome,
            tokens=tokens,
            reasoning_tokens=self._reasoned if thought else 0,
            prompt_tokens=prompt or 0,
            rest_tokens=max(0, stream_tokens - (self._steps[-1].end if self._steps else 0)),
            seconds=time.perf_counter() - self._start,
            finish_reason=finish_reason(self.streams[-1].end),
            finish_raw=self.streams[-1].finish,
            prefill_tokens=sum(max(0, s.prompt - prompt) if s.prompt and prompt else s.before for s in later),
        )
