"""Tool calls in a reply's text: where they begin, and what they say, in the forms that model families write them in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from entropy_chains.core.families import TOOL_MARKERS, begun_at_end
from entropy_chains.errors import SettingsError

_FUNCTION = re.compile(r"<function=([^>\n]+)>(.*?)(?:</function>|$)", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_ARGUMENT = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
_DEEPSEEK = re.compile(r"<｜tool▁call▁begin｜>(.*?)(?:<｜tool▁call▁end｜>|$)", re.DOTALL)
_KIMI = re.compile(r"(?:functions\.)?([\w.-]+?)(?::\d+)?<\|tool_call_argument_begin\|>(.*)", re.DOTALL)
_MISTRAL = re.compile(r"\s*([\w.-]+)(?:\[CALL_ID\]\w+)?\[ARGS\](.*)", re.DOTALL)
_GEMMA = re.compile(r"call:([\w.-]+)(\{.*\})", re.DOTALL)
_GEMMA_TEXT = re.compile(r'<\|"\|>(.*?)<\|"\|>', re.DOTALL)
_BARE_KEY = re.compile(r"([{,]\s*)([\w-]+)\s*:")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call as a model wrote it.

    Attributes:
        name: the tool's name; None where the text is no call by its form.
        arguments: a JSON object; of what is no call, its text.
    """

    name: str | None
    arguments: str


class CallText:
    """Takes the calls out of an answer's text, however it is cut. What follows a call is shown, but for blanks."""

    def __init__(self) -> None:
        self._held = ""
        self._open = ""  # the marker of the call that is being written
        self._bodies: list[tuple[str, str]] = []

    def take(self, text: str) -> str:
        """The text that is no call, as far as that is known."""
        self._held += text
        plain = ""
        while True:
            if self._open:
                close = TOOL_MARKERS[self._open]
                if close is None or close not in self._held:
                    return plain
                body, _, self._held = self._held.partition(close)
                self._bodies.append((self._open, body))
                self._open, self._held = "", self._held.lstrip()
            at, marker = min(((self._held.find(m), m) for m in TOOL_MARKERS if m in self._held), default=(-1, ""))
            if at < 0:
                tail_length = begun_at_end(self._held, TOOL_MARKERS)
                plain += self._held[: len(self._held) - tail_length]
                self._held = self._held[len(self._held) - tail_length :]
                return plain
            plain, self._open, self._held = plain + self._held[:at], marker, self._held[at + len(marker) :]

    @property
    def rest(self) -> str:
        """What is kept back and no call."""
        return "" if self._open else self._held

    @property
    def calls(self) -> list[ToolCall]:
        """The calls, the last one perhaps cut off."""
        bodies = [*self._bodies, *([(self._open, self._held)] if self._open else [])]
        return [call for marker, body in bodies for call in read_calls(body, marker)]


def calls_in(text: str) -> list[ToolCall]:
    """All calls of a whole answer."""
    reader = CallText()
    reader.take(text)
    return reader.calls


def read_calls(body: str, marker: str = "") -> list[ToolCall]:
    """The calls that a text between tool markers holds. What is no call by its form keeps its text, and has no name."""
    if marker == "<function=":
        body = f"{marker}{body}"
    for form in (_of_json, _of_functions, _of_arguments, _of_deepseek, _of_kimi, _of_mistral, _of_gemma):
        with suppress(ValueError):
            if calls := list(form(body)):
                return calls
    return [ToolCall(None, body.strip())] if body.strip() else []


def _of_json(body: str) -> Iterator[ToolCall]:
    """An object with a name and arguments, or a list of such: Hermes, Qwen, Llama, Mistral, Command A."""
    content = json.loads(body)
    for one in content if isinstance(content, list) else [content]:
        name = one.get("name", one.get("tool_name")) if isinstance(one, dict) else None
        if not isinstance(name, str):
            raise ValueError("no call")
        arguments = one.get("arguments", one.get("parameters"))
        yield ToolCall(name, arguments if isinstance(arguments, str) else json.dumps(arguments or {}))


def _of_functions(body: str) -> Iterator[ToolCall]:
    """``<function=name><parameter=key>value</parameter></function>``: Qwen3-Coder, Nemotron 3, Seed-OSS."""
    for name, inner in _FUNCTION.findall(body):
        arguments = inner.strip()
        yield ToolCall(
            name.strip(), arguments if arguments.startswith("{") else json.dumps(dict(_typed(_PARAMETER.findall(inner))))
        )


def _of_arguments(body: str) -> Iterator[ToolCall]:
    """``name<arg_key>key</arg_key><arg_value>value</arg_value>``: GLM."""
    name, key, _ = body.partition("<arg_key>")
    if key:
        yield ToolCall(name.strip(), json.dumps(dict(_typed(_ARGUMENT.findall(body)))))


def _of_deepseek(body: str) -> Iterator[ToolCall]:
    """``name<｜tool▁sep｜>{…}``; V3 and R1 have the word ``function`` before and the object in a fence."""
    for call in _DEEPSEEK.findall(body):
        first, _, second = call.partition("<｜tool▁sep｜>")
        name, fence, fenced = second.partition("```json")
        yield (
            ToolCall(name.strip(), fenced.strip().removesuffix("```").strip()) if fence else ToolCall(first.strip(), second.strip())
        )


def _of_kimi(body: str) -> Iterator[ToolCall]:
    """``functions.name:0<|tool_call_argument_begin|>{…}``: Kimi K2."""
    for part in body.split("<|tool_call_begin|>"):
        if match := _KIMI.match(part.strip()):
            yield ToolCall(match[1], match[2].replace("<|tool_call_end|>", "").strip())


def _of_mistral(body: str) -> Iterator[ToolCall]:
    """``name[ARGS]{…}``, one after another: Mistral since 2025."""
    for part in body.split("[TOOL_CALLS]"):
        if match := _MISTRAL.match(part):
            yield ToolCall(match[1], match[2].strip())


def _of_gemma(body: str) -> Iterator[ToolCall]:
    """``call:name{key:<|"|>text<|"|>,key:1}``: Gemma 4."""
    if match := _GEMMA.search(body):
        texts: list[str] = []

        def put_aside(text: re.Match[str]) -> str:
            texts.append(text[1])
            return f'"\0{len(texts) - 1}"'

        bare = _BARE_KEY.sub(r'\1"\2":', _GEMMA_TEXT.sub(put_aside, match[2]))
        whole = re.sub(r'"\0(\d+)"', lambda place: json.dumps(texts[int(place[1])]), bare)
        yield ToolCall(match[1], json.dumps(json.loads(whole)))


def _typed(pairs: list[tuple[str, str]]) -> Iterator[tuple[str, Any]]:
    """Values as JSON where they are written so, else as text."""
    for key, text in pairs:
        value: Any = text
        with suppress(ValueError):
            value = json.loads(text)
        yield key.strip(), value


def offered(tools: list[dict[str, Any]] | None, choice: Any) -> list[dict[str, Any]]:
    """The tools to put into the template.

    Args:
        tools: all that there are.
        choice: a word, a tool's name, or an object that holds it, as any API writes them.

    Raises:
        SettingsError: no tool has this name.
    """
    name = _chosen(choice)
    if not tools or name in ("none", False):
        return []
    if name in (None, True, "auto", "any", "required"):
        return tools
    found = [t for t in tools if t["function"]["name"] == name]
    if not found:
        raise SettingsError(f"tool_choice is {choice!r}; it must be auto, any, none or one of the tools' names")
    return found


def _chosen(choice: Any) -> Any:
    """The word or name in a choice, as ``{"type": "any"}``, ``{"function": {"name": …}}`` or ``{"auto": {}}``."""
    if not isinstance(choice, Mapping):
        return choice
    inner = next((choice[key] for key in ("function", "tool") if isinstance(choice.get(key), Mapping)), choice)
    return inner.get("name") or choice.get("type") or next(iter(choice), None)
