"""Following one LLM call by its events, and ending its stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from llama_index.llms.entropy_chains._native import instead_of
from llama_index.llms.entropy_chains._runs import SCOPES, current_request
from llama_index.llms.entropy_chains._streams import (
    End,
    current_end,
    is_soft_client,
    soft_client,
    uses_sdk,
)
from llama_index.llms.entropy_chains._summary import MeasuredCall
from llama_index.llms.entropy_chains.tracing import current_span, mark_request

from entropy_chains import Outcome, Policy, Segmentation, ThinkTags
from entropy_chains.adapters import (
    Added,
    ChatReader,
    Close,
    CompletionReader,
    Dialogue,
    OnMismatch,
    Plan,
    ResponsesReader,
    TokenCount,
    Update,
    forms,
    give_class,
    held_back,
    own_class,
    read_message,
    subclass,
    unpickled,
)
from entropy_chains.errors import EntropyChainsError, PolicyMismatch, SettingsError

NOT_STREAMED = "this call does not stream, so an event handler cannot stop it: use EarlyStopLLM"
NOT_PREPARED = "this LLM's streams cannot be ended by the handler: call handler.prepare(llm), or use EarlyStopLLM"
NO_PROBE = "the rule reads trial answers, which an event handler cannot ask for: use EarlyStopLLM"
HAS_TOOLS = "the call has tools: run in full"


class Ending(End):
    """The end of a stream that a handler may ask for; one of ``EarlyStopLLM``'s own is left to it.

    Attributes:
        uncut: why the request runs in full, or None: a handler could not ask for the tool call, or the form, after a stop.
    """

    __slots__ = ("uncut",)

    def __init__(self, body: Mapping[str, Any]):
        super().__init__()
        has_tools = body.get("tools") or body.get("functions")
        self.uncut = forms.never_cut(forms.merged(body)) or (HAS_TOOLS if has_tools else None)


class _Ended(Added):
    """What :func:`end_streams` puts before an LLM's class: each of its clients is given out as a copy whose streams have an end.

    No client is kept, and no key: the LLM makes and keeps its own as before, and a copy of the LLM does as well.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        give_class(self, own_class(self))  # another LLM than the one that was given to the handler, and no copy of it

    def __reduce__(self) -> Any:
        return _unpickled, (own_class(self), self.__getstate__())


def _client_with_ends(client: Any) -> Any:
    """A client whose streams have an end: those of an ``EarlyStopLLM`` have its own."""
    return client if is_soft_client(client) else soft_client(client, lambda options: Ending(_body(options)))


class _EndedByMethod(_Ended):
    """For LLMs that ask a method for their client."""

    def _get_client(self) -> Any:
        return _client_with_ends(super()._get_client())  # type: ignore[misc]  # the LLM's

    def _get_aclient(self) -> Any:
        return _client_with_ends(super()._get_aclient())  # type: ignore[misc]


class _EndedByField(_Ended):
    """For LLMs that keep their clients as private attributes."""

    @property
    def _client(self) -> Any:
        return _client_with_ends(self.__pydantic_private__["_client"])  # type: ignore[attr-defined]

    @property
    def _aclient(self) -> Any:
        return _client_with_ends(self.__pydantic_private__["_aclient"])  # type: ignore[attr-defined]


@cache
def _class_with_ends(kind: Any) -> Any:
    """The class of the LLMs of a class whose streams have an end."""
    return subclass(kind, _EndedByMethod if hasattr(kind, "_get_client") else _EndedByField, "use EarlyStopLLM")


def _unpickled(kind: type, state: Any) -> Any:
    """Such an LLM as it was pickled."""
    return unpickled(kind, state, _class_with_ends(kind))


def end_streams(llm: Any) -> None:
    """From now on every stream of this LLM, and of its copies, has an end of its own.

    Raises:
        SettingsError: it does not use the SDK, or its class allows no subclass.
    """
    if isinstance(llm, _Ended):
        return
    if not uses_sdk(llm):
        remedy = instead_of(llm) or "an OpenAI or OpenAILike, or EarlyStopLLM"
        raise SettingsError(f"the streams of {type(llm).__name__} cannot be ended from outside; use {remedy}")
    kind: Any = type(llm)
    give_class(llm, _class_with_ends(kind))


def _body(options: Any) -> dict[str, Any]:
    """A request's JSON, what ``extra_body`` adds included."""
    return {**(options.json_data or {}), **(options.extra_json or {})}


@dataclass(frozen=True, slots=True)
class HandlerTerms:
    """How calls are followed; see :class:`.handlers.EntropyEventHandler`."""

    policy: Policy | None
    stop: bool
    on_mismatch: OnMismatch
    segmentation: Segmentation | None
    k: int
    tags: ThinkTags
    opened: bool

    def dialogue(self, policy: Policy | None, stop: bool) -> Dialogue:
        """What follows the tokens; nothing is sent."""
        plan = Plan(self.tags, (), self.k, self.opened, on_mismatch=self.on_mismatch)
        # A call that the policy is not for is cut into the policy's steps all the same.
        segmentation = self.segmentation if self.policy is None else self.policy.segmentation
        dialogue = Dialogue((), plan, policy=policy, segmentation=segmentation, stop=stop)
        dialogue.start()
        return dialogue


class CallMeasurement:
    """One LLM call, from its start event to its end.

    Attributes:
        run_request: the request of a wrapper's run that it is, if it is one.
        scope: where it runs.
    """

    def __init__(self, terms: HandlerTerms, model_dict: Mapping[str, Any], span_id: str):
        self._terms, self.scope = terms, SCOPES.at(span_id)
        self._model = str(model_dict.get("model") or model_dict.get("model_name") or model_dict.get("class_name") or "")
        self._span = current_span()
        self._held = held_back(forms.merged(model_dict.get("additional_kwargs")).get("stop"))
        self.run_request = current_request.get()
        self._policy, self._why = self._judging()
        self._reader: Any = None
        self._dialogue: Dialogue | None = None
        self._closed = False  # the policy stops the run
        self._blind = False  # nothing can be measured: tokens are still counted
        self._count = TokenCount()  # of all that came, read or not

    def _judging(self) -> tuple[Policy | None, str | None]:
        """The policy, if it is for this call; else why not."""
        policy = self._terms.policy
        if policy is not None:
            try:
                policy.check(on_mismatch=self._terms.on_mismatch, mode="thinking", model=self._model)
            except PolicyMismatch as mismatch:
                return None, str(mismatch)
        return policy, None

    def chunk(self, response: Any) -> None:
        """A chunk of a stream."""
        raw, end = response.raw, current_end.get()
        current_end.set(None)  # the next stream read here may be one that has no end
        if self._reader is None and (reader := reader_of(raw)) is not None:
            self._reader = reader(self._held)
            self._begin(end.uncut if isinstance(end, Ending) else NOT_PREPARED)
        if self._reader is None:
            return
        self._feed(lambda: self._reader.feed(raw))
        if self._closed and end is not None:
            end.due = True

    def _begin(self, cannot: str | None) -> None:
        policy, stop = self._policy, self._terms.stop and self._policy is not None
        if policy is not None and stop:
            why = NO_PROBE if policy.stop_rule.reads_answers else cannot
            stop, self._why = why is None, self._why or why
        self._dialogue = self._terms.dialogue(policy, stop)

    def _feed(self, read: Any) -> None:
        """Take an update; from the first error on, tokens are only counted."""
        update = Update()
        try:
            update = read()
            self._count.take(update)
            if self._dialogue is not None and not self._blind:
                events = self._dialogue.feed(update)
                self._closed = self._closed or Close() in events
        except EntropyChainsError as error:
            self._blind, self._why = True, str(error)
        self._model = update.model or self._model
        if update.finish_reason or update.usage or self._closed:
            self._mark(self._outcome())

    def _mark(self, outcome: Outcome) -> None:
        """Write it on the call's span; a wrapper's run sees to its spans itself."""
        if self.run_request is None:
            mark_request(outcome.metadata(), outcome.tokens, self._span)

    def _outcome(self) -> Outcome:
        assert self._dialogue is not None  # noqa: S101 (nothing is fed before)
        run = self._dialogue.result()
        return replace(run.outcome, tokens=self._count.tokens, reason=self._why or run.outcome.reason)

    def row(self, response: Any, why: str | None) -> MeasuredCall:
        """The call has ended."""
        streamed = self._reader is not None
        raw = getattr(response, "raw", None)
        if self._dialogue is None:
            self._begin(NOT_STREAMED)
            if response is not None and raw is not None:
                self._feed(lambda: read_message(raw))
        elif self._reader is not None:
            self._feed(self._reader.finish)
        assert self._dialogue is not None  # noqa: S101 (just begun, if not before)
        self._dialogue.check_measured()
        self._why = self._why or why
        run, measured_outcome, table = self._dialogue.result(), self._outcome(), getattr(response, "additional_kwargs", None) or {}
        judged_itself = self.run_request is None and "early_stop_active" in table  # a local model has judged its call itself
        outcome = outcome_of(table) if judged_itself else measured_outcome
        self._mark(outcome)
        steps = run.steps if self.run_request is None or self.run_request.purpose in ("reason", "full") else ()
        step = None if outcome.stopped or outcome.policy != measured_outcome.policy else outcome.step
        would_save = max(0, run.reasoning_tokens - steps[step - 1].end) if step and step <= len(steps) else None
        return MeasuredCall(self._model, streamed, tuple(s.record.entropy for s in steps), outcome, would_save)


def reader_of(raw: Any) -> type[ChatReader | CompletionReader | ResponsesReader] | None:
    """The reader of a stream, by its first chunk; None for what no OpenAI-compatible API sends."""
    kind = raw.get("object") if isinstance(raw, dict) else getattr(raw, "object", None)
    if kind == "chat.completion.chunk":
        return ChatReader
    if kind == "text_completion":
        return CompletionReader
    event = raw.get("type") if isinstance(raw, dict) else getattr(raw, "type", None)
    return ResponsesReader if isinstance(event, str) and event.startswith("response.") else None


def outcome_of(table: Mapping[str, Any]) -> Outcome:
    """An outcome from its table."""
    return Outcome(
        active=bool(table.get("early_stop_active")),
        stopped=bool(table.get("early_stop_stopped")),
        reason=str(table.get("early_stop_reason") or ""),
        step=table.get("early_stop_step"),
        entropy=table.get("early_stop_entropy"),
        threshold=table.get("early_stop_threshold"),
        tokens=int(table.get("early_stop_tokens") or 0),
        tokens_saved=table.get("early_stop_tokens_saved_estimate"),
        holdout=bool(table.get("early_stop_holdout")),
        policy=table.get("early_stop_policy"),
    )
