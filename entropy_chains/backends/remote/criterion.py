"""What one run is stopped by: its policy, or what takes its place where the server gives no logprobs. Pure."""

from __future__ import annotations

import warnings

from entropy_chains.backends import Probe
from entropy_chains.backends.remote.plan import Plan
from entropy_chains.backends.remote.refused import REMEDY, UNREAD
from entropy_chains.backends.remote.reply import Reply
from entropy_chains.core.entropy import EntropyBounds
from entropy_chains.core.monitor import Monitor
from entropy_chains.core.policy import Policy
from entropy_chains.errors import BackendError, NoLogprobsError, PolicyMismatch


class Criterion:
    """What a run is stopped by, and whether its requests ask for logprobs.

    Attributes:
        policy: judges the steps; None only measures. Without logprobs another one may take its place.
        refusal: why requests ask for no logprobs; None while they do.
    """

    def __init__(self, plan: Plan, policy: Policy | None):
        self._plan, self.policy = plan, policy
        self._unread = plan.without_logprobs == UNREAD or bool(policy and not policy.stop_rule.reads_signal)
        self._unproved = False  # nobody knows yet whether a request without logprobs is answered
        self.refusal: str | None = None if self.needs_logprobs else plan.known.refused

    @property
    def needs_logprobs(self) -> bool:
        """A run without logprobs is an error."""
        return self._plan.without_logprobs == "error" and not self._unread

    def gives_in(self, error: BackendError, stream: Reply) -> bool:
        """Whether a request that failed is sent again without logprobs: they were refused, and are not needed."""
        if not isinstance(error, NoLogprobsError) or self.needs_logprobs or stream.pieces or self.refusal:
            return False
        self.refusal, self._unproved = f"the server refuses logprobs ({error.said or error})", True
        return True

    def proved(self) -> str | None:
        """A request was answered. Why logprobs are gone, if it was the first one without: it proves that they were at fault."""
        if not self._unproved:
            return None
        self._plan.known.refused, self._unproved = self.refusal, False
        return self.refusal

    def do_without(self, what: str, monitor: Monitor) -> None:
        """There are no logprobs: stop by what needs none, or run in full.

        Args:
            what: what is missing, as the start of a sentence.
            monitor: judges the run.

        Raises:
            NoLogprobsError: neither was allowed.
        """
        policy, plan = self.policy, self._plan
        if self._unread:
            return
        if plan.without_logprobs == "error":
            monitor.switch_off(what)
            raise NoLogprobsError(f"{what}, so there is no entropy: {REMEDY}")
        if policy is not None and policy.active and plan.without_logprobs == "agreement":
            plan.known.warn(f"{plan.model}: {what}: stopping where two answers in a row agree (without_logprobs='agreement')")
            self.policy, self._unread = policy.by_agreement(), True
            monitor.judge_by(self.policy)
        else:
            then = "running in full, without early stopping" if policy else "nothing is measured"
            plan.known.warn(f"{plan.model}: {what}: {then}")
            monitor.switch_off(f"{what}: run in full")

    def check_k(self, bounds: EntropyBounds) -> None:
        """Compare the alternatives that came with the policy's k: a threshold belongs to its k.

        One fewer is what engines give that list the sampled token in the place of the k-th.

        Raises:
            PolicyMismatch: there are fewer; a warning where the plan says so.
        """
        policy = self.policy
        if policy is None or policy.k is None or bounds.k >= policy.k - 1 or bounds.mass > 0.9999:
            return
        remedy = f"raise the server's limit, or calibrate with k={bounds.k}; on_mismatch='warn' goes on regardless"
        mismatch = PolicyMismatch("k", policy.k, bounds.k, remedy)
        if self._plan.on_mismatch == "error":
            raise mismatch
        warnings.warn(str(mismatch), stacklevel=2)

    def missing_of(self, probe: Reply, found: Probe) -> str | None:
        """What the policy reads of a probe's answer and the server does not tell: such probes cost tokens and stop nothing."""
        policy = self.policy
        if policy is None or not policy.reads_probes or found.answer is None:
            return None
        if any(s.whole_vocabulary for s in policy.stop_rule.signals) or not any(p.token.alternatives for p in probe.said):
            return f"the server does not tell {policy.signal} of an answer"
        return None
