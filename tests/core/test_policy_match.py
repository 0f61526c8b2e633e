"""A policy and what is running: what fits is silent, what does not is an error or a warning."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
from policy_files import FULL

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import PolicyMismatch, SettingsError


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
