"""The policy: its file, its fingerprint, its rule, and the off switch."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from devices import largest_file
from policy_files import FULL

from entropy_chains.core.policy import Policy, stopping_enabled
from entropy_chains.core.rules import MISSING, RULES, EntropyRule, Reading
from entropy_chains.core.signals import MassFloor
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import OutputError, PolicyError, SettingsError, WriteError


def test_the_file_is_written_as_it_was_read(tmp_path):
    """Every field, known or not, comes back; the file is JSON."""
    policy = Policy.from_dict(FULL)
    policy.save(tmp_path / "policy.json")
    assert json.loads((tmp_path / "policy.json").read_text()) == FULL
    assert Policy.load(tmp_path / "policy.json") == policy
    assert Policy.load(str(tmp_path / "policy.json")).fingerprint == policy.fingerprint


def test_a_policy_that_cannot_be_saved_leaves_the_old_one(tmp_path):
    """A full disk, a missing folder: an error that names the file; the old policy still loads, and nothing is left over."""
    path = tmp_path / "policy.json"
    policy = Policy.from_dict(FULL)
    policy.save(path)
    with largest_file(100), pytest.raises(WriteError, match=r"policy\.json cannot be written"):
        replace(policy, thresholds=(0.9,)).save(path)
    with pytest.raises(OutputError, match=r"missing/policy\.json cannot be written"):
        policy.save(tmp_path / "missing" / "policy.json")
    assert Policy.load(path) == policy
    assert [p.name for p in tmp_path.iterdir()] == ["policy.json"]


@pytest.mark.parametrize(
    ("data", "told"), [([], "format"), ({"format": "x"}, "format"), ({**FULL, "version": 2}, "version 2"), ("{}", "format")]
)
def test_something_else_is_not_a_policy(data, told):
    """Another JSON file, or one of a later release."""
    with pytest.raises(PolicyError, match=told):
        Policy.from_dict(data)


def test_a_file_that_cannot_be_read(tmp_path):
    """Missing, not JSON, not UTF-8: a PolicyError that names the file, never another exception."""
    (tmp_path / "no.json").write_text("{")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    for name in ("missing.json", "no.json", "binary.json"):
        with pytest.raises(PolicyError, match=name):
            Policy.load(tmp_path / name)


# --- what decides


DECIDING = [
    ("model", "other"),
    ("thresholds", (0.3, None)),
    ("rule", "entropy"),
    ("min_steps", 3),
    ("mode", "refine"),
    ("scope", "agent"),
    ("signal", "sum_entropy"),
    ("estimator", "full"),
    ("k", 5),
    ("temperature", (0.7,)),
    ("temperature_mode", "scaled"),
    ("segmentation", Segmentation("blank_line", 32)),
    ("template", "sha256:ffff"),
    ("mass_floor", MassFloor(0.5, 0.9)),
    ("reason", "uncertified"),
]


@pytest.mark.parametrize(("name", "value"), DECIDING, ids=[n for n, _ in DECIDING])
def test_the_fingerprint_changes_with_what_decides(name, value):
    """Twelve hexadecimal digits, others for another decision."""
    policy = Policy.from_dict(FULL)
    other = replace(policy, **{name: value}).fingerprint
    assert other != policy.fingerprint
    assert len(other) == 12
    assert int(other, 16) >= 0


def test_the_fingerprint_changes_with_being_active():
    """Under the same reason."""
    on, off = (Policy("m", (0.2,), active=active, reason="of my own").fingerprint for active in (True, False))
    assert on != off


def test_the_fingerprint_does_not_change_with_what_only_tells():
    """Calibration figures, aliases and unknown fields decide nothing; 1 and 1.0 are the same threshold."""
    policy = Policy.from_dict(FULL)
    for other in (replace(policy, calibration={}), policy.for_model("x"), replace(policy, extra={})):
        assert other.fingerprint == policy.fingerprint
    assert Policy("m", (1,)).fingerprint == Policy("m", (1.0,)).fingerprint


@pytest.mark.parametrize("name", RULES)
def test_the_rule_of_a_policy(name):
    """The rule of that name with the policy's own numbers and signal."""
    rule = Policy("m", (0.2,), name, 3, signal="sum_entropy").stop_rule
    assert rule == RULES[name]((0.2,), 3, "sum_entropy")
    assert (rule.name, type(rule)) == (name, RULES[name])
    assert rule != EntropyRule((0.2,), 3)


def test_tokens_a_stop_saves():
    """The mean recorded at the step, the last one repeated, never negative; None where it is not recorded."""
    policy = Policy.from_dict(FULL)
    assert [policy.remaining_tokens(step) for step in (1, 2, 3, 9)] == [410, 198, 0, 0]
    assert replace(policy, calibration={"remaining_tokens": [-3.0]}).remaining_tokens(1) == 0
    assert replace(policy, calibration={}).remaining_tokens(1) is None


# --- what is running


@pytest.mark.parametrize(
    ("value", "enabled"), [("0", False), (" off ", False), ("False", False), ("no", False), ("1", True), ("", True)]
)
def test_the_off_switch(monkeypatch, value, enabled):
    """ENTROPY_CHAINS_STOP=0 runs everything in full."""
    monkeypatch.setenv("ENTROPY_CHAINS_STOP", value)
    assert stopping_enabled() is enabled


def test_without_the_off_switch_stopping_is_on(monkeypatch):
    """Unset means on."""
    monkeypatch.delenv("ENTROPY_CHAINS_STOP", raising=False)
    assert stopping_enabled()


@pytest.mark.parametrize("thresholds", [(2.0,), (0.3,), (None,), (None, 2.0)])
def test_a_fixed_step_reads_no_threshold(thresholds):
    """As calibration writes it, or null."""
    rule = Policy("m", thresholds, rule="fixed-step", min_steps=2).stop_rule
    assert [rule.stops(Reading(step, value)) for step, value in ((1, 0.0), (2, 9.0), (3, MISSING))] == [False, True, True]


def test_a_policy_or_its_file_or_none(tmp_path):
    """What every wrapper takes as its policy: the object, the path of its file, or None; anything else is named."""
    policy = Policy("m", (0.2,))
    policy.save(tmp_path / "policy.json")
    assert Policy.of(policy) is policy
    assert Policy.of(str(tmp_path / "policy.json")) == Policy.of(tmp_path / "policy.json") == policy
    assert Policy.of(None) is None
    with pytest.raises(SettingsError, match="policy is a dict; give a Policy"):
        Policy.of({"model": "m"})
