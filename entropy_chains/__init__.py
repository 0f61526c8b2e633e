"""Stop reasoning models when they are sure.

Token logprobs give the entropy of a reasoning step; a calibrated threshold on it tells when to stop and answer. Everything
here is loaded on first use: importing this package loads no framework.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from entropy_chains.lazy import lazy_names

if TYPE_CHECKING:
    from entropy_chains.backends import Chunk, Generation, Sampling
    from entropy_chains.backends.openai import AsyncOpenAIBackend, OpenAIBackend
    from entropy_chains.backends.scripted import Script, ScriptedBackend
    from entropy_chains.backends.transformers import TransformersBackend
    from entropy_chains.core.batch_monitor import BatchMonitor
    from entropy_chains.core.entropy import EntropyBounds, token_entropy
    from entropy_chains.core.entropy_rows import logits_entropy
    from entropy_chains.core.families import ThinkTags, detect_tags
    from entropy_chains.core.monitor import Decision, Monitor, Outcome
    from entropy_chains.core.policy import Policy, stopping_enabled
    from entropy_chains.core.signals import StepRecord
    from entropy_chains.core.steps import Scanner, Segmentation, detect_segmentation
    from entropy_chains.core.tokens import Alternative, Token
    from entropy_chains.doctor.examine import examine
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
    from entropy_chains.offline.calibrate import calibrate
    from entropy_chains.offline.certify import examples_needed, upper_bound
    from entropy_chains.offline.compare import Comparison, compare, transfer
    from entropy_chains.offline.diagnose import Diagnosis, diagnose
    from entropy_chains.offline.replay import ReplayResult, replay
    from entropy_chains.offline.traces import Step, Trace, append_traces, read_traces
    from entropy_chains.recording import RecordError, conversation, record
    from entropy_chains.refine import RefineError, arun_refine, run_refine
    from entropy_chains.savings.drift import Drift, drift
    from entropy_chains.savings.figures import EnergyMeter
    from entropy_chains.savings.holdout import HoldoutSaving, holdout_saving, is_holdout
    from entropy_chains.savings.runs import Run, Savings
    from entropy_chains.show.report import write_report

_HOME = {
    "Alternative": "core.tokens",
    "append_traces": "offline.traces",
    "arun_refine": "refine",
    "AsyncOpenAIBackend": "backends.openai",
    "BackendError": "errors",
    "BatchError": "errors",
    "BatchMonitor": "core.batch_monitor",
    "calibrate": "offline.calibrate",
    "Chunk": "backends",
    "compare": "offline.compare",
    "Comparison": "offline.compare",
    "conversation": "recording",
    "Decision": "core.monitor",
    "detect_segmentation": "core.steps",
    "detect_tags": "core.families",
    "diagnose": "offline.diagnose",
    "Diagnosis": "offline.diagnose",
    "drift": "savings.drift",
    "Drift": "savings.drift",
    "EnergyMeter": "savings.figures",
    "EntropyBounds": "core.entropy",
    "EntropyChainsError": "errors",
    "examine": "doctor.examine",
    "examples_needed": "offline.certify",
    "Generation": "backends",
    "holdout_saving": "savings.holdout",
    "HoldoutSaving": "savings.holdout",
    "InputError": "errors",
    "is_holdout": "savings.holdout",
    "logits_entropy": "core.entropy_rows",
    "MissingExtraError": "errors",
    "Monitor": "core.monitor",
    "NoLogprobsError": "errors",
    "OpenAIBackend": "backends.openai",
    "Outcome": "core.monitor",
    "OutputError": "errors",
    "Policy": "core.policy",
    "PolicyError": "errors",
    "PolicyMismatch": "errors",
    "read_traces": "offline.traces",
    "record": "recording",
    "RecordError": "recording",
    "RefineError": "refine",
    "replay": "offline.replay",
    "ReplayResult": "offline.replay",
    "Run": "savings.runs",
    "run_refine": "refine",
    "Sampling": "backends",
    "Savings": "savings.runs",
    "Scanner": "core.steps",
    "Script": "backends.scripted",
    "ScriptedBackend": "backends.scripted",
    "Segmentation": "core.steps",
    "SettingsError": "errors",
    "Step": "offline.traces",
    "StepRecord": "core.signals",
    "stopping_enabled": "core.policy",
    "ThinkTags": "core.families",
    "Token": "core.tokens",
    "token_entropy": "core.entropy",
    "Trace": "offline.traces",
    "TraceError": "errors",
    "transfer": "offline.compare",
    "TransformersBackend": "backends.transformers",
    "UnreachableError": "errors",
    "upper_bound": "offline.certify",
    "write_report": "show.report",
    "WriteError": "errors",
}
"""Public name to the module it lives in."""

__version__ = "0.1.0"

__all__ = [
    "Alternative",
    "append_traces",
    "arun_refine",
    "AsyncOpenAIBackend",
    "BackendError",
    "BatchError",
    "BatchMonitor",
    "calibrate",
    "Chunk",
    "compare",
    "Comparison",
    "conversation",
    "Decision",
    "detect_segmentation",
    "detect_tags",
    "diagnose",
    "Diagnosis",
    "drift",
    "Drift",
    "EnergyMeter",
    "EntropyBounds",
    "EntropyChainsError",
    "examine",
    "examples_needed",
    "Generation",
    "holdout_saving",
    "HoldoutSaving",
    "InputError",
    "is_holdout",
    "logits_entropy",
    "MissingExtraError",
    "Monitor",
    "NoLogprobsError",
    "OpenAIBackend",
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
    "Run",
    "run_refine",
    "Sampling",
    "Savings",
    "Scanner",
    "Script",
    "ScriptedBackend",
    "Segmentation",
    "SettingsError",
    "Step",
    "StepRecord",
    "stopping_enabled",
    "ThinkTags",
    "Token",
    "token_entropy",
    "Trace",
    "TraceError",
    "transfer",
    "TransformersBackend",
    "UnreachableError",
    "upper_bound",
    "write_report",
    "WriteError",
]

if not TYPE_CHECKING:  # so that a misspelt name is an error to type checkers
    __getattr__, __dir__ = lazy_names(globals(), _HOME)
