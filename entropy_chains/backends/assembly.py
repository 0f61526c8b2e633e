"""What every backend does with a run's text and its parts, written once."""

from __future__ import annotations

from dataclasses import replace

from entropy_chains.backends import Generation
from entropy_chains.monitor import Outcome
from entropy_chains.steps import ThinkTags

MALFORMED = "the answer after the stop was malformed: run in full"


def clean_answer(text: str, tags: ThinkTags | None) -> str | None:
    """The answer without what closing left behind (a second closing tag, the text after it); None where it is malformed.

    Malformed is an answer that is empty, or in which thinking was begun again and never closed.
    """
    if tags is not None:
        text = text.rpartition(tags.close)[2].strip().removeprefix(tags.after.strip())
        if tags.open in text:
            return None
    return text.strip() or None


def clean_reasoning(text: str, tags: ThinkTags | None) -> str:
    """The thinking's text without its tags."""
    if tags is not None:
        text = text.split(tags.open, 1)[-1].removesuffix(tags.after).removesuffix(tags.close)
    return text.strip("\n")


def run_instead(full: Generation, stopped: Generation, outcome: Outcome) -> Generation:
    """The full run in place of a stop whose answer was malformed; the tokens of both were computed."""
    tokens = full.tokens + stopped.tokens
    told = replace(outcome, stopped=False, tokens=tokens, tokens_saved=None)
    prefill = full.prefill_tokens + stopped.prefill_tokens
    return replace(full, outcome=told, tokens=tokens, prefill_tokens=prefill, seconds=full.seconds + stopped.seconds)


class AnswerText:
    """An answer's text as it may be shown: a leading closing tag is debris, and thinking begun again is kept back."""

    def __init__(self, tags: ThinkTags):
        self._tags, self._held, self._shown = tags, "", False

    def take(self, text: str) -> str:
        """What may be shown with this text."""
        if self._shown:
            return text
        self._held = (self._held + text).lstrip()
        held, tags = self._held, self._tags
        if held.startswith(tags.close):
            self._held = held = held[len(tags.close) :].lstrip()
        if held.startswith(tags.open):
            _, ended, self._held = held.partition(tags.close)
            if not ended:
                self._held = held
                return ""
            self._held = held = self._held.lstrip()
        if not held or any(tag.startswith(held) for tag in (tags.open, tags.close)):
            return ""
        self._shown = True
        return held
