"""A run's text as a chat shows it while it comes: at the end it is the finished run's text, without a character too many."""

from __future__ import annotations

from typing import TYPE_CHECKING

from entropy_chains.core.families import ThinkTags, begun_at_end
from entropy_chains.core.phases import Phase
from entropy_chains.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from entropy_chains.backends import Chunk, Generation, LanguageModel


def tags_of(model: LanguageModel) -> ThinkTags | None:
    """A model's thinking tags; None where it has none."""
    try:
        return model.tags
    except SettingsError:
        return None


def text_before(text: str, endings: Iterable[str]) -> str:
    """The text up to the first of some endings, without blanks at its ends; all of it where there is none."""
    places = [at for ending in endings if (at := text.find(ending)) >= 0]
    return text[: min(places, default=len(text))].strip()


class Growing:
    """A text that comes in parts. Blanks at its end, and what may begin one of ``endings``, are kept back until more comes."""

    def __init__(self, endings: Iterable[str] = ()):
        self._endings = tuple(endings)
        self._came = ""
        self._shown = 0

    def take(self, text: str) -> str:
        """What may be shown now."""
        self._came += text
        came = self._came
        places = [at for ending in self._endings if (at := came.find(ending)) >= 0]
        return self._show(came[: min([*places, len(came) - begun_at_end(came, self._endings)])].rstrip())

    def finish(self, whole: str) -> str:
        """What is left to show of the whole text; nothing where it turned out to be another text."""
        same = whole.startswith(self._came[: self._shown])
        self._came = whole if same else self._came
        return self._show(self._came) if same else ""

    def _show(self, text: str) -> str:
        new, self._shown = text[self._shown :], max(self._shown, len(text))
        return new


class Shown:
    """The reasoning and the answer of one stream, part by part.

    Args:
        tags: the family's thinking tags; None for a model without: all its text is answer.
        endings: texts before which the answer ends for the reader (stop sequences, tool calls).
    """

    def __init__(self, tags: ThinkTags | None, endings: Iterable[str] = ()):
        self._endings = tuple(endings)
        self._tags = tags
        self._reasoning, self._answer = Growing(), Growing(self._endings)

    def take(self, chunk: Chunk) -> tuple[str, str]:
        """What may be shown with this chunk, of the reasoning and of the answer."""
        if self._tags and chunk.phase is not Phase.ANSWER:
            return self._reasoning.take(chunk.text), ""
        return "", self._answer.take(chunk.text)

    def finish(self, run: Generation) -> tuple[str, str]:
        """What is left to show once the run is over."""
        return self._reasoning.finish(self.reasoning(run)), self._answer.finish(self.answer(run))

    def reasoning(self, run: Generation) -> str:
        """A finished run's reasoning as shown."""
        return run.reasoning.strip() if self._tags else ""

    def answer(self, run: Generation) -> str:
        """A finished run's answer as shown."""
        return text_before(run.answer or "", self._endings)
