"""Tools and an output form that tests of LangChain share."""

from __future__ import annotations

from langchain_core.tools import tool
from pydantic import BaseModel


@tool
def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


@tool
def weather(place: str) -> str:
    """The weather of a place."""
    return "sunny"


class Answer(BaseModel):
    """An answer."""

    value: int
