"""Scripts of the loopback server that tests of several packages share."""

from __future__ import annotations

import re
from dataclasses import replace

from loopback import SURE, UNSURE, Reply, Tok, is_answer_call, line, said, sums, thinking

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation

TRIAL_POLICY = Policy("scripted", (0.1,), signal="trial_entropy", segmentation=Segmentation("line", 32))
"""Stops :func:`trials` after its third line."""


def paced(body):
    """The default script at the speed of a fast server: a client on a busy machine keeps up with it."""
    return replace(sums(body), pace=0.003)


def quick(body):
    """Three lines of thinking, then the answer."""
    return Reply(said("42")) if is_answer_call(body) else thinking(UNSURE, SURE, SURE, words=32, answer="42")


def trials(body):
    """Six unsure lines; a trial answer after the third is sure. It is asked for by a raw completion."""
    if "prompt" in body:
        return Reply(said("The answer is 42", SURE if "step3" in body["prompt"] else UNSURE))
    return thinking(*[UNSURE] * 6, answer="The answer is 42", pace=0.002)


def rethinking(script):
    """A script of a model that thinks before the answer after a stop as well, if it may; ``script`` makes its other replies."""
    again = Reply([*line("so it is", SURE), *said("The answer is 42")])
    return lambda body: again if is_answer_call(body) else script(body)


ECHOES = {
    "content": lambda turn: [Tok(turn, None, reasoning=False)],
    "content, in parts": lambda turn: [Tok(part, None, reasoning=False) for part in re.findall(r"\s*\S+", turn)],
    "content, the tag left out": lambda turn: [Tok(turn.removeprefix("<think>\n"), None, reasoning=False)],
    "the field of the reasoning": lambda turn: [Tok(turn.removeprefix("<think>").partition("</think>")[0], None)],
    "the field, in parts": lambda turn: [Tok(part, None) for part in turn[7:].partition("</think>")[0].split()],
}
"""Ways in which servers send a begun assistant's turn back before they go on from it."""


def echoing(form, script=sums):
    """A script of a server that does so."""

    def answered(body):
        made = script(body)
        return replace(made, echo=ECHOES[form](body["messages"][-1]["content"])) if body.get("continue_final_message") else made

    return answered
