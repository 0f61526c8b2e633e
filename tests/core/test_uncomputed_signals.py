"""A policy on a signal that nothing here computes, a user's own or a misspelt one, says wherever it runs that it stops nothing."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from commands import run

from entropy_chains import Monitor, Policy, Script, ScriptedBackend
from entropy_chains.core import policy as policy_module
from entropy_chains.core.policy_fields import BY_HAND
from entropy_chains.core.steps import Segmentation
from entropy_chains.show import wording

LINES = Segmentation("line", 1)
OWN = Policy("scripted", (0.5,), signal="mean_entrpy", segmentation=LINES)
KNOWN = "mean_entropy, sum_entropy, top_tenth_entropy, tail_entropy, max_entropy, trial_entropy, eat"
WHY = f"signal 'mean_entrpy' is not one that is computed; there are {KNOWN}"
ASKED = [[{"role": "user", "content": "6*7?"}]]


@pytest.fixture(autouse=True)
def _nothing_was_told(monkeypatch):
    monkeypatch.setattr(policy_module, "_warned", set())


def traces(path: Path) -> Path:
    """Runs with a signal of one's own that tells right from wrong; the file."""
    lines = []
    for n in range(120):
        rights = [(n + step) % 4 != 0 for step in range(3)]
        steps = [
            {"answer": "42" if ok else "41", "entropy": 0.3, "tokens": 50, "signals": {"doubt": 0.1 if ok else 0.9}}
            for ok in rights
        ]
        steps.append({"answer": "42", "entropy": None, "tokens": 20})
        row = {"id": f"q{n}", "question": f"Q{n}", "gold": "42", "model": "m", "mode": "thinking", "k": 20, "steps": steps}
        lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return path


def test_a_run_is_whole_and_says_why():
    """Its outcome is not active, and a warning says so once, however many runs, and policies on that signal, there are."""
    backend = ScriptedBackend(Script([("one ", 0.1), ("\n", 0.1), ("two ", 0.1), ("\n", 0.1)], "42"), segmentation=LINES)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        outcomes = [backend.generate(ASKED, policy=policy)[0].outcome for policy in (OWN, OWN, replace(OWN, thresholds=(0.1,)))]
    assert {(o.active, o.stopped, o.reason) for o in outcomes} == {(False, False, WHY)}
    assert [str(w.message) for w in caught] == [f"nothing is stopped: {WHY}"]


def test_a_monitor_of_its_own_says_it_too():
    """Before the first token."""
    monitor = Monitor(OWN)
    assert not monitor.may_stop
    assert monitor.finish().reason == WHY


@pytest.mark.parametrize("policy", [replace(OWN, signal="mean_entropy"), replace(OWN, rule="fixed-step", thresholds=(1.0,))])
def test_what_is_computed_or_read_by_no_rule_is_no_hindrance(policy):
    """A rule that reads no signal stops, whatever the name says."""
    assert policy.hindrance is None
    assert Monitor(policy).may_stop


def test_an_inactive_policy_is_told_of_as_before():
    """For its own reason."""
    off = replace(OWN, active=False, reason="no_signal")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        off.check()
    assert Monitor(off).finish().reason == "policy is not active: no_signal"


def test_calibrate_says_where_it_runs_and_invents_no_unit(tmp_path):
    """Nowhere live; replay, compare and report take it without a warning."""
    source, made = traces(tmp_path / "t.jsonl"), tmp_path / "p.json"
    told = " ".join(run("calibrate", source, "-o", made, "--signal", "doubt").output.replace("│", " ").split())
    assert f"runs in nothing live, only replay and compare: signal 'doubt' is not one that is computed; there are {KNOWN}." in told
    assert "bits" not in told
    policy = Policy.load(made)
    assert policy.active
    assert policy.method != BY_HAND
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run("replay", source, "--policy", made).exit_code == 0
        assert run("report", source, "--policy", made, "--out", tmp_path / "r.html").exit_code == 0
    assert wording.value_text(0.1, "doubt", policy, 1).startswith("0.1, threshold ")
    assert wording.value_text(0.1, "mean_entropy", None, 1) == "0.1 bits"
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "0.9 bits" not in page
    assert wording.thresholds_text(policy) + " bits" not in page
