"""The vLLM plug-in's cost: 64 requests at once on real servers on the bundled model, turn by turn.

Plain vLLM, the plug-in loaded but not asked for, watching every token (and never stopping), and, without the plug-in, the 20
likeliest tokens sent to the client (``top_logprobs``), which is what a client-side monitor needs. All sides generate the same
number of tokens. ``python benchmarks/plugin.py`` prints the table by itself; it needs the install of ``scripts/install_vllm.sh``.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from statistics import median

from measure import ROOT, Paired, Row, seconds

REQUESTS = 64
WATCH = {"entropy_chains_threshold": -1.0, "entropy_chains_stop": 0, "entropy_chains_boundary": "line"}
GOAL = 0.95
"""Least share of plain vLLM's tokens per second that watching must keep."""

WATCHING = "the plug-in watches, k 20"


def plugin(quick: bool) -> list[Row]:
    """Tokens per second of each side over plain vLLM's."""
    sys.path.insert(0, str(ROOT / "scripts"))
    import engines

    from entropy_chains.demo.questions import draw_questions

    questions = [q["question"] for q in draw_questions(REQUESTS, 3)]
    tokens, rounds = (16, 2) if quick else (200, 7)
    if engines.installed("vllm") is None:
        return [Row("plugin", WATCHING, None, "×", goal=GOAL, least=True, note="vLLM is not installed here")]
    with engines.start("vllm") as plain, engines.start("vllm", plugin=True) as loaded, ThreadPoolExecutor(REQUESTS) as pool:

        def ask(engine: engines.Engine, **extra: object) -> None:
            body = {"model": engine.name, "temperature": 0, "max_tokens": tokens, "ignore_eos": True, **extra}
            done = list(pool.map(lambda q: _completion_tokens(engine.base_url, body, q), questions))
            if done != [tokens] * REQUESTS:
                raise AssertionError(f"{sorted(set(done))} tokens a request instead of {tokens}: the sides cannot be compared")

        sides = {
            "the plug-in loaded, not asked for": (loaded, {}),
            WATCHING: (loaded, {"vllm_xargs": WATCH}),
            "the plug-in watches, whole vocabulary": (loaded, {"vllm_xargs": WATCH | {"entropy_chains_k": 0}}),
            "no plug-in, 20 logprobs sent": (plain, {"logprobs": True, "top_logprobs": 20}),
        }
        for engine, extra in sides.values():
            ask(engine, **extra)
        taken = {side: ([], []) for side in sides}
        worked = {side: ([], []) for side in sides}
        for _ in range(rounds):
            for side, given in sides.items():  # a plain round before each: neighbours in time have the same machine
                for n, (engine, extra) in enumerate([(plain, {}), given]):
                    before = _processor_seconds(engine.pid)
                    taken[side][n].append(seconds(lambda e=engine, x=extra: ask(e, **x)))
                    worked[side][n].append(_processor_seconds(engine.pid) - before)
    rows = []
    for side, (base, own) in taken.items():
        speeds = [REQUESTS * tokens / median(s) for s in (own, base)]
        work = median(x / y for x, y in zip(*worked[side][::-1], strict=True))
        note = "{:.0f} against {:.0f} tokens/s, 64 requests at once; ".format(*speeds) + f"{work:.2f} × plain's processor time"
        goal = {"goal": GOAL, "least": True} if side == WATCHING else {}
        rows.append(Paired(base, own).row("plugin", side, note=note, **goal))
    return rows


def _processor_seconds(group: int) -> float:
    """Processor time that a process group has used, in seconds (Linux)."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12]) if int(fields[2]) == group else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def _completion_tokens(base_url: str, body: dict, question: str) -> int:
    data = json.dumps(body | {"messages": [{"role": "user", "content": question}]}).encode()
    request = urllib.request.Request(f"{base_url}/chat/completions", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as reply:
        return json.loads(reply.read())["usage"]["completion_tokens"]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    for row in plugin("--quick" in sys.argv):
        print(json.dumps(row.to_dict(), ensure_ascii=False))
