"""Where in its output a model is: before its thinking, in it, or in its answer."""

from __future__ import annotations

from enum import Enum

from entropy_chains.core.families import ThinkTags


class Phase(Enum):
    """Where in its output a model is. ``BEFORE``: nothing but blanks and a part of the opening tag so far.

    In a reply of channels it is also what stands between two messages.
    """

    BEFORE = "before"
    THINKING = "thinking"
    ANSWER = "answer"


def phase_at_start(output: str, tags: ThinkTags) -> Phase:
    """Where an output is that begins with this text, blanks before it left out.

    Thinking can begin at the start of the output only. An opening tag anywhere else is text: of an answer that speaks about tags.
    ``BEFORE`` while the text may still become an opening tag or one of ``answer_starts``.
    """
    if output.startswith(tags.open):
        return Phase.THINKING
    undecided = any(start.startswith(output) and start != output for start in (tags.open, *tags.answer_starts))
    return Phase.BEFORE if undecided else Phase.ANSWER


def phase_after_prompt(prompt: str, tags: ThinkTags, turns: str | None = None) -> Phase:
    """Where an output begins, by the end of its prompt: a chat template may open the thinking, or open and close it.

    Args:
        prompt: the prompt, or its end.
        tags: the family's thinking tags.
        turns: the prompt without what asks for the output, if that is known: then a tag counts anywhere after it.
    """
    end, after = prompt.rstrip(), tags.after.strip()
    if end.endswith(tags.open):
        return Phase.THINKING
    if end.endswith((tags.close + tags.after).rstrip()) or (after and end.endswith(after)):
        return Phase.ANSWER
    begun = prompt.removeprefix(turns) if turns and prompt.startswith(turns) else ""
    opened, closed = begun.rfind(tags.open), begun.rfind(tags.close)
    return Phase.BEFORE if opened == closed else Phase.THINKING if opened > closed else Phase.ANSWER
