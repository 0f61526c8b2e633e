"""Reading, calibrating and replaying up to a million recorded steps.

Run as a script it measures one trace file in a process of its own: ``python offline.py FILE``.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
from pathlib import Path

from measure import Row, in_fresh_process, peak_memory, seconds

STEPS = 4
"""Steps a run."""

HEADER = {
    "model": "entropy-chains/demo", "mode": "thinking", "signal": "mean_entropy", "estimator": "renormalised", "k": 20,
    "temperature": 0.6, "temperature_mode": "raw", "segmentation": {"boundary": "line", "min_tokens": 32},
    "template": "sha256:0123456789abcdef",
}  # fmt: skip


def scaling(quick: bool) -> list[Row]:
    """Benchmark 6: seconds and bytes a step from 10^3 to 10^6 steps, for lines as in the contract and with all signals."""
    rows = []
    sizes = [10**n for n in range(3, 5 if quick else 7)]
    with tempfile.TemporaryDirectory() as folder:
        for rich in (False, True):
            kind = "all signals" if rich else "contract's line"
            files = [_write(Path(folder) / f"{size}.jsonl", size // STEPS, rich) for size in sizes]
            taken: dict[int, list[dict]] = {size: [] for size in sizes}
            for _ in range(1 if quick else 3):
                for size, file in zip(sizes, files, strict=True):
                    taken[size].append(in_fresh_process("offline.py", file))
            for size in sizes:
                rows += _rows(kind, size, taken[size], (20.0 if rich else 10.0) if size == 10**6 else None)
            large, small = sizes[-1], sizes[-2]
            growth = [(a["total"] / large) / (b["total"] / small) for a, b in zip(taken[large], taken[small], strict=True)]
            what = f"{kind}: seconds a step at {large:,} against {small:,} steps"
            goal = None if quick else 1.25
            rows.append(Row("offline", what, statistics.median(growth), "×", min(growth), max(growth), goal, note="1 = linear"))
    return rows


def _rows(kind: str, size: int, runs: list[dict], goal: float | None) -> list[Row]:
    totals = [r["total"] for r in runs]
    parts = ", ".join(f"{name} {statistics.median(r[name] for r in runs):.2f}" for name in ("read", "calibrate", "replay"))
    label = f"{kind}, {size:,} steps"
    rows = [
        Row("offline", f"{label}: read, calibrate, replay", statistics.median(totals), "s", min(totals), max(totals),
            goal, note=parts + " s"),
    ]  # fmt: skip
    if goal:
        bare = [r["read"] / r["json"] for r in runs]
        grown = [r["peak"] / size for r in runs if r["peak"] is not None]
        note = f"peak of the process {statistics.median(grown):.0f} bytes a step" if grown else ""
        rows.append(Row("offline", f"{label}: bytes a step in memory", runs[0]["bytes"] / size, "bytes", goal=200.0, note=note))
        what = f"{label}: reading against parsing the JSON alone"
        rows.append(Row("offline", what, statistics.median(bare), "×", min(bare), max(bare)))
    return rows


def _write(path: Path, runs: int, rich: bool) -> Path:
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for n in range(runs):
            gold = str(rng.randrange(10**6))
            header = {"id": f"q{n}", "group": f"q{n}", "question": f"{n}*86=?", "gold": gold, **HEADER}
            steps = [_step(rng, gold, i, rich) for i in range(STEPS)]
            file.write(json.dumps(header | {"steps": steps}) + "\n")
    return path


def _step(rng: random.Random, gold: str, index: int, rich: bool) -> dict:
    right = rng.random() < 0.6 + 0.1 * index
    entropy = max(1e-4, rng.gauss(0.5 - 0.1 * index + (0.0 if right else 0.25), 0.12))
    tokens = rng.randrange(50, 300)
    step = {
        "answer": gold if right else str(rng.randrange(10**6)), "correct": right, "entropy": entropy, "tokens": tokens,
        "seconds": round(3 * rng.random(), 3), "mass": 0.99 + 0.01 * rng.random(),
    }  # fmt: skip
    if rich:
        signals = {
            "sum_entropy": entropy * tokens, "top_tenth_entropy": 3 * entropy, "tail_entropy": 1.1 * entropy,
            "max_entropy": 5 * entropy, "deepconf": 10 - entropy,
        }  # fmt: skip
        step |= {"probe_tokens": 12, "lower": 0.99 * entropy, "upper": 1.05 * entropy, "signals": signals}
    return step


def main() -> None:
    """Measure one file; prints JSON."""
    from entropy_chains import calibrate, replay
    from entropy_chains.offline.table import Table

    path = sys.argv[1]
    found: dict = {}

    def work() -> None:
        made: list = []
        found["read"] = seconds(lambda: made.append(Table.read(path)))
        found["calibrate"] = seconds(lambda: made.append(calibrate(made[0])))
        found["replay"] = seconds(lambda: made.append(replay(made[0], made[1])))
        found["bytes"] = made[0].nbytes

    def parse() -> None:
        with open(path, "rb") as file:
            for line in file:
                json.loads(line)

    found["peak"] = peak_memory(work)
    found["json"] = seconds(parse)
    found["total"] = found["read"] + found["calibrate"] + found["replay"]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
