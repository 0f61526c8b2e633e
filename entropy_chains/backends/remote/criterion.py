"""What one run is stopped by: its policy, or what takes its place where the server gives no logprobs. Pure."""

from __future__ import annotations

import warnings
from dataclasses import replace

from entropy_chains.backends import Probe
from entropy_chains.backends.remote.continuations import Request
from entropy_chains.backends.remote.plan import Plan
from entropy_chains.backends.remote.refused import ADDED, OPTIONS, REMEDY, STREAM, UNREAD, RefusedError, allowed
from entropy_chains.backends.remote.reply import Reply
from entropy_chains.core.entropy import EntropyBounds
from entropy_chains.core.monitor import Monitor
from entropy_chains.core.policy import Policy
from entropy_chains.core.signals import COVERAGE
from entropy_chains.errors import BackendError, NoLogprobsError, PolicyMismatch

NO_LOGPROBS = "the server gives no logprobs on reasoning tokens"


class Criterion:
    """What a run is stopped by, and whether its requests ask for logprobs.

    Attributes:
        policy: judges the steps; None only measures. Without logprobs another one may take its place.
        refusal: why requests ask for no logprobs though the rule reads them; None while they do.
        k: alternatives that they ask for.
        no_usage: why they do not ask for the usage at the stream's end; None while they do.
        unstreamed: why they are not sent as a stream; None while they are.
    """

    def __init__(self, plan: Plan, policy: Policy | None):
        self._plan, self.policy = plan, policy
        self._unread = plan.without_logprobs == UNREAD or bool(policy and not policy.stop_rule.reads_signal)
        self._unproved = False  # nobody knows yet whether a request without what was left out, or with less, is answered
        self._doubted: str | None = None  # the error after which all was left out
        self._accepted = False  # what the requests ask for now was answered, and is known to be
        self.no_usage, self.unstreamed = plan.known.no_usage, plan.known.whole
        self.k = plan.known.within(plan.k)
        self.refusal: str | None = None if self.needs_logprobs else plan.known.refused
        if self.k < plan.k and self.asks and (few := self._too_few(self.k)):
            self.refusal = few

    @property
    def needs_logprobs(self) -> bool:
        """A run without logprobs is an error."""
        return self._plan.without_logprobs == "error" and not self._unread

    @property
    def asks(self) -> bool:
        """Requests ask for logprobs: a rule that reads none needs none, unless the text can be read from nothing else."""
        return (not self._unread or self._plan.dropped) and self.refusal is None

    @property
    def unlisted(self) -> str:
        """What is missing where reasoning tokens come without logprobs."""
        return NO_LOGPROBS + (f" ({self._plan.update})" if self._plan.update else "")

    @property
    def dropped(self) -> str:
        """What is missing where the client passes on neither the text of reasoning tokens nor their logprobs."""
        who, instead = self._client
        return f"{who} gives no logprobs and no text of reasoning tokens ({instead})"

    @property
    def _client(self) -> tuple[str, str]:
        """Who passes no logprobs on, and what to do."""
        who, instead = self._plan.client
        return who, self._plan.update or instead

    def reduced(self, request: Request) -> Request:
        """The request without what the server is known to refuse."""
        streamed = self.unstreamed is None
        return replace(request, logprobs=request.logprobs and streamed, usage=self.no_usage is None, streamed=streamed)

    def own(self, error: RefusedError) -> Exception:
        """The error of a request that is not sent again; it tells where logprobs, which are needed, may be at fault."""
        own = error.own
        if error.what == ADDED and self.needs_logprobs and self.asks and self._state not in self._plan.known.accepted:
            hint = f"the request asks for logprobs, which may be what the server refuses: {REMEDY}"
            if isinstance(own, BackendError):
                own.args = (f"{own}; {hint}",)
            else:
                own.add_note(hint)
        return own

    @property
    def _state(self) -> tuple[bool, ...]:
        """What is asked for."""
        return self.asks, self.no_usage is None, self.unstreamed is None

    def _leaves_out(self, error: RefusedError) -> bool:
        """Whether a request that failed is sent again without what was refused."""
        known = self._plan.known
        if error.what == OPTIONS and self.no_usage is None:
            self.no_usage = f"the server refuses {OPTIONS} ({error.said})"
        elif error.what == STREAM and self.unstreamed is None and self._plan.plain:
            self.unstreamed = f"the server refuses to stream ({error.said})"
        elif error.what == ADDED and not self.needs_logprobs and not self._doubted and self._state not in known.accepted:
            if error.said in known.tried or not (self.asks or self.no_usage is None):
                return False
            known.tried.add(error.said)
            self._doubted = error.said
            if self.asks:
                self.refusal = f"the server refuses {ADDED} ({error.said})"
            self.no_usage = f"the server refuses {ADDED} ({error.said})"
        else:
            return False
        self._unproved = True
        return True

    def came_whole(self, monitor: Monitor) -> None:
        """The reply was no stream: nothing is stopped, and that is said once a model."""
        why = self.unstreamed or "the server sends the reply whole, though it was asked for a stream"
        then = "running in full, without early stopping" if self.policy else "nothing is measured"
        self._plan.known.warn(f"{self._plan.model}: {why}: {then}", about="stream")
        monitor.switch_off(f"{why}: run in full")

    def gives_in(self, error: BackendError, stream: Reply) -> bool:
        """Whether a request that failed is sent again: with fewer alternatives, once, or without what is refused and not needed.

        Raises:
            NoLogprobsError: the policy reads more than the server allows, and a run without logprobs is an error.
        """
        if isinstance(error, RefusedError):
            return not stream.pieces and self._leaves_out(error)
        if not isinstance(error, NoLogprobsError) or stream.pieces or not self.asks:
            return False
        most = allowed(error.said, self.k) if self.k == self._plan.k else None
        few = None if most is None else self._too_few(most, error.said)
        if few:
            self.refusal, self._unproved = few, True
            return True
        if most is not None:
            self.k, self._unproved = most, True
            return True
        if self.needs_logprobs:
            return False
        self.refusal, self._unproved = f"the server refuses logprobs ({error.said or error})", True
        return True

    def _too_few(self, most: int, refusal: str = "") -> str | None:
        """Why logprobs are of no use where the server allows so many alternatives; None where they are.

        Raises:
            NoLogprobsError: they are needed; a warning where the plan goes on with what there is.
        """
        policy = self.policy or self._plan.loop
        if policy is None or policy.k is None or most >= policy.k:
            return None
        mismatch = _mismatch(policy.k, most)
        if self._plan.on_mismatch == "warn":
            warnings.warn(str(mismatch), stacklevel=2)
            return None
        if self.needs_logprobs:
            raise NoLogprobsError(f"the server allows {most} alternatives a token: {mismatch}", refusal)
        return f"the server allows {most} alternatives a token, and the policy is for k={policy.k}"

    def proved(self) -> str | None:
        """A request was answered. Why logprobs are gone, if it was the first one without: it proves that they were at fault."""
        memory, plan = self._plan.known, self._plan
        if not self._accepted:
            self._accepted = True
            memory.accepted.add(self._state)
        if not self._unproved:
            return None
        self._unproved = False
        memory.no_usage, memory.whole = self.no_usage, self.unstreamed
        if memory.refused == self.refusal and self.k in (plan.k, memory.most):
            return None
        memory.refused = self.refusal
        if self.refusal is None:
            memory.most = self.k
            text = f"{plan.model}: the server allows {self.k} alternatives a token: asked for from now on in the place of {plan.k}"
            memory.warn(text, about="k")
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

    def was_silent(self, monitor: Monitor) -> None:
        """The reply is over, and no token of its text had logprobs: say so, for nothing could ever be stopped here."""
        plan = self._plan
        if not self._may_stop(monitor):
            return
        who, instead = self._client
        plan.known.warn(
            f"{plan.model}: {who} gives no logprobs with its text, so nothing was measured, and nothing is stopped: {instead}"
        )
        monitor.switch_off(f"{who} gives no logprobs: run in full")

    def was_unjudged(self, monitor: Monitor) -> None:
        """The reply is over, and none of its steps had logprobs for enough of its tokens: the policy was never asked. Say so."""
        if not self._may_stop(monitor):
            return
        who, instead = self._client
        few = f"{who} gives logprobs for fewer than {COVERAGE:.0%} of the tokens"
        self._plan.known.warn(
            f"{self._plan.model}: {few}, so no step has an entropy, nothing was measured, and nothing is stopped: {instead}",
            about="few logprobs",
        )
        monitor.switch_off(f"{few}: run in full")

    def _may_stop(self, monitor: Monitor) -> bool:
        """Whether the entropy of a step could have stopped the run."""
        policy = self.policy
        return policy is not None and policy.active and not self._unread and self.asks and monitor.may_stop

    def check_k(self, bounds: EntropyBounds) -> None:
        """Compare the alternatives that came with the policy's k: a threshold belongs to its k.

        One fewer is what engines give that list the sampled token in the place of the k-th.

        Raises:
            PolicyMismatch: there are fewer; a warning where the plan says so.
        """
        if bounds.mass <= 0.9999:
            self._check(bounds.k, bounds.k + 1)

    def _check(self, k: int, most: int) -> None:
        """Compare with the policy's k. ``most``: alternatives that the list may stand for."""
        policy = self.policy or self._plan.loop
        if self._unread or policy is None or policy.k is None or most >= policy.k:
            return
        mismatch = _mismatch(policy.k, k)
        if self._plan.on_mismatch == "error":
            raise mismatch
        warnings.warn(str(mismatch), stacklevel=2)

    def missing_of(self, reply: Reply, probe: Probe) -> str | None:
        """What the policy reads of a probe's answer and the server does not tell: such probes cost tokens and stop nothing."""
        policy = self.policy
        if policy is None or not policy.reads_probes or probe.answer is None:
            return None
        if any(s.whole_vocabulary for s in policy.stop_rule.signals) or not any(p.token.alternatives for p in reply.said):
            return f"the server does not tell {policy.signal} of an answer"
        return None


def _mismatch(expected: int, k: int) -> PolicyMismatch:
    remedy = f"raise the server's limit, or calibrate with k={k}; on_mismatch='warn' goes on regardless"
    return PolicyMismatch("k", expected, k, remedy)
