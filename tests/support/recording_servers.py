"""Backends to record from: a script of three steps, and an OpenAI backend on a server of the tests; and how a recording ended."""

from __future__ import annotations

from hostile import begin, end, events
from loopback import UNSURE, Reply, is_answer_call, said, thinking

from entropy_chains.backends.openai import OpenAIBackend
from entropy_chains.backends.scripted import Script, ScriptedBackend
from entropy_chains.core.steps import Segmentation

LINES = Segmentation("line", 1)
STEPS = [("one ", 1.0), ("\n", 1.0), ("two ", 0.5), ("\n", 0.5), ("three ", 0.0), ("\n", 0.0)]
QUESTIONS = [{"id": f"q{n}", "question": f"{n}?", "gold": "4"} for n in range(3)]


def backend():
    """Three steps a question; closed after them it says 3, 4 and nothing."""
    return ScriptedBackend(Script(STEPS, "the answer is 4", early=["3", "4", ""]), segmentation=LINES)


def failing(*bad, count=6):
    """A backend of which these questions fail, and its questions."""
    scripts = {f"{n}?": Script(STEPS, "4", fail_at=2 if n in bad else None) for n in range(count)}
    return ScriptedBackend(scripts, segmentation=LINES), [{"id": f"q{n}", "question": f"{n}?"} for n in range(count)]


def until_it_ends(traces):
    """Ids of the traces, and what was raised after the last."""
    found, raised = [], None
    try:
        found.extend(trace.id for trace in traces)
    except Exception as error:  # noqa: BLE001 (looked at by the caller)
        raised = error
    return found, raised


def many(count):
    return [{"id": f"q{n}", "question": f"{n}?"} for n in range(count)]


def answer(request):
    """Two steps and an answer, or the answer alone."""
    made = Reply(said("The answer is 4")) if is_answer_call(request.body) else thinking(UNSURE, UNSURE, answer="The answer is 4")
    return [*begin(), *events(made, request.body), *end(len(made.tokens))]


def served(client, **settings):
    return OpenAIBackend(client, "scripted", segmentation=Segmentation("line", 32), **settings)


def asked_of(request):
    """Number of the question."""
    return int(request.body["messages"][0]["content"][:-1])
