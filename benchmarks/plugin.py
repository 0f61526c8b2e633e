"""The vLLM plug-in's cost: 64 requests at once on the bundled model, side by side with plain vLLM.

Plain vLLM, the plug-in loaded but not asked for, watching every token (and never stopping), and, without the plug-in, the 20
likeliest tokens of every position, which is what a client-side monitor needs. All sides generate the same number of tokens.

Once in the engine alone, in a process with nothing beside it, and once through vLLM's HTTP server. On two cores the server and
64 clients are in the engine's way, differently in every round, so the second scatters. What is done against it: the sides take
turns in another order in every round, the engines are started anew a few times (each start has a speed of its own), and before
a round through HTTP the engines are left in peace, for vLLM's processes go on looking for work for a second after the last.

``python benchmarks/plugin.py`` prints the table by itself; it needs the install of ``scripts/install_vllm.sh``.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from statistics import median

from measure import HERE, ROOT, Paired, Row, seconds

REQUESTS = 64
WATCH = {"entropy_chains_threshold": -1.0, "entropy_chains_stop": 0, "entropy_chains_boundary": "line"}
WHOLE = WATCH | {"entropy_chains_k": 0}
GOAL = 0.95
"""Least share of plain vLLM's tokens per second that watching must keep."""

WATCHING = "the plug-in watches, k 20"
QUIET = 1.5
"""Seconds of rest before a round through HTTP."""


def plugin(quick: bool) -> list[Row]:
    """Tokens per second of each side over plain vLLM's."""
    sys.path.insert(0, str(ROOT / "scripts"))
    import engines

    from entropy_chains.demo.questions import draw_questions

    if engines.installed("vllm") is None:
        return [Row("plugin", WATCHING, None, "×", goal=GOAL, least=True, note="vLLM is not installed here")]
    questions = [q["question"] for q in draw_questions(REQUESTS, 3)]
    tokens, starts, rounds = (16, 1, 2) if quick else (200, 3, 10)
    rows = []
    for where, begin in (("engine alone", _in_process), ("through HTTP", _served)):
        taken: dict[str, list[float]] = {}
        for start in range(starts):
            with begin(questions, tokens) as sides:
                _rounds(sides, rounds, start, taken)
        rows += _compared(where, taken, tokens)
    return rows


def _rounds(sides: Mapping[str, Callable[[], float]], rounds: int, seed: int, taken: dict[str, list[float]]) -> None:
    for name, side in sides.items():
        taken.setdefault(name, [])
        side()
    drawn = random.Random(seed)
    for _ in range(rounds):
        for name in drawn.sample(list(sides), len(sides)):
            taken[name].append(sides[name]())


def _compared(where: str, taken: dict[str, list[float]], tokens: int) -> list[Row]:
    rows, base = [], taken["plain"]
    for side, own in taken.items():
        if side == "plain":
            continue
        speeds = [REQUESTS * tokens / median(s) for s in (own, base)]
        note = "{:.0f} against {:.0f} tokens/s; ".format(*speeds) + f"{len(own)} rounds of {REQUESTS} requests at once"
        goal = {"goal": GOAL, "least": True} if side == WATCHING else {}
        rows.append(Paired(base, own).row("plugin", f"{where}: {side}", note=note, **goal))
    return rows


@contextmanager
def _in_process(questions: list[str], tokens: int) -> Iterator[dict[str, Callable[[], float]]]:
    import engines

    from entropy_chains.demo import MODEL_FOLDER

    given = {"model": str(MODEL_FOLDER), "context": engines.CONTEXT, "questions": questions, "tokens": tokens}
    python = str(engines.VLLM / "bin" / "python")
    with ExitStack() as stack:

        def started(processors: list[str]) -> Callable[..., float]:
            command = [python, str(HERE / "vllm_rounds.py"), json.dumps(given | {"processors": processors})]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
            process = stack.enter_context(subprocess.Popen(command, env=engines.environment(plugin=True), **pipes))
            stack.callback(process.kill)
            if process.stdout.readline() != "ready\n":
                raise RuntimeError(f"vLLM did not start; try: {' '.join(command[:2])} '{command[2]}'")

            def a_round(**settings: object) -> float:
                process.stdin.write(json.dumps(settings) + "\n")
                process.stdin.flush()
                return float(process.stdout.readline())

            return a_round

        plain, loaded = started([]), started([engines.PLUGIN])
        yield {
            "plain": plain,
            "the plug-in loaded, not asked for": loaded,
            WATCHING: lambda: loaded(extra_args=WATCH),
            "the plug-in watches, whole vocabulary": lambda: loaded(extra_args=WHOLE),
            "no plug-in, 20 logprobs": lambda: plain(logprobs=20),
        }


@contextmanager
def _served(questions: list[str], tokens: int) -> Iterator[dict[str, Callable[[], float]]]:
    import engines

    with engines.start("vllm") as plain, engines.start("vllm", plugin=True) as loaded, ThreadPoolExecutor(REQUESTS) as pool:

        def a_round(engine: engines.Engine, **extra: object) -> float:
            body = {"model": engine.name, "temperature": 0, "max_tokens": tokens, "ignore_eos": True, **extra}
            time.sleep(QUIET)
            done: list[int] = []
            took = seconds(lambda: done.extend(pool.map(lambda q: _completion_tokens(engine.base_url, body, q), questions)))
            if done != [tokens] * REQUESTS:
                raise AssertionError(f"{sorted(set(done))} tokens a request instead of {tokens}: the sides cannot be compared")
            return took

        yield {
            "plain": lambda: a_round(plain),
            "the plug-in loaded, not asked for": lambda: a_round(loaded),
            WATCHING: lambda: a_round(loaded, vllm_xargs=WATCH),
            "no plug-in, 20 logprobs": lambda: a_round(plain, logprobs=True, top_logprobs=20),
        }


def _completion_tokens(base_url: str, body: dict, question: str) -> int:
    data = json.dumps(body | {"messages": [{"role": "user", "content": question}]}).encode()
    request = urllib.request.Request(f"{base_url}/chat/completions", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as reply:
        return json.loads(reply.read())["usage"]["completion_tokens"]


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    for row in plugin("--quick" in sys.argv):
        print(json.dumps(row.to_dict(), ensure_ascii=False))
