"""A LangSmith tracer that writes what early stopping did where it can be filtered: on every model run, and summed up on the root.

Without it the same figures arrive in a run's outputs only (``response_metadata``), which LangSmith can neither compare nor sum.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

from langchain_core.messages import BaseMessage
from langchain_core.tracers import LangChainTracer

from entropy_chains.adapters import FLAT, without_secrets
from langchain_entropy_chains._measured import WOULD_SAVE, was_cached
from langchain_entropy_chains._stopped import EarlyStopped
from langchain_entropy_chains._traced import CACHED, add

if TYPE_CHECKING:
    from langchain_core.tracers.schemas import Run

logger = logging.getLogger("entropy_chains")

RUNS = "early_stop_runs"
SUMS = ("early_stop_tokens", "early_stop_tokens_saved_estimate", WOULD_SAVE, RUNS, "early_stop_stopped_runs")
"""Fields of the root that are sums over its model runs."""
ANY = ("early_stop_active", "early_stop_stopped", "early_stop_holdout")
"""Fields of the root that say whether any of its model runs was."""
POLICY, SHARE = "early_stop_policy", "early_stop_tokens_saved_share"
"""Fields of the root: the policies of its model runs (one, as a rule), and what was saved of the tokens of full runs, estimated."""


class EarlyStopTracer(LangChainTracer):
    """LangSmith's tracer, with early stopping as flat metadata, the tag ``early-stopped``, and totals on the root run.

    Logprobs are left out of what is posted: some KB a token, in the run and in every run above it. So are headers and keys, which
    LangChain posts with the settings of a plain model.

    Args:
        feedback: also post ``early_stop_tokens_saved`` and ``early_stop_stopped`` as feedback of the root run, which charts can
            sum; without extending the trace's retention. A thread of its own posts it; ``wait_for_futures()`` waits for that.
        settings: as in ``LangChainTracer``: project_name, client, tags, metadata, …
    """

    def __init__(self, *args: Any, feedback: bool = False, **settings: Any):
        super().__init__(*args, **settings)
        # LangSmith's SDK posts such feedback at once, and waits for the reply: not in the user's thread or event loop.
        self._poster = ThreadPoolExecutor(1, "early-stop-feedback") if feedback else None
        self._projects: dict[str, UUID] = {}  # ids by name
        self._totals: dict[UUID, dict[str, Any]] = {}  # by outermost run
        self._own: dict[str, Run] = {}  # runs under way; LangChain's map holds LangSmith's own as well

    def copy_with_metadata_defaults(self, **settings: Any) -> LangChainTracer:
        """LangChain makes a copy for every call, with the call's parameters as metadata: all of them add to the same totals."""
        metadata = without_secrets(settings.pop("metadata", None) or {})
        made = super().copy_with_metadata_defaults(metadata=metadata, **settings)
        if isinstance(made, EarlyStopTracer):
            made._poster, made._projects, made._totals = self._poster, self._projects, self._totals
            made._own = self._own
        return made

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> Run:
        """A run that a callback stopped is an error to LangChain: its tokens and figures are kept here."""
        run = self.run_map.get(str(run_id))
        if run is not None and isinstance(error, EarlyStopped):
            made = error.generation
            details = {"reasoning": made.reasoning_tokens}
            usage = {"output_tokens": made.tokens, "total_tokens": made.tokens, "output_token_details": details}
            add(run, {**error.outcome.metadata(), "usage_metadata": usage})
        return super().on_llm_error(error, run_id=run_id, **kwargs)

    def _start_trace(self, run: Run) -> None:
        run.inputs = without_logprobs(run.inputs)
        for told, name in ((run.serialized, "kwargs"), (run.extra, "invocation_params"), (run.extra, "metadata")):
            if isinstance(told, dict) and isinstance(told.get(name), dict):
                told[name] = without_secrets(told[name])
        super()._start_trace(run)
        self._own[str(run.id)] = run

    def _end_trace(self, run: Run) -> None:
        top = self._top(run)
        if run.run_type == "llm":
            self._llm_ended(run, top)
        run.inputs, run.outputs = without_logprobs(run.inputs), without_logprobs(run.outputs)
        if run is top and (found := self._totals.pop(run.id, None)):
            root = self._outside(run) or run
            known = {} if root is run else root.extra.get("metadata") or {}
            told = _sum(known, found)
            add(root, told)
            if self._poster:
                project: Any = getattr(root, "session_name", None) or self.project_name
                self._poster.submit(self._post_feedback, root.id, project, told, again=RUNS in known)
        self._own.pop(str(run.id), None)
        super()._end_trace(run)

    def wait_for_futures(self) -> None:
        """Wait until all runs and all feedback are posted."""
        if self._poster:
            self._poster.submit(lambda: None).result()  # the one thread works in order
        super().wait_for_futures()

    def _top(self, run: Run) -> Run:
        """The outermost run that this tracer follows. Between it and ``run`` may stand runs of LangSmith's own."""
        above = (part[-36:] for part in run.dotted_order.split("."))
        return next((self._own[each] for each in above if each in self._own), run)

    def _outside(self, top: Run) -> Any:
        """LangSmith's own run right above the outermost one of ours, if it is the root: a traceable function, or an evaluation."""
        tree: Any = self.run_map.get(str(top.parent_run_id)) if top.parent_run_id else None
        return None if tree is None or tree.parent_run_id else tree

    def _llm_ended(self, run: Run, top: Run) -> None:
        found = {n: v for n, v in (run.extra.get("metadata") or {}).items() if n.startswith(FLAT)}
        message = _message(run.outputs)
        told, usage = message.get("response_metadata") or {}, message.get("usage_metadata") or {}
        if told.get("early_stop_reason") == CACHED or not was_cached(usage):
            found |= {n: v for n, v in told.items() if n.startswith(FLAT)}
        if "early_stop_reason" not in found:
            return
        add(run, {**found, **({"usage_metadata": usage} if usage else {})})  # langchain-core 1.0 leaves it in the outputs
        if found["early_stop_reason"] == CACHED:
            return
        self._totals[top.id] = totals(self._totals.get(top.id, {}), found)

    def _post_feedback(self, run_id: UUID, project: str, told: Mapping[str, Any], *, again: bool) -> None:
        """Once a root: where another run of ours ended below it before, the scores are set anew."""
        saved = told.get("early_stop_tokens_saved_estimate", 0)
        scores = {"early_stop_tokens_saved": saved, "early_stop_stopped": told["early_stop_stopped_runs"]}
        try:
            if project not in self._projects:
                self.client.flush()  # a project is made when its first run arrives
                self._projects[project] = self.client.read_project(project_name=project).id
            for key, score in scores.items():
                feedback_id = uuid5(run_id, key)
                if again:
                    self.client.update_feedback(feedback_id, score=score)
                else:
                    given = {"session_id": self._projects[project], "feedback_id": feedback_id}
                    self.client.create_feedback(run_id, key, score=score, extend_trace_retention=False, **given)  # type: ignore[arg-type]
        except Exception as error:  # noqa: BLE001 (tracing never breaks the user's run)
            logger.warning("early stopping: feedback was not posted: %s", type(error).__name__)


def without_logprobs(value: Any) -> Any:
    """Inputs or outputs of a run without logprobs; what holds none is given back as it is."""
    if isinstance(value, BaseMessage):
        if "logprobs" not in value.response_metadata:
            return value
        kept = {n: v for n, v in value.response_metadata.items() if n != "logprobs"}
        return value.model_copy(update={"response_metadata": kept})
    if isinstance(value, dict):
        made: Any = {
            n: {m: x for m, x in v.items() if m != "logprobs"}
            if n in ("response_metadata", "generation_info") and isinstance(v, dict)
            else without_logprobs(v)
            for n, v in value.items()
        }
    elif type(value) in (list, tuple):
        made = type(value)(map(without_logprobs, value))
    elif is_dataclass(value) and not isinstance(value, type):  # LangGraph's commands, an agent's responses
        own = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
        changed = {n: kept for n, v in own.items() if (kept := without_logprobs(v)) is not v}
        return replace(value, **changed) if changed else value
    else:
        return value
    return made if made != value else value


def _message(outputs: Any) -> dict[str, Any]:
    """The fields of a model run's message, as LangChain serialised it; none where there is none."""
    generations = (outputs or {}).get("generations") or []
    if len(generations) != 1 or len(generations[0]) != 1 or not isinstance(generations[0][0], dict):
        return {}
    message = generations[0][0].get("message")
    return (message.get("kwargs") or {}) if isinstance(message, dict) else {}


def totals(known: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Totals of a root with one more model run, of which ``found`` is the table."""
    return _sum(known, {**found, RUNS: 1, "early_stop_stopped_runs": int(bool(found.get("early_stop_stopped")))})


def _sum(known: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {n: known.get(n, 0) + more.get(n, 0) for n in SUMS if n in known or n in more}
    made |= {n: bool(known.get(n) or more.get(n)) for n in ANY}
    if policies := {each for place in (known, more) for each in str(place.get(POLICY) or "").split(", ") if each}:
        made[POLICY] = ", ".join(sorted(policies))
    saved, tokens = made.get("early_stop_tokens_saved_estimate"), made.get("early_stop_tokens", 0)
    if saved is not None and tokens + saved > 0:
        made[SHARE] = round(saved / (tokens + saved), 4)
    return made
