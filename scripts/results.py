"""Every rule on the bundled model: ``python scripts/results.py [--questions N] [--live N] [--traces FILE] [--write-docs]``.

Records full runs with all signals (once: the file is kept and gone on with), compares every rule on them, counts how often a
promise is broken over repeated calibrations, carries thresholds from easy to hard questions and back, takes the signal away, and
runs fresh questions live. ``--write-docs`` keeps the figures in ``docs/results.json`` and renders ``docs/results.md`` from them,
with its picture. With one thread about 15 minutes, most of it recording.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import results_page
from results_runs import live, loaded, recorded, say

from entropy_chains import Policy, calibrate, compare, diagnose, replay
from entropy_chains.offline.compare import transfer
from entropy_chains.offline.contenders import Terms, contenders
from entropy_chains.offline.published import stop_rows
from entropy_chains.offline.table import Table
from entropy_chains.offline.traces import read_traces
from entropy_chains.show.plots import saved_against_change

REPEATS, EXAMPLES = 100, 200
"""Calibrations behind the figures on promises, and questions of each."""

EASY, HARD = 5, 7
"""Digits of both factors together: at most so many are easy, at least so many hard; what lies between is neither."""

Runs = list[dict[str, Any]]


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--questions", type=int, default=1200, metavar="N", help="recorded in full (default: 1200)")
    parser.add_argument(
        "--live",
        type=int,
        default=40,
        metavar="N",
        help="fresh ones, run one at a time (default: 40); 0: keep those figures",
    )
    parser.add_argument(
        "--traces", type=Path, default=results_page.ROOT / "demo" / "results" / "traces.jsonl", help="where runs are kept"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--write-docs", action="store_true", help="write docs/results.json, docs/results.md and its picture")
    args = parser.parse_args()
    for name, least in (("questions", 1), ("live", 0)):
        if getattr(args, name) < least:
            parser.error(f"--{name} is {getattr(args, name)}; it must be at least {least}")
    if not args.live and not results_page.KEPT.exists():
        parser.error(f"--live is 0, but {results_page.KEPT} holds no figures to keep; ask for some questions")
    backend = loaded()
    runs = [t.to_dict() for t in read_traces(recorded(backend, args.questions, args.traces))]
    if len(runs) != args.questions:
        parser.error(f"{args.traces} holds {len(runs)} runs, not {args.questions}; name another file, or ask for so many")
    found = figures(runs)
    kept = json.loads(results_page.KEPT.read_text(encoding="utf-8")) if results_page.KEPT.exists() else {}
    if args.live:
        found["live"] = live(backend, Policy.from_dict(found["policy"]), args.live, [r["id"] for r in runs])
    else:
        found["live"] = kept["live"]
    if "instruct" in kept:  # models of others have a command of their own
        found["instruct"] = kept["instruct"]
    print(json.dumps(found, ensure_ascii=False) if args.json else results_page.text(found))
    if args.write_docs:
        results_page.KEPT.write_text(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        results_page.PICTURE.parent.mkdir(exist_ok=True)
        saved_against_change(results_page.PICTURE, "png", found["home"])
        results_page.write()
    return 0


def figures(runs: Runs) -> dict[str, Any]:
    """Everything that comes from the recorded runs."""
    table = Table.from_traces(runs)
    say("comparing ...")
    home = compare(table).to_dict()
    policy = calibrate(table)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "recorded": {
            "questions": table.runs,
            "steps": round(len(table.step) / table.runs - 1, 2),
            "tokens": round(float(table.tokens.sum()) / table.runs, 1),
            "temperature": table.temperatures[0],
            "accuracy_full": table.accuracy_full,
            "probe_tokens": round(float(table.probe_tokens[~table.is_last].mean()), 1),
        },
        "diagnosis": {
            name: diagnose(table, signal=name).to_dict() for name in ("mean_entropy", "sum_entropy", "trial_entropy", "eat")
        }
        | {"trial_confidence": diagnose(unsure(runs)).to_dict()},
        "home": home,
        "policy": policy.to_dict(),
        "promises": promises(runs, table),
        "transfer": carried(runs),
        "controls": controls(runs),
    }


def unsure(runs: Runs) -> Table:
    """The runs with 1 - trial confidence in the place of the entropy, so that lower is surer as elsewhere."""
    made = copy.deepcopy(runs)
    for step in (s for r in made for s in r["steps"]):
        sure = step.get("signals", {}).get("trial_confidence")
        step["entropy"] = None if sure is None else max(0.0, 1.0 - sure)
    return Table.from_traces(made)


# --- is the promise kept?


def promises(runs: Runs, everyone: Table) -> list[dict[str, Any]]:
    """Each rule fitted over and over on questions drawn from the recorded ones, with replacement; the truth is that of all."""
    terms = Terms(0.05, 0.9, 0)
    rules = [c for c in contenders(everyone) if c.fitted and c.missing(everyone) is None]
    kept: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for seed in range(REPEATS):
        if seed % 20 == 0:
            say(f"calibrating anew: {seed} of {REPEATS} ...")
        drawn = np.random.default_rng([seed, 31]).integers(0, len(runs), EXAMPLES)
        part = Table.from_traces(runs[i] | {"id": str(n), "group": str(n)} for n, i in enumerate(drawn))
        for rule in rules:
            made = rule.decide(part, everyone, terms._replace(seed=seed))
            lost = everyone.lost[stop_rows(everyone, made.stops)].mean()
            saved = 1.0 - made.spent.sum() / everyone.tokens.sum()
            kept.setdefault((rule.rule, rule.method), []).append((float(lost), float(saved)))
    return [
        {
            "rule": rule,
            "method": method,
            "broken": float(np.mean([lost > terms.max_loss for lost, _ in pairs])),
            "lost": float(np.mean([lost for lost, _ in pairs])),
            "worst": max(lost for lost, _ in pairs),
            "saved": float(np.mean([saved for _, saved in pairs])),
        }
        for (rule, method), pairs in kept.items()
    ]


# --- fitted here, judged there


def digits(run: Mapping[str, Any]) -> int:
    """Digits of both factors together."""
    return len(run["id"]) - 1


def carried(runs: Runs) -> dict[str, Any]:
    """Every rule fitted on easy questions and judged on hard ones, the other way round, and each at home."""
    parts = {"easy": [r for r in runs if digits(r) <= EASY], "hard": [r for r in runs if digits(r) >= HARD]}
    found: dict[str, Any] = {}
    for name, other in (("easy", "hard"), ("hard", "easy")):
        say(f"fitted on {other}, judged on {name} ...")
        judged = Table.from_traces(parts[name])
        found[name] = {
            "questions": judged.runs,
            "accuracy_full": judged.accuracy_full,
            "home": compare(judged).to_dict()["rules"],
            "away": transfer(Table.from_traces(parts[other]), judged).to_dict()["rules"],
        }
    return found


# --- no signal


def dealt_anew(runs: Runs, which: Callable[[int], bool], seed: int = 7) -> Runs:
    """The runs with the figures of some steps (entropy, mass, signals) dealt out anew among all that have such a step."""
    made, rng = copy.deepcopy(runs), np.random.default_rng(seed)
    for n in range(max(len(r["steps"]) for r in made) - 1):
        if which(n + 1):
            at = [r["steps"][n] for r in made if len(r["steps"]) > n + 1]
            figured = [{k: s[k] for k in ("entropy", "mass", "lower", "upper", "signals") if k in s} for s in at]
            for step, i in zip(at, rng.permutation(len(at)), strict=True):
                for name in ("entropy", "mass", "lower", "upper", "signals"):
                    step.pop(name, None)
                step |= {"entropy": None} | figured[i]
    return made


def controls(runs: Runs) -> dict[str, Any]:
    """A model without a signal, and one that has none after step 1."""
    say("negative controls ...")
    nothing = Table.from_traces(dealt_anew(runs, lambda step: True))
    one = Table.from_traces(dealt_anew(runs, lambda step: step == 1))
    policy = calibrate(one, per_step=True, rule="entropy")
    seen = diagnose(nothing)
    return {
        "all": {
            "verdict": seen.verdict,
            "auroc": seen.auroc,
            "interval": seen.auroc_interval,
            "rules": compare(nothing).to_dict()["rules"],
        },
        "step_1": {
            "steps": [{"auroc": s.auroc, "interval": s.auroc_interval} for s in diagnose(one).steps],
            "thresholds": list(policy.thresholds),
            "reason": policy.reason,
            "stops_at_step": list(replay(one, policy).stops_at_step),
        },
    }


if __name__ == "__main__":
    sys.exit(main())
