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
from langchain_entropy_chains._traced import CACHED, add_metadata

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
        self._open_runs: dict[str, Run] = {}  # LangChain's map holds LangSmith's own as well

    def copy_with_metadata_defaults(self, **settings: Any) -> LangChainTracer:
        """LangChain makes a copy for every call, with the call's parameters as metadata: all of them add to the same totals."""
        metadata = without_secrets(settings.pop("metadata", None) or {})
        copy = super().copy_with_metadata_defaults(metadata=metadata, **settings)
        if isinstance(copy, EarlyStopTracer):
            copy._poster, copy._projects, copy._totals = self._poster, self._projects, self._totals
            copy._open_runs = self._open_runs
        return copy

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> Run:
        """A run that a callback stopped is an error to LangChain: its tokens and figures are kept here."""
        run = self.run_map.get(str(run_id))
        if run is not None and isinstance(error, EarlyStopped):
            generation = error.generation
            details = {"reasoning": generation.reasoning_tokens}
            usage = {"output_tokens": generation.tokens, "total_tokens": generation.tokens, "output_token_details": details}
            add_metadata(run, {**error.outcome.metadata(), "usage_metadata": usage})
        return super().on_llm_error(error, run_id=run_id, **kwargs)

    def _start_trace(self, run: Run) -> None:
        run.inputs = without_logprobs(run.inputs)
        for holder, name in ((run.serialized, "kwargs"), (run.extra, "invocation_params"), (run.extra, "metadata")):
            if isinstance(holder, dict) and isinstance(holder.get(name), dict):
                holder[name] = without_secrets(holder[name])
        super()._start_trace(run)
        self._open_runs[str(run.id)] = run

    def _end_trace(self, run: Run) -> None:
        top = self._top(run)
        if run.run_type == "llm":
            self._llm_ended(run, top)
        run.inputs, run.outputs = without_logprobs(run.inputs), without_logprobs(run.outputs)
        if run is top and (own_totals := self._totals.pop(run.id, None)):
            root = self._outside(run) or run
            metadata = {} if root is run else root.extra.get("metadata") or {}
            table = _added(metadata, own_totals)
            add_metadata(root, table)
            if self._poster:
                project: Any = getattr(root, "session_name", None) or self.project_name
                self._poster.submit(self._post_feedback, root.id, project, table, again=RUNS in metadata)
        self._open_runs.pop(str(run.id), None)
        super()._end_trace(run)

    def wait_for_futures(self) -> None:
        """Wait until all runs and all feedback are posted."""
        if self._poster:
            self._poster.submit(lambda: None).result()  # the one thread works in order
        super().wait_for_futures()

    def _top(self, run: Run) -> Run:
        """The outermost run that this tracer follows. Between it and ``run`` may stand runs of LangSmith's own."""
        above = (part[-36:] for part in run.dotted_order.split("."))
        return next((self._open_runs[each] for each in above if each in self._open_runs), run)

    def _outside(self, top: Run) -> Any:
        """LangSmith's own run right above the outermost one of ours, if it is the root: a traceable function, or an evaluation."""
        tree: Any = self.run_map.get(str(top.parent_run_id)) if top.parent_run_id else None
        return None if tree is None or tree.parent_run_id else tree

    def _llm_ended(self, run: Run, top: Run) -> None:
        table = {n: v for n, v in (run.extra.get("metadata") or {}).items() if n.startswith(FLAT)}
        message = _message_fields(run.outputs)
        metadata, usage = message.get("response_metadata") or {}, message.get("usage_metadata") or {}
        if metadata.get("early_stop_reason") == CACHED or not was_cached(usage):
            table |= {n: v for n, v in metadata.items() if n.startswith(FLAT)}
        if "early_stop_reason" not in table:
            return
        add_metadata(run, {**table, **({"usage_metadata": usage} if usage else {})})  # langchain-core 1.0 leaves it in the outputs
        if table["early_stop_reason"] == CACHED:
            return
        self._totals[top.id] = totals(self._totals.get(top.id, {}), table)

    def _post_feedback(self, run_id: UUID, project: str, table: Mapping[str, Any], *, again: bool) -> None:
        """Once a root: where another run of ours ended below it before, the scores are set anew."""
        saved = table.get("early_stop_tokens_saved_estimate", 0)
        scores = {"early_stop_tokens_saved": saved, "early_stop_stopped": table["early_stop_stopped_runs"]}
        try:
            if project not in self._projects:
                self.client.flush()  # a project is made when its first run arrives
                self._projects[project] = self.client.read_project(project_name=project).id
            for key, score in scores.items():
                feedback_id = uuid5(run_id, key)
                if again:
                    self.client.update_feedback(feedback_id, score=score)
                else:
                    ids = {"session_id": self._projects[project], "feedback_id": feedback_id}
                    self.client.create_feedback(run_id, key, score=score, extend_trace_retention=False, **ids)  # type: ignore[arg-type]
        except Exception as error:  # noqa: BLE001 (tracing never breaks the user's run)
            logger.warning("early stopping: feedback was not posted: %s", type(error).__name__)


def without_logprobs(value: Any) -> Any:
    """Inputs or outputs of a run without logprobs; what holds none is given back as it is."""
    if isinstance(value, BaseMessage):
        if "logprobs" not in value.response_metadata:
            return value
        metadata = {n: v for n, v in value.response_metadata.items() if n != "logprobs"}
        return value.model_copy(update={"response_metadata": metadata})
    if isinstance(value, dict):
        copy: Any = {
            n: {m: x for m, x in v.items() if m != "logprobs"}
            if n in ("response_metadata", "generation_info") and isinstance(v, dict)
            else without_logprobs(v)
            for n, v in value.items()
        }
    elif type(value) in (list, tuple):
        copy = type(value)(map(without_logprobs, value))
    elif is_dataclass(value) and not isinstance(value, type):  # LangGraph's commands, an agent's responses
        values = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
        changes = {n: item for n, v in values.items() if (item := without_logprobs(v)) is not v}
        return replace(value, **changes) if changes else value
    else:
        return value
    return copy if copy != value else value


def _message_fields(outputs: Any) -> dict[str, Any]:
    """The fields of a model run's message, as LangChain serialised it; none where there is none."""
    generations = (outputs or {}).get("generations") or []
    if len(generations) != 1 or len(generations[0]) != 1 or not isinstance(generations[0][0], dict):
        return {}
    message = generations[0][0].get("message")
    return (message.get("kwargs") or {}) if isinstance(message, dict) else {}


def totals(earlier: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """Totals of a root with one more model run, whose table of early stopping is ``table``."""
    return _added(earlier, {**table, RUNS: 1, "early_stop_stopped_runs": int(bool(table.get("early_stop_stopped")))})


def _added(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    total: dict[str, Any] = {n: earlier.get(n, 0) + later.get(n, 0) for n in SUMS if n in earlier or n in later}
    total |= {n: bool(earlier.get(n) or later.get(n)) for n in ANY}
    if policies := {each for place in (earlier, later) for each in str(place.get(POLICY) or "").split(", ") if each}:
        total[POLICY] = ", ".join(sorted(policies))
    saved, tokens = total.get("early_stop_tokens_saved_estimate"), total.get("early_stop_tokens", 0)
    if saved is not None and tokens + saved > 0:
        total[SHARE] = round(saved / (tokens + saved), 4)
    return total
