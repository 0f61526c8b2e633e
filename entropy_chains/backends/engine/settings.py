"""What a request to a vLLM server asks of the plug-in: the ``entropy_chains_…`` keys of its ``vllm_xargs``, read and checked."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from entropy_chains.backends.text.vocabulary import Vocabulary
from entropy_chains.core.policy import Policy
from entropy_chains.core.signals import STEP_SIGNALS
from entropy_chains.core.steps import SEGMENTATION, Segmentation
from entropy_chains.errors import InputError, PolicyError, PolicyMismatch, SettingsError
from entropy_chains.options import OPTIONS, OnMismatch
from entropy_chains.validation import WHOLE, Check, first_fault, is_count, is_name, is_number, is_whole, one_of, short, strict_json

PREFIX = "entropy_chains_"
HELLO = "hello"
"""The key (after the prefix) of a request that only asks whether the plug-in is there: it is refused, with the answer."""

BY_REQUEST = "request"
"""The model's label in a policy made of a request's own numbers: it is for whatever runs."""

LARGEST_POLICY = 2**20
"""Characters that a request's policy may have, or bytes its file. Both come from outside, so what is read is kept small."""

REMEMBERED, LONGEST_REMEMBERED = 64, 2**13
"""Policies that are remembered, and the characters that each of them has at most: a client must not fill the server's memory."""

LONGEST_ID = 200
"""Characters of a label: each stands in the server's log."""

CHANGING = ("logit_bias", "allowed_token_ids", "bad_words")
"""Sampling parameters that change the logits before the plug-in sees them."""


@dataclass(frozen=True, slots=True)
class Settings:
    """One request's settings.

    Attributes:
        policy: when to close the thinking.
        stop: False only watches: the log tells where it would have been closed.
        holdout: the request runs in full on purpose.
        on_mismatch: ``error`` refuses a policy made for something else, ``warn`` only logs.
        id: the caller's own label, for the log line.
        small: the policy is short enough to be remembered after the request has left.
    """

    policy: Policy
    stop: bool = True
    holdout: bool = False
    on_mismatch: OnMismatch = "error"
    id: str = ""
    small: bool = True


@dataclass(frozen=True, slots=True)
class Serving:
    """What the engine serves.

    Attributes:
        names: the model's path and the names it is served under.
        vocabulary: None where the engine has no tokenizer, or one without a chat template.
        speculative: tokens are drafted ahead, several a step.
    """

    names: tuple[str, ...]
    vocabulary: Vocabulary | None
    speculative: bool = False

    @classmethod
    def of(cls, names: tuple[str, ...], tokenizer: Any, *, speculative: bool = False) -> Serving:
        """From a loaded tokenizer; never raises, for a model without thinking must be served all the same."""
        try:
            return cls(names, Vocabulary(tokenizer, names[0]) if tokenizer is not None else None, speculative)
        except SettingsError:
            return cls(names, None, speculative)

    def describe(self) -> str:
        """One line: what a policy must be for."""
        tags = self.vocabulary.tags if self.vocabulary else None
        if self.vocabulary is None or tags is None:
            return f"model {self.names[-1]}, no thinking tags in its chat template"
        return f"model {self.names[-1]}, template {self.vocabulary.template}, thinking {tags.open}…{tags.close}"


def read(arguments: Mapping[str, Any] | None) -> Settings | None:
    """The settings among a request's extra arguments, or None where it asks nothing of the plug-in.

    Raises:
        SettingsError: a key is unknown, a value is not of its kind, or keys contradict each other.
        PolicyError: the policy cannot be read.
    """
    raw = {key.removeprefix(PREFIX): v for key, v in (arguments or {}).items() if isinstance(key, str) and key.startswith(PREFIX)}
    if not raw:
        return None
    for key in raw:
        if key not in KINDS:
            names = ", ".join(PREFIX + k for k in KINDS)
            raise SettingsError(f"{PREFIX}{key[:LONGEST_ID]} is unknown; the plug-in knows {names}")
    if fault := first_fault(raw, KINDS, PREFIX):
        raise SettingsError(fault[1])
    values = {key: READ[key](value) if key in READ else value for key, value in raw.items()}
    rule = {key: values.pop(key) for key in ("policy", *INLINE) if key in values}
    if "policy" in rule and len(rule) > 1:
        raise SettingsError(f"{PREFIX}policy and {', '.join(PREFIX + k for k in rule if k != 'policy')} contradict each other")
    if "policy" not in rule and "threshold" not in rule:
        raise SettingsError(f"{', '.join(PREFIX + k for k in raw)} says nothing of when; give {PREFIX}policy or {PREFIX}threshold")
    small = len(raw.get("policy", "")) <= LONGEST_REMEMBERED
    return Settings(rule["policy"] if "policy" in rule else _made_of(**rule), small=small, **values)


def check(settings: Settings, serving: Serving | None, params: Any = None) -> None:
    """Refuse what cannot work here.

    Args:
        settings: the request's.
        serving: what the engine serves; None compares nothing with it.
        params: the request's sampling parameters, if they are at hand.

    Raises:
        SettingsError: the rule, its signal or the model cannot be followed inside an engine.
        PolicyMismatch: the policy is for something else, and ``on_mismatch`` is ``error``.
    """
    policy = settings.policy
    if policy.mode != "thinking" or policy.segmentation.boundary == "call":
        raise SettingsError(f"policy has mode {policy.mode!r}, but an engine sees one call: use a policy for mode 'thinking'")
    if policy.stop_rule.reads_answers:
        remedy = "a logits processor cannot ask for one: stop from the client, or calibrate with --rule entropy and no --signal"
        raise SettingsError(f"rule {policy.rule!r} on {policy.signal} reads an answer after every step, and {remedy}")
    for name in policy.stop_rule.unrecorded:
        raise SettingsError(f"signal {short(name)} is not recorded in the engine; it knows {', '.join(STEP_SIGNALS)}")
    changing = [name for name in CHANGING if getattr(params, name, None)]
    if changing and settings.on_mismatch == "error":
        remedy = f"remove it; {PREFIX}on_mismatch=warn goes on regardless"
        raise SettingsError(f"{changing[0]} changes the logits that entropy is read from: {remedy}")
    temperature, limit = (getattr(params, name, None) for name in ("temperature", "max_tokens"))
    running: dict[str, Any] = {"temperature_mode": "raw"}
    if serving is not None:
        running |= _served(policy, serving)
    try:
        texts = policy.differences(settings.on_mismatch, temperature, limit, running)
    except PolicyMismatch as error:  # its remedy is Python; a request has a key for it
        raise SettingsError(str(error).replace('on_mismatch="warn"', f"{PREFIX}on_mismatch=warn")) from error
    for text in texts:
        # No entry in the registry of warnings: it would keep every text for good, and a part of them is the clients'.
        warnings.warn_explicit(text, UserWarning, __file__, 0)


def _served(policy: Policy, serving: Serving) -> dict[str, Any]:
    if serving.speculative:
        raise SettingsError(
            "this server drafts tokens ahead (speculative decoding), which the plug-in cannot follow; switch it off"
        )
    if serving.vocabulary is None or serving.vocabulary.tags is None:
        raise SettingsError(f"this server cannot close thinking: {serving.describe()}; stop from the client, or use mode 'refine'")
    running = {"template": serving.vocabulary.template}
    if policy.model != BY_REQUEST:
        named = {policy.model, *policy.aliases}.intersection(serving.names)
        running["model"] = next(iter(named), serving.names[-1])
    return running


@lru_cache(REMEMBERED)
def _made_of(
    threshold: float,
    boundary: str = Segmentation().boundary,
    min_tokens: int = Segmentation().min_tokens,
    min_steps: int = 1,
    k: int = 20,
) -> Policy:
    return Policy(
        BY_REQUEST,
        thresholds=(threshold,),
        segmentation=Segmentation(boundary, min_tokens),
        min_steps=min_steps,
        k=k or None,
        estimator="renormalised" if k else "full",
    )


def _policy(text: str) -> Policy:
    """A policy file's content, or the path of one on the server."""
    text = text.strip()
    if text.startswith("{"):
        return _remembered(text) if len(text) <= LONGEST_REMEMBERED else _from_text(text)
    try:  # one answer for all that is no policy file: a request must not find out what lies on the server
        path = Path(os.path.realpath(text))  # one file is remembered once, however its path is written
        if path.suffix != ".json" or not path.is_file() or path.stat().st_size > LARGEST_POLICY:
            raise OSError
        return _from_file(path, path.stat().st_mtime_ns)
    except (OSError, ValueError) as error:
        remedy = "give the path of a readable .json policy file on the server, or the file's content"
        raise PolicyError(f"{PREFIX}policy is {short(text, 300)}, which is not a policy file: {remedy}") from error


def _from_text(text: str) -> Policy:
    try:
        data = strict_json(text)
    except InputError as error:
        raise PolicyError(f"{PREFIX}policy is {error}; give a policy file's content, or its path") from error
    return Policy.from_dict(data, f"{PREFIX}policy")


_remembered = lru_cache(REMEMBERED)(_from_text)


@lru_cache(REMEMBERED)
def _from_file(path: Path, _changed: int) -> Policy:
    return Policy.of(path)


def _truth(value: str | float) -> bool:
    return str(value).strip().lower() in TRUE


TRUE, FALSE = ("1", "1.0", "true"), ("0", "0.0", "false")
"""``vllm_xargs`` holds texts and numbers: true and false arrive as 1 and 0."""

_TRUTH = Check(
    lambda v: (isinstance(v, str) or v in (0, 1)) and str(v).strip().lower() in TRUE + FALSE, "true or false (or 1 or 0)"
)

KINDS: dict[str, Check] = {
    "policy": Check(
        lambda v: is_name(v) and len(v) <= LARGEST_POLICY,
        f"a policy file's content, of at most {LARGEST_POLICY:,} characters, or its path on the server",
    ),
    "threshold": Check(is_number, "a finite number, in bits"),
    **SEGMENTATION,
    "min_steps": Check(is_whole, f"{WHOLE}: steps count from 1"),
    "k": Check(is_count, f"{WHOLE}, or 0 for the whole vocabulary"),
    "stop": _TRUTH,
    "holdout": _TRUTH,
    "on_mismatch": one_of(OPTIONS["on_mismatch"]),
    "id": Check(lambda v: is_name(v) and len(v) <= LONGEST_ID, f"a text of 1 to {LONGEST_ID} characters"),
}
"""Every key, without its prefix, and what its value must be."""

READ: dict[str, Callable[[Any], Any]] = {"policy": _policy, "stop": _truth, "holdout": _truth}
"""How the values are read that are not taken as they are."""

INLINE = ("threshold", *SEGMENTATION, "min_steps", "k")
"""The keys that make a policy of their own."""
