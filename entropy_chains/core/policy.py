"""A calibrated stop rule with its file and its checks. One frozen policy serves any number of requests at once."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, overload

from entropy_chains.core import answers
from entropy_chains.core.policy_fields import (
    BY_HAND,
    CALIBRATION,
    FIELDS,
    MOST_BITS_A_TOKEN,
    NOT_BY_TOKEN,
    NOT_STOPPING,
    PARTS,
    UNIT,
)
from entropy_chains.core.rules import RULES, AgreementRule, Rule, threshold_at
from entropy_chains.core.signals import MEAN, READ_BY_RULES, MassFloor, Signal
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import InputError, PolicyError, PolicyMismatch, SettingsError
from entropy_chains.files import write_file
from entropy_chains.options import check_options
from entropy_chains.validation import (
    Check,
    first_fault,
    not_json,
    short,
    strict_json,
    utf8_text,
)  # fmt: skip

logger = logging.getLogger("entropy_chains")

FORMAT, VERSION = "entropy-chains/policy", 1
LARGEST_FILE = 2**26
"""Bytes that a policy file may have at most; what is longer is none."""
TOLD = 10
"""Temperatures that a message names at most."""
MISSING_GRADER = "give the function with policy.with_grader(function); it is never imported by its name"
OFF_SWITCH = "ENTROPY_CHAINS_STOP"
ON, OFF = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
"""What the environment may say of it; nothing, or an empty text, is on."""
_warned: set[str] = set()
"""Texts of the warnings that are given once."""


def stopping_enabled() -> bool:
    """False where the environment says ``ENTROPY_CHAINS_STOP=0``: full runs, shadow figures kept.

    So it is where it says something that is neither of :data:`ON` nor of :data:`OFF`; a warning says so once.
    """
    word = os.environ.get(OFF_SWITCH, "")
    if (plain := word.strip().lower()) not in (*ON, *OFF, ""):
        known = f"{', '.join(ON)} (stop) and {', '.join(OFF)} (run in full)"
        _warn_once(f"{OFF_SWITCH} is {short(word)}, which is none of {known}: nothing is stopped")
    return plain in (*ON, "")


def _warn_once(text: str) -> None:
    """Warn, but once a process: many models and calls share an environment, or a policy."""
    if text not in _warned:
        _warned.add(text)
        warnings.warn(text, stacklevel=3)


@dataclass(frozen=True, slots=True)
class Policy:
    """When to stop, for which model, and on what evidence. Field by field as in the policy file.

    Attributes:
        model: label of the model it was calibrated for; ``aliases``: further names of the same checkpoint.
        thresholds: bits; one for all steps, or one per step with the last repeated; None = never stop there. ``fixed-step`` reads
            none: here stands ``min_steps`` again, or None.
        min_steps: first step at which a stop is allowed, from 1; for ``fixed-step`` the step to stop at.
        active: False: never stops; ``reason`` says why.
        calibration: figures of the calibration runs, among them the certificate.
        grade: how rules compare answers (:func:`entropy_chains.core.answers.comparer`); None: ``auto``.
        extra: unknown fields of the file, kept.
        grader: the function of a grade ``python:NAME``, see :meth:`with_grader`; no part of the file.
    """

    model: str
    thresholds: tuple[float | None, ...]
    rule: str = "entropy"
    min_steps: int = 1
    aliases: tuple[str, ...] = ()
    mode: str = "thinking"
    scope: str = "call"
    signal: str = MEAN
    unit: str = UNIT
    estimator: str = "renormalised"
    k: int | None = 20
    temperature: tuple[float, ...] = ()
    temperature_mode: str = "raw"
    segmentation: Segmentation = field(default_factory=Segmentation)
    template: str | None = None
    mass_floor: MassFloor = field(default_factory=MassFloor)
    method: str = BY_HAND
    active: bool = True
    reason: str = "uncertified"
    calibration: Mapping[str, Any] = field(default_factory=dict)
    grade: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    grader: answers.Grader | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse what could not be stopped by, replayed or reported: nothing is found out when a run is to be stopped."""
        fault = first_fault({f.name: getattr(self, f.name) for f in fields(self)}, FIELDS)
        wrong = fault[1] if fault else _contradiction(self)
        if wrong or (wrong := _unwritable(self.calibration, CALIBRATION) or _unwritable(self.extra, {})):
            raise PolicyError(wrong)

    @property
    def stop_rule(self) -> Rule:
        """The rule as a value to ask."""
        return RULES[self.rule](self.thresholds, self.min_steps, self.signal)

    @property
    def same(self) -> answers.Same:
        """How its rule compares two answers."""
        return answers.comparer(self.grade or answers.AUTO, self.grader or answers.never).same

    @property
    def lacks_grader(self) -> bool:
        """Whether its rule compares answers by a function that was not given: then no two answers are known to be equal."""
        return RULES[self.rule].compares_answers and self.grader is None and (self.grade or "").startswith("python:")

    @property
    def hindrance(self) -> str | None:
        """Why it stops no live run, active or not; None where it may."""
        if self.lacks_grader:
            return f"answers are compared by {self.grade}: {MISSING_GRADER}"
        for name in self.stop_rule.uncomputed:
            return f"signal {short(name)} is not one that is computed; there are {', '.join(READ_BY_RULES)}"
        return None

    @property
    def reads_probes(self) -> bool:
        """Whether its rule reads a signal of the answer asked for after every step."""
        return self.stop_rule.reads_probes

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits of everything that decides; equal policies have equal ones."""
        deciding = {k: v for k, v in self.to_dict().items() if k not in ("calibration", "aliases", *self.extra)}
        if self.grade == answers.AUTO:
            del deciding["grade"]  # what is compared where nothing is said, too
        for name in ("thresholds", "temperature"):  # 1 and 1.0 are the same number
            deciding[name] = [None if v is None else float(v) for v in deciding[name]]
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:12]

    def threshold(self, step: int) -> float | None:
        """The threshold after ``step`` (from 1), bits; None = never stop there."""
        return threshold_at(self.thresholds, step)

    def may_stop_after(self, step: int) -> bool:
        """Whether it can stop at a step later than ``step`` (from 1)."""
        return self.active and self.stop_rule.may_stop_after(step)

    def remaining_tokens(self, step: int) -> int | None:
        """Mean number of tokens that a stop after ``step`` saved in calibration, or None where that is not recorded."""
        recorded = self.calibration.get("remaining_tokens") or []
        return max(0, round(recorded[min(step, len(recorded)) - 1])) if recorded else None

    def for_model(self, *names: str) -> Policy:
        """The same policy under further names of the same checkpoint: a path, a served name, a GGUF."""
        return replace(self, aliases=(*self.aliases, *(n for n in names if n != self.model and n not in self.aliases)))

    def with_grader(self, grader: answers.Grader) -> Policy:
        """The same policy with the function of its grade ``python:NAME``: whether two answers (texts) are equal."""
        return replace(self, grader=grader)

    def by_agreement(self) -> Policy:
        """What it becomes without logprobs, if allowed: stop where two answers in a row agree; no certificate covers that."""
        return replace(self, rule=AgreementRule.name, method=BY_HAND, reason="uncertified")

    def check(
        self, *, on_mismatch: str = "error", temperature: float | None = None, max_tokens: int | None = None, **running: Any
    ) -> None:
        """Compare with what is running; fields not given are not compared. That it reads what nothing computes is a warning, once.

        Args:
            on_mismatch: ``error`` or ``warn``.
            temperature: the running temperature; one that was not calibrated is only ever a warning.
            max_tokens: the running limit; where calibration took cut runs for full ones, a larger one is a warning.
            running: any of ``model``, ``k``, ``estimator``, ``mode``, ``temperature_mode``, ``template``, ``segmentation``.

        Raises:
            PolicyMismatch: a field differs and ``on_mismatch`` is ``error``.
        """
        for text in self.differences(on_mismatch, temperature, max_tokens, running):
            warnings.warn(text, stacklevel=3)
        silent = self.hindrance if self.active and not self.lacks_grader else None
        if silent:
            _warn_once(f"nothing is stopped: {silent}")

    def differences(
        self, on_mismatch: str, temperature: float | None, max_tokens: int | None, running: Mapping[str, Any]
    ) -> list[str]:
        """What :meth:`check` warns of, for whoever tells it otherwise: Python keeps the texts of its warnings for good."""
        check_options({"on_mismatch": on_mismatch})
        texts = []
        if self.lacks_grader:
            missing = PolicyMismatch("grade", self.grade, None, MISSING_GRADER + '; on_mismatch="warn" runs in full')
            if on_mismatch == "error":
                raise missing
            texts.append(str(missing))
        for name, actual in running.items():
            expected = getattr(self, name)
            if (
                actual == expected
                or (name == "model" and actual in self.aliases)
                or (name == "template" and not (actual and expected))
            ):
                continue
            remedy = (
                "if it is the same checkpoint, use policy.for_model(name)"
                if name == "model"
                else "change the setting or calibrate again"
            )
            mismatch = PolicyMismatch(name, expected, actual, remedy + '; on_mismatch="warn" goes on regardless')
            if on_mismatch == "error":
                raise mismatch
            texts.append(str(mismatch))
        if temperature is not None and self.temperature and not any(math.isclose(temperature, t) for t in self.temperature):
            temperatures = ", ".join(map(str, self.temperature[:TOLD])) + (", …" if len(self.temperature) > TOLD else "")
            texts.append(f"temperature {temperature} was not calibrated (the policy knows {temperatures})")
        limit = self.calibration.get("max_tokens") if self.calibration.get("cut_runs") == "wrong" else None
        if isinstance(limit, int) and max_tokens is not None and max_tokens > limit:
            text = f"replies may be longer than {limit} tokens, at which runs were cut off and taken for full ones in calibration"
            texts.append(f"{text}: what it promises holds with max_tokens={limit}, or calibrate on longer runs")
        return texts

    def to_dict(self) -> dict[str, Any]:
        """The policy file's object."""
        written: dict[str, Any] = {"format": FORMAT, "version": VERSION}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name == "grader" or (f.name == "grade" and value is None):
                continue
            if f.name == "extra":
                written |= dict(value)
            elif isinstance(value, tuple):
                written[f.name] = list(value)
            elif isinstance(value, Segmentation | MassFloor):
                written[f.name] = asdict(value)
            else:
                written[f.name] = dict(value) if isinstance(value, Mapping) else value
        return written

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str = "policy") -> Policy:
        """Read a policy file's object. Raises PolicyError that names the field and the remedy."""
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise PolicyError(f"{source} is not a policy: its format is not {FORMAT!r}; make one with `entropy-chains calibrate`")
        if data.get("version") != VERSION:
            raise PolicyError(f"{source} has version {short(data.get('version'))}; this release reads version {VERSION}")
        values = {k: v for k, v in data.items() if k in FIELDS and k != "extra"}
        for name in ("model", "thresholds"):
            if name not in values:
                raise PolicyError(f"{source} has no {name!r}; make a policy with `entropy-chains calibrate`")
        for name in ("thresholds", "aliases", "temperature"):
            if isinstance(values.get(name), list):
                values[name] = tuple(values[name])
        try:
            for name, kind in PARTS.items():
                if isinstance(values.get(name), Mapping):
                    values[name] = _part(kind, name, values[name])
            return cls(**values, extra={k: v for k, v in data.items() if k not in values and k not in ("format", "version")})
        except InputError as error:
            raise PolicyError(f"{source}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the policy file. Raises OutputError or WriteError if that fails; the former file is then still there."""
        write_file(path, json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Policy:
        """Read a policy file. Raises PolicyError where there is none or it cannot be used."""
        remedy = "make one with `entropy-chains calibrate`"
        try:
            with Path(path).open("rb") as file:
                content = file.read(LARGEST_FILE + 1)  # a device would never end
            if len(content) > LARGEST_FILE:
                raise InputError(f"larger than {LARGEST_FILE:,} bytes, so it is none; {remedy}")
            text = utf8_text(content)
        except OSError as error:
            raise PolicyError(f"policy {path} cannot be read ({error.strerror}); {remedy}") from error
        except InputError as error:
            raise PolicyError(f"policy {path} is {error}") from error
        try:
            data = strict_json(text)
        except InputError as error:
            raise PolicyError(f"policy {path} cannot be read ({error}); {remedy}") from error
        return cls.from_dict(data, str(path))

    @overload
    @classmethod
    def of(cls, policy: Policy | str | Path) -> Policy: ...

    @overload
    @classmethod
    def of(cls, policy: Policy | str | Path | None) -> Policy | None: ...

    @classmethod
    def of(cls, policy: Policy | str | Path | None) -> Policy | None:
        """The policy itself, or that of a file, given its path; None stays None.

        Raises:
            PolicyError: the file is not there, or cannot be used.
            SettingsError: it is something else.
        """
        if isinstance(policy, str | Path):
            return cls.load(policy)
        if policy is None or isinstance(policy, Policy):
            return policy
        kind = type(policy).__name__
        raise SettingsError(f"policy is a {kind}; give a Policy, the path of its file, or None to measure only")


def _part(kind: type[Segmentation | MassFloor], name: str, values: Mapping[str, Any]) -> Segmentation | MassFloor:
    """A field that is an object of its own; an unknown name in it would be a default taken in silence."""
    names = [f.name for f in fields(kind)]
    for key in values:
        if key not in names:
            raise PolicyError(f"{name} has {short(key)}, which is unknown; it holds {' and '.join(names)} only")
    return kind(**values)


def _unwritable(content: Mapping[str, Any], checked: Mapping[str, Check]) -> str | None:
    """The first of the values without a check of their own that no file can hold, and why; or None."""
    for name, value in content.items():
        if (name not in checked or checked[name].fields) and (why := not_json({name: value})):
            return f"{short(name)} cannot be written as JSON: {why}"
    return None


def _contradiction(policy: Policy) -> str | None:
    """Fields that are sound alone and contradict each other, and the remedy."""
    if policy.active and policy.reason in NOT_STOPPING:
        return f"active is true, but reason {policy.reason!r} means that it must not stop: set active to false, or calibrate again"
    by_call = policy.mode == "refine" or policy.segmentation.boundary == "call"
    for signal in (Signal.named(policy.signal), *policy.stop_rule.signals):
        if signal.higher_is_surer:
            return f"signal is {signal.name!r}, of which higher means surer; a threshold needs one of which lower does"
        if signal.source == "probe" and by_call:
            return f"signal is {signal.name!r}, which is read of a probe; where a step is a call there is none"
    # Later thresholds may be larger: calibration multiplies the first by how much higher the signal is at their step.
    first = policy.stop_rule.threshold(1) if Signal.named(policy.signal).bits_a_token else None
    if first is not None and abs(first) > MOST_BITS_A_TOKEN:
        return f"thresholds holds {first!r}; {NOT_BY_TOKEN}"
    duplicates = [name for name in policy.extra if name in {*FIELDS, "format", "version"} - {"extra"}]
    return f"extra has {duplicates[0]!r}, which is a field of its own; give it there" if duplicates else None
