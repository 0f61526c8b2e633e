"""Stop reasoning models when they are sure.

Token logprobs give the entropy of a reasoning step; a calibrated threshold on it tells when to stop and answer. Everything
here is loaded on first use: importing this package loads no framework.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from entropy_chains.calibration import calibrate
    from entropy_chains.comparing import Comparison, compare, transfer
    from entropy_chains.core.entropy import EntropyBounds, logits_entropy, token_entropy
    from entropy_chains.core.monitor import BatchMonitor, Decision, Monitor, Outcome
    from entropy_chains.core.policy import Policy
    from entropy_chains.core.signals import StepRecord
    from entropy_chains.core.steps import Segmentation, ThinkTags
    from entropy_chains.core.tokens import Alternative, Token
    from entropy_chains.diagnosis import Diagnosis, diagnose
    from entropy_chains.errors import (
        BackendError,
        BatchError,
        EntropyChainsError,
        InputError,
        MissingExtraError,
        NoLogprobsError,
        OutputError,
        PolicyError,
        PolicyMismatch,
        SettingsError,
        TraceError,
        UnreachableError,
        WriteError,
    )
    from entropy_chains.recording import RecordError, record
    from entropy_chains.refine import RefineError, arun_refine, run_refine
    from entropy_chains.replaying import ReplayResult, replay
    from entropy_chains.savings import Savings
    from entropy_chains.traces import Step, Trace, append_traces, read_traces

_HOME = {
    "Alternative": "core.tokens",
    "append_traces": "traces",
    "arun_refine": "refine",
    "BackendError": "errors",
    "BatchError": "errors",
    "BatchMonitor": "core.monitor",
    "calibrate": "calibration",
    "compare": "comparing",
    "Comparison": "comparing",
    "Decision": "core.monitor",
    "diagnose": "diagnosis",
    "Diagnosis": "diagnosis",
    "EntropyBounds": "core.entropy",
    "EntropyChainsError": "errors",
    "InputError": "errors",
    "logits_entropy": "core.entropy",
    "MissingExtraError": "errors",
    "Monitor": "core.monitor",
    "NoLogprobsError": "errors",
    "Outcome": "core.monitor",
    "OutputError": "errors",
    "Policy": "core.policy",
    "PolicyError": "errors",
    "PolicyMismatch": "errors",
    "read_traces": "traces",
    "record": "recording",
    "RecordError": "recording",
    "RefineError": "refine",
    "replay": "replaying",
    "ReplayResult": "replaying",
    "run_refine": "refine",
    "Savings": "savings",
    "Segmentation": "core.steps",
    "SettingsError": "errors",
    "Step": "traces",
    "StepRecord": "core.signals",
    "ThinkTags": "core.steps",
    "Token": "core.tokens",
    "token_entropy": "core.entropy",
    "Trace": "traces",
    "TraceError": "errors",
    "transfer": "comparing",
    "UnreachableError": "errors",
    "WriteError": "errors",
}
"""Public name to the module it lives in."""

__version__ = "0.1.0"

__all__ = [
    "Alternative",
    "append_traces",
    "arun_refine",
    "BackendError",
    "BatchError",
    "BatchMonitor",
    "calibrate",
    "compare",
    "Comparison",
    "Decision",
    "diagnose",
    "Diagnosis",
    "EntropyBounds",
    "EntropyChainsError",
    "InputError",
    "logits_entropy",
    "MissingExtraError",
    "Monitor",
    "NoLogprobsError",
    "Outcome",
    "OutputError",
    "Policy",
    "PolicyError",
    "PolicyMismatch",
    "read_traces",
    "record",
    "RecordError",
    "RefineError",
    "replay",
    "ReplayResult",
    "run_refine",
    "Savings",
    "Segmentation",
    "SettingsError",
    "Step",
    "StepRecord",
    "ThinkTags",
    "Token",
    "token_entropy",
    "Trace",
    "TraceError",
    "transfer",
    "UnreachableError",
    "WriteError",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'entropy_chains' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"entropy_chains.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
