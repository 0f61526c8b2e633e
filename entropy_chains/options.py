"""Every closed set of words that a setting may be, once: editors and type checkers catch a typo, and messages name the words."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal, get_args

from entropy_chains.errors import SettingsError, short

Mode = Literal["thinking", "refine"]
"""One stream whose thinking is closed, or the paper's loop of several calls."""

Boundary = Literal["line", "blank_line", "call"]
"""Where a step ends: with a line, with a paragraph, or with a model call."""

Method = Literal["certified", "mean", "information", "bayes", "scale-invariant"]
"""How a threshold is found: with a guarantee, or as the paper's plain rules do it (arXiv 2510.08146)."""

OnMismatch = Literal["error", "warn"]
"""What a policy for something else is."""

WithoutLogprobs = Literal["error", "full", "agreement"]
"""What happens where there are no logprobs: an error, a full run, or stopping where two answers agree."""

Continuation = Literal["auto", "control", "prefill", "completion", "turn"]
"""How the answer is got after a stop."""

TemperatureMode = Literal["raw", "scaled"]
"""Whether logprobs are those before temperature, or after."""

Estimator = Literal["renormalised", "full"]
"""Entropy of the likeliest tokens as if they were all, or of the whole vocabulary."""

Scope = Literal["call", "agent"]
"""What a policy may end: one call's thinking, or an agent's loop."""

CutRuns = Literal["lost", "wrong"]
"""What calibration takes a run for that was cut off: a stop on it loses an answer, or its wrong end is what users get, too."""


OPTIONS: dict[str, tuple[str, ...]] = {
    "mode": get_args(Mode),
    "boundary": get_args(Boundary),
    "method": get_args(Method),
    "on_mismatch": get_args(OnMismatch),
    "without_logprobs": get_args(WithoutLogprobs),
    "continuation": get_args(Continuation),
    "temperature_mode": get_args(TemperatureMode),
    "estimator": get_args(Estimator),
    "scope": get_args(Scope),
    "cut_runs": get_args(CutRuns),
}
"""The words of each setting, by its name."""


def check_options(settings: Mapping[str, Any]) -> None:
    """Raise SettingsError for a setting of these names that is none of its words; all other settings are left alone."""
    for name, value in settings.items():
        several = name == "continuation" and isinstance(value, list | tuple)
        for word in (value or [None]) if several else [value]:
            if name in OPTIONS and word not in OPTIONS[name]:
                raise SettingsError(f"{name} is {short(value)}; it must be one of {', '.join(OPTIONS[name])}")


def check_counts(settings: Mapping[str, Any], otherwise: str = "") -> None:
    """Raise SettingsError for what is no whole number of at least 1; None is left alone. ``otherwise``: what else it may be."""
    for name, value in settings.items():
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise SettingsError(f"{name} is {short(value)}; it must be a whole number, and at least 1{otherwise}")


def check_holdout(share: Any) -> None:
    """Raise SettingsError for a holdout that is no share."""
    if not isinstance(share, int | float) or isinstance(share, bool) or not 0 <= share <= 1:
        remedy = "it must be a share of the root runs between 0 (none) and 1 (all), 0.05 for 5 %"
        raise SettingsError(f"holdout is {short(share)}; {remedy}")


def check_mappings(settings: Mapping[str, Any]) -> None:
    """Raise SettingsError for what is no settings by name; None is left alone."""
    for name, value in settings.items():
        if value is not None and not (isinstance(value, Mapping) and all(isinstance(key, str) for key in value)):
            raise SettingsError(f"{name} is {short(value)}; it must be a dict of settings by name")


def check_settings(owner: str, settings: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise SettingsError for a setting that its owner does not have, and for one that is none of its words.

    Args:
        owner: what the settings are of, for the message.
        settings: by name.
        known: names of the settings that it has.
    """
    unknown = sorted(settings.keys() - set(known))
    if unknown:
        raise SettingsError(f"{owner} has no {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    check_options(settings)
