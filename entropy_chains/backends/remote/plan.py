"""What the replies of one backend have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from entropy_chains.backends.remote.continuations import Way
from entropy_chains.backends.remote.refused import REMEDY, Known
from entropy_chains.core.families import ThinkTags
from entropy_chains.core.policy import Policy
from entropy_chains.options import OnMismatch


@dataclass(frozen=True, slots=True)
class Plan:
    """How the replies of one backend are asked for and read.

    Attributes:
        tags: the family's thinking tags.
        ways: how to get the answer after a stop, in order; none where nobody asks for it.
        k: alternatives asked for.
        opened: the prompt opens the thinking, and the server does not split it off.
        control: the server can close the thinking of a running stream (llama.cpp).
        engine: settings of the run's request under which the server closes the thinking itself (vLLM with the plug-in).
        without_logprobs: ``error``, ``agreement`` (stop when two answers in a row agree), ``full``, or ``unread``: none are needed.
        on_mismatch: ``error`` or ``warn``.
        model: the model's name, for warnings.
        known: what is known about its logprobs, shared by all of its replies.
        uncut: why nothing may be cut; None where something may.
        dropped: the client drops the text of the reasoning, which is then read from its logprobs.
        client: the class whose chunks are read, where it is another's, and what to use where it passes on too little.
        since: the releases that logprobs need, by their names, where older ones are about.
        plain: a call that is not streamed can be had in the place of a stream that is refused.
        loop: the policy of the loop that this call belongs to, whose k its entropies must have.
    """

    tags: ThinkTags
    ways: tuple[Way, ...]
    k: int = 20
    opened: bool = False
    control: bool = False
    engine: Mapping[str, Any] | None = None
    without_logprobs: str = "error"
    on_mismatch: OnMismatch = "error"
    model: str = "the model"
    known: Known = field(default_factory=Known)
    uncut: str | None = None
    dropped: bool = False
    client: tuple[str, str] = ("the server", REMEDY)
    since: tuple[str, ...] = ()
    plain: bool = False
    loop: Policy | None = None

    @property
    def update(self) -> str:
        """What to update where no logprobs come; empty where that would not help."""
        needed = " and ".join(f"{release} or later" for release in self.since)
        return f"logprobs need {needed}: update what is older" if needed else ""
