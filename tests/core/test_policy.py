"""The policy: its file, its checks, its fingerprint."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import pytest
from devices import largest_file
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_chains.core.policy import FORMAT, Policy, stopping_enabled
from entropy_chains.core.rules import MISSING, RULES, EntropyRule, Reading
from entropy_chains.core.signals import MassFloor
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import OutputError, PolicyError, PolicyMismatch, SettingsError, WriteError

FULL = {
    "format": FORMAT,
    "version": 1,
    "model": "entropy-chains/demo",
    "aliases": ["demo.gguf"],
    "mode": "thinking",
    "scope": "call",
    "signal": "mean_entropy",
    "unit": "bits",
    "estimator": "renormalised",
    "k": 20,
    "temperature": [0.6],
    "temperature_mode": "raw",
    "segmentation": {"boundary": "line", "min_tokens": 32},
    "template": "sha256:0123456789abcdef",
    "mass_floor": {"position": 0.5, "step": 0.8},
    "method": "certified",
    "rule": "entropy+agreement",
    "thresholds": [0.31, None],
    "min_steps": 2,
    "active": True,
    "reason": "certified",
    "calibration": {"runs": 240, "remaining_tokens": [410.4, 198.0, 0.0]},
    "from_the_future": {"kept": [1, 2]},
}
"""A policy file's object with every field of the contract, and one that is not known."""


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


def test_a_short_file_gets_the_defaults():
    """Model and thresholds are enough."""
    policy = Policy.from_dict({"format": FORMAT, "version": 1, "model": "m", "thresholds": [0.2]})
    assert policy == Policy("m", (0.2,))
    assert (policy.rule, policy.min_steps, policy.k, policy.mass_floor) == ("entropy", 1, 20, MassFloor(0.5, 0.8))


@settings(deadline=None)
@given(
    st.lists(st.none() | st.floats(0, 100) | st.integers(0, 9), min_size=1, max_size=5),
    st.integers(1, 9),
    st.sampled_from(["entropy", "entropy+agreement", "fixed-step"]),
    st.none() | st.integers(1, 100),
    st.booleans(),
    st.lists(st.floats(0, 2), max_size=3),
)
def test_any_policy_survives_its_file(thresholds, min_steps, rule, k, active, temperature):
    """Equal after JSON, with an equal fingerprint."""
    policy = Policy(
        "m",
        (None, min_steps) if rule == "fixed-step" else tuple(thresholds),
        rule,
        min_steps,
        k=k,
        temperature=tuple(temperature),
        active=active,
        reason="uncertified" if active else "no_signal",
    )
    again = Policy.from_dict(json.loads(json.dumps(policy.to_dict(), allow_nan=False)))
    assert again == policy
    assert again.fingerprint == policy.fingerprint


BAD = [
    ("model", 5),
    ("model", ""),
    ("model", None),
    ("thresholds", []),
    ("thresholds", 0.3),
    ("thresholds", "0.3"),
    ("thresholds", ["0.3"]),
    ("thresholds", [True]),
    ("thresholds", [float("nan")]),
    ("thresholds", [float("inf")]),
    ("thresholds", None),
    ("rule", "entropi"),
    ("rule", None),
    ("rule", ["entropy"]),
    ("min_steps", 0),
    ("min_steps", 1.5),
    ("min_steps", True),
    ("min_steps", "2"),
    ("aliases", "demo"),
    ("aliases", [1]),
    ("mode", "think"),
    ("scope", "everything"),
    ("signal", 3),
    ("signal", "deepconf"),
    ("signal", "trial_confidence"),
    ("unit", None),
    ("estimator", "exact"),
    ("k", 0),
    ("k", -1),
    ("k", 2.5),
    ("k", True),
    ("k", "20"),
    ("temperature", 0.6),
    ("temperature", "0.6"),
    ("temperature", ["hot"]),
    ("temperature", [-1]),
    ("temperature_mode", 1),
    ("segmentation", "line"),
    ("segmentation", None),
    ("segmentation", {"boundary": "word"}),
    ("segmentation", {"min_tokens": 0}),
    ("template", 17),
    ("mass_floor", 0.5),
    ("mass_floor", {"floor": 0.5}),
    ("mass_floor", {"position": 2}),
    ("mass_floor", {"step": "high"}),
    ("method", "guess"),
    ("active", 1),
    ("active", "yes"),
    ("reason", None),
    ("calibration", [1]),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda v: str(v))
def test_every_bad_value_is_named(name, value):
    """PolicyError with the file, the field (or the part of it at fault) and the value."""
    with pytest.raises(PolicyError) as error:
        Policy.from_dict({**FULL, name: value}, "some.json")
    parts = [name, *(value if isinstance(value, dict) else ())]
    assert any(part in str(error.value) for part in parts)
    assert "some.json" in str(error.value)


@pytest.mark.parametrize("given", [{"mode": "refine"}, {"segmentation": {"boundary": "call"}, "scope": "agent"}])
def test_a_call_is_not_probed(given):
    """A signal of tried answers where every step is a call of its own would never stop anything: refused."""
    with pytest.raises(PolicyError, match=r"trial_entropy.*probe"):
        Policy.from_dict({**FULL, "rule": "entropy", "signal": "trial_entropy", **given})


@pytest.mark.parametrize("name", ["model", "thresholds"])
def test_a_field_that_must_be_there(name):
    """The message names it and the remedy."""
    with pytest.raises(PolicyError, match=f"{name}.*entropy-chains calibrate"):
        Policy.from_dict({n: v for n, v in FULL.items() if n != name})


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


def test_names_of_the_same_checkpoint_share_a_policy():
    """An alias is accepted, a stranger is not, and the original is unchanged."""
    policy = Policy("m", (0.2,))
    shared = policy.for_model("served", "m", "file.gguf").for_model("served")
    assert shared.aliases == ("served", "file.gguf")
    for name in ("m", "served", "file.gguf"):
        shared.check(model=name)
    with pytest.raises(PolicyMismatch, match="for_model"):
        policy.check(model="served")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("model", "other"),
        ("k", 5),
        ("k", None),
        ("estimator", "full"),
        ("mode", "refine"),
        ("temperature_mode", "scaled"),
        ("template", "sha256:ffff"),
        ("segmentation", Segmentation("blank_line", 32)),
    ],
)
def test_a_mismatch_is_an_error_or_a_warning(name, found):
    """It carries the field and both values; ``warn`` goes on."""
    policy = Policy.from_dict(FULL)
    with pytest.raises(PolicyMismatch, match=name) as error:
        policy.check(**{name: found})
    assert (error.value.field, error.value.expected, error.value.found) == (name, getattr(policy, name), found)
    with pytest.warns(UserWarning, match=name):
        policy.check(on_mismatch="warn", **{name: found})


def test_what_fits_or_is_not_told_is_silent():
    """Equal values, no values, and a template that one of the two does not know."""
    policy = Policy.from_dict(FULL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        policy.check()
        policy.check(template=None, temperature=0.6, k=20, segmentation=Segmentation("line", 32))
        replace(policy, template=None).check(template="sha256:1", temperature=0.6)


def test_another_temperature_is_only_a_warning():
    """It changes the distribution, not the meaning of the threshold."""
    with pytest.warns(UserWarning, match="temperature 1.0 was not calibrated"):
        Policy.from_dict(FULL).check(temperature=1.0)


def test_on_mismatch_is_checked():
    """A typing mistake does not switch checking off."""
    with pytest.raises(SettingsError, match="on_mismatch"):
        Policy.from_dict(FULL).check(on_mismatch="ignore")


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


@pytest.mark.parametrize(
    ("calibration", "limit", "warned"),
    [
        ({"cut_runs": "wrong", "max_tokens": 400}, 401, True),
        ({"cut_runs": "wrong", "max_tokens": 400}, 400, False),
        ({"cut_runs": "wrong", "max_tokens": 400}, None, False),
        ({"cut_runs": "wrong", "max_tokens": None}, 9000, False),
        ({"cut_runs": "lost", "max_tokens": 400}, 9000, False),
        ({}, 9000, False),
    ],
)
def test_a_larger_limit_than_that_of_runs_taken_for_full_ones_is_a_warning(calibration, limit, warned):
    """Where cut runs were taken for full ones, longer runs are not covered; else the limit does not matter."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        Policy("m", (0.5,), calibration=calibration).check(max_tokens=limit)
    assert [str(w.message).startswith("replies may be longer than 400 tokens") for w in told] == [True] * warned


def test_what_calibration_saw_does_not_change_the_fingerprint():
    """Figures of cut runs stand in the policy, and are no part of what decides."""
    policy = Policy("m", (0.5,))
    assert replace(policy, calibration={"cut_runs": "wrong", "cut": 3, "max_tokens": 400}).fingerprint == policy.fingerprint


@pytest.mark.parametrize("found", ["M" * 900_000, "\x1b[31m\n" * 9_000, list(range(10_000))], ids=["long", "control", "list"])
@pytest.mark.parametrize("name", ["model", "template", "k", "temperature_mode", "segmentation"])
def test_a_mismatch_is_told_in_one_short_line(name, found):
    """Whatever the two values are: their beginnings, escaped. The error holds them whole."""
    policies = [Policy.from_dict(FULL)]
    policies += [replace(policies[0], **{name: found})] if isinstance(found, str) and name in ("model", "template") else []
    for policy in policies:
        running = found if policy is policies[0] else "x"
        with pytest.raises(PolicyMismatch) as raised:
            policy.check(**{name: running})
        message = str(raised.value)
        assert len(message) < 400
        assert message.isprintable()
        assert raised.value.found == running


def test_of_many_temperatures_a_few_are_named():
    """A warning is kept for good, so it is short."""
    policy = replace(Policy.from_dict(FULL), temperature=tuple(n / 10 for n in range(1, 10_000)))
    with pytest.warns(UserWarning, match="knows 0.1, .*, …") as caught:
        policy.check(temperature=5000.0)
    assert len(str(caught[0].message)) < 200


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
