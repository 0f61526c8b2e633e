"""Closed sets of words stand once, and a word that is none of them is named with those that are."""

from __future__ import annotations

from typing import Literal, get_args, get_origin

import pytest

from entropy_chains import OpenAIBackend, SettingsError, options
from entropy_chains.core.policy import Policy
from entropy_chains.core.policy_fields import BY_HAND, FIELDS
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import InputError
from entropy_chains.options import OPTIONS, check_options

LITERALS = {name: kind for name, kind in vars(options).items() if get_origin(kind) is Literal}


def test_every_literal_is_a_setting():
    """Each type is the words of one setting."""
    assert sorted(map(get_args, LITERALS.values())) == sorted(OPTIONS.values())


@pytest.mark.parametrize("name", OPTIONS)
def test_another_word_is_named(name):
    """The message says the setting, the word, and what it may be; words of the table pass."""
    check_options(dict.fromkeys(("k", "anything"), 1))
    for word in OPTIONS[name]:
        check_options({name: word})
    with pytest.raises(SettingsError, match=f"{name} is 'nothing'; it must be one of {OPTIONS[name][0]}"):
        check_options({name: "nothing"})
    with pytest.raises(SettingsError, match=f"{name} is "):
        check_options({name: ["unhashable"]})


def test_several_ways_to_the_answer():
    """A list of them is checked word by word; none is no way."""
    check_options({"continuation": ("prefill", "turn")})
    for wrong in ((), ("prefill", "nothing")):
        with pytest.raises(SettingsError, match="continuation is"):
            check_options({"continuation": wrong})


@pytest.mark.parametrize("setting", ["without_logprobs", "continuation", "temperature_mode"])
def test_backends_ask_it(setting):
    """A misspelt option of a backend is refused when it is made."""
    with pytest.raises(SettingsError, match=f"{setting} is 'nothing'; it must be one of"):
        OpenAIBackend(None, "m", **{setting: "nothing"})


def test_policies_and_steps_ask_it():
    """The same words are those of a policy's file and of a segmentation."""
    for name in ("mode", "scope", "estimator", "temperature_mode"):
        assert all(FIELDS[name].good(word) for word in OPTIONS[name])
        assert not FIELDS[name].good("nothing")
    assert all(FIELDS["method"].good(word) for word in (*OPTIONS["method"], BY_HAND))
    for boundary in OPTIONS["boundary"]:
        Segmentation(boundary)
    with pytest.raises(InputError, match="one of line, blank_line, call"):
        Segmentation("page")
    with pytest.raises(SettingsError, match="on_mismatch is 'ignore'; it must be one of error, warn"):
        Policy("m", (0.2,)).check(on_mismatch="ignore")
