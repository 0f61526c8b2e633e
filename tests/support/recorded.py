"""Runs that record every signal there is, so that a test of all rules holds for one that is new and reads several."""

from __future__ import annotations

from entropy_chains.core.signals import MEAN, SIGNALS


def every_signal(value: float | None) -> dict[str, float]:
    """The signals of a step besides its mean entropy, all with this value; none of a step that has no value."""
    return {} if value is None else {name: value for name in SIGNALS if name != MEAN}
