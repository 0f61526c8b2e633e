"""Scripts of the loopback server that tests of several packages share."""

from __future__ import annotations

from dataclasses import replace

from loopback import SURE, UNSURE, Reply, is_answer_call, said, sums, thinking


def paced(body):
    """The default script at the speed of a fast server: a client on a busy machine keeps up with it."""
    return replace(sums(body), pace=0.003)


def quick(body):
    """Three lines of thinking, then the answer."""
    return Reply(said("42")) if is_answer_call(body) else thinking(UNSURE, SURE, SURE, words=32, answer="42")
