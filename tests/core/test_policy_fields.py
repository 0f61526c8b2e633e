"""Fields of a policy: defaults, and every bad value is named."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_files import FULL

from entropy_chains.core.policy import FORMAT, Policy
from entropy_chains.core.signals import MassFloor
from entropy_chains.errors import PolicyError


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
