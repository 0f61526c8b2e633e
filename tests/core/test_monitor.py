"""The state machine: worked examples, what never counts, what it says, and what it remembers."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from monitored import LINES, bounds, feed, policy

from entropy_chains.core.monitor import Decision, Monitor
from entropy_chains.core.policy import Policy
from entropy_chains.core.signals import STEP_SIGNALS, TAIL, MassFloor
from entropy_chains.core.steps import Phase, Segmentation
from entropy_chains.core.tokens import Alternative, Token

NEVER = Policy("m", (None,), segmentation=LINES)


# --- worked examples


def test_a_run_by_hand():
    """Step 1 has a mean of (1.2 + .6 + .6)/3 = .8 bits and goes on; step 2 (.2 + 0)/2 = .1 and is closed."""
    monitor = Monitor(policy(0.5))
    assert feed(monitor, ("<think>", 9.0)) == [Decision.GO_ON]
    assert feed(monitor, ("a", 1.2), ("b", 0.6), ("\n", 0.6)) == [Decision.GO_ON] * 3
    assert monitor.last.entropy == pytest.approx(0.8)
    assert (monitor.last.step, monitor.last.tokens) == (1, 4)  # the tag is a token of the step, but no reasoning
    assert feed(monitor, ("c", 0.2), ("\n", 0.0)) == [Decision.GO_ON, Decision.CLOSE]
    assert monitor.last.entropy == pytest.approx(0.1)
    assert feed(monitor, "</think>", "42") == [Decision.GO_ON] * 2
    outcome = monitor.finish()
    assert (outcome.stopped, outcome.step, outcome.tokens) == (True, 2, 8)
    assert (outcome.entropy, outcome.threshold) == (pytest.approx(0.1), 0.5)
    assert "at or under the threshold" in outcome.reason


def test_the_signals_by_hand():
    """Four tokens of 0, 1, 2, 3 bits: mean 1.5, sum 6, highest tenth = the highest one, tail = all, maximum 3."""
    monitor = Monitor(segmentation=LINES)
    feed(monitor, "<think>", ("a", 0.0), ("b", 3.0), ("c", 1.0), ("\n", 2.0))
    record = monitor.last
    assert (record.entropy, record.mass, record.lower, record.upper) == (1.5, 1.0, 1.5, 1.5)
    assert record.signals == {
        "sum_entropy": 6.0,
        "top_tenth_entropy": 3.0,
        "tail_entropy": 1.5,
        "max_entropy": 3.0,
        "deepconf": 2.0,
    }
    assert {"mean_entropy", *record.signals} == set(STEP_SIGNALS)


def test_the_tail_is_the_step_end():
    """Of a step of 32 ones and 32 zeros, the tail is the zeros; the highest tenth of 64 is 7 ones."""
    monitor = Monitor(segmentation=LINES)
    feed(monitor, "<think>", *[("a", 1.0)] * TAIL, *[("b", 0.0)] * (TAIL - 1), ("\n", 0.0))
    assert monitor.last.signals["tail_entropy"] == 0.0
    assert monitor.last.signals["top_tenth_entropy"] == 1.0
    assert monitor.last.entropy == 0.5


def test_the_mean_is_of_the_step_just_ended():
    """A sure step after a very unsure one is sure: nothing of the first is left in it."""
    monitor = Monitor(policy(0.1))
    assert feed(monitor, "<think>", *[("a", 4.0)] * 100, "\n", "b", "\n")[-1] is Decision.CLOSE
    assert monitor.last.entropy == 0.0


def test_entropy_comes_from_the_alternatives():
    """Two equal alternatives are 1 bit; with the policy's k = 1 they are none."""
    half = math.log(0.5)
    token = Token("\n", 0, None, half, (Alternative("\n", half, 0), Alternative("x", half, 1)))
    for k, expected in ((20, 1.0), (1, 0.0)):
        monitor = Monitor(policy(None, k=k, mass_floor=MassFloor(0.1, 0.1)))
        monitor.feed(Token("<think>"))
        monitor.feed(token)
        assert monitor.last.entropy == pytest.approx(expected)


def test_short_steps_are_joined():
    """With a minimum of 3 reasoning tokens two lines of 2 are one step of 4."""
    monitor = Monitor(segmentation=Segmentation("line", 3))
    feed(monitor, "<think>", ("a", 1.0), ("\n", 1.0))
    assert monitor.last is None
    feed(monitor, ("b", 0.0), ("\n", 0.0))
    assert (monitor.last.tokens, monitor.last.entropy) == (5, 0.5)


# --- what counts


@pytest.mark.parametrize(("missing", "known"), [(1, 9), (2, 18), (10, 90)])
def test_nine_in_ten_tokens_with_logprobs_are_enough(missing, known):
    """The mean is over those that have them."""
    monitor = Monitor(segmentation=LINES)
    monitor.feed(Token("<think>"))
    for _ in range(missing):
        monitor.feed(Token("x"))
    feed(monitor, *[("a", 1.0)] * (known - 1), ("\n", 1.0))
    assert monitor.last.entropy == 1.0


@pytest.mark.parametrize(("missing", "known"), [(1, 8), (2, 17), (1, 0), (11, 90)])
def test_fewer_leave_the_entropy_missing(missing, known):
    """None, not a mean over what is there and not 0; and a missing entropy never stops."""
    monitor = Monitor(policy(4.0))
    monitor.feed(Token("<think>"))
    tokens = [Token("x")] * missing
    decisions = [monitor.feed(t) for t in tokens] + feed(monitor, *["a"] * max(0, known - 1))
    decisions.append(monitor.feed(Token("\n"), bounds(0.0)) if known else monitor.feed(Token("\n")))
    assert monitor.last.entropy is None
    assert monitor.last.signals == {}
    assert set(decisions) == {Decision.GO_ON}


def test_a_sum_counts_a_missing_position_as_an_average_one():
    """Nine tokens of 1 bit and one without logprobs sum to 10 bits: leaving it out would look surer."""
    monitor = Monitor(segmentation=LINES)
    monitor.feed(Token("<think>"))
    monitor.feed(Token("x"))
    feed(monitor, *[("a", 1.0)] * 8, ("\n", 1.0))
    assert monitor.last.signals["sum_entropy"] == pytest.approx(10.0)


def test_a_low_mass_position_enters_with_its_upper_bound():
    """Entropy 0 with mass .4 and an upper bound of 9 bits counts 9; at mass .5 it counts 0."""
    for mass, expected in ((0.4, 9.0), (0.5, 0.0)):
        monitor = Monitor(segmentation=LINES)
        monitor.feed(Token("<think>"))
        monitor.feed(Token("\n"), bounds(0.0, mass, 0.0, 9.0))
        assert monitor.last.entropy == expected


def test_a_low_mass_step_is_not_eligible():
    """Mean mass .7 under the floor of .8: no stop however low the entropy; the policy's own floor decides."""
    for floor, expected in ((MassFloor(), Decision.GO_ON), (MassFloor(step=0.6), Decision.CLOSE)):
        monitor = Monitor(policy(4.0, mass_floor=floor))
        monitor.feed(Token("<think>"))
        assert monitor.feed(Token("\n"), bounds(0.0, 0.7)) is expected


def test_a_broken_server_never_looks_sure():
    """Top-1 of a uniform distribution renormalises to 0 bits; twenty such tokens do not stop the loosest policy."""
    uniform = -math.log(129_280)
    monitor = Monitor(policy(4.3, mass_floor=MassFloor()))
    monitor.feed(Token("<think>"))
    token = Token("\n", 5, None, uniform, (Alternative("\n", uniform, 5),))
    assert {monitor.feed(token) for _ in range(20)} == {Decision.GO_ON}
    assert monitor.last.entropy > 4.3


def test_forced_tokens_move_the_text_and_never_count():
    """They are tokens of the step, they end lines and phases, and their entropy is not read."""
    monitor = Monitor(segmentation=LINES)
    feed(monitor, "<think>", ("a", 1.0))
    monitor.feed(Token("forced"), bounds(4.0), forced=True)
    monitor.feed(Token("\n"), bounds(4.0), forced=True)
    assert (monitor.last.tokens, monitor.last.entropy) == (4, 1.0)
    monitor.feed(Token("</think>"), forced=True)
    assert monitor.phase is Phase.ANSWER


def test_tags_and_answer_are_no_reasoning():
    """What comes before the thinking, the tags and the answer are counted as tokens and ignored as uncertainty."""
    monitor = Monitor(policy(4.0))
    decisions = feed(monitor, ("Hm\n", 4.0), ("<think>", 4.0), ("</think>", 4.0), ("answer\n", 0.0), ("\n", 0.0))
    assert set(decisions) == {Decision.GO_ON}
    assert (monitor.steps, monitor.tokens) == (0, 5)
    assert monitor.finish().reason == "no reasoning was seen: the reply begins with its answer"


def test_after_the_decision_nothing_is_decided():
    """A model that goes on thinking is asked once only."""
    monitor = Monitor(policy(4.0))
    assert feed(monitor, "<think>", "a\n", "b\n", "c\n") == [Decision.GO_ON, Decision.CLOSE, Decision.GO_ON, Decision.GO_ON]
    assert monitor.steps == 1


# --- what it says


def test_a_run_that_is_only_watched():
    """Switched off, in the holdout: in full, with the reason and where it would have stopped."""
    for setting, told in (({"stop": False}, "switched off"), ({"holdout": True}, "holdout")):
        monitor = Monitor(policy(0.5), **setting)
        assert set(feed(monitor, "<think>", ("a\n", 1.0), ("b\n", 0.2), "c\n", "</think>")) == {Decision.GO_ON}
        outcome = monitor.finish()
        assert (outcome.active, outcome.stopped, outcome.step, outcome.entropy) == (False, False, 2, 0.2)
        assert told in outcome.reason
        assert outcome.holdout is ("holdout" in setting)
        assert monitor.steps == 3


def test_no_policy_and_an_inactive_one():
    """Both measure; the reason says which, and for the second why it is not active."""
    monitor = Monitor(segmentation=LINES)
    feed(monitor, "<think>", "a\n")
    assert monitor.finish().metadata() == {
        "early_stop_active": False,
        "early_stop_stopped": False,
        "early_stop_reason": "no policy: measuring only",
        "early_stop_tokens": 2,
        "early_stop_holdout": False,
    }
    inactive = Policy("m", (4.0,), segmentation=LINES, active=False, reason="no_signal")
    monitor = Monitor(inactive)
    assert set(feed(monitor, "<think>", "a\n", "b\n")) == {Decision.GO_ON}
    assert monitor.finish().reason == "policy is not active: no_signal"
    assert monitor.steps == 2


def test_a_run_that_ended_by_itself():
    """The reason says so, and there is no step of decision."""
    monitor = Monitor(policy(0.0))
    feed(monitor, "<think>", ("a\n", 1.0), "</think>")
    outcome = monitor.finish()
    assert (outcome.active, outcome.stopped, outcome.step, outcome.reason) == (True, False, None, "reasoning ended by itself")


def test_the_table_a_stop_leaves_behind():
    """Exactly the contract's names, with its types."""
    p = policy(0.5, calibration={"remaining_tokens": [100.0, 40.0]})
    monitor = Monitor(p)
    feed(monitor, "<think>", ("a\n", 0.25))
    assert monitor.finish(tokens=12).metadata() == {
        "early_stop_active": True,
        "early_stop_stopped": True,
        "early_stop_reason": "mean_entropy at or under the threshold",
        "early_stop_step": 1,
        "early_stop_entropy": 0.25,
        "early_stop_threshold": 0.5,
        "early_stop_tokens": 12,
        "early_stop_tokens_saved_estimate": 100,
        "early_stop_holdout": False,
        "early_stop_policy": p.fingerprint,
    }
    assert monitor.finish("the server went away").reason == "the server went away"


# --- state


def stream(seed, length=20):
    """A run's tokens, (text, entropy or None), from a seed."""
    rng = np.random.default_rng(seed)
    texts = ["<think>", *rng.choice(["a", "b ", "\n", "\n\n"], length, p=[0.5, 0.3, 0.1, 0.1]), "</think>", "42"]
    return [(str(t), None if rng.random() < 0.03 else float(rng.exponential(0.5))) for t in texts]


def take(monitor, text, value):
    decision = monitor.feed(Token(text), None if value is None else bounds(value))
    return decision, monitor.last


def test_ten_thousand_requests_at_once():
    """One policy, 10,000 monitors fed in turn: each does what it does alone."""
    p = policy(0.3, segmentation=Segmentation("line", 2))
    runs = [stream(n % 50) for n in range(10_000)]
    alone = {}
    for n in range(50):
        monitor = Monitor(p)
        alone[n] = [take(monitor, *t) for t in runs[n]]
    assert {d for found in alone.values() for d, _ in found} == {Decision.GO_ON, Decision.CLOSE}
    monitors = [Monitor(p) for _ in runs]
    for at in range(len(runs[0])):
        for n, monitor in enumerate(monitors):
            decision, last = take(monitor, *runs[n][at])
            assert (decision, last) == alone[n % 50][at]


def size(monitor):
    """Bytes held, a level deep: the slots, and what is in their lists."""
    held = [getattr(monitor, name) for name in Monitor.__slots__]
    return sum(map(sys.getsizeof, held)) + sum(sum(map(sys.getsizeof, x)) for x in held if isinstance(x, list))


def test_memory_does_not_grow():
    """100,000 tokens in one step need no more than 10,000 do."""
    monitor, sizes = Monitor(segmentation=LINES), []
    monitor.feed(Token("<think>"))
    for n in range(100_000):
        monitor.feed(Token("a"), bounds((n * 7919 % 1000) / 250))
        if n in (10_000, 99_999):
            sizes.append(size(monitor))
    assert sizes[1] <= sizes[0]
    assert monitor.tokens == 100_001
