"""Where tokens come from: every backend offers the same calls, with the same results.

:class:`Backend` and :class:`AsyncBackend` are all that the rest of the package and both integrations ask of one.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, SupportsFloat, runtime_checkable

from entropy_chains.core.entropy import EntropyBounds
from entropy_chains.core.families import ThinkTags
from entropy_chains.core.finish_reasons import is_cut
from entropy_chains.core.monitor import Outcome
from entropy_chains.core.phases import Phase
from entropy_chains.core.policy import Policy
from entropy_chains.core.signals import StepRecord
from entropy_chains.core.steps import Segmentation
from entropy_chains.core.tokens import Token
from entropy_chains.core.tool_calls import ToolCall
from entropy_chains.errors import SettingsError, short
from entropy_chains.options import OnMismatch, check_counts

Message = dict[str, Any]
"""One chat message: ``{"role": …, "content": …}``."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. None leaves the model's own default.

    Attributes:
        temperature: 0 is greedy.
        top_p, top_k: nucleus and top-k sampling.
        max_tokens: most tokens of one reply, thinking included.
        seed: for the call; the same seed, settings and place in the call give the same tokens.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int = 4096
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, most, wanted in (("temperature", 99, "0 (greedy) or more"), ("top_p", 1, "a number from 0 to 1")):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, SupportsFloat) and 0 <= float(value) <= most):
                raise SettingsError(f"{name} is {short(value)}; it must be {wanted}")
        check_counts({"max_tokens": self.max_tokens})
        for name in ("top_k", "seed"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
                raise SettingsError(f"{name} is {short(value)}; it must be a whole number")


@dataclass(frozen=True, slots=True)
class GeneratedStep:
    """A finished step of one run.

    Attributes:
        record: its statistics.
        text: its text, tags included.
        end: tokens of the run up to and including its last.
        seconds: wall time since the step before, of the whole batch where it ran in one.
    """

    record: StepRecord
    text: str
    end: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Generation:
    """One finished run.

    Attributes:
        reasoning: the thinking's text, without tags.
        answer: what the user gets; None where the run ended before there was one.
        steps: the steps that ended at a boundary, in order.
        outcome: whether it was stopped, and why or why not.
        tokens: completion tokens computed: shown, forced, probed, and those of a discarded stop.
        reasoning_tokens: those of them before the answer.
        prompt_tokens: tokens of the prompt.
        prefill_tokens: tokens computed a second time, for probes and to go on after them.
        rest_tokens: tokens after the last boundary: closing tag and answer.
        seconds: wall time, of the whole batch where it ran in one.
        finish_reason: ``stop``, ``length`` or ``cancelled``; of a reply that the server broke off, the server's own word.
        token_ids: the completion's ids, where the backend has them.
        finish_raw: the server's own word in any case, as ``tool_calls``; None where it sent none.
        tool_calls: the calls of a local model's answer, where tools were offered or its family writes them as messages.
    """

    reasoning: str
    answer: str | None
    steps: tuple[GeneratedStep, ...]
    outcome: Outcome
    tokens: int
    reasoning_tokens: int
    prompt_tokens: int
    rest_tokens: int
    seconds: float
    finish_reason: str
    prefill_tokens: int = 0
    token_ids: tuple[int, ...] = ()
    finish_raw: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()

    @property
    def finish_told(self) -> str | None:
        """The server's own word; where it sent none, what cut the run off; None where nothing did."""
        return self.finish_raw or (self.finish_reason if is_cut(self.finish_reason) else None)


@dataclass(frozen=True, slots=True)
class Probe:
    """The answer a run would have given after a step.

    Attributes:
        answer: None where there was no room for one, or it is malformed or cut off.
        tokens: what finding out took, closing tag included.
        signals: what rules read of it, where the backend can: ``trial_entropy``, the mean entropy of the answer's tokens in bits,
            estimated as a step's; ``trial_confidence``, the mean of their probabilities (DEER, arXiv 2504.15895); and ``eat``,
            the entropy in bits over the whole vocabulary of the token after the closing text (arXiv 2509.26522). Of the model
            itself, before temperature; from a server, which cannot tell the last, as its logprobs are.
        again: there is no answer because the model thought again.
    """

    answer: str | None
    tokens: int
    signals: dict[str, float] = field(default_factory=dict)
    again: bool = False


@dataclass(frozen=True, slots=True)
class Chunk:
    """One token of a stream, or, last, the finished run.

    Attributes:
        text: text that became readable with this token; may be empty.
        phase: where the token belongs.
        token, bounds: the token and its entropy; None on the last chunk.
        forced: put in by a stop.
        final: the finished run, on the last chunk only.
    """

    text: str
    phase: Phase
    token: Token | None = None
    bounds: EntropyBounds | None = None
    forced: bool = False
    final: Generation | None = None


class LanguageModel(Protocol):
    """What every backend says of its model, sync or async."""

    @property
    def model(self) -> str:
        """The model's label, compared with the policy's."""
        ...

    @property
    def tags(self) -> ThinkTags:
        """The family's thinking tags. Raises SettingsError for a model that has none."""
        ...

    @property
    def segmentation(self) -> Segmentation:
        """The model's own steps, where no policy says how a stream is cut."""
        ...

    @property
    def template(self) -> str | None:
        """Hash of the chat template and the closing text, which a policy belongs to; None where nobody tells the template."""
        ...

    @property
    def context_window(self) -> int | None:
        """Tokens that prompt and reply may have together; None where nobody says."""
        ...

    def details(self, sampling: Sampling = ..., segmentation: Segmentation | None = None) -> dict[str, Any]:
        """How its entropies come about, as in a trace: estimator, k, temperature and its mode, segmentation, template.

        ``recorded_with`` holds what else shapes a recording, by name, where there is anything.
        """
        ...

    def with_template(self, **settings: Any) -> Self:
        """The same backend with further settings of the chat template, such as ``tools``; this one stays as it is."""
        ...


class Backend(LanguageModel, Protocol):
    """A source of tokens with entropies. Its calls may be made from several threads at once."""

    @property
    def concurrency(self) -> int | None:
        """Most requests at a time; None: a call runs its conversations together as a batch."""
        ...

    def worker(self, cancelled: threading.Event) -> Self:
        """The same backend, whose ``generate`` and ``probe`` do their work in the thread that calls them.

        Once ``cancelled`` is set they end at their next token, and what they return is good for nothing. A stream is ended by
        closing it.
        """
        ...

    def generate(
        self,
        conversations: Sequence[Sequence[Message]],
        *,
        policy: Policy | None = None,
        sampling: Sampling = ...,
        segmentation: Segmentation | None = None,
        stop: bool = True,
        holdout: Sequence[bool] | None = None,
        on_mismatch: OnMismatch = "error",
    ) -> list[Generation]:
        """Answer every conversation, each stopped early where the policy says so.

        Args:
            conversations: what is asked.
            policy: when to stop; None only measures.
            sampling: how tokens are drawn.
            segmentation: how the streams are cut, without a policy.
            stop: False only watches: the outcome tells where it would have stopped.
            holdout: conversations that run in full on purpose.
            on_mismatch: ``error`` or ``warn`` where the policy was calibrated for something else.

        Raises:
            PolicyMismatch: the policy is for something else; before anything runs.
            BatchError: some conversations failed; the others' runs are on it. Where every one failed, the first one's own error.
        """
        ...

    def stream(
        self,
        messages: Sequence[Message],
        *,
        policy: Policy | None = None,
        sampling: Sampling = ...,
        segmentation: Segmentation | None = None,
        stop: bool = True,
        holdout: bool = False,
        on_mismatch: OnMismatch = "error",
    ) -> Generator[Chunk, None, None]:
        """Answer one conversation token by token, the run on the last chunk; closing the generator ends the work at once."""
        ...

    def probe(self, runs: Sequence[tuple[Sequence[Message], Generation, int]], *, sampling: Sampling) -> list[Probe]:
        """The answer each run (conversation, its full run, step from 1) gives if its thinking is closed after that step."""
        ...


class AsyncBackend(LanguageModel, Protocol):
    """The same for ``asyncio``; each call as its twin in :class:`Backend`. Cancelling the task that waits ends the work."""

    async def agenerate(
        self,
        conversations: Sequence[Sequence[Message]],
        *,
        policy: Policy | None = None,
        sampling: Sampling = ...,
        segmentation: Segmentation | None = None,
        stop: bool = True,
        holdout: Sequence[bool] | None = None,
        on_mismatch: OnMismatch = "error",
    ) -> list[Generation]:
        """See :meth:`Backend.generate`."""
        ...

    def astream(
        self,
        messages: Sequence[Message],
        *,
        policy: Policy | None = None,
        sampling: Sampling = ...,
        segmentation: Segmentation | None = None,
        stop: bool = True,
        holdout: bool = False,
        on_mismatch: OnMismatch = "error",
    ) -> AsyncGenerator[Chunk, None]:
        """See :meth:`Backend.stream`."""
        ...

    async def aprobe(self, runs: Sequence[tuple[Sequence[Message], Generation, int]], *, sampling: Sampling) -> list[Probe]:
        """See :meth:`Backend.probe`."""
        ...


@runtime_checkable
class MayLackLogprobs(Protocol):
    """What a backend has besides whose model may give no logprobs, as that behind an API."""

    without_logprobs: str
    """What a run that a policy may stop does then: ``error``, ``agreement`` or ``full``."""

    def for_loop(self, policy: Policy | None, *, stop: bool, on_mismatch: OnMismatch = "error") -> Self:
        """The backend for the calls of a loop, which have no policy of their own: they need logprobs, and how many, as it does."""
        ...
