"""A calibrated stop rule with its file and its checks. One frozen policy serves any number of requests at once."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from entropy_chains import answers
from entropy_chains.errors import InputError, PolicyError, PolicyMismatch
from entropy_chains.rules import AgreementRule, AnswersRule, EntropyRule, FixedStepRule, Rule, threshold_at
from entropy_chains.steps import MODES, Segmentation

logger = logging.getLogger("entropy_chains")

FORMAT, VERSION = "entropy-chains/policy", 1
CALIBRATED_RULES = ("entropy", "entropy+agreement", "fixed-step")
RULES = (*CALIBRATED_RULES, "agreement")  # the last for servers without logprobs: it needs no calibration, and has no certificate
PROBE_SIGNALS = ("trial_entropy", "eat", "trial_confidence")
"""Signals of the answer that is asked for after a step: reading them after every step pays every step's probe."""
HIGHER_IS_SURER = ("deepconf", "trial_confidence")
"""Recorded confidences: "stop at or under a threshold" would stop where the model is least sure."""
METHODS = ("certified", "mean", "information", "bayes", "scale-invariant")
CUT_RUNS = ("lost", "wrong")
"""What calibration takes a run for that was cut off: a stop on it loses an answer, or its wrong end is what users get, too."""
BY_HAND = "manual"
"""Method of a policy that was written, not calibrated."""
ESTIMATORS = ("renormalised", "full")
SCOPES = ("call", "agent")
OFF_SWITCH = "ENTROPY_CHAINS_STOP"


def stopping_enabled() -> bool:
    """False where the environment says ``ENTROPY_CHAINS_STOP=0``: full runs, shadow figures kept."""
    return os.environ.get(OFF_SWITCH, "1").strip().lower() not in ("0", "false", "no", "off")


@dataclass(frozen=True, slots=True)
class MassFloor:
    """Below ``position`` a position enters with its upper bound; a step with a mean mass below ``step`` is never a stop."""

    position: float = 0.5
    step: float = 0.8


@dataclass(frozen=True, slots=True)
class Policy:
    """When to stop, for which model, and on what evidence. Field by field as in the policy file.

    Attributes:
        model: label of the model it was calibrated for; ``aliases``: further names of the same checkpoint.
        thresholds: bits; one for all steps, or one per step with the last repeated; None = never stop there. For ``fixed-step``
            the step to stop at.
        min_steps: first step at which a stop is allowed, from 1.
        active: False: never stops; ``reason`` says why.
        calibration: figures of the calibration runs, among them the certificate.
        extra: unknown fields of the file, kept.
    """

    model: str
    thresholds: tuple[float | None, ...]
    rule: str = "entropy"
    min_steps: int = 1
    aliases: tuple[str, ...] = ()
    mode: str = "thinking"
    scope: str = "call"
    signal: str = "mean_entropy"
    unit: str = "bits"
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
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _one_of("rule", self.rule, RULES)
        _one_of("mode", self.mode, MODES)
        _one_of("scope", self.scope, SCOPES)
        _one_of("estimator", self.estimator, ESTIMATORS)
        _one_of("method", self.method, (*METHODS, BY_HAND))
        if self.signal in HIGHER_IS_SURER:
            raise PolicyError(f"signal is {self.signal!r}, of which higher means surer; a threshold needs one of which lower does")
        for name in ("model", "signal", "unit", "temperature_mode", "reason"):
            _check(name, getattr(self, name), _is_text, "a text that is not empty")
        _check("template", self.template, lambda v: v is None or _is_text(v), "a text, or null where it is not known")
        _check("active", self.active, lambda v: isinstance(v, bool), "true or false")
        _check("aliases", self.aliases, lambda v: isinstance(v, tuple) and all(map(_is_text, v)), "a list of names")
        _check("temperature", self.temperature, lambda v: isinstance(v, tuple) and all(map(_is_amount, v)), "a list of numbers")
        _check("calibration", self.calibration, lambda v: isinstance(v, Mapping), "an object")
        _check("mass_floor", self.mass_floor, lambda v: isinstance(v, MassFloor), "an object of position and step")
        for name in ("position", "step"):
            _check(f"mass_floor.{name}", getattr(self.mass_floor, name), lambda v: _is_amount(v) and v <= 1, "between 0 and 1")
        _check("segmentation", self.segmentation, lambda v: isinstance(v, Segmentation), "an object of boundary and min_tokens")
        if self.signal in PROBE_SIGNALS and (self.mode == "refine" or self.segmentation.boundary == "call"):
            raise PolicyError(f"signal is {self.signal!r}, which is read of a probe; where a step is a call there is none")
        if not isinstance(self.thresholds, tuple) or not self.thresholds:
            raise PolicyError(f"thresholds is {self.thresholds!r}; it must be a list: one number, one per step, or null for never")
        for value in self.thresholds:
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value)):
                raise PolicyError(f"thresholds holds {value!r}; each must be a number in bits, or null for never")
        if isinstance(self.min_steps, bool) or not isinstance(self.min_steps, int) or self.min_steps < 1:
            raise PolicyError(f"min_steps is {self.min_steps!r}; steps count from 1")
        if self.k is not None and (isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1):
            raise PolicyError(f"k is {self.k!r}; it must be at least 1, or null for the full vocabulary")

    @property
    def stop_rule(self) -> Rule:
        """The rule as a value to ask."""
        if self.rule == "fixed-step":
            return FixedStepRule(self.min_steps)
        if self.rule == "agreement":
            return AnswersRule(answers.same, max(2, self.min_steps))
        if self.rule == "entropy+agreement":
            return AgreementRule(self.thresholds, answers.same, max(2, self.min_steps))
        return EntropyRule(self.thresholds, self.min_steps, reads_answers=self.signal in PROBE_SIGNALS)

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits of everything that decides; equal policies have equal ones."""
        deciding = {k: v for k, v in self.to_dict().items() if k not in ("calibration", "aliases", *self.extra)}
        for name in ("thresholds", "temperature"):  # 1 and 1.0 are the same number
            deciding[name] = [None if v is None else float(v) for v in deciding[name]]
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:12]

    def threshold(self, step: int) -> float | None:
        """The threshold after ``step`` (from 1), bits; None = never stop there."""
        return threshold_at(self.thresholds, step)

    def remaining_tokens(self, step: int) -> int | None:
        """Mean number of tokens that a stop after ``step`` saved in calibration, or None where that is not recorded."""
        recorded = self.calibration.get("remaining_tokens") or []
        return max(0, round(recorded[min(step, len(recorded)) - 1])) if recorded else None

    def for_model(self, *names: str) -> Policy:
        """The same policy under further names of the same checkpoint: a path, a served name, a GGUF."""
        return replace(self, aliases=(*self.aliases, *(n for n in names if n != self.model and n not in self.aliases)))

    def check(
        self, *, on_mismatch: str = "error", temperature: float | None = None, max_tokens: int | None = None, **running: Any
    ) -> None:
        """Compare with what is running; fields not given are not compared.

        Args:
            on_mismatch: ``error`` or ``warn``.
            temperature: the running temperature; one that was not calibrated is only ever a warning.
            max_tokens: the running limit; where calibration took cut runs for full ones, a larger one is a warning.
            running: any of ``model``, ``k``, ``estimator``, ``mode``, ``temperature_mode``, ``template``, ``segmentation``.

        Raises:
            PolicyMismatch: a field differs and ``on_mismatch`` is ``error``.
        """
        _one_of("on_mismatch", on_mismatch, ("error", "warn"))
        for name, found in running.items():
            expected = getattr(self, name)
            if (
                found == expected
                or (name == "model" and found in self.aliases)
                or (name == "template" and not (found and expected))
            ):
                continue
            remedy = (
                "if it is the same checkpoint, use policy.for_model(name)"
                if name == "model"
                else "change the setting or calibrate again"
            )
            mismatch = PolicyMismatch(name, expected, found, remedy + '; on_mismatch="warn" goes on regardless')
            if on_mismatch == "error":
                raise mismatch
            warnings.warn(str(mismatch), stacklevel=3)
        if temperature is not None and self.temperature and not any(math.isclose(temperature, t) for t in self.temperature):
            known = ", ".join(map(str, self.temperature))
            warnings.warn(f"temperature {temperature} was not calibrated (the policy knows {known})", stacklevel=3)
        limit = self.calibration.get("max_tokens") if self.calibration.get("cut_runs") == "wrong" else None
        if isinstance(limit, int) and max_tokens is not None and max_tokens > limit:
            text = f"replies may be longer than {limit} tokens, at which runs were cut off and taken for full ones in calibration"
            warnings.warn(f"{text}: what it promises holds with max_tokens={limit}, or calibrate on longer runs", stacklevel=3)

    def to_dict(self) -> dict[str, Any]:
        """The policy file's object."""
        written: dict[str, Any] = {"format": FORMAT, "version": VERSION}
        for f in fields(self):
            value = getattr(self, f.name)
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
            raise PolicyError(f"{source} has version {data.get('version')!r}; this release reads version {VERSION}")
        known = {f.name for f in fields(cls)} - {"extra"}
        given = {k: v for k, v in data.items() if k in known}
        for name in ("model", "thresholds"):
            if name not in given:
                raise PolicyError(f"{source} has no {name!r}; make a policy with `entropy-chains calibrate`")
        for name in ("thresholds", "aliases", "temperature"):
            if isinstance(given.get(name), list):
                given[name] = tuple(given[name])
        try:
            if isinstance(given.get("segmentation"), Mapping):
                given["segmentation"] = Segmentation.from_dict(given["segmentation"])
            if isinstance(given.get("mass_floor"), Mapping):
                given["mass_floor"] = MassFloor(**given["mass_floor"])
            return cls(**given, extra={k: v for k, v in data.items() if k not in known and k not in ("format", "version")})
        except InputError as error:
            raise PolicyError(f"{source}: {error}") from error
        except TypeError as error:
            raise PolicyError(f"{source}: mass_floor is {given['mass_floor']!r}; it holds position and step only") from error

    def save(self, path: str | Path) -> None:
        """Write the policy file."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Policy:
        """Read a policy file. Raises PolicyError where there is none or it cannot be used."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise PolicyError(
                f"policy {path} cannot be read ({error.strerror}); make one with `entropy-chains calibrate`"
            ) from error
        except ValueError as error:
            raise PolicyError(f"policy {path} is not JSON ({error}); make one with `entropy-chains calibrate`") from error
        return cls.from_dict(data, str(path))


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_amount(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _check(name: str, value: object, good: Callable[[Any], bool], wanted: str) -> None:
    if not good(value):
        raise PolicyError(f"{name} is {value!r}; it must be {wanted}")


def _one_of(name: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise PolicyError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
