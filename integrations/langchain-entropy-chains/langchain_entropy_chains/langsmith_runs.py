"""Reading a LangSmith project back: what stopping saved against the holdout, and recorded steps as traces."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import langsmith
from langsmith.utils import LangSmithError, LangSmithNotFoundError
from rich.table import Table

from entropy_chains import HoldoutSaving, Run, Step, Trace
from entropy_chains.adapters import finish_of
from entropy_chains.errors import BackendError, InputError
from langchain_entropy_chains._measured import RECORD, WOULD_SAVE

if TYPE_CHECKING:
    from langsmith.types import Run as LangSmithRun

FIELDS: list[Any] = ["ID", "TRACE_ID", "METADATA", "START_TIME", "END_TIME", "PROMPT_TOKENS", "INPUTS", "OUTPUTS"]
WITH_TABLE = 'eq(metadata_key, "early_stop_tokens")'
"""LangSmith's filter for model runs that early stopping left its table on (EarlyStopTracer writes it)."""

BEGINNING = datetime(2020, 1, 1, tzinfo=UTC)
"""Before any run; without a beginning LangSmith gives those of one day."""


def read_runs(project: str, *, since: datetime | None = None, client: langsmith.Client | None = None) -> list[LangSmithRun]:
    """The project's model runs that have early stopping's table. Not for use inside a running event loop.

    Raises:
        InputError: there is no such project.
        BackendError: LangSmith did not answer, or refused.
    """
    client = client or langsmith.Client()
    try:
        return asyncio.run(_query(client, str(client.read_project(project_name=project).id), since or BEGINNING))
    except LangSmithNotFoundError as error:
        raise InputError(f"LangSmith has no project {project!r}; check the name, and LANGSMITH_API_KEY's workspace") from error
    except (LangSmithError, langsmith.LangsmithError) as error:  # one of requests, one of the newer part of the SDK
        raise BackendError(
            f"LangSmith did not answer ({type(error).__name__}); check LANGSMITH_API_KEY and LANGSMITH_ENDPOINT "
            "(a LangSmith of your own must be v0.16 or later)"
        ) from error


async def _query(client: langsmith.Client, project_id: str, since: datetime) -> list[LangSmithRun]:
    runs = client.runs.query(
        project_ids=[project_id], run_type="LLM", filter=WITH_TABLE, min_start_time=since, selects=FIELDS, page_size=1000
    )
    return [run async for run in runs]


def savings_runs(runs: Iterable[LangSmithRun]) -> list[Run]:
    """The same runs, as :func:`entropy_chains.savings.holdout.holdout_saving` takes them: by root, with their assignment."""
    rows = []
    for run in runs:
        metadata = run.metadata or {}
        tokens = metadata.get("early_stop_tokens")
        if not isinstance(tokens, int):
            continue
        holdout = bool(metadata.get("early_stop_holdout"))
        would_save = metadata.get(WOULD_SAVE)
        seconds = (run.end_time - run.start_time).total_seconds() if run.start_time and run.end_time else None
        shadow = tokens - (would_save if isinstance(would_save, int) else 0) if holdout else None
        rows.append(Run(str(run.trace_id), tokens, holdout, seconds, run.prompt_tokens or 0, shadow))
    return rows


def recorded_traces(runs: Iterable[LangSmithRun]) -> list[Trace]:
    """Runs that ``EntropyCallbackHandler(record=True)`` recorded and nothing stopped.

    A live run has an answer at its end only: every other step's is null. To calibrate, record the same questions anew
    (``entropy-chains record``), which asks for the answer after each step.
    """
    pairs = [(run, run.metadata or {}) for run in runs]
    return [_trace(run, metadata) for run, metadata in pairs if RECORD in metadata and not metadata.get("early_stop_stopped")]


def _trace(run: LangSmithRun, metadata: Mapping[str, Any]) -> Trace:
    record = json.loads(metadata[RECORD])
    lists = zip(record["entropy"], record["tokens"], record["mass"], record["sum_entropy"], strict=True)
    steps = [
        Step(None, entropy, tokens, mass=mass, signals={} if total is None else {"sum_entropy": total})
        for entropy, tokens, mass, total in lists
    ]
    question, generation = _last_question(run.inputs), _generation(run.outputs)
    word = _text_or_none((generation.get("generation_info") or {}).get("finish_reason"))
    finish = finish_of(word) if word else None
    answer = (
        _text_or_none(generation.get("text")) if finish in ("stop", None) else None
    )  # of a run that was cut off it is half of one
    return Trace(
        str(run.id),
        [*steps, Step(answer, None, record["rest"])],
        group=question or str(run.trace_id),
        question=question,
        model=metadata.get("ls_model_name"),
        mode="thinking",
        estimator="renormalised",
        k=record["k"],
        temperature=metadata.get("ls_temperature"),
        temperature_mode=record["temperature_mode"],
        segmentation=record["segmentation"],
        finish=finish,
        finish_raw=word,
    )


def _last_question(inputs: Any) -> str | None:
    messages = (inputs or {}).get("messages") or [[]]
    fields = [m.get("kwargs") or {} for m in messages[0] if isinstance(m, dict)]
    texts = [m.get("content") for m in fields if m.get("type") == "human"]
    return texts[-1] if texts and isinstance(texts[-1], str) else None


def _generation(outputs: Any) -> Mapping[str, Any]:
    """The first generation of a run's outputs; empty where there is none."""
    try:
        generation = outputs["generations"][0][0]
    except (TypeError, KeyError, IndexError):
        return {}
    return generation if isinstance(generation, Mapping) else {}


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def saving_table(project: str, saving: HoldoutSaving) -> Table:
    """For people."""
    table = Table(
        "", "holdout", "stopping", title=project, caption=saving.reason or "all runs assigned to stopping, stopped or not"
    )
    table.add_row("root runs", str(saving.runs_holdout), str(saving.runs_stopping))
    means = [f"{f.value:.0f}" if f else "" for f in (saving.tokens_holdout, saving.tokens_stopping)]
    table.add_row("tokens a run", *means)
    if saving.saved:
        interval = "" if saving.saved_interval is None else " ({:.1%} to {:.1%})".format(*saving.saved_interval)
        table.add_row("saved", "", f"{saving.saved.value:.1%}{interval}")
    return table
