"""``docs/results.md`` from the figures that ``results.py`` kept; see there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from entropy_chains.show.wording import interval, less_or_more, number, percent, points

ROOT = Path(__file__).parent.parent
PAGE, KEPT, PICTURE = (ROOT / "docs" / name for name in ("results.md", "results.json", "pictures/compare.png"))
OURS = ("auto", "entropy", "entropy (sum)", "entropy (trial)", "entropy+agreement")
CARRIED = (("auto", "certified"), ("entropy", "certified"), ("entropy (trial)", "certified"), ("information", "published"),
           ("trial-confidence", "certified"), ("trial-confidence", "published"), ("token-budget", "certified"),
           ("fixed-step", "certified"))  # fmt: skip
SHUFFLED = (("auto", "certified"), ("entropy", "certified"), ("information", "published"), ("mean", "published"),
            ("deepconf", "published"), ("trial-confidence", "published"), ("eat", "published"))  # fmt: skip

Figures = Mapping[str, Any]


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows))


def whole(value: float | None) -> str:
    """A fraction in whole percent."""
    return percent(value, 0)


def two(value: float) -> str:
    """An AUROC."""
    return f"{value:.2f}"


def name(rule: Figures) -> str:
    """A rule and how it was set."""
    return f"`{rule['rule']}`" + ("" if rule["method"] in ("none", "hindsight") else f", {rule['method']}")


def found_in(rules: Iterable[Figures], key: tuple[str, str]) -> Figures:
    """The row of a rule."""
    return next(r for r in rules if (r["rule"], r["method"]) == key)


# --- the blocks


def facts(f: Figures) -> str:
    """What was recorded, and where."""
    r = f["recorded"]
    return (
        f"{f['date']}, {f['cores']} CPU cores shared with other work (load {f['load']}). {r['questions']:,} questions in full at "
        f"temperature {r['temperature']:g}: {percent(r['accuracy_full'])} right; {r['steps']} steps and {r['tokens']} tokens a "
        f"run, {r['probe_tokens']} for a forced answer."
    )


def signals(f: Figures) -> str:
    """How well each signal tells wrong answers, step by step."""
    names = {
        "mean_entropy": "mean entropy",
        "sum_entropy": "summed entropy",
        "trial_entropy": "entropy of the tried answer",
        "trial_confidence": "its confidence (DEER)",
        "eat": "entropy after the closing tag (EAT)",
    }
    rows = []
    for key, label in names.items():
        d = f["diagnosis"][key]
        steps = [s["auroc"] for s in d["steps"][:5]]
        rows.append([label, *("–" if a is None else f"{a:.2f}" for a in (d["auroc"], d["auroc_lost"], *steps))])
    return table(["AUROC of", "all steps", "what a stop can lose", *(f"step {n}" for n in range(1, 6))], rows)


def home(f: Figures) -> str:
    """The comparison."""
    rows = []
    for r in (r for r in f["home"]["rules"] if r["applicable"]):
        kept = "" if r["within_max_loss"] else " **too many**"
        rows.append(
            [
                ("**" if r["pareto"] else "") + name(r) + ("**" if r["pareto"] else ""),
                f"{points(r['accuracy_change'])} ({interval(r['accuracy_change_interval'], points)})",
                f"{r['lost_correct']} ({percent(r['lost_share'])}){kept}",
                f"{whole(r['tokens_saved'])} ({interval(r['tokens_saved_interval'], whole)})",
                whole(r["oracle_fraction"]),
            ]
        )
    return table(["rule", "accuracy, points", "right answers lost", "tokens saved", "of the oracle's"], rows)


def verdict(f: Figures) -> str:
    """Which rule is best, by the figures alone."""
    rules = [r for r in f["home"]["rules"] if r["applicable"] and r["within_max_loss"] and r["method"] != "hindsight"]
    ours = [r for r in rules if r["rule"] in OURS and r["method"] == "certified"]
    best = max(ours, key=lambda r: r["tokens_saved"])
    others = [r for r in rules if r["rule"] not in OURS]
    better = [r for r in others if r["tokens_saved"] > best["tokens_saved"] and r["lost_correct"] <= best["lost_correct"]]
    lines = [
        f"Of this library's certified rules {name(best)} saves most: {percent(best['tokens_saved'])} at {best['lost_correct']} "
        f"right answers lost ({percent(best['lost_share'])}), {whole(best['oracle_fraction'])} of what the oracle saves."
    ]
    if better:
        told = "; ".join(f"{name(r)}: {percent(r['tokens_saved'])} at {r['lost_correct']}" for r in better)
        lines.append(f"Better than it, with more saved and no more lost: {told}.")
    else:
        lines.append("No published rule saves more at as few lost answers.")
    fewer = [r for r in others if r["pareto"] and r not in better]
    if fewer:
        told = "; ".join(f"{name(r)}: {percent(r['tokens_saved'])} at {r['lost_correct']}" for r in fewer)
        lines.append(f"Also on the front, with other losses: {told}.")
    return "\n".join(lines)


def promises(f: Figures) -> str:
    """How often a rule's true risk is above the promise."""
    rows = sorted(f["promises"], key=lambda r: (r["method"] != "certified", -r["saved"]))
    return table(
        ["rule", "above 5 %", "lost: mean", "worst", "saved: mean"],
        [[name(r), whole(r["broken"]), percent(r["lost"]), percent(r["worst"]), whole(r["saved"])] for r in rows],
    )


def carried(f: Figures) -> str:
    """Transfer, both ways."""
    parts, rows = f["transfer"], []
    for key in CARRIED:
        cells = []
        for side in ("hard", "easy"):
            for where in ("home", "away"):
                r = found_in(parts[side][where], key)
                cells.append(f"{percent(r['lost_share'])}, {whole(r['tokens_saved'])}" + ("" if r["within_max_loss"] else " **!**"))
        rows.append([name({"rule": key[0], "method": key[1]}), *cells])
    heads = ["lost, saved", "hard, fitted there", "hard, fitted on easy", "easy, fitted there", "easy, fitted on hard"]
    told = ", ".join(f"{parts[p]['questions']} {p} ones ({percent(parts[p]['accuracy_full'])} right in full)" for p in parts)
    return f"{table(heads, rows)}\n\nThe questions: {told}. **!**: more than 5 % lost."


def controls(f: Figures) -> str:
    """No signal at all, and none after step 1."""
    c = f["controls"]
    first = c["all"]
    rows = []
    for key in SHUFFLED:
        r = found_in(first["rules"], key)
        rows.append([name(r), r["reason"], f"{percent(r['lost_share'])}", percent(r["tokens_saved"])])
    verdict = f"`{first['verdict']}`, AUROC {first['auroc']:.2f} ({interval(first['interval'], two)})"
    one = c["step_1"]
    auroc, bounds = one["steps"][0]["auroc"], one["steps"][0]["interval"]
    limits = ", ".join("never" if t is None else f"{t:.2g}" for t in one["thresholds"])
    stops = ", ".join(map(str, one["stops_at_step"]))
    return (
        f"Figures of all steps dealt out anew among the runs: {verdict}.\n\n"
        + table(["rule", "reason", "lost", "saved"], rows)
        + f"\n\nThose of step 1 alone (its AUROC is then {two(auroc)}, {interval(bounds, two)}): "
        f"`calibrate(per_step=True)` gives the thresholds {limits} bits; runs stopped after step 1, 2, …: {stops}."
    )


def live(f: Figures) -> str:
    """Fresh questions, one at a time."""
    run = f["live"]
    full, early = run["full"], run["early"]
    flops = [side["flops"] for side in (full, early)]
    rows = [
        ["right", str(full["right"]), str(early["right"]), ""],
        ["tokens", f"{full['tokens']:,}", f"{early['tokens']:,}", less_or_more(full["tokens"], early["tokens"])],
        ["FLOPs (2 · parameters · tokens)", *map(number, flops), less_or_more(*flops)],
    ]
    for key, label in (("mean", "mean"), ("p50", "median"), ("p95", "95th percentile"), ("std", "standard deviation")):
        a, b = full["latency"][key], early["latency"][key]
        rows.append([f"latency, {label}", f"{a:.2f} s", f"{b:.2f} s", less_or_more(a, b)])
    joules = run["energy"]
    if None in joules.values():
        rows.append(["energy", "not measured", "not measured", ""])
    else:
        rows.append(["energy", *(f"{j:.0f} J" for j in joules.values()), less_or_more(*joules.values())])
    rule = run["policy"]
    told = f"{run['questions']} fresh questions, {early['stopped']} of them stopped early by `{rule['rule']}` on `{rule['signal']}`"
    why = "" if run["energy_reason"] is None else f" Energy: {run['energy_reason'].removeprefix('energy is not known: ')}."
    return f"{told}.{why}\n\n" + table(["", "in full", "stopped early", ""], rows)


def failures(f: Figures) -> str:
    """What the figures say does not work."""
    rules = [r for r in f["home"]["rules"] if r["applicable"]]
    lines = []
    over = [r for r in rules if not r["within_max_loss"]]
    if over:
        lines.append("Lost more than 5 % here: " + "; ".join(f"{name(r)} ({percent(r['lost_share'])})" for r in over) + ".")
    dear = [r for r in rules if r["tokens_saved"] < 0]
    if dear:
        told = "; ".join(f"{name(r)} ({whole(r['tokens_saved'])})" for r in dear)
        lines.append(f"Cost more than they save, because every step's forced answer is paid: {told}.")
    idle = [r for r in rules if r["tokens_saved"] == 0 and r["rule"] not in ("never", "oracle")]
    if idle:
        lines.append("Never stop: " + "; ".join(f"{name(r)} (`{r['reason']}`)" for r in idle) + ".")
    broken = [r for r in f["promises"] if r["method"] == "published" and r["broken"] > 0.1]
    if broken:
        told = "; ".join(f"{name(r)} in {whole(r['broken'])}" for r in sorted(broken, key=lambda r: -r["broken"]))
        lines.append(f"Above 5 % in more than a tenth of the repeated calibrations: {told}.")
    silent = [s for s in f["diagnosis"]["mean_entropy"]["steps"] if s["auroc_interval"] and s["auroc_interval"][0] <= 0.5]
    if silent:
        told = ", ".join(f"{s['step']} ({s['auroc']:.2f}, {interval(s['auroc_interval'], two)})" for s in silent)
        lines.append(f"The mean entropy's AUROC is not surely above one half after step {told}: late stops rest on little.")
    away = found_in(f["transfer"]["hard"]["away"], ("auto", "certified"))
    if not away["within_max_loss"]:
        lost = percent(away["lost_share"])
        lines.append(f"A certificate from easy questions does not hold on hard ones: `auto` lost {lost} there.")
    return "\n".join(f"- {line}" for line in lines)


def instruct(f: Figures) -> str:
    """What ``diagnose`` says of models that others trained (``instruct.py``), beside the bundled one."""
    found = {"the bundled reasoner (thinking)": f["diagnosis"]["mean_entropy"], **f.get("instruct", {})}
    return table(
        ("model", "questions", "right", "AUROC", "95 % interval", "verdict"),
        (
            (
                label,
                f"{d['questions']:,}",
                percent(d["accuracy_full"]),
                "-" if d["auroc"] is None else two(d["auroc"]),
                "-" if d["auroc_interval"] is None else interval(d["auroc_interval"], two),
                f"`{d['verdict']}`",
            )
            for label, d in found.items()
        ),
    )


BLOCKS = {b.__name__: b for b in (facts, signals, home, verdict, promises, carried, controls, instruct, live, failures)}


def text(figures: Figures) -> str:
    """All blocks, for a terminal."""
    return "\n\n".join(f"== {title}\n{block(figures)}" for title, block in BLOCKS.items())


def rendered() -> str:
    """What the page must hold, given the kept figures."""
    figures, page = json.loads(KEPT.read_text(encoding="utf-8")), PAGE.read_text(encoding="utf-8")
    for title, block in BLOCKS.items():
        pattern = re.compile(f"(?<=<!-- {title} -->\n).*?(?=<!-- /{title} -->)", re.DOTALL)
        page, count = pattern.subn(lambda _, b=block: b(figures) + "\n", page)
        if count != 1:
            raise SystemExit(f"{PAGE.name} has {count} blocks {title!r}; it must have one")
    return page


def write() -> None:
    """Rewrite the page's blocks."""
    PAGE.write_text(rendered(), encoding="utf-8")
