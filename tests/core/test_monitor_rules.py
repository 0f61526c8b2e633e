"""The monitor with each rule: where it stops, and when it asks for an answer."""

from __future__ import annotations

import pytest
from monitored import LINES, feed, policy

from entropy_chains.core.monitor import Decision, Monitor
from entropy_chains.core.policy import Policy
from entropy_chains.core.rules import RULES
from entropy_chains.core.signals import StepRecord
from entropy_chains.core.steps import Segmentation
from entropy_chains.core.tokens import Token
from entropy_chains.errors import EntropyChainsError


def test_thresholds_and_first_step_per_step():
    """Never at step 1 (min_steps 2), never at step 2 (None), at step 3."""
    monitor = Monitor(Policy("m", (4.0, None, 0.5), min_steps=2, segmentation=LINES))
    assert feed(monitor, "<think>", "a\n", "b\n", "c\n")[1:] == [Decision.GO_ON, Decision.GO_ON, Decision.CLOSE]


def test_another_signal():
    """A policy over the sum stops by the sum: a long sure step is unsure."""
    monitor = Monitor(policy(1.5, signal="sum_entropy"))
    assert feed(monitor, "<think>", *[("a", 0.2)] * 9, ("\n", 0.2))[-1] is Decision.GO_ON
    assert feed(monitor, *[("a", 0.2)] * 4, ("\n", 0.2))[-1] is Decision.CLOSE
    assert monitor.finish().entropy == pytest.approx(1.0)


def test_the_fixed_step():
    """Whatever the entropy, even a missing one."""
    monitor = Monitor(policy(2, "fixed-step", 2))
    tokens = [Token("<think>"), Token("a\n"), Token("b\n")]
    assert [monitor.feed(t) for t in tokens] == [Decision.GO_ON, Decision.GO_ON, Decision.CLOSE]
    outcome = monitor.finish()
    assert outcome.reason == "step 2 is the fixed step"
    assert "early_stop_threshold" not in outcome.metadata()


def test_agreement_asks_for_an_answer_after_every_step():
    """Answers 4, 5, None, 5, 5: the last two agree after step 5 only; the entropy is low throughout."""
    monitor = Monitor(policy(4.0, "entropy+agreement", 2))
    monitor.feed(Token("<think>"))
    decisions = []
    for answer in ("4", "5", None, "5", "5"):
        assert feed(monitor, "a\n") == [Decision.PROBE]
        decisions.append(monitor.answer(answer))
    assert decisions == [Decision.GO_ON] * 4 + [Decision.CLOSE]
    outcome = monitor.finish()
    assert (outcome.step, outcome.stopped) == (5, True)
    assert "answers agree" in outcome.reason


def test_a_signal_of_the_tried_answer_is_judged_with_it():
    """The step's own entropy decides nothing; without an answer, a figure, or trust in the step there is no stop."""
    monitor = Monitor(policy(0.5, signal="trial_entropy"))
    monitor.feed(Token("<think>"))
    tried = [("4", 0.6), (None, 0.1), ("4", None), ("4", 0.5)]
    for answer, entropy in tried[:3]:
        assert feed(monitor, ("a\n", 0.0)) == [Decision.PROBE]
        assert monitor.answer(answer, {} if entropy is None else {"trial_entropy": entropy}) is Decision.GO_ON
    assert monitor.feed(Token("a\n")) is Decision.PROBE  # no logprobs: the step is not to be trusted
    assert monitor.answer("4", {"trial_entropy": 0.1}) is Decision.GO_ON
    assert feed(monitor, ("a\n", 3.0)) == [Decision.PROBE]
    assert monitor.answer("4", {"trial_entropy": 0.5}) is Decision.CLOSE
    outcome = monitor.finish()
    assert (outcome.step, outcome.entropy, outcome.threshold) == (5, 0.5, 0.5)
    assert outcome.reason == "trial_entropy at or under the threshold"


def test_an_answer_nobody_asked_for():
    """An error that says when to call it: before any step, after a rule that reads none, twice, and when only watching."""
    monitor = Monitor(policy(4.0, "entropy+agreement", 2))
    watching = Monitor(policy(4.0, "entropy+agreement", 2), stop=False)
    plain = Monitor(policy(0.0))
    for m in (monitor, watching, plain):
        feed(m, "<think>")
        with pytest.raises(EntropyChainsError, match="PROBE"):
            m.answer("4")
        feed(m, ("a\n", 1.0))
    monitor.answer("4")
    for m in (monitor, watching, plain):
        with pytest.raises(EntropyChainsError, match="PROBE"):
            m.answer("4")


def test_the_refine_loop_reads_answers_for_nothing():
    """A step is a call; its answer comes with its end, tags mean nothing, and the decision is to stop."""
    monitor = Monitor(policy(0.5, "entropy+agreement", 2, mode="refine", segmentation=Segmentation("call", 1)))
    feed(monitor, ("<think>", 0.1), ("a\n\n", 0.1), ("</think>", 0.1))
    assert monitor.end_step("4") is Decision.GO_ON
    assert monitor.last.entropy == pytest.approx(0.1)
    feed(monitor, ("b", 0.3))
    assert monitor.end_step("4") is Decision.STOP
    assert monitor.end_step("4") is Decision.GO_ON
    assert monitor.finish().step == 2


@pytest.mark.parametrize("rule", list(RULES))
def test_a_missing_answer_is_no_place_to_stop_where_it_is_seen(rule):
    """In the refine loop no rule stops after a call without an answer, however sure; an agent's step has none, and may be last."""
    settings = {"mode": "refine", "segmentation": Segmentation("call", 1)}
    answers = [None, None, "4", "4"]
    monitor = Monitor(policy(0.5, rule, 1, **settings))
    decisions = [monitor.take(StepRecord(1, 10, 0.1, 1.0), answer) for answer in answers]
    expected = 4 if RULES[rule].compares_answers else 3
    assert (decisions.index(Decision.STOP) + 1, monitor.finish().step) == (expected, expected)
    if not RULES[rule].compares_answers:
        agent = Monitor(policy(0.5, rule, 1, scope="agent", **settings))
        assert agent.take(StepRecord(1, 10, 0.1, 1.0)) is Decision.STOP


def test_a_record_measured_elsewhere():
    """``take`` numbers the steps itself and adds their tokens."""
    monitor = Monitor(policy(0.5, mode="refine", segmentation=Segmentation("call", 1)))
    assert monitor.take(StepRecord(1, 10, 0.9, 1.0), "4") is Decision.GO_ON
    assert monitor.take(StepRecord(1, 20, 0.4, 1.0), "4") is Decision.STOP
    assert (monitor.last.step, monitor.tokens) == (2, 30)
