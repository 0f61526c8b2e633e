r"""A backend that plays a script: for tests, examples and documentation of anything built on :class:`Backend`.

It decides through the real :class:`entropy_chains.core.monitor.Monitor` and counts as a real backend does: closing tag, probes and
the tokens of a stop that was thrown away. The same script always gives the same run; sampling settings but ``max_tokens``
change nothing. It needs neither torch nor a network::

    script = Script([("Add 2 and 2: 4.\n\n", 0.9), ("Check: 4.\n\n", 0.1)], answer="4")
    backend = ScriptedBackend({"2+2=?": script})
"""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import AsyncGenerator, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from typing import Any, Self

from entropy_chains.backends import Chunk, GeneratedStep, Generation, Message, Probe, Sampling
from entropy_chains.backends.text.answer import MALFORMED, broken_off, run_instead
from entropy_chains.backends.text.markup import Markup, Span, as_chunks, clean_answer, text_in
from entropy_chains.backends.text.pieces import ALTERNATIVES, Piece, token_of, words
from entropy_chains.core.entropy import token_entropy
from entropy_chains.core.families import ThinkTags, template_hash
from entropy_chains.core.monitor import Decision, Monitor
from entropy_chains.core.phases import Phase
from entropy_chains.core.policy import Policy, stopping_enabled
from entropy_chains.core.signals import Tally
from entropy_chains.core.steps import Segmentation
from entropy_chains.core.tokens import Token
from entropy_chains.errors import BackendError, InputError, all_of, outcome
from entropy_chains.options import OnMismatch, check_counts


@dataclass(frozen=True, slots=True)
class Script:
    """What the model says to one question.

    Attributes:
        thinking: its reasoning, a piece a token, without tags; empty for a reply without thinking.
        answer: its answer after the full thinking: text (a token a word) or pieces.
        early: the answers if the thinking is closed after step 1, 2, …, the last one repeated; empty text or None is a malformed
            one. Nothing given: the full run's answer.
        fail_at: the run fails at this token, from 1, with a :class:`BackendError`.
        closes: False for a model that never ends its thinking by itself.
    """

    thinking: Sequence[Piece] = ()
    answer: str | Sequence[Piece] = ""
    early: Sequence[str | None] = ()
    fail_at: int | None = None
    closes: bool = True

    def answer_after(self, step: int) -> Sequence[Piece]:
        """The pieces of the answer if the thinking is closed after ``step``, from 1."""
        if not self.early:
            return words(self.answer)
        return words(self.early[min(step, len(self.early)) - 1] or "")


class ScriptedBackend:
    """Plays scripts through the real monitor: a :class:`Backend` and an :class:`AsyncBackend` in one.

    Args:
        scripts: one for every question; or one for each, by the text of a user message; or several for each, played turn by
            turn (the refine loop), the last one repeated.
        name: the label compared with the policy's model.
        segmentation: the model's own steps.
        think_tags: thinking tags.
        template: stands in for the chat template's text.
        k: alternatives that entropy is computed from when there is no policy.

    Attributes:
        template_settings: what :meth:`with_template` was told. A script says the same whatever that is.
    """

    estimator_mode = "raw"
    concurrency: int | None = None
    context_window: int | None = None
    _cancelled: threading.Event | None = None

    def __init__(
        self,
        scripts: Script | Mapping[str, Script | Sequence[Script]],
        *,
        name: str = "scripted",
        segmentation: Segmentation | None = None,
        think_tags: ThinkTags | None = None,
        template: str = "scripted",
        k: int | None = ALTERNATIVES,
    ):
        check_counts({"k": k}, ", or None for all alternatives")
        self._scripts, self._name, self._k = scripts, name, k
        self._segmentation = segmentation or Segmentation("blank_line", 1)
        self._tags = think_tags or ThinkTags()
        self._template = template
        self.template_settings: dict[str, Any] = {}

    @property
    def model(self) -> str:
        """The model's label."""
        return self._name

    def worker(self, cancelled: threading.Event) -> Self:
        """See :class:`entropy_chains.backends.Backend`."""
        other = copy.copy(self)
        other._cancelled = cancelled
        return other

    def with_template(self, **settings: Any) -> Self:
        """The same with further settings of the chat template, which are kept and change nothing."""
        other = copy.copy(self)
        other.template_settings = {**self.template_settings, **settings}
        return other

    @property
    def tags(self) -> ThinkTags:
        """The thinking tags."""
        return self._tags

    @property
    def segmentation(self) -> Segmentation:
        """The model's own steps."""
        return self._segmentation

    @property
    def template(self) -> str:
        """Hash of the template and the closing text: a policy belongs to it."""
        return template_hash(self._template, self._tags)

    def details(self, sampling: Sampling = Sampling(), segmentation: Segmentation | None = None) -> dict[str, Any]:
        """What a trace says about how its entropies came about."""
        return {
            "estimator": "renormalised",
            "k": self._k,
            "temperature": sampling.temperature,
            "temperature_mode": self.estimator_mode,
            "segmentation": (segmentation or self._segmentation).to_dict(),
            "template": self.template,
        }

    def generate(
        self,
        conversations: Sequence[Sequence[Message]],
        *,
        policy: Policy | None = None,
        sampling: Sampling = Sampling(),
        segmentation: Segmentation | None = None,
        stop: bool = True,
        holdout: Sequence[bool] | None = None,
        on_mismatch: OnMismatch = "error",
    ) -> list[Generation]:
        """Answer every conversation; see :class:`entropy_chains.backends.Backend`.

        Raises:
            BatchError: some scripts fail; the others' runs are on it. Where all fail, the first one's own error.
        """
        steps = self._check(policy, sampling, segmentation, on_mismatch)

        def whole(messages: Sequence[Message], held: bool) -> Generation:
            *_, last = self._play(messages, policy, sampling, steps, stop and stopping_enabled(), held)
            return _final(last)

        held = [False] * len(conversations) if holdout is None else holdout
        return all_of([outcome(whole, m, h) for m, h in zip(conversations, held, strict=True)])

    def stream(
        self,
        messages: Sequence[Message],
        *,
        policy: Policy | None = None,
        sampling: Sampling = Sampling(),
        segmentation: Segmentation | None = None,
        stop: bool = True,
        holdout: bool = False,
        on_mismatch: OnMismatch = "error",
    ) -> Generator[Chunk, None, None]:
        """Answer one conversation token by token; see :class:`entropy_chains.backends.Backend`."""
        segmentation = self._check(policy, sampling, segmentation, on_mismatch)
        yield from self._play(messages, policy, sampling, segmentation, stop and stopping_enabled(), holdout)

    def probe(self, runs: Sequence[tuple[Sequence[Message], Generation, int]], *, sampling: Sampling) -> list[Probe]:
        """See :class:`entropy_chains.backends.Backend`."""
        return [self._probe(self._script(messages), step, sampling, self._k) for messages, _, step in runs]

    async def agenerate(self, conversations: Sequence[Sequence[Message]], **settings: Any) -> list[Generation]:
        """See :class:`entropy_chains.backends.AsyncBackend`; a script is over at once."""
        return self.generate(conversations, **settings)

    async def astream(self, messages: Sequence[Message], **settings: Any) -> AsyncGenerator[Chunk, None]:
        """See :class:`entropy_chains.backends.AsyncBackend`; between two tokens other tasks have their turn."""
        with closing(self.stream(messages, **settings)) as chunks:
            for chunk in chunks:
                await asyncio.sleep(0)
                yield chunk

    async def aprobe(self, runs: Sequence[tuple[Sequence[Message], Generation, int]], *, sampling: Sampling) -> list[Probe]:
        """See :class:`entropy_chains.backends.AsyncBackend`."""
        return self.probe(runs, sampling=sampling)

    def _check(
        self, policy: Policy | None, sampling: Sampling, segmentation: Segmentation | None, on_mismatch: OnMismatch
    ) -> Segmentation:
        if policy is None:
            return segmentation or self._segmentation
        policy.check(
            on_mismatch=on_mismatch,
            temperature=sampling.temperature,
            max_tokens=sampling.max_tokens,
            mode="thinking",
            model=self._name,
            template=self.template,
            temperature_mode=self.estimator_mode,
            **({"segmentation": segmentation} if segmentation else {}),
        )
        return policy.segmentation

    def _script(self, messages: Sequence[Message]) -> Script:
        if isinstance(self._scripts, Script):
            return self._scripts
        questions = [m["content"] for m in messages if m["role"] == "user"]
        entry = next((self._scripts[text] for text in questions if text in self._scripts), None)
        if entry is None:
            raise InputError(f"no script for {questions!r}; the backend has scripts for {sorted(self._scripts)!r}")
        if isinstance(entry, Script):
            return entry
        turn: Script = entry[min(sum(m["role"] == "assistant" for m in messages), len(entry) - 1)]
        return turn

    def _closing(self) -> list[Token]:
        return [Token(text) for text in (self._tags.close, self._tags.after) if text]

    def _probe(self, script: Script, step: int, sampling: Sampling, k: int | None) -> Probe:
        whole = [token_of(p) for p in script.answer_after(step)]
        tokens, tally = whole[: sampling.max_tokens], Tally()
        for token in tokens:
            tally.add(token_entropy(token, k=k))
        answer = clean_answer("".join(t.text for t in tokens), self._tags) if tokens == whole else None
        return Probe(answer, len(self._closing()) + len(tokens), {} if answer is None else tally.trial())

    def _tokens(self, script: Script, boundary: str) -> Iterator[tuple[Token, bool]]:
        """The full run's tokens; none of them is forced."""
        thinking: Iterable[Token] = map(token_of, script.thinking)
        if script.thinking and boundary != "call":
            thinking = chain([Token(self._tags.open)], thinking, self._closing() if script.closes else ())
        answer = map(token_of, words(script.answer)) if script.closes else ()
        return ((token, False) for token in chain(thinking, answer))

    def _play(
        self,
        messages: Sequence[Message],
        policy: Policy | None,
        sampling: Sampling,
        segmentation: Segmentation,
        stop: bool,
        holdout: bool,
    ) -> Generator[Chunk, None, None]:
        """A chunk for every token, and last the finished run."""
        script, tags = self._script(messages), self._tags
        monitor, markup = Monitor(policy, segmentation=segmentation, tags=tags, stop=stop, holdout=holdout), Markup(tags)
        k = self._k if policy is None else policy.k
        source = self._tokens(script, segmentation.boundary)
        texts: list[str] = []
        steps: list[GeneratedStep] = []
        spans: list[Span] = []
        reasoned = 0  # tokens up to the end of the thinking
        probed = prefill = 0
        probe_answer: str | None = None  # the answer of a probe that the run was stopped with
        finish = "length"

        def so_far(answer: str | None) -> Generation:
            return Generation(
                reasoning=text_in(spans, Phase.THINKING).strip("\n"),
                answer=answer,
                steps=tuple(steps),
                outcome=monitor.finish(tokens=len(texts) + probed),
                tokens=len(texts) + probed,
                reasoning_tokens=reasoned,
                prompt_tokens=sum(len(words(str(m["content"]))) for m in messages),
                rest_tokens=len(texts) - (steps[-1].end if steps else 0),
                seconds=0.0,
                finish_reason=finish,
                finish_raw=finish,
                prefill_tokens=prefill,
            )

        while len(texts) < sampling.max_tokens:
            token, forced = next(source, (None, False))
            if token is None or (self._cancelled is not None and self._cancelled.is_set()):
                finish = "cancelled" if token else "stop"
                break
            if len(texts) + 1 == script.fail_at:
                raise broken_off(BackendError(f"the script fails at token {script.fail_at}, as it was told to"), so_far(None))
            bounds = None if forced else token_entropy(token, k=k)
            decision = monitor.feed(token, bounds, forced=forced)
            texts.append(token.text)
            before = markup.phase
            new = markup.take(token.text)
            spans += new
            if Phase.THINKING in (before, markup.phase):
                reasoned = len(texts)
            yield from as_chunks(new, markup.phase, token, bounds, forced=forced)
            if monitor.last is not None and monitor.last.step > len(steps):
                steps.append(_step(monitor, texts))
            if decision is Decision.PROBE:
                probe = self._probe(script, monitor.steps, sampling, k)
                probed += probe.tokens
                decision = monitor.answer(probe.answer, probe.signals)
                if decision is Decision.CLOSE:
                    probe_answer, finish = probe.answer, "stop"
                    yield Chunk(probe_answer or "", Phase.ANSWER)
                    break
                prefill += len(texts)
            if decision is Decision.CLOSE:
                markup.force()
                rest = map(token_of, script.answer_after(monitor.steps))
                source = chain(((t, True) for t in self._closing()), ((t, False) for t in rest))
        if segmentation.boundary == "call":
            monitor.end_step()
            steps.append(_step(monitor, texts))
        for phase, text in markup.rest:
            yield Chunk(text, phase)
        spans += markup.rest
        answer = probe_answer
        if answer is None and not markup.again:
            answer = text_in(spans, Phase.ANSWER).strip() or None
        run = so_far(answer)
        if run.outcome.stopped and run.answer is None:
            for chunk in self._play(messages, policy, sampling, segmentation, False, holdout):
                if chunk.final is None:
                    yield chunk
                else:
                    run = run_instead(chunk.final, run, monitor.finish(MALFORMED, tokens=run.tokens))
        yield Chunk("", Phase.ANSWER, final=run)


def _step(monitor: Monitor, texts: Sequence[str]) -> GeneratedStep:
    record = monitor.last
    if record is None:  # pragma: no cover - asked only after a step ended
        raise BackendError("no step has ended")
    return GeneratedStep(record, "".join(texts[len(texts) - record.tokens :]), len(texts), 0.0)


def _final(chunk: Chunk) -> Generation:
    if chunk.final is None:  # pragma: no cover - a play always ends with its run
        raise BackendError("the script ended without a run")
    return chunk.final
