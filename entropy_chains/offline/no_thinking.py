"""The warning about a recording in which there is no thinking, or no step of it ends: mostly a setting is wrong."""

from __future__ import annotations

from dataclasses import dataclass, field

from entropy_chains.core.families import FAMILIES, ThinkTags
from entropy_chains.core.steps import Segmentation
from entropy_chains.offline.traces import Trace

HANDFUL = 5
"""After so many whole runs without a step no more questions are asked."""


@dataclass(slots=True)
class ThinkingSeen:
    """What was seen of the thinking in the runs recorded so far.

    Attributes:
        thought: some run had thinking.
        stepped: some run had a step.
        whole: runs without a step that were not cut off: of the others nobody knows whether one would have ended.
        answers: their answers.
    """

    thought: bool = False
    stepped: bool = False
    whole: int = 0
    answers: list[str] = field(default_factory=list)

    def add(self, trace: Trace) -> None:
        """Take a recorded run."""
        self.stepped = self.stepped or len(trace.steps) > 1
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
