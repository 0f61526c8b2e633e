"""What every backend does with a run's text and its parts, written once."""

from __future__ import annotations

from dataclasses import replace

from entropy_chains.backends import Generation
from entropy_chains.core.monitor import Outcome
from entropy_chains.errors import BackendError

MALFORMED = "the answer after the stop was malformed: run in full"


def broken_off(error: BackendError, run: Generation) -> BackendError:
    """The error that ended a run, with the run before it if a step had ended. A part of an answer is none."""
    if run.steps:
        error.run = replace(run, answer=None, finish_reason="error")
    return error


def run_instead(full: Generation, stopped: Generation, outcome: Outcome) -> Generation:
    """The full run in place of a stop whose answer was malformed; the tokens of both were computed."""
    tokens = full.tokens + stopped.tokens
    full_outcome = replace(outcome, stopped=False, tokens=tokens, tokens_saved=None)
    prefill = full.prefill_tokens + stopped.prefill_tokens
    return replace(full, outcome=full_outcome, tokens=tokens, prefill_tokens=prefill, seconds=full.seconds + stopped.seconds)
