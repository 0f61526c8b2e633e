"""What is attached to in LlamaIndex: a workflow of the user's own, and whether all its LLMs stopped."""

from __future__ import annotations

from typing import Any

from llama_index.core.workflow import StartEvent, StopEvent, Workflow, step
from llms import QUESTION
from loopback import Loopback, is_answer_call


def all_stopped(server: Loopback) -> bool:
    """Every reasoning request was closed by the client before its end, and followed by one for its answer."""
    server.settled()
    answered = [c for c in server.calls if is_answer_call(c.body)]
    reasoned = [c for c in server.calls if not is_answer_call(c.body)]
    closed = all(c.gone and c.made < c.planned for c in reasoned)
    return closed and len(reasoned) == len(answered) > 0


class Own(Workflow):
    """A user's workflow that holds an LLM."""

    def __init__(self, llm: Any) -> None:
        super().__init__()
        self.llm = llm

    @step
    async def ask(self, event: StartEvent) -> StopEvent:
        """One call."""
        return StopEvent(result=str(await self.llm.acomplete(QUESTION)))


def llm_of(engine: Any) -> Any:
    return engine._response_synthesizer._llm
