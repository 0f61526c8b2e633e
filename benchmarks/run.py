"""All benchmarks: ``python benchmarks/run.py [--only NAME] [--quick] [--json] [--write-docs]`` (``make bench``).

Results go to ``benchmarks/results/<date>.json`` and, as a table, to standard output. ``--quick`` runs everything in small, to
see that it works: its figures mean nothing and are not kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime

from client import client
from entropies import logits, position
from generation import bundled, gpu
from langchain_path import langchain
from llama_index_path import llama_index
from measure import HERE, ROOT, Row, machine
from monitoring import monitors
from offline import scaling
from plugin import plugin
from starting import imports

BENCHMARKS = {
    "generate": bundled,
    "position": position,
    "logits": logits,
    "monitor": monitors,
    "import": imports,
    "offline": scaling,
    "client": client,
    "langchain": langchain,
    "llama_index": llama_index,
    "plugin": plugin,
    "gpu": gpu,
}
DOCS = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- results -->", "<!-- /results -->"


def main() -> int:
    """Run what was asked for; exit status 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", action="append", choices=BENCHMARKS, help="run this one; may be given several times")
    parser.add_argument("--quick", action="store_true", help="small sizes, a check that everything runs")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/benchmarks.md")
    args = parser.parse_args()
    facts = machine()
    rows: list[Row] = []
    for name in args.only or BENCHMARKS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows += BENCHMARKS[name](args.quick)
    now = datetime.now(UTC)
    result = {"date": now.isoformat(timespec="seconds"), "machine": facts, "rows": [r.to_dict() for r in rows]}
    if not args.quick:
        result = _kept(result, now)
    print(json.dumps(result, ensure_ascii=False) if args.json else _text(result))
    if args.write_docs and not args.quick:
        _write_docs(result)
    return 1 if any(r.met is False for r in rows) and not args.quick else 0


def _kept(result: dict, now: datetime) -> dict:
    """Write the day's file; with ``--only`` the other benchmarks of the day stay in it."""
    path = HERE / "results" / f"{now:%Y-%m-%d}.json"
    path.parent.mkdir(exist_ok=True)
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        fresh = {r["benchmark"] for r in result["rows"]}
        both = [r for r in before["rows"] if r["benchmark"] not in fresh] + result["rows"]
        order = list(BENCHMARKS)
        result = result | {"rows": sorted(both, key=lambda r: order.index(r["benchmark"]))}
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return result


def _cells(row: dict) -> list[str]:
    value = "not run" if row["value"] is None else f"{row['value']:.3g} {row['unit']}"
    spread = "" if row["low"] is None else f"{row['low']:.3g} to {row['high']:.3g}"
    goal = "" if row["goal"] is None else f"{'≥' if row['least'] else '≤'} {row['goal']:g} {row['unit']}"
    verdict = {True: " met", False: " **missed**", None: ""}[row["met"]]
    return [row["benchmark"], row["figure"], value, spread, goal + verdict, row["note"]]


HEADINGS = ["benchmark", "figure", "median", "lowest to highest", "goal", "note"]


def _text(result: dict) -> str:
    table = [HEADINGS, *(_cells(r) for r in result["rows"])]
    widths = [max(len(line[n]) for line in table) for n in range(len(HEADINGS) - 1)]
    lines = ["  ".join([*(c.ljust(w) for c, w in zip(line, widths, strict=False)), line[-1]]).rstrip() for line in table]
    return "\n".join([_machine(result), "", *(line.replace("**", "") for line in lines)])


def _machine(result: dict) -> str:
    m = result["machine"]
    versions = ", ".join(f"{name} {m[name]}" for name in ("python", "torch", "numpy", "transformers") if m.get(name))
    return f"{result['date'][:10]}, {m['cpu']}, {m['cores']} cores, {m['system']}, {versions}, load at the start {m['load']}"


def _write_docs(result: dict) -> None:
    page = DOCS.read_text(encoding="utf-8")
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    table = [HEADINGS, ["---"] * len(HEADINGS), *(_cells(r) for r in result["rows"])]
    lines = ["| " + " | ".join(cells) + " |" for cells in table]
    block = "\n".join([BEGIN, _machine(result) + ".", "", *lines, END])
    DOCS.write_text(head + block + tail, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
