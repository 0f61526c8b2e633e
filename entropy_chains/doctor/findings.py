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


def judge(found: Mapping[str, Any]) -> tuple[bool, str, tuple[str, ...]]:
    """Whether stopping works, the verdict, and the remedies, from the findings' values by name."""
    refusal = _why_not(found)
    if refusal:
        why, remedies = refusal
        return False, f"early stopping cannot work: {why}", remedies
    conditions = _conditions(found)
    if not conditions:
        return True, WORKS, ()
    said, remedies = zip(*conditions, strict=True)
    return True, "early stopping works with " + "; ".join(said), remedies


def _why_not(found: Mapping[str, Any]) -> tuple[str, tuple[str, ...]] | None:
    elsewhere = "serve the model with vLLM or llama.cpp, or run it with the transformers backend"
    unproved = "without_logprobs='agreement' stops where two answers in a row agree, with no certificate"
    if found.get("logprobs") is False:
        return "the server gives no logprobs, so there is no entropy", (elsewhere, unproved)
    if found.get("reasoning") == "hidden":
        return "the server hides the thinking", (elsewhere,)
    if found.get("reasoning_logprobs") is False:
        return "the server gives no logprobs on reasoning tokens", (elsewhere, unproved)
    if found.get("entropy", 0.0) is None:
        return "the model's logits give no entropy", ("check the weights: the logits are no numbers",)
    return None


def _conditions(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What it works with, and what to do for it."""
    made: list[tuple[str, str]] = []
    if found.get("reasoning") == "none":
        switch = "use mode 'refine'; or switch thinking on, in the server (a reasoning parser) or the chat template, and look again"
        made.append(("mode 'refine' only: no thinking was seen", switch))
    elif found.get("reasoning") == "opened":
        made.append(("opened=True: the prompt opens the thinking", "pass opened=True, or start the server with a reasoning parser"))
    k = found.get("k")
    if isinstance(k, int) and k < ENOUGH:
        made.append((f"k={k}", f"record with --top-logprobs {k}, or raise the server's limit"))
    if found.get("temperature_mode") == "scaled":
        told = "pass temperature_mode='scaled', and calibrate at the temperature that you run at"
        made.append(("temperature_mode='scaled': logprobs are after temperature", told))
    elif found.get("temperature_mode", "raw") is None:
        made.append(
            ("one temperature only", "whether logprobs are before temperature is not known: calibrate at the one that you use")
        )
    if found.get("entries_enough") is False:
        made.append(("fewer steps", "a step of which a tenth of the tokens lack logprobs has no entropy, and is never a stop"))
    exact = [name for name in ("prefill", "completion") if found.get(name) == "exact"]
    if found.get("answer") == "turn" and exact:
        made.append((f"continuation={exact[0]!r}", f"pass continuation={exact[0]!r}: this server goes on from a begun thinking"))
    elif found.get("answer") == "turn" and not found.get("plugin"):
        told = "record through this same server, so that the answers after each step are asked for in the same way"
        made.append(("continuation 'turn': the answer is asked for in another prompt", told))
    if "answer" in found and found["answer"] is None:
        made.append(("full runs in place of most stops: closed thinking gave no answer", "look at the server's chat template"))
    if found.get("close_stops") is False:
        made.append(
            (
                "no saving of the server's work: it goes on after the close",
                "look at the proxy between, which may not pass the close on",
            )
        )
    if found.get("closing_text") is False:
        made.append(("tags of your own", "the closing text does not survive the tokenizer: pass think_tags=ThinkTags(…)"))
    if found.get("penalties"):
        made.append(("neutral penalties", f"set {found['penalties']} to neutral: it changes the logits that entropy is read from"))
    return made


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
            here, there = a[text] - a[top], b[text] - b[top]
            raw += abs(here - there)
            scaled += abs(here - ratio * there)
    if max(raw, scaled) < 0.5 or min(raw, scaled) > max(raw, scaled) / 3:  # all alike, or neither: noise
        return None
    return "raw" if raw < scaled else "scaled"


def continuation(own: str, made: str, grew: int | None, wanted: int) -> str:
    """What a server made of a thinking that was begun for it.

    Args:
        own: how the model itself went on.
        made: how the server went on.
        grew: tokens by which the prompt was longer than without; None = not told.
        wanted: tokens of what was begun.

    Returns:
        ``exact`` (the same tokens were read, the same text came), ``inexact`` (something else was read besides, or something else
        came) or ``ignored``.
    """
    own, made = own.strip(), made.strip()
    length = min(len(own), len(made))
    same = length > 0 and own[:length] == made[:length]
    if same and (grew is None or abs(grew - wanted) <= SLACK):
        return "exact"
    return "inexact" if same or (grew is not None and grew >= wanted - SLACK) else "ignored"
