"""How good a checkpoint is, and whether it is an honest test: ``python -m entropy_chains.demo.evaluate FOLDER``.

Prints, as one JSON object: accuracy in full and after each step, over all and by the digits of the factors, steps (lines of
reasoning) and tokens a run, and what the oracle would save.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from entropy_chains.backends import Sampling
from entropy_chains.backends.transformers import TransformersBackend
from entropy_chains.core import answers
from entropy_chains.demo.questions import draw_questions
from entropy_chains.files import check_outputs, write_file
from entropy_chains.offline.traces import Trace
from entropy_chains.recording import record


def summary(runs: list[Trace]) -> dict[str, Any]:
    """Figures of recorded runs; ``after_step_1`` is the accuracy of always stopping there."""
    full = [answers.same(r.steps[-1].answer, r.gold) for r in runs]
    first = [answers.same(r.steps[0].answer, r.gold) for r in runs]
    tokens = sum(s.tokens for r in runs for s in r.steps)
    oracle = 0
    for r in runs:
        at = next(n for n, s in enumerate(r.steps) if n == len(r.steps) - 1 or answers.same(s.answer, r.steps[-1].answer))
        oracle += sum(s.tokens for s in r.steps[: at + 1]) + (r.steps[at].probe_tokens or 0)
    return {
        "questions": len(runs),
        "accuracy_full": round(sum(full) / len(runs), 4),
        "after_step_1": round(sum(first) / len(runs), 4),
        "steps": round(sum(len(r.steps) - 1 for r in runs) / len(runs), 2),
        "tokens": round(tokens / len(runs), 1),
        "oracle_tokens_saved": round(1 - oracle / tokens, 3),
    }


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--questions", type=int, default=512)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--system", help="a system prompt for every question")
    parser.add_argument("--keep", type=Path, help="write the traces here")
    parser.add_argument("--out", type=Path, help="write the figures here too")
    args = parser.parse_args()
    check_outputs([path for path in (args.keep, args.out) if path])
    backend = TransformersBackend.from_pretrained(args.folder, name="entropy-chains/demo")
    sampling = Sampling(args.temperature, max_tokens=1600, seed=args.seed)
    questions = draw_questions(args.questions, args.seed)
    runs = list(record(backend, questions, sampling=sampling, batch=64, system=args.system))
    levels: dict[str, list[Trace]] = defaultdict(list)
    for run in runs:
        digits = sorted((len(f) for f in run.id.split("x")), reverse=True)
        levels["x".join(map(str, digits))].append(run)
    figures = json.dumps({"all": summary(runs), **{k: summary(v) for k, v in sorted(levels.items())}}, indent=1)
    print(figures)  # noqa: T201
    if args.out:
        write_file(args.out, figures + "\n")
    if args.keep:
        write_file(args.keep, "".join(json.dumps(r.to_dict()) + "\n" for r in runs))


if __name__ == "__main__":
    main()
