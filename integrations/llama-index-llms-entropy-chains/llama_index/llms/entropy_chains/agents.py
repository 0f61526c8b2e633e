"""Agents whose loop ends when they are sure: the next step is taken without tools, so that it must answer, all results in view.

A step of the loop is one call of the LLM; its entropy is the mean over the call's tokens. Only a policy of ``scope`` ``agent``
ends a loop, for a sure call says nothing about the calls to come: that has to be calibrated on whole runs of the agent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_index.core.agent.workflow import AgentOutput, AgentStream, FunctionAgent, ReActAgent
from llama_index.core.agent.workflow.base_agent import BaseWorkflowAgent
from llama_index.core.bridge.pydantic import Field
from llama_index.core.instrumentation.span import active_span_id
from llama_index.core.workflow import Context, Event, Workflow
from llama_index.llms.entropy_chains._call_settings import never_cut
from llama_index.llms.entropy_chains._measured import reader_of
from llama_index.llms.entropy_chains._runs import SCOPES, follow_spans
from llama_index.llms.entropy_chains.tracing import mark_span
from pydantic import InstanceOf  # noqa: TC002 (pydantic reads annotations)

from entropy_chains import Monitor, Outcome, Policy, StepRecord, stopping_enabled, token_entropy
from entropy_chains.adapters import PER_CALL, OnMismatch, TokenCount, Update, check_settings, read_message
from entropy_chains.errors import PolicyMismatch, SettingsError

if TYPE_CHECKING:
    from llama_index.core.agent.workflow.agent_context import AgentContext
    from llama_index.core.llms import ChatMessage
    from llama_index.core.memory import BaseMemory
    from llama_index.core.tools import AsyncBaseTool

HANDOFF = "handoff"
"""LlamaIndex's tool that passes the run on to another agent."""

SCOPE = "the policy has scope 'call', which never ends an agent's loop: calibrate on runs of the agent"
NO_ANSWER = "the step without tools gave no answer: run in full"
NO_LOGPROBS = "a step came without logprobs, so there is no entropy: make the LLM with logprobs=True, top_logprobs=20"


class StepEntropyEvent(Event):
    """A step of an agent's loop, in the workflow's event stream.

    Attributes:
        current_agent_name: whose step.
        step: its number in this run, from 1.
        tokens: completion tokens.
        entropy: mean over them, bits; None where there are too few logprobs.
        threshold: what it is compared with, bits; None where there is none.
        sure: the next step is taken without tools.
    """

    current_agent_name: str
    step: int
    tokens: int
    entropy: float | None = None
    threshold: float | None = None
    sure: bool = False


class Measured:
    """The context of one step, which also reads the chunks that go through it."""

    def __init__(self, ctx: AgentContext, k: int | None):
        self._ctx, self._k = ctx, k
        self._reader: Any = None
        self._several = False  # replies in one call: there is no entropy of them
        self._monitor = Monitor(segmentation=PER_CALL)
        self._count = TokenCount()
        self.entries: int | None = None  # the shortest list of alternatives that did not hold all of the mass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)

    @property
    def store(self) -> Any:
        """As in :class:`AgentContext`."""
        return self._ctx.store

    @property
    def is_running(self) -> bool:
        """As in :class:`AgentContext`. A workflow's runs while a step does: asked there, it warns."""
        return isinstance(self._ctx, Context) or self._ctx.is_running

    def write_event_to_stream(self, event: Any) -> None:
        """As in :class:`AgentContext`."""
        if isinstance(event, AgentStream):
            if self._reader is None and (reader := reader_of(event.raw)) is not None:
                self._reader = reader()
            if self._reader is not None:
                self._read(self._reader.feed, event.raw)
        self._ctx.write_event_to_stream(event)

    def _read(self, read: Callable[[Any], Update], raw: Any) -> None:
        """Take what stands in a chunk or a response."""
        if self._several:
            return
        try:
            self._take(read(raw))
        except SettingsError:
            self._several, self._monitor = True, Monitor(segmentation=PER_CALL)

    def _take(self, update: Update) -> None:
        for piece in update.pieces:
            bounds = token_entropy(piece.token, k=self._k) if piece.token.alternatives else None
            self._monitor.feed(piece.token, bounds, phase=piece.phase)
            if bounds is not None and bounds.mass <= 0.9999:
                self.entries = min(bounds.k, self.entries or bounds.k)
        self._count.take(update)

    def record(self, step: int, output: AgentOutput) -> StepRecord:
        """The step as it was. ``output``: it holds the whole response of a step that did not stream."""
        if self._reader is not None:
            self._take(self._reader.finish())
        elif output.raw is not None:
            self._read(read_message, output.raw)
        tokens = self._count.tokens
        self._monitor.end_step()
        return replace(self._monitor.last or StepRecord(step, tokens), step=step, tokens=tokens)


class EarlyStop(BaseWorkflowAgent):
    """What both agents have in common."""

    policy: InstanceOf[Policy] | None = Field(default=None, description="When the loop ends early; None only measures.")
    early_stop: bool = Field(default=True, description="False only watches, as ENTROPY_CHAINS_STOP=0 does.")
    on_mismatch: OnMismatch = Field(default="error", description="'error' or 'warn', where the policy is for something else.")

    def __init__(self, *args: Any, policy: Policy | str | Path | None = None, **settings: Any):
        kind = type(self)
        check_settings(kind.__name__, settings, {*kind.model_fields, *signature(Workflow.__init__).parameters} - {"self", "policy"})
        super().__init__(*args, policy=Policy.of(policy), **settings)
        follow_spans()
        self._check_policy()

    def _check_policy(self) -> None:
        policy = self.policy
        if policy is not None and policy.scope == "agent":
            if policy.segmentation.boundary != "call":
                boundary = policy.segmentation.boundary
                raise SettingsError(
                    f"the policy has scope 'agent' and boundary {boundary!r}; a step of an agent is a call: use 'call'"
                )
            policy.check(model=self.llm.metadata.model_name, on_mismatch=self.on_mismatch)

    async def take_step(
        self, ctx: AgentContext, llm_input: list[ChatMessage], tools: Sequence[AsyncBaseTool], memory: BaseMemory
    ) -> AgentOutput:
        """One step, without tools where the step before was sure."""
        state = await _state_of(ctx, self.name)
        why = self._never_ended
        loop = _AgentLoop(None if why else self.policy, self.early_stop, state)
        before, forced = list(await ctx.store.get(self._notes, default=[])), loop.sure
        measured = Measured(ctx, self.policy.k if self.policy else None)
        output = await super().take_step(measured, llm_input, [] if forced else tools, memory)  # type: ignore[safe-super]
        loop.add(measured.record(loop.step, output), output, forced)
        if forced and not _answers(output):
            # No second thoughts in view: the step is taken again as if nothing had been stopped.
            await ctx.store.set(self._notes, before)
            measured = Measured(ctx, self.policy.k if self.policy else None)
            output = await super().take_step(measured, llm_input, tools, memory)  # type: ignore[safe-super]
            loop.add(measured.record(loop.step, output), output, forced=False)
        self._check_k(measured)
        await ctx.store.set(_steps_key(self.name), loop.state)
        outcome = loop.outcome(why)
        table = output.early_stop = outcome.metadata()
        mark_span({name: value for name, value in table.items() if name != "early_stop_tokens"})  # its calls have them
        scope = SCOPES.at(active_span_id.get())
        if scope is not None:
            scope.add_loop(f"the loop of {self.name}", outcome)
        last, bound = loop.records[-1], loop.policy.threshold(loop.step - 1) if loop.policy else None
        ctx.write_event_to_stream(
            StepEntropyEvent(
                current_agent_name=self.name,
                step=last.step,
                tokens=last.tokens,
                entropy=last.entropy,
                threshold=bound,
                sure=loop.sure and not forced,
            )
        )
        return output

    @property
    def _never_ended(self) -> str | None:
        """Why the loop is not ended early, whatever its steps' entropies; None where it may be."""
        if self.policy is None:
            return None
        return SCOPE if self.policy.scope == "call" else never_cut(getattr(self.llm, "llm", self.llm), {})

    def _check_k(self, measured: Measured) -> None:
        """A threshold belongs to its k; engines may give the sampled token in the place of the k-th."""
        policy = self.policy
        if policy and policy.scope == "agent" and policy.k and measured.entries and measured.entries < policy.k - 1:
            mismatch = PolicyMismatch("k", policy.k, measured.entries, "make the LLM with top_logprobs of that many")
            if self.on_mismatch == "error":
                raise mismatch
            policy.check(k=measured.entries, on_mismatch="warn")

    @property
    def _notes(self) -> str:
        """Where the agent keeps what was said and found in this run."""
        raise NotImplementedError


class EarlyStopFunctionAgent(EarlyStop, FunctionAgent):
    """A ``FunctionAgent`` that answers as soon as it is sure.

    Args:
        policy: with ``scope`` ``agent`` and boundary ``call``, its loop is ended; any other only measures.
        early_stop: False only watches.
        on_mismatch: ``error`` or ``warn``.
        settings: those of every ``FunctionAgent``. The LLM must be made with logprobs.
    """

    @property
    def _notes(self) -> str:
        return self.scratchpad_key


class EarlyStopReActAgent(EarlyStop, ReActAgent):
    """A ``ReActAgent`` that answers as soon as it is sure; see :class:`EarlyStopFunctionAgent`.

    Its tools are text in the prompt: the step without them is shown none. A model that calls one all the same goes on.
    """

    @property
    def _notes(self) -> str:
        return self.reasoning_key


class _AgentLoop:
    """The steps of one run so far, and what follows from them. ``state`` is plain values that a context can keep."""

    def __init__(self, policy: Policy | None, stop: bool, state: dict[str, Any]):
        self.policy, self.state = policy, state
        self._stop = stop and stopping_enabled()

    @property
    def step(self) -> int:
        """Number of the next step, from 1."""
        return len(self.state["steps"]) + 1

    @property
    def records(self) -> list[StepRecord]:
        """The steps, in order."""
        return [StepRecord(**s["record"]) for s in self.state["steps"]]

    @property
    def sure(self) -> bool:
        """The next step must answer."""
        return self._judged().done and not self.state["failed"]

    def add(self, record: StepRecord, output: AgentOutput, forced: bool) -> None:
        """A step was taken."""
        # A step that passes the run on, or that has to be taken again, may be sure of that and of nothing else.
        judged = not forced and not output.retry_messages and all(c.tool_name != HANDOFF for c in output.tool_calls)
        going_on = bool(output.tool_calls)
        self.state["steps"].append({"record": asdict(record), "judged": judged and going_on, "text": output.response.content})
        self.state["failed"] = self.state["failed"] or (forced and not _answers(output))

    def _judged(self) -> Monitor:
        monitor = Monitor(self.policy, segmentation=PER_CALL, stop=self._stop)
        for step, record in zip(self.state["steps"], self.records, strict=True):
            monitor.take(record if step["judged"] else StepRecord(record.step, record.tokens), step["text"] or None)
        return monitor

    def outcome(self, why: str | None) -> Outcome:
        """What came of it so far."""
        records, monitor = self.records, self._judged()
        if self.state["failed"]:
            why = NO_ANSWER
        elif self.policy is not None and not monitor.done and any(r.entropy is None for r in records):
            why = NO_LOGPROBS
        outcome = monitor.finish(why, tokens=sum(r.tokens for r in records))
        if outcome.reason == "reasoning ended by itself":
            outcome = replace(outcome, reason="the loop ended by itself")
        answered = outcome.stopped and outcome.step is not None and outcome.step < len(records) and not self.state["failed"]
        return outcome if answered else replace(outcome, stopped=False, tokens_saved=None)


async def _state_of(ctx: AgentContext, agent: str) -> dict[str, Any]:
    """An agent's steps of this run; a context may be used for several runs, and counts its steps anew in each."""
    state = await ctx.store.get(_steps_key(agent), default=None) if await ctx.store.get("num_iterations", default=0) else None
    return state or {"steps": [], "failed": False}


def _steps_key(agent: str) -> str:
    return f"early_stop_steps_{agent}"


def _answers(output: AgentOutput) -> bool:
    return bool((output.response.content or "").strip()) and not output.tool_calls and not output.retry_messages
