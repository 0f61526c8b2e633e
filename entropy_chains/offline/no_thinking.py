"""Warnings about a recording without thinking, without a step of it, or without answers after steps: mostly a setting is wrong."""

from __future__ import annotations

from dataclasses import dataclass, field

from entropy_chains.core.families import FAMILIES, ThinkTags
from entropy_chains.core.steps import Segmentation
from entropy_chains.offline.traces import Trace

HANDFUL = 5
"""After so many whole runs without a step no more questions are asked."""


ANOTHER_WAY = "ask in another way (--continuation prefill or completion; doctor tells which the server has)"
"""What to do where a server's model thinks again instead of answering."""

MOST_MISSING = 0.5
"""Share of early answers without which the way of asking is at fault, whatever the cause."""


@dataclass(slots=True)
class ThinkingSeen:
    """What was seen of the thinking in the runs recorded so far.

    Attributes:
        thought: some run had thinking.
        stepped: some run had a step.
        whole: runs without a step that were not cut off: of the others nobody knows whether one would have ended.
        answers: their answers.
        tried: answers that were asked for after a step, but in runs that broke off; missing: those of them that did not come.
        again: for each that did not because the model thought again, the id of its question.
    """

    thought: bool = False
    stepped: bool = False
    whole: int = 0
    answers: list[str] = field(default_factory=list)
    tried: int = 0
    missing: int = 0
    again: list[str] = field(default_factory=list)

    def add(self, trace: Trace) -> None:
        """Take a recorded run."""
        self.stepped = self.stepped or len(trace.steps) > 1
        if trace.mode == "thinking" and trace.finish != "error":
            self.tried += len(trace.steps) - 1
            self.missing += sum(step.answer is None for step in trace.steps[:-1])
        if len(trace.steps) == 1 and not trace.is_cut:
            self.whole += 1
            self.answers += [trace.steps[0].answer or ""] if self.whole <= HANDFUL else []

    @property
    def lacks_steps(self) -> bool:
        """There are whole runs, and no step in any."""
        return not self.stepped and self.whole > 0

    @property
    def is_hopeless(self) -> bool:
        """The same of a handful of whole runs."""
        return self.lacks_steps and self.whole >= HANDFUL

    def advice(self, tags: ThinkTags, segmentation: Segmentation, *, served: bool) -> str:
        """What is wrong where steps are lacking, and what to do.

        Args:
            tags: the tags between which thinking was looked for.
            segmentation: how it was cut into steps.
            served: the model is behind a server.
        """
        runs = f"any of {self.whole} runs" if self.whole > 1 else "the run"
        if self.thought:
            boundary = segmentation.boundary.replace("_", " ")
            needed = f"a step ends with a {boundary}, and has {segmentation.min_tokens} tokens or more"
            return f"no step of the thinking ended in {runs}: {needed}; set boundary or min_tokens (--boundary, --min-tokens)"
        looked = f"it was looked for between {tags.open!r} and {tags.close!r}, and all text was taken for the answer"
        return f"no thinking was found in {runs}: {looked}; {self._remedy(tags, served=served)}"

    def of_answers(self, *, served: bool) -> str | None:
        """How many of the answers tried after steps are missing, and what to do; None where that is no reason for a warning."""
        if not self.again and self.missing < MOST_MISSING * max(1, self.tried):
            return None
        again = f", {len(self.again)} of them because the model thought again" if self.again else ""
        text = f"{self.missing} of {self.tried} answers tried after a step are missing{again}: no stop there has an answer; "
        if self.again:
            return text + ANOTHER_WAY
        other = f", or {ANOTHER_WAY}" if served else ""
        return f"{text}ask for a short form (--system), give more tokens (--max-tokens){other}"

    def _remedy(self, tags: ThinkTags, *, served: bool) -> str:
        text = " ".join(self.answers)
        for family in FAMILIES:
            if family.open in text and family.open != tags.open:
                return f"{family.open!r} stands in an answer: set think_tags (--think-tags) to that and {family.close!r}"
        if served and tags.close in text:
            return f"{tags.close!r} stands in an answer, and nothing opens it: set opened=True (--opened)"
        switch = "in the server or its chat template" if served else "in the chat template (--template-kwargs)"
        hint = "set think_tags (--think-tags) if the model has others"
        return f"{hint}, switch thinking on {switch}, or record a model without thinking in mode 'refine'; doctor tells which"
