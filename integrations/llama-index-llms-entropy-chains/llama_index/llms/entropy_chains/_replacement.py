"""An LLM in the place of another one, which ``attach`` puts there and ``detach`` takes away again."""

from __future__ import annotations

from typing import Any

from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.llms import LLM


class Replacement(LLM):
    """An LLM that may stand in the place of another one."""

    _original: Any = PrivateAttr(default=None)


def put_in_place(replacement: Replacement, original: LLM) -> None:
    """Remember whose place an LLM takes."""
    replacement._original = original


def original_of(llm: Any) -> LLM | None:
    """The LLM whose place this one took; None where it stands for itself."""
    original: LLM | None = llm._original if isinstance(llm, Replacement) else None
    return original
