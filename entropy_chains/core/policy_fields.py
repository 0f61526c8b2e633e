"""The fields of a policy: what each must be. The one place to look for what a policy file may hold."""

from __future__ import annotations

from collections.abc import Mapping

from entropy_chains.core import answers
from entropy_chains.core.rules import RULES
from entropy_chains.core.signals import MassFloor
from entropy_chains.core.steps import Segmentation
from entropy_chains.options import OPTIONS
from entropy_chains.validation import (
    COUNT,
    WHOLE,
    Check,
    is_amount,
    is_count,
    is_name,
    is_number,
    is_share,
    is_whole,
    list_of,
    one_of,
    or_null,
)  # fmt: skip

MOST_BITS_A_TOKEN = 1000.0
"""A threshold of a mean above this is in another unit: log2 of the largest vocabularies is 18."""
NOT_BY_TOKEN = f"no token has {MOST_BITS_A_TOKEN:.0f} bits of entropy: give bits a token"
"""What is said of one above it."""
BY_HAND = "manual"
"""Method of a policy that was written, not calibrated."""
UNIT = "bits"
STOPPING = ("certified", "uncertified")
"""Reasons of a policy that is active."""
NOT_STOPPING = ("no_signal", "inverted_signal", "no_safe_threshold", "too_few_examples")
"""Reasons of one that is not. Others may be given for either."""
QUANTILES = (0.05, 0.25, 0.75, 0.95)
"""Of a step's values in calibration, kept in ``entropy_quantiles``; they cut later values into five bins."""

_FIGURE = Check(is_number, "a number, or null", nullable=True)
_SHARE = Check(is_share, "between 0 and 1, or null", nullable=True)
_COUNT = Check(is_count, f"{COUNT}, or null", nullable=True)
_NAME = Check(is_name, "a text that is not empty and can be written as UTF-8")
_NAMES = "a list of texts that are not empty and can be written as UTF-8"
_BOUNDS = Check(list_of(is_number, length=2), "a list of two numbers, or null", nullable=True)

CERTIFICATE: dict[str, Check] = {
    "risk": _NAME._replace(nullable=True),
    "max_loss": _SHARE,
    "confidence": _SHARE,
    "groups": _COUNT,
    "losses": _COUNT,
    "upper_bound": _SHARE,
    "level": _SHARE,
    "allowed": Check(list_of(lambda v: v == -1 or is_count(v)), "a list of whole numbers of at least -1, or null", nullable=True),
    "grid": _NAME._replace(nullable=True),
    "rules_tried": Check(list_of(is_name), _NAMES, nullable=True),
}
"""Fields of ``calibration.certificate``."""

JUDGED: dict[str, Check] = {
    "on": one_of(("calibration", "folds", "held_out")),
    "tokens_saved": _FIGURE,
    "accuracy_change": _FIGURE,
    **dict.fromkeys(("tokens_saved_interval", "accuracy_change_interval"), _BOUNDS),
    **dict.fromkeys(("groups", "lost_correct", "lost_cut"), _COUNT),
}
"""Fields of ``calibration.judged``: what the policy saved and lost, on held-out questions, by folds, or on those of calibration."""

CALIBRATION: dict[str, Check] = {
    "runs": _COUNT,
    "groups": _COUNT,
    "labels": _NAME._replace(nullable=True),
    "accuracy_full": _SHARE,
    **dict.fromkeys(("mu_correct", "sigma_correct", "mu_wrong", "sigma_wrong", "cohens_d"), _FIGURE),
    "auroc": _SHARE,
    "auroc_interval": _BOUNDS,
    "entropy_quantiles": Check(
        list_of(or_null(list_of(is_number, length=len(QUANTILES)))),
        f"a list that holds for each step {len(QUANTILES)} numbers or null",
        nullable=True,
    ),
    "remaining_tokens": Check(
        list_of(lambda v: is_number(v) and abs(v) < 2**63), "a list of numbers, one a step, that 64 bits can hold", nullable=True
    ),
    "examples_needed": _FIGURE,
    **dict.fromkeys(("right", "wrong", "cut", "left_out", "max_tokens"), _COUNT),
    **dict.fromkeys(("questions_right", "questions_wrong_early", "rules"), _COUNT),
    **dict.fromkeys(("entropy_recorded", "answers_missing", "max_loss", "confidence"), _SHARE),
    "verdict": _NAME._replace(nullable=True),
    "cut_runs": one_of(OPTIONS["cut_runs"])._replace(nullable=True),
    "certificate": Check(lambda v: isinstance(v, dict), "an object, or null", nullable=True, fields=CERTIFICATE),
    "judged": Check(lambda v: isinstance(v, dict), "an object, or null", nullable=True, fields=JUDGED),
}
"""Fields of ``calibration`` that are read somewhere; further ones are kept."""

FIELDS: dict[str, Check] = {
    "model": _NAME,
    "thresholds": Check(
        lambda v: list_of(or_null(is_number), kind=(tuple,))(v) and len(v) > 0,
        "a list of numbers in bits: one for all steps or one per step, null for never",
    ),
    "rule": one_of(RULES),
    "min_steps": Check(is_whole, f"{WHOLE}: steps count from 1"),
    "aliases": Check(list_of(is_name, kind=(tuple,)), _NAMES),
    "mode": one_of(OPTIONS["mode"]),
    "scope": one_of(OPTIONS["scope"]),
    "signal": _NAME,
    "unit": one_of((UNIT,)),
    "estimator": one_of(OPTIONS["estimator"]),
    "k": Check(is_whole, f"{WHOLE}, or null for the full vocabulary", nullable=True),
    "temperature": Check(list_of(is_amount, kind=(tuple,)), "a list of numbers of at least 0"),
    "temperature_mode": one_of(OPTIONS["temperature_mode"]),
    "segmentation": Check(lambda v: isinstance(v, Segmentation), "an object of boundary and min_tokens"),
    "template": _NAME._replace(wanted=f"{_NAME.wanted}, or null where it is not known", nullable=True),
    "mass_floor": Check(lambda v: isinstance(v, MassFloor), "an object of position and step"),
    "method": one_of((*OPTIONS["method"], BY_HAND)),
    "active": Check(lambda v: isinstance(v, bool), "true or false"),
    "reason": _NAME,
    "calibration": Check(lambda v: isinstance(v, Mapping), "an object", fields=CALIBRATION),
    "grade": answers.GRADE,
    "grader": Check(callable, "a function of two texts", nullable=True),
    "extra": Check(lambda v: isinstance(v, Mapping), "an object"),
}
"""Every field of a policy: what it must be. The one place to look for what a policy file may hold."""

PARTS: dict[str, type[Segmentation | MassFloor]] = {"segmentation": Segmentation, "mass_floor": MassFloor}
"""Fields that are objects with a class of their own."""
