"""The refine loop on the bundled model: fixed schedule, ended when sure, and with the calls saved given to the unsure.

``python benchmarks/reallocation.py [--quick] [--json]``. Calibrates on recorded questions and runs others live. Every arm has
the same seed and begins with the same batch, so the first calls are the same and later ones are drawn anew. Reallocation does not
touch a run's schedule: what it had at the end of its schedule *is* the run without reallocation, and is not computed twice.
The model was trained on threads of at most three calls and answers wrongly from the fourth on: hence two calls, and one more.
Intervals are 95 %, bootstrap over questions; that questions share a pool is left out of them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
from measure import Row, machine

from entropy_chains import Policy, calibrate, record, run_refine
from entropy_chains.backends import Generation, Sampling
from entropy_chains.backends.transformers import TransformersBackend
from entropy_chains.core import answers
from entropy_chains.core.policy_fields import BY_HAND
from entropy_chains.demo import MODEL_FOLDER, MODEL_NAME
from entropy_chains.demo.questions import Question, draw_questions
from entropy_chains.recording import conversation

RESAMPLES = 4000
Calls = Sequence[Generation]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--questions", type=int, default=100, help="held out, run live")
    parser.add_argument("--calibration", type=int, default=100, help="recorded questions that the policy is calibrated on")
    parser.add_argument("--steps", type=int, default=2, help="calls scheduled for a question")
    parser.add_argument("--max-steps", type=int, default=3, help="most calls with reallocation")
    parser.add_argument("--max-tokens", type=int, default=900, help="of a call")
    parser.add_argument("--max-loss", type=float, default=0.05, help="of the certificate")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a check that it runs; its figures mean nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    args = parser.parse_args()
    if args.quick:
        args.questions, args.calibration, args.steps, args.max_steps, args.max_tokens = 12, 12, 2, 3, 700
    facts = machine()
    policy, rows = measure(args)
    settings = {n: v for n, v in vars(args).items() if n not in ("json", "quick")}
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": facts,
        "settings": settings,
        "policy": policy.to_dict(),
        "rows": [r.to_dict() for r in rows],
    }
    print(json.dumps(result, ensure_ascii=False) if args.json else _text(result, policy))


def measure(args: argparse.Namespace) -> tuple[Policy, list[Row]]:
    """The policy, and the figures of every arm."""
    backend = TransformersBackend.from_pretrained(MODEL_FOLDER, name=MODEL_NAME)
    drawn = draw_questions(args.calibration + args.questions, args.seed)
    first = 1_000_000 * (args.seed + 1)
    sampling = Sampling(max_tokens=args.max_tokens, seed=first)
    details = backend.details(sampling)
    _say(f"record {args.calibration} questions ...")
    recorded = list(record(backend, drawn[: args.calibration], mode="refine", steps=args.steps, sampling=sampling, details=details))
    policy = calibrate(recorded, max_loss=args.max_loss, seed=args.seed)
    if not policy.active:  # schedules are compared, so something must stop
        _say(f"no certified threshold ({policy.reason}); the median of the first calls instead, which promises nothing")
        median = float(np.nanmedian([np.nan if t.steps[0].entropy is None else t.steps[0].entropy for t in recorded]))
        policy = replace(
            policy, thresholds=(median,), rule="entropy", signal="mean_entropy", method=BY_HAND, active=True, reason="uncertified"
        )

    held_out = drawn[args.calibration :]
    asked = [conversation(q) for q in held_out]
    live = Sampling(max_tokens=args.max_tokens, seed=first + 500_000)
    _say(f"{args.questions} held-out questions, fixed schedule ...")
    fixed = run_refine(backend, asked, steps=args.steps, sampling=live)
    _say("the same, ended when sure, with reallocation ...")
    given = run_refine(backend, asked, policy=policy, steps=args.steps, sampling=live, reallocate=True, max_steps=args.max_steps)
    arms: dict[str, list[Calls]] = {
        "first call only": [r.calls[:1] for r in fixed],
        f"fixed, {args.steps} calls": [r.calls for r in fixed],
        "ended when sure": [r.calls[: args.steps] for r in given],
        "with reallocation": [r.calls for r in given],
    }
    base = _figures(arms[f"fixed, {args.steps} calls"], held_out)
    rows = [row for name, runs in arms.items() for row in _rows(name, _figures(runs, held_out), base, args.seed)]
    helped = [(r, str(q["gold"])) for r, q in zip(given, held_out, strict=True) if len(r.calls) > args.steps]
    before = sum(answers.same(r.calls[args.steps - 1].answer, gold) for r, gold in helped)
    after = sum(answers.same(r.answer, gold) for r, gold in helped)
    note = f"{before} of them right at the end of the schedule, {after} after the further calls"
    return policy, [*rows, Row("with reallocation", "questions with further calls", len(helped), "", note=note)]


def _figures(runs: Sequence[Calls], questions: Sequence[Question]) -> np.ndarray:
    """Right or wrong, calls, and completion tokens of each question, [questions, 3]."""
    return np.array(
        [
            (answers.same(calls[-1].answer, q["gold"]), len(calls), sum(c.tokens for c in calls))
            for calls, q in zip(runs, questions, strict=True)
        ],
        dtype=float,
    )


def _rows(name: str, mine: np.ndarray, base: np.ndarray, seed: int) -> list[Row]:
    draws = np.random.default_rng(seed).integers(len(mine), size=(RESAMPLES, len(mine)))
    ours, theirs = mine[draws].mean(1), base[draws].mean(1)

    def row(figure: str, value: float, drawn: np.ndarray, unit: str = "") -> Row:
        low, high = np.percentile(drawn, [2.5, 97.5])
        return Row(name, figure, float(value), unit, float(low), float(high))

    found, full = mine.mean(0), base.mean(0)
    rows = [
        row("accuracy", 100 * found[0], 100 * ours[:, 0], "%"),
        row("calls a question", found[1], ours[:, 1]),
        row("tokens a question", found[2], ours[:, 2]),
    ]
    if mine is not base and not np.array_equal(mine, base):
        rows += [
            row("accuracy, against fixed", 100 * (found[0] - full[0]), 100 * (ours - theirs)[:, 0], "points"),
            row("tokens, against fixed", found[2] / full[2], ours[:, 2] / theirs[:, 2], "×"),
        ]
    return rows


def _text(result: dict, policy: Policy) -> str:
    m, s = result["machine"], result["settings"]
    table = [["arm", "figure", "value", "95 %", "note"]]
    for r in result["rows"]:
        spread = "" if r["low"] is None else f"{r['low']:.4g} to {r['high']:.4g}"
        table.append([r["benchmark"], r["figure"], f"{r['value']:.4g} {r['unit']}".strip(), spread, r["note"]])
    widths = [max(len(line[n]) for line in table) for n in range(4)]
    lines = ["  ".join([*(c.ljust(w) for c, w in zip(line, widths, strict=False)), line[4]]).rstrip() for line in table]
    head = [
        f"{result['date'][:10]}, {m['cpu']}, {m['cores']} cores, torch {m['torch']}, load at the start {m['load']}",
        f"{MODEL_NAME}: calibrated on {s['calibration']} questions, {s['questions']} others; seed {s['seed']}",
        f"policy: {policy.method}, {policy.rule}, {policy.signal}, threshold {policy.thresholds}, {policy.reason}",
        "",
    ]
    return "\n".join([*head, *lines])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
