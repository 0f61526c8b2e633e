"""Results as tables for :func:`entropy_chains.show.printing.console`. The wording is the report's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import HORIZONTALS
from rich.console import Group
from rich.table import Table
from rich.text import Text

from entropy_chains.core.policy import Policy
from entropy_chains.errors import one_line
from entropy_chains.offline import cut_runs
from entropy_chains.offline.diagnose import sentence
from entropy_chains.show import advice, wording


def diagnosis_table(figures: Mapping[str, Any]) -> Group:
    """``diagnose``: the verdict, then a row for each step."""
    table = Table("step", "runs", "accuracy", "AUROC", "95 % interval", "Cohen's d")
    rows = [
        (
            "all, within steps",
            figures["questions"],
            figures["accuracy_full"],
            figures["auroc"],
            figures["auroc_interval"],
            figures["cohens_d"],
        )
    ]
    rows += [(str(s["step"]), s["n"], s["accuracy"], s["auroc"], s["auroc_interval"], s["cohens_d"]) for s in figures["steps"]]
    for name, n, accuracy, auroc, bounds, d in rows:
        table.add_row(name, str(n), wording.percent(accuracy), _two(auroc), wording.interval(bounds, _two), _two(d))
    lost = f"AUROC for what a stop can lose (full run right, this step wrong): {_two(figures['auroc_lost'])}"
    verdict = _bold(f"{figures['verdict']}: {sentence(figures)}")
    return Group(verdict, table, lost, *_lines(cut_runs.of_figures(figures)))


def policy_table(policy: Policy, out: Path) -> Group:
    """``calibrate``: what was fitted, on what evidence, and whether it stops."""
    calibration, unit = policy.calibration, wording.unit_of(policy.signal, " ({})")
    table = Table(show_header=False)
    for name, value in (
        ("stops", "yes" if policy.active else f"never: {policy.reason}"),
        ("rule", policy.stop_rule.title),
        (f"thresholds{unit}", wording.thresholds_text(policy) if policy.stop_rule.reads_signal else ""),
        ("first step", str(policy.min_steps)),
        (
            "calibrated on",
            f"{calibration.get('groups')} questions, {wording.percent(calibration.get('accuracy_full'))} right in full"
            + (f" (graded {policy.grade})" if policy.grade else ""),
        ),
        ("AUROC", f"{_two(calibration.get('auroc'))} ({wording.interval(calibration.get('auroc_interval'), _two)})"),
        ("saves", advice.saving(policy)),
        ("accuracy change", advice.change(policy)),
        ("may lose", advice.losable(policy)),
        ("runs in", advice.places(policy) if policy.active else ""),
        ("written to", str(out)),
    ):
        if value:
            table.add_row(name, value)
    remarks = (advice.evidence(policy), advice.next_step(policy))
    return Group(table, _capital(wording.state_sentence(policy)), *filter(None, remarks))


def replay_table(figures: Mapping[str, Any], policy: Policy) -> Group:
    """``replay``: full reasoning beside the policy."""
    table = Table("", "in full", "with the policy", "change")
    bounds = wording.interval(figures["accuracy_change_interval"], wording.points)
    change = f"{wording.points(figures['accuracy_change'])} points ({bounds})"
    bounds = wording.interval(figures["tokens_saved_interval"], wording.percent)
    saved = f"{wording.percent(figures['tokens_saved'])} saved ({bounds})"
    gold = figures["accuracy_full"] is not None
    table.add_row(
        "accuracy",
        wording.percent(figures["accuracy_full"]),
        wording.percent(figures["accuracy"]),
        change if gold else "no gold answers" if figures["judged"] else "every run was cut off",
    )
    table.add_row("tokens", wording.number(figures["tokens_full"]), wording.number(figures["tokens"]), saved)
    if figures["seconds_full"] is not None and figures["seconds"] is not None:
        table.add_row("seconds", wording.number(figures["seconds_full"]), wording.number(figures["seconds"]), "")
    return Group(table, _losses(figures), *_lines(cut_runs.of_replay(policy, figures)))


def comparison_table(figures: Mapping[str, Any]) -> Group:
    """``compare``: a row for each rule, by tokens saved among those that lose few enough answers, then the others."""
    gold = figures["labels"] == "gold"
    table = Table(box=HORIZONTALS, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name in ("rule", "how set", "accuracy, points" if gold else "other answers", "lost", "saved, %", "oracle"):
        table.add_column(name, no_wrap=True)
    rows = [r for r in figures["rules"] if r["applicable"]]
    within = True
    for r in rows:
        if within and not r["within_max_loss"]:
            table.add_section()
        within = r["within_max_loss"]
        change = f"{wording.points(r['accuracy_change'])} ({wording.interval(r['accuracy_change_interval'], wording.points)})"
        saved = f"{_hundredths(r['tokens_saved'])} ({wording.interval(r['tokens_saved_interval'], _hundredths)})"
        rule = _bold(r["rule"]) if r["pareto"] else r["rule"]
        other = change if gold else wording.percent(r["lost_share"])
        table.add_row(
            rule, r["method"], other, str(r["lost_correct"] + r["lost_cut"]), saved, wording.percent(r["oracle_fraction"], 0)
        )
    how = "fitted on one file, judged on the other"
    if figures["folds"] is not None:
        how = f"in {figures['folds']} parts, each judged with rules fitted on the others"
    limit = wording.short_percent(figures["max_loss"])
    notes = [
        f"{figures['questions']} runs of {figures['groups']} questions, {how}. In brackets: 95 % intervals, paired.",
        f"First those that lost at most {limit} of the runs here. Bold: nothing saves as much with fewer wrong answers.",
        "saved: tokens, probes paid; oracle: as a share of what stopping where the full run's answer is first given would save, "
        "above 100 % only with other answers.",
    ]
    plain = ("certified", "uncertified", "always full", "hindsight")
    notes += [f"{r['rule']} ({r['method']}): {r['reason']}" for r in rows if r["reason"] not in plain]
    notes += [f"{r['rule']} cannot be compared: {r['reason']}" for r in figures["rules"] if not r["applicable"]]
    return Group(table, *dict.fromkeys(notes), *_lines(cut_runs.of_figures(figures)))


def story_table(story: Mapping[str, Any], out: Path) -> Group:
    """``demo``: the live comparison."""
    table = Table(
        "", "in full", "stopped early", "change", title=f"{story['questions']} questions that calibration never saw, run live"
    )
    change = (
        f"{wording.points(story['accuracy_change'])} points ({wording.interval(story['accuracy_change_interval'], wording.points)})"
    )
    saved = f"{wording.percent(story['tokens_saved'])} saved ({wording.interval(story['tokens_saved_interval'], wording.percent)})"
    table.add_row("accuracy", wording.percent(story["accuracy_full"]), wording.percent(story["accuracy"]), change)
    table.add_row("tokens (counted)", wording.number(story["tokens_full"]), wording.number(story["tokens"]), saved)
    flops = f"{wording.percent(1 - story['flops'] / story['flops_full'])} saved"
    table.add_row("FLOPs (2·parameters·tokens)", wording.number(story["flops_full"]), wording.number(story["flops"]), flops)
    for name, label in (("mean", "mean"), ("p50", "median"), ("p95", "95th percentile"), ("std", "standard deviation")):
        slow, fast = story["latency_full"][name], story["latency"][name]
        if slow and fast is not None:
            row = f"latency, {label} (s, measured)"
            table.add_row(row, f"{slow:.2f}", f"{fast:.2f}", wording.less_or_more(slow, fast))
    notes = f"Latency: {story['latency_questions']} of the questions, one at a time. In brackets: 95 % intervals, paired."
    policy = Policy.from_dict(story["policy"])
    state = f"Stopping is active: {policy.stop_rule.title}, " if policy.active else "Stopping is not active: "
    why = wording.state_sentence(policy)
    files = f"Written: {out / 'demo.json'}, {out / 'report.html'} (open it in a browser), {out / 'policy.json'}"
    lines = [notes, _losses(story), *_lines(cut_runs.of_figures(story)), state + why]
    return Group(table, *lines, _bold(files))


def doctor_table(figures: Mapping[str, Any]) -> Group:
    """``doctor``: the verdict, what to do, and a row for each finding."""
    table = Table("looked at", "found", "how it was seen", "what it means", title=f"model {figures['model']}")
    for f in figures["findings"]:
        value = f["value"]
        value = wording.NONE if value is None else ("yes" if value else "no") if isinstance(value, bool) else str(value)
        table.add_row(f["name"].replace("_", " "), value, f["evidence"], f["meaning"])
    tokens = f"{figures['prompt_tokens']} prompt and {figures['completion_tokens']} completion tokens"
    took = f"Requests that this took: {figures['requests']}; {tokens}."
    remedies = [f"- {remedy}" for remedy in figures["remedies"]]
    return Group(table, _bold(_capital(figures["verdict"]) + "."), *remedies, took)


def _bold(text: str) -> Text:
    return Text(one_line(text), style="bold")


def _lines(text: str) -> list[str]:
    return [text] if text else []


def _losses(figures: Mapping[str, Any]) -> str:
    oracle = figures["oracle_tokens_saved"]
    share = (
        f", {wording.percent(figures['tokens_saved'] / oracle, 0)} of it reached" if 0 < oracle >= figures["tokens_saved"] else ""
    )
    other = f". {wording.ONLY_WITH_OTHERS}" if figures["tokens_saved"] > oracle else ""
    return (
        f"{figures['lost_correct']} right answers lost, {figures['gained_correct']} gained; "
        f"{wording.percent(figures['stopped_early'], 0)} of the runs stopped early. "
        f"Stopping where the full run's answer is first given would save {wording.percent(oracle)}{share}{other}."
    )


def _two(value: float | None) -> str:
    return wording.NONE if value is None else f"{value:.2f}"


def _hundredths(value: float | None) -> str:
    return wording.percent(value, 0).removesuffix(" %")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
