"""Conversations of scripted models for the refine loop, asked in both ways."""

from __future__ import annotations

import asyncio

from entropy_chains.backends.scripted import Script, ScriptedBackend
from entropy_chains.core.policy import Policy
from entropy_chains.refine import PER_CALL, arun_refine, run_refine


def call(answer, entropy):
    """A call of one token."""
    return Script(answer=[(answer, entropy)])


def ask(text):
    return [{"role": "user", "content": text}]


TURNS = {"a": [call("1", 2.0), call("2", 1.0), call("3", 0.2), call("4", 0.1)], "b": [call("7", 0.3), call("8", 0.0)]}
POLICY = Policy("scripted", (0.5,), mode="refine", segmentation=PER_CALL)


class Recorded(ScriptedBackend):
    """Keeps what it was asked."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.asked, self.seeds = [], []

    def generate(self, conversations, **kwargs):
        self.seeds.append(kwargs["sampling"].seed)
        self.asked.append([[m["content"] for m in c] for c in conversations])
        return super().generate(conversations, **kwargs)


class Async:
    """The same scripts behind ``agenerate``; keeps what was asked, how many at once, and never answers in order."""

    def __init__(self, *args, **kwargs):
        self.scripted = ScriptedBackend(*args, **kwargs)
        self.model, self.details = self.scripted.model, self.scripted.details
        self.asked, self.seeds, self.running, self.most = [], [], 0, 0

    async def agenerate(self, conversations, **kwargs):
        self.asked += [[m["content"] for m in c] for c in conversations]
        self.seeds.append(kwargs["sampling"].seed)
        self.running += 1
        self.most = max(self.most, self.running)
        for _ in range(7 * len(self.asked) % 5 + 1):
            await asyncio.sleep(0)
        self.running -= 1
        return self.scripted.generate(conversations, **kwargs)


def both(scripts, questions, **given):
    """The sync and the async runs, told to be the same, of questions by their text."""
    asked = [ask(q) for q in questions]
    runs = run_refine(ScriptedBackend(scripts), asked, **given)
    assert asyncio.run(arun_refine(Async(scripts), asked, **given)) == runs
    return runs


def entropies(*values):
    """Calls of these entropies that answer with their own number."""
    return [call(str(n), value) for n, value in enumerate(values, 1)]


# --- reallocation

SHARED = {
    "a": entropies(2.0, 0.1),
    "b": entropies(0.3),
    "c": entropies(2.0, 1.5, 1.0, 0.9, 0.2),
    "d": entropies(2.0, 2.0, 2.0, 1.8, 1.7, 0.1),
}
