"""One policy on every engine: ``python scripts/side_by_side.py [--questions N] [--policy FILE] [--json] [--write-docs]``.

The same questions, greedy, in full and stopped early, on the transformers backend, on vLLM and llama-server with the client
stopping, on vLLM with the plug-in, and on llama-server told to end its thinking. Without ``--policy`` one is calibrated first,
on other questions recorded with the transformers backend. Then the stopped runs again, one at a time: what an engine makes after
the client has stopped reading is its own counter less the tokens of the run. What is not installed is said and left out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import engines
import numpy as np
import openai
from rich.console import Console
from rich.table import Table

from entropy_chains import calibrate
from entropy_chains.backends import Backend, Generation, Sampling
from entropy_chains.backends.openai import OpenAIBackend
from entropy_chains.backends.transformers import TransformersBackend
from entropy_chains.core import answers
from entropy_chains.core.policy import Policy
from entropy_chains.demo import MODEL_FOLDER, MODEL_NAME
from entropy_chains.demo.questions import draw_questions
from entropy_chains.errors import EntropyChainsError
from entropy_chains.recording import conversation, record

DOCS = engines.ROOT / "docs" / "engines.md"
BEGIN, END = "<!-- side by side -->", "<!-- /side by side -->"
GREEDY = Sampling(temperature=0.0, max_tokens=1600)
STOPS = 30
"""Fewest stops that an overshoot is told from."""
LONG_ENOUGH = 0.3
"""Seconds without a new token after which an engine is taken to have stopped."""


@dataclass(frozen=True)
class Setting:
    """An engine and a way to stop it; kind None = in this process. ``key`` is what ``--only`` calls it."""

    key: str
    name: str
    kind: engines.Kind | None
    plugin: bool = False
    continuation: str = "auto"


SETTINGS = (
    Setting("transformers", "transformers backend", None),
    Setting("vllm", "vLLM, client closes", "vllm"),
    Setting("vllm-plugin", "vLLM, plug-in", "vllm", plugin=True),
    Setting("llama", "llama-server, client closes", "llama"),
    Setting("llama-control", "llama-server, `reasoning_end`", "llama", continuation="control"),
)


@dataclass
class Row:
    """What one setting gave; ``note`` alone where it could not run.

    Attributes:
        accuracy_full, accuracy: share right; stopped: share of runs stopped early.
        tokens_full, tokens: computed, by the client's count; counter_full, counter: by the engine's own, None where it has none.
        seconds_full, seconds: wall time of all questions, eight at a time (transformers: one batch).
        late: tokens of each stop that nobody reads: made after the close, or between the decision and the end of the thinking.
        pace: tokens in 50 ms, one request at a time.
    """

    name: str
    note: str = ""
    accuracy_full: float | None = None
    accuracy: float | None = None
    stopped: float | None = None
    tokens_full: int | None = None
    tokens: int | None = None
    counter_full: int | None = None
    counter: int | None = None
    seconds_full: float | None = None
    seconds: float | None = None
    late: list[int] = field(default_factory=list)
    pace: float | None = None


def main() -> int:
    """Run every setting; exit status 0 unless the arguments are bad."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--questions", type=int, default=50, metavar="N", help="asked of every engine (default: 50)")
    parser.add_argument("--calibration", type=int, default=300, metavar="N", help="recorded for the policy (default: 300)")
    parser.add_argument("--policy", metavar="FILE", help="use this policy of the bundled model; nothing is recorded then")
    parser.add_argument(
        "--only", action="append", choices=[x.key for x in SETTINGS], help="run this one; may be given several times"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--write-docs", action="store_true", help="put the tables into docs/engines.md")
    args = parser.parse_args()
    local = TransformersBackend.from_pretrained(MODEL_FOLDER, name=MODEL_NAME)
    drawn = draw_questions(args.calibration + args.questions, 11)
    try:
        policy = Policy.load(args.policy) if args.policy else fitted(local, drawn[: args.calibration])
        rows = [measured(setting, local, policy, drawn[args.calibration :], args.only or ()) for setting in SETTINGS]
    except EntropyChainsError as error:
        parser.error(str(error))
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "questions": args.questions,
        "policy": policy.to_dict(),
        "rows": [asdict(r) for r in rows],
    }
    if args.json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        console = Console()
        console.print(told(result))
        for heads, lines in (compared(rows), overshot(rows)):
            table = Table(*heads)
            for cells in lines:
                table.add_row(*cells)
            console.print(table)
    if args.write_docs:
        write_docs(result, rows)
    return 0


def fitted(local: TransformersBackend, questions: Sequence[Any]) -> Policy:
    """A certified policy for greedy runs, on a rule that reads entropy alone: the plug-in can follow it.

    Greedy, this model loses so few answers that 5 % would allow a stop at every first step: then nothing would be compared.
    """
    say(f"recording {len(questions)} questions for the policy ...")
    return calibrate(list(record(local, questions, sampling=GREEDY)), rule="entropy", max_loss=0.02)


def measured(setting: Setting, local: TransformersBackend, policy: Policy, questions: Sequence[Any], only: Sequence[str]) -> Row:
    """All questions in full, stopped early, and, where the engine counts, stopped early one at a time."""
    if only and setting.key not in only:
        return Row(setting.name, "not run")
    say(f"{setting.name} ...")
    if setting.kind and engines.installed(setting.kind) is None:
        return Row(setting.name, "not installed here")
    with opened(setting, local) as (backend, alone, engine):
        asked = [conversation(q) for q in questions]
        backend.generate(asked[:1], sampling=Sampling(max_tokens=8))  # identified, compiled
        made: list[tuple[list[Generation], float, int | None]] = []
        for stop in (False, True):
            before, start = settled(engine), time.perf_counter()
            runs = backend.generate(asked, policy=policy, sampling=GREEDY, stop=stop)
            taken = time.perf_counter() - start
            after = settled(engine)
            made.append((runs, taken, None if before is None or after is None else after - before))
        row = Row(setting.name)
        (full, row.seconds_full, row.counter_full), (early, row.seconds, row.counter) = made
        row.accuracy_full, row.accuracy = (right(runs, questions) for runs in (full, early))
        row.tokens_full, row.tokens = (sum(g.tokens for g in runs) for runs in (full, early))
        row.stopped = float(np.mean([g.outcome.stopped for g in early]))
        if engine is not None and not setting.plugin:
            row.late, row.pace = overshoot(alone, engine, policy, asked, control=setting.continuation == "control")
        return row


@contextmanager
def opened(setting: Setting, local: TransformersBackend) -> Iterator[tuple[Backend, Backend, engines.Engine | None]]:
    """The backend, the same for one request at a time, and the engine behind it."""
    if setting.kind is None:
        yield local, local, None
        return
    with (
        engines.start(setting.kind, plugin=setting.plugin) as engine,
        openai.OpenAI(base_url=engine.base_url, api_key="none") as client,
    ):
        engine.let_others_first()
        given = {"name": MODEL_NAME, "segmentation": local.segmentation, "continuation": setting.continuation}
        backend, alone = (OpenAIBackend(client, engine.name, concurrency=n, **given) for n in (8, 1))
        yield backend, alone, engine


def overshoot(
    backend: Backend, engine: engines.Engine, policy: Policy, asked: Sequence[Any], *, control: bool
) -> tuple[list[int], float]:
    """Tokens of every stop that nobody reads, and tokens in 50 ms at the pace of these runs."""
    late, tokens, seconds = [], 0, 0.0
    for conversed in asked:
        before = settled(engine)
        (run,) = backend.generate([conversed], policy=policy, sampling=GREEDY)
        after = settled(engine)
        tokens, seconds = tokens + run.tokens, seconds + run.seconds
        if run.outcome.stopped and control:  # all of it arrives: the boundary tells what is late
            late.append(run.reasoning_tokens - run.steps[-1].end)
        elif run.outcome.stopped and before is not None and after is not None:
            late.append(after - before - run.tokens)
    return late, 0.05 * tokens / seconds


def settled(engine: engines.Engine | None) -> int | None:
    """The engine's count of generated tokens once nothing runs any more and the count stands still."""
    if engine is None:
        return None
    seen, since = -1, time.monotonic()
    while time.monotonic() - since < LONG_ENOUGH:
        found = engine.counters()
        if found is None:
            return None
        if found["running"] or found["generated"] != seen:
            seen, since = found["generated"], time.monotonic()
        time.sleep(0.05)
    return seen


def right(runs: Sequence[Generation], questions: Sequence[Any]) -> float:
    """Share of right answers."""
    return float(np.mean([answers.same(g.answer, q["gold"]) for g, q in zip(runs, questions, strict=True)]))


# --- showing it


def told(result: dict[str, Any]) -> str:
    """What the figures belong to."""
    policy = result["policy"]
    stops = (
        f"{policy['reason']}, {policy['signal']} at or under {policy['thresholds'][0]:.2g} bits" if policy["active"] else "never"
    )
    machine = f"{result['cores']} cores, shared with other work (load {result['load']} at the end)"
    return f"{result['date']}, {machine}. {result['questions']} questions, greedy; the policy stops: {stops}."


def compared(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """The first table, each cell as full → stopped early."""
    heads = ["engine", "right", "stopped", "tokens computed", "saved", "the engine's own count", "seconds"]
    lines = []
    for r in rows:
        if r.note or not r.tokens_full or r.tokens is None:
            lines.append([r.name, r.note, "", "", "", "", ""])
            continue
        own = "none" if r.counter is None else f"{r.counter_full:,} → {r.counter:,}"
        lines.append(
            [
                r.name,
                f"{r.accuracy_full:.0%} → {r.accuracy:.0%}",
                f"{r.stopped:.0%}",
                f"{r.tokens_full:,} → {r.tokens:,}",
                f"{1 - r.tokens / r.tokens_full:.0%}",
                own,
                f"{r.seconds_full:.0f} → {r.seconds:.0f}",
            ]
        )
    return heads, lines


def overshot(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """The second table: tokens that nobody reads."""
    heads = ["engine", "stops", "tokens too many: median", "95th percentile", "most", "tokens in 50 ms"]
    lines = []
    for r in rows:
        if len(r.late) >= STOPS and r.pace is not None:
            middle, high = np.percentile(r.late, [50, 95])
            lines.append([r.name, f"{len(r.late)}", f"{middle:.0f}", f"{high:.0f}", f"{max(r.late)}", f"{r.pace:.0f}"])
        elif r.late:
            lines.append([r.name, f"{len(r.late)}, too few: at least {STOPS} are needed", "", "", "", ""])
    return heads, lines


def write_docs(result: dict[str, Any], rows: Sequence[Row]) -> None:
    """Put the tables between the page's markers."""
    page = DOCS.read_text(encoding="utf-8")
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    parts = [told(result)]
    for heads, lines in (compared(rows), overshot(rows)):
        parts.append("\n".join("| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *lines)))
    DOCS.write_text(head + "\n\n".join([BEGIN, *parts, END]) + tail, encoding="utf-8")


def say(text: str) -> None:
    """Progress, apart from the result."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
