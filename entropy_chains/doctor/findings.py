"""What an examination of a backend found, and what follows from it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

ENOUGH = 20
"""Alternatives that calibration asks for by default."""

SLACK = 2
"""Tokens by which a prompt may seem to grow more or less: some servers send no entry for a line end."""

WORKS = "early stopping works here"


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact.

    Attributes:
        name: what was looked at; value: what was seen, None = it could not be seen.
        evidence: how it was seen; meaning: what it means for stopping.
    """

    name: str
    value: str | int | float | bool | None
    evidence: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Examination:
    """All findings about one backend.

    Attributes:
        model: as it was named.
        stopping: whether early stopping can work.
        verdict: whether, and with what or why not; one sentence.
        remedies: what to do, best first.
        requests, prompt_tokens, completion_tokens: what the examination itself caused, as far as the backend counts it.
    """

    model: str
    stopping: bool
    verdict: str
    remedies: tuple[str, ...]
    findings: tuple[Finding, ...]
    requests: int
    prompt_tokens: int
    completion_tokens: int

    def to_dict(self) -> dict[str, Any]:
        """The object that ``doctor --json`` prints."""
        return asdict(self) | {"reason": self.verdict, "findings": [asdict(f) for f in self.findings]}

    def __getitem__(self, name: str) -> str | int | float | bool | None:
        """The value of the finding with this name."""
        return next(f.value for f in self.findings if f.name == name)


def judge(values: Mapping[str, Any]) -> tuple[bool, str, tuple[str, ...]]:
    """Whether stopping works, the verdict, and the remedies, from the findings' values by name."""
    refusal = _why_not(values)
    if refusal:
        why, remedies = refusal
        return False, f"early stopping cannot work: {why}", remedies
    conditions = _conditions(values)
    if not conditions:
        return True, WORKS, ()
    texts, remedies = zip(*conditions, strict=True)
    return True, "early stopping works with " + "; ".join(texts), remedies


def _why_not(values: Mapping[str, Any]) -> tuple[str, tuple[str, ...]] | None:
    elsewhere = "serve the model with vLLM or llama.cpp, or run it with the transformers backend"
    unproved = "without_logprobs='agreement' stops where two answers in a row agree, with no certificate"
    if values.get("logprobs") is False:
        return "the server gives no logprobs, so there is no entropy", (elsewhere, unproved)
    if values.get("reasoning") == "hidden":
        return "the server hides the thinking", (elsewhere,)
    if values.get("reasoning_logprobs") is False:
        return "the server gives no logprobs on reasoning tokens", (elsewhere, unproved)
    if values.get("entropy", 0.0) is None:
        return "the model's logits give no entropy", ("check the weights: the logits are no numbers",)
    return None


def _conditions(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What it works with, and what to do for it."""
    conditions: list[tuple[str, str]] = []
    if values.get("reasoning") == "none":
        switch = "use mode 'refine'; or switch thinking on, in the server (a reasoning parser) or the chat template, and look again"
        conditions.append(("mode 'refine' only: no thinking was seen", switch))
    elif values.get("reasoning") == "opened":
        conditions.append(
            ("opened=True: the prompt opens the thinking", "pass opened=True, or start the server with a reasoning parser")
        )
    k = values.get("k")
    if isinstance(k, int) and k < ENOUGH:
        conditions.append((f"k={k}", f"record with --top-logprobs {k}, or raise the server's limit"))
    if values.get("temperature_mode") == "scaled":
        remedy = "pass temperature_mode='scaled', and calibrate at the temperature that you run at"
        conditions.append(("temperature_mode='scaled': logprobs are after temperature", remedy))
    elif values.get("temperature_mode", "raw") is None:
        conditions.append(
            ("one temperature only", "whether logprobs are before temperature is not known: calibrate at the one that you use")
        )
    if values.get("entries_enough") is False:
        conditions.append(
            ("fewer steps", "a step of which a tenth of the tokens lack logprobs has no entropy, and is never a stop")
        )
    exact = [name for name in ("prefill", "completion") if values.get(name) == "exact"]
    if values.get("answer") == "turn" and exact:
        conditions.append(
            (f"continuation={exact[0]!r}", f"pass continuation={exact[0]!r}: this server goes on from a begun thinking")
        )
    elif values.get("answer") == "turn" and not values.get("plugin"):
        remedy = "record through this same server, so that the answers after each step are asked for in the same way"
        conditions.append(("continuation 'turn': the answer is asked for in another prompt", remedy))
    if "answer" in values and values["answer"] is None:
        conditions.append(
            ("full runs in place of most stops: closed thinking gave no answer", "look at the server's chat template")
        )
    if values.get("close_stops") is False:
        conditions.append(
            (
                "no saving of the server's work: it goes on after the close",
                "look at the proxy between, which may not pass the close on",
            )
        )
    if values.get("closing_text") is False:
        conditions.append(("tags of your own", "the closing text does not survive the tokenizer: pass think_tags=ThinkTags(…)"))
    if values.get("penalties"):
        conditions.append(
            ("neutral penalties", f"set {values['penalties']} to neutral: it changes the logits that entropy is read from")
        )
    return conditions


def temperature_mode(low: Sequence[Mapping[str, float]], high: Sequence[Mapping[str, float]], ratio: float) -> str | None:
    """Whether logprobs are those before temperature (``raw``) or after it (``scaled``); None where that cannot be seen.

    Args:
        low: positions at the low temperature, each text → logprob (nats).
        high: the same positions at the high one.
        ratio: the high temperature over the low one.

    Differences to the likeliest text are equal if raw, and ``ratio`` times as large at the low temperature if scaled.
    """
    raw = scaled = 0.0
    for a, b in zip(low, high, strict=False):
        common = [t for t in a if t in b and a[t] > -100 and b[t] > -100]  # beyond are fillers for "impossible"
        if len(common) < 2:
            continue
        top = max(common, key=lambda t: b[t])
        for text in common:
            low_gap, high_gap = a[text] - a[top], b[text] - b[top]
            raw += abs(low_gap - high_gap)
            scaled += abs(low_gap - ratio * high_gap)
    if max(raw, scaled) < 0.5 or min(raw, scaled) > max(raw, scaled) / 3:  # all alike, or neither: noise
        return None
    return "raw" if raw < scaled else "scaled"


def continuation(expected: str, text: str, grew: int | None, wanted: int) -> str:
    """What a server made of a thinking that was begun for it.

    Args:
        expected: how the model itself went on.
        text: how the server went on.
        grew: tokens by which the prompt was longer than without; None = not told.
        wanted: tokens of what was begun.

    Returns:
        ``exact`` (the same tokens were read, the same text came), ``inexact`` (something else was read besides, or something else
        came) or ``ignored``.
    """
    expected, text = expected.strip(), text.strip()
    length = min(len(expected), len(text))
    same = length > 0 and expected[:length] == text[:length]
    if same and (grew is None or abs(grew - wanted) <= SLACK):
        return "exact"
    return "inexact" if same or (grew is not None and grew >= wanted - SLACK) else "ignored"
