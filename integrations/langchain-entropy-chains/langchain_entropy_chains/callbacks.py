"""A callback handler for existing chains: it measures every model run, says what stopping would have saved, and can stop.

A callback sees a run; it cannot give an answer in its place. So a stop is an exception, :class:`EarlyStopped`. Where a chain is
yours to change, wrap the model instead (``with_early_stop``).
"""

from __future__ import annotations

import inspect
import logging
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from uuid import UUID

from langchain_core.language_models import BaseLanguageModel
from langchain_core.messages import AIMessage, BaseMessage

from entropy_chains import Policy, Segmentation, ThinkTags, is_holdout, stopping_enabled
from entropy_chains.adapters import Dialogue, OnMismatch, Plan, TemperatureMode, check_holdout, check_options, forms
from entropy_chains.errors import EntropyChainsError, PolicyMismatch, SettingsError
from langchain_entropy_chains._config import OFF, STRUCTURED_KEYS
from langchain_entropy_chains._inner_fields import InnerFields
from langchain_entropy_chains._measured import NO_LOGPROBS, MeasuredRun, Measurement, Summary
from langchain_entropy_chains._model_info import call_settings
from langchain_entropy_chains._roots import RootRuns
from langchain_entropy_chains._stopped import EarlyStopped

if TYPE_CHECKING:
    from langchain_core.outputs import LLMResult

__all__ = ["EarlyStopped", "EntropyCallbackHandler", "MeasuredRun", "Summary"]

logger = logging.getLogger("entropy_chains")


class EntropyCallbackHandler(RootRuns):
    """Measures every model run of a chain, and with ``stop=True`` stops it where the policy says so.

    One instance serves any number of runs at once. The model must send logprobs (``logprobs=True, top_logprobs=20``): a callback
    cannot switch them on. Put it before a tracer: what it measures goes into the message's ``response_metadata``.

    Args:
        policy: when to stop, or would have; a path; None measures entropies only.
        stop: raise :class:`EarlyStopped` at the boundary. A call is then streamed, for only a stream can be stopped.
        k: alternatives that the entropy is computed from, without a policy.
        think_tags: the family's thinking tags.
        segmentation: how a stream is cut, without a policy.
        opened: the prompt opens the thinking, and the server does not split it off.
        temperature_mode: ``raw`` if the server's logprobs are those before temperature, ``scaled`` otherwise.
        on_mismatch: a policy for another model or k: ``error`` (stopping raises, measuring says it in the reason) or ``warn``.
        holdout: share of root runs that run in full on purpose; ``holdout_salt`` draws another one.
        record: put the entropies and tokens of the steps into the metadata, to be read back as traces.
        keep: runs that :attr:`runs` holds at most; totals count all.

    Raises:
        SettingsError: the policy cannot be judged from a callback: it reads answers, the full vocabulary, or several calls.
    """

    run_inline = True

    def __init__(
        self,
        policy: Policy | str | Path | None = None,
        *,
        stop: bool = False,
        k: int = 20,
        think_tags: ThinkTags | None = None,
        segmentation: Segmentation | None = None,
        opened: bool = False,
        temperature_mode: TemperatureMode = "raw",
        on_mismatch: OnMismatch = "error",
        holdout: float = 0.0,
        holdout_salt: str = "",
        record: bool = False,
        keep: int = 10_000,
    ):
        super().__init__()
        if not isinstance(stop, bool):
            raise SettingsError(f"stop is {stop!r}; it must be True or False")
        check_options({"temperature_mode": temperature_mode, "on_mismatch": on_mismatch})
        self._policy = Policy.of(policy)
        if self._policy is not None:
            _check_policy(self._policy, stop)
        elif stop:
            raise SettingsError("stop=True needs a policy: make one with `entropy-chains calibrate`")
        check_holdout(holdout)
        self._segmentation, self._mode, self._on_mismatch = segmentation, temperature_mode, on_mismatch
        self._holdout, self._salt, self._record = holdout, holdout_salt, record
        k = (self._policy.k if self._policy else None) or k
        self._plan = Plan(think_tags or ThinkTags(), (), k=k, opened=opened, on_mismatch=on_mismatch)
        self.raise_error = stop
        if stop:  # by these two LangChain knows a handler that wants tokens, and streams even an invoke
            self.tap_output_iter = self.tap_output_aiter = _untouched
        self._live: dict[UUID, tuple[Measurement, Sequence[BaseMessage]]] = {}
        self._stops: dict[UUID, dict[str, EarlyStopped]] = {}  # by root run, then by what was asked
        self._rows: deque[MeasuredRun] = deque(maxlen=keep)
        self._totals: Counter[str] = Counter()
        self._warnings: set[str] = set()
        self._lock = Lock()

    # --- what was seen

    @property
    def runs(self) -> tuple[MeasuredRun, ...]:
        """The latest runs, oldest first."""
        with self._lock:
            return tuple(self._rows)

    def summary(self) -> Summary:
        """Rows and totals."""
        with self._lock:
            return Summary(tuple(self._rows), **self._totals)

    # --- LangChain's calls

    def on_chat_model_start(
        self,
        serialized: Any,
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """A run begins. One that was stopped and is tried again by a retry is stopped at once: no request is sent."""
        conversation, root = messages[0], self.root(parent_run_id) if parent_run_id else run_id
        metadata = metadata or {}
        off = metadata.get(OFF) is False
        earlier_stop = self._stops.get(root, {}).get(_conversation_key(conversation))
        if earlier_stop is not None and not off:
            raise earlier_stop
        with self._safely():
            uncut = _uncut(_calling_model(), kwargs) if self.raise_error else None
            self._live[run_id] = self._measurement(conversation, run_id, root, metadata, uncut, off), conversation

    def on_llm_start(self, serialized: Any, prompts: list[str], **kwargs: Any) -> None:
        self.on_chat_model_start(serialized, [[]], **kwargs)

    def on_llm_new_token(self, token: Any, *, chunk: Any = None, run_id: UUID, **kwargs: Any) -> None:
        measurement, conversation = self._live.get(run_id, (None, ()))
        if measurement is None:
            return
        with self._safely(measurement):
            measurement.chunk(token, chunk)
            if measurement.closing:
                raise self._stopped(run_id, measurement, conversation)

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        measurement, _ = self._live.pop(run_id, (None, None))
        if measurement is None:
            return
        with self._safely(measurement):
            measurement.end(response)
        with self._safely():
            row = self._keep(measurement)
            replies = response.generations[0] if response.generations else []
            for message in [getattr(reply, "message", None) for reply in replies]:
                if isinstance(message, AIMessage):
                    message.response_metadata = {**message.response_metadata, **row.metadata}

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        measurement, _ = self._live.pop(run_id, (None, None))
        if measurement is not None:
            with self._safely():
                self._keep(measurement, why=f"the run broke off: {type(error).__name__}")

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        super().on_chain_end(outputs, run_id=run_id, **kwargs)
        self._stops.pop(run_id, None)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        super().on_chain_error(error, run_id=run_id, **kwargs)
        self._stops.pop(run_id, None)

    # --- inside

    def _measurement(
        self,
        conversation: Sequence[BaseMessage],
        run_id: UUID,
        root: UUID,
        metadata: Mapping[str, Any],
        uncut: str | None,
        off: bool,
    ) -> Measurement:
        policy, model, why = self._policy, metadata.get("ls_model_name"), None
        if policy is not None:
            run: dict[str, Any] = {"mode": "thinking", "estimator": "renormalised", "temperature_mode": self._mode}
            run |= {"temperature": metadata.get("ls_temperature"), "max_tokens": metadata.get("ls_max_tokens")}
            run |= {"model": model} if model else {}
            try:
                policy.check(on_mismatch=self._on_mismatch, **run)
            except PolicyMismatch as mismatch:
                if self.raise_error:
                    raise
                policy, why = None, str(mismatch)
        stop = self.raise_error and not off and stopping_enabled()
        if stop and uncut:
            stop, why = False, uncut
        if policy is not None and policy.stop_rule.reads_answers:
            why = f"the rule {policy.rule} on {policy.signal} reads answers, which a callback has not: see replay"
        holdout = is_holdout(str(root), share=self._holdout, salt=self._salt)
        segmentation = (self._policy.segmentation if self._policy else None) or self._segmentation
        dialogue = Dialogue(conversation, self._plan, policy=policy, segmentation=segmentation, stop=stop, holdout=holdout)  # type: ignore[arg-type]
        return Measurement(dialogue, run_id=str(run_id), root=str(root), model=model, why=why, stop=metadata.get("ls_stop"))

    def _stopped(self, run_id: UUID, measurement: Measurement, conversation: Sequence[BaseMessage]) -> EarlyStopped:
        del self._live[run_id]
        self._keep(measurement)
        stop = EarlyStopped(measurement.result()[1], conversation, str(run_id), self._plan.tags, self._plan.opened)
        root = UUID(measurement.root)
        if root in self._roots:  # what is above ends, and takes this with it
            self._stops.setdefault(root, {})[_conversation_key(conversation)] = stop
        return stop

    def _keep(self, measurement: Measurement, why: str | None = None) -> MeasuredRun:
        row, _ = measurement.result(why=why, record=self._details() if self._record else None)
        if row.reason == NO_LOGPROBS:
            self._warn_once(NO_LOGPROBS)
        with self._lock:
            self._rows.append(row)
            counts = {"runs": True, "measured": row.measured, "stopped": row.stopped, "would_stop": row.would_save is not None}
            self._totals.update({name: int(count) for name, count in counts.items()})
            self._totals.update({"tokens": row.tokens, "would_save": row.would_save or 0})
        return row

    def _details(self) -> dict[str, Any]:
        segmentation = self._policy.segmentation if self._policy else self._segmentation or Segmentation()
        return {"k": self._plan.k, "temperature_mode": self._mode, "segmentation": segmentation.to_dict()}

    @contextmanager
    def _safely(self, measurement: Measurement | None = None) -> Iterator[None]:
        """A fault of ours never breaks the user's run: it is logged once, and the run counts as not measured."""
        try:
            yield
        except EarlyStopped:
            raise
        except Exception as error:
            if isinstance(error, PolicyMismatch) and self.raise_error:
                raise
            fault = str(error) if isinstance(error, EntropyChainsError) else f"{type(error).__name__}: {error}"
            self._warn_once(f"not measured: {fault}")
            if measurement is not None:
                measurement.fault = measurement.fault or f"not measured: {fault}"

    def _warn_once(self, warning: str) -> None:
        if warning not in self._warnings:
            self._warnings.add(warning)
            logger.warning("early stopping: %s", warning)


def _check_policy(policy: Policy, stop: bool) -> None:
    """Raises SettingsError for a policy that a callback can never follow."""
    if policy.mode != "thinking":
        raise SettingsError(f"policy has mode {policy.mode!r}; a callback sees single runs: use EarlyStopChatModel(mode='refine')")
    if stop and policy.stop_rule.reads_answers:
        remedy = "use EarlyStopChatModel, or calibrate with rule='entropy' and no signal by name, which reads the steps alone"
        raise SettingsError(f"rule {policy.rule!r} on {policy.signal} reads answers, which a callback cannot ask for: {remedy}")
    if policy.k is None:
        raise SettingsError("policy has k null (the full vocabulary); an API gives a top-k only: calibrate with top-logprobs")


def _uncut(model: BaseLanguageModel[Any] | None, kwargs: Mapping[str, Any]) -> str | None:
    """Why nothing may be cut in a call of a model, of which LangChain tells handlers ``kwargs``; None where something may."""
    params = kwargs.get("invocation_params") or {}
    settings = forms.merged(params) if model is None else call_settings(model, params)
    return forms.never_cut(settings) or (forms.STRUCTURED if any(map((kwargs.get("options") or {}).get, STRUCTURED_KEYS)) else None)


def _calling_model() -> BaseLanguageModel[Any] | None:
    """The model that calls its handlers just now; None where somebody else does.

    LangChain does not tell handlers which one it is. What it tells of its fields is made once, and lacks those that its class does
    not name. So the model is looked for in the calls that led here.
    """
    frame = inspect.currentframe()
    while frame is not None:
        model = frame.f_locals.get("self")
        if isinstance(model, BaseLanguageModel):
            return model.inner if isinstance(model, InnerFields) else model  # of a wrapper LangChain tells what is bound
        frame = frame.f_back
    return None


def _untouched(run_id: UUID, output: Any) -> Any:
    return output


def _conversation_key(messages: Sequence[BaseMessage]) -> str:
    """What was asked, ids left out: a retry asks the same."""
    return repr([(m.type, m.content, getattr(m, "tool_calls", None)) for m in messages])
