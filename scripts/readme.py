"""Write measured figures into the README and the model card: ``python scripts/readme.py``, after ``make demo`` or an evaluation.

A fresh ``demo/demo.json`` is kept as ``docs/demo.json``; the blocks between the markers are rendered from that file and from the
model's ``evaluation.json``.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from entropy_chains.show import wording

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "docs" / "demo.json"
CARD = ROOT / "entropy_chains" / "demo" / "model"


def block(story: dict[str, Any]) -> str:
    """The README's table."""
    change = (
        f"{wording.points(story['accuracy_change'])} points ({wording.interval(story['accuracy_change_interval'], wording.points)})"
    )
    saved = f"{wording.percent(story['tokens_saved'])} saved ({wording.interval(story['tokens_saved_interval'], wording.percent)})"
    flops = f"{wording.percent(1 - story['flops'] / story['flops_full'])} saved"
    slow, fast = story["latency_full"]["mean"], story["latency"]["mean"]
    best = story["oracle_tokens_saved"]
    rows = [
        f"| {story['questions']} held-out questions, run live | in full | stopped early | change (95 % interval, paired) |",
        "|---|---|---|---|",
        f"| accuracy | {wording.percent(story['accuracy_full'])} | {wording.percent(story['accuracy'])} | {change} |",
        f"| tokens, all that were computed | {story['tokens_full']:,} | {story['tokens']:,} | {saved} |",
        f"| FLOPs (2 · parameters · tokens) | {wording.number(story['flops_full'])} | {wording.number(story['flops'])} | {flops} |",
        f"| mean latency, one at a time | {slow:.2f} s | {fast:.2f} s | {wording.less_or_more(slow, fast)} |",
        "",
        f"{story['lost_correct']} right answers were lost and {story['gained_correct']} gained. The best that any stop rule "
        f"could have saved is {wording.percent(best)}; {wording.percent(story['tokens_saved'] / best, 0)} of that was reached. "
        f"Calibrated on {story['calibration_questions']} other questions.",
        "",
    ]
    return "\n".join(rows)


def evaluation(levels: dict[str, Any]) -> str:
    """The model card's table."""
    head = "| factors' digits | questions | right in full | right after step 1 | steps | tokens | best saving |"
    rows = [head, "|---|---|---|---|---|---|---|"]
    for name, f in levels.items():
        shares = [wording.percent(f[k]) for k in ("accuracy_full", "after_step_1")]
        best = wording.percent(f["oracle_tokens_saved"])
        rows.append(f"| {name} | {f['questions']} | {shares[0]} | {shares[1]} | {f['steps']} | {f['tokens']} | {best} |")
    return "\n".join([*rows, ""])


def fill(path: Path, name: str, content: str) -> str:
    """The file's text with the block of that name replaced."""
    pattern = re.compile(f"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)
    return pattern.sub(lambda _: content, path.read_text(encoding="utf-8"))


def rendered() -> dict[Path, str]:
    """What the two files must hold."""
    story, levels = (json.loads(p.read_text(encoding="utf-8")) for p in (KEPT, CARD / "evaluation.json"))
    readme, card = ROOT / "README.md", CARD / "README.md"
    return {readme: fill(readme, "demo", block(story)), card: fill(card, "evaluation", evaluation(levels))}


def main() -> None:
    """Keep a fresh run's figures and rewrite the blocks."""
    fresh = ROOT / "demo" / "demo.json"
    if fresh.exists():
        shutil.copy(fresh, KEPT)
    for path, text in rendered().items():
        path.write_text(text, encoding="utf-8")
        print(f"written: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
