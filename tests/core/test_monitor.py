"""The state machine: worked examples, what never counts, what it remembers, and that its two faces decide alike."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_chains.core.batch_monitor import BatchMonitor
from entropy_chains.core.entropy import EntropyBounds
from entropy_chains.core.monitor import Decision, Monitor
from entropy_chains.core.policy import Policy
from entropy_chains.core.rules import RULES
from entropy_chains.core.signals import STEP_SIGNALS, TAIL, MassFloor, StepRecord
from entropy_chains.core.steps import Phase, Segmentation
from entropy_chains.core.tokens import Alternative, Token
from entropy_chains.errors import EntropyChainsError

LINES = Segmentation("line", 1)
NEVER = Policy("m", (None,), segmentation=LINES)


def bounds(entropy, mass=1.0, lower=None, upper=None, confidence=2.0):
    """Figures of one token."""
    return EntropyBounds(entropy, entropy if lower is None else lower, entropy if upper is None else upper, mass, 20, confidence)


def policy(threshold, rule="entropy", min_steps=1, **fields):
    """A policy over lines of any length."""
    return Policy("m", (threshold,), rule, min_steps, **{"segmentation": LINES, **fields})


def feed(monitor, *tokens):
    """Feed (text, entropy) pairs, a text alone having entropy 0; returns the decisions."""
    found = []
    for t in tokens:
        text, value = (t, 0.0) if isinstance(t, str) else t
        found.append(monitor.feed(Token(text), bounds(value)))
    return found


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


# --- rules that read more


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


# --- two faces


TEXTS = st.sampled_from(["<think>", "</think>", "a", "b ", "\n", "\n", "\n\n", "```\n", '{"x":\n', "}", "<tool_call>", ""])
FIGURES = st.none() | st.tuples(st.floats(0, 4), st.floats(0.3, 1), st.floats(0, 4), st.floats(0, 9), st.floats(0, 5))
TOKENS = st.tuples(TEXTS, FIGURES, st.booleans())
ROWS = st.lists(st.lists(TOKENS, max_size=30), min_size=1, max_size=4)
POLICIES = st.builds(
    lambda threshold, rule, first, boundary, shortest, signal, active: Policy(
        "m",
        (first,) if rule == "fixed-step" else threshold,
        rule,
        first,
        segmentation=Segmentation(boundary, shortest),
        signal=signal,
        active=active,
        reason="uncertified" if active else "no_signal",
    ),
    st.lists(st.none() | st.floats(0, 4), min_size=1, max_size=3).map(tuple),
    st.sampled_from(["entropy", "entropy+agreement", "fixed-step"]),
    st.integers(1, 3),
    st.sampled_from(["line", "blank_line", "call"]),
    st.integers(1, 4),
    st.sampled_from(["mean_entropy", "sum_entropy", "max_entropy", "tail_entropy", "top_tenth_entropy"]),
    st.booleans(),
)


@settings(max_examples=400, deadline=None)
@given(ROWS, st.none() | POLICIES, st.booleans(), st.booleans(), st.lists(st.booleans(), min_size=4, max_size=4), st.data())
def test_the_two_faces_decide_alike(rows, p, stop, thinking, holdout, data):
    """Any streams, ending at different times, with missing values, low mass and forced tokens: equal decisions and records."""
    texts = [["<think>", *(t for t, _, _ in row)] for row in rows]
    figures = [[None, *(f for _, f, _ in row)] for row in rows]
    pushed = [[False, *(f and n % 3 == 0 for n, (_, _, f) in enumerate(row))] for row in rows]
    common = {"segmentation": LINES, "stop": stop, "thinking": thinking}
    singles = [Monitor(p, holdout=holdout[r], **common) for r in range(len(rows))]
    batch = BatchMonitor(p, len(rows), holdout=holdout[: len(rows)], **common)
    for at in range(max(map(len, texts))):
        live = [r for r in range(len(rows)) if at < len(texts[r])]
        table = np.full((len(rows), 5), np.nan)
        for r in live:
            if figures[r][at] is not None:
                table[r] = figures[r][at]
        forced = {r for r in live if pushed[r][at]}
        thinks = any(s.phase is not Phase.ANSWER for s in singles)
        found = batch.feed([t[at] if at < len(t) else "" for t in texts], table if thinks else None, live, forced)
        for r in live:
            f = figures[r][at]
            given_bounds = None if f is None else EntropyBounds(f[0], f[2], f[3], f[1], 20, f[4])
            before = singles[r].steps
            decision = singles[r].feed(Token(texts[r][at]), given_bounds, forced=r in forced)
            row = batch.rows[r]
            assert (r in found) is (singles[r].steps > before)
            assert found.get(r, Decision.GO_ON) is decision
            assert row.last == singles[r].last
            assert (row.phase, row.tokens_in_step) == (singles[r].phase, singles[r].tokens_in_step)
            if decision is Decision.PROBE:
                answer = data.draw(st.sampled_from(["1", "2", None]))
                assert row.answer(answer) is singles[r].answer(answer)
    for r, single in enumerate(singles):
        assert batch.end_step(r, "1") is single.end_step("1")
        assert batch.rows[r].last == single.last
        assert batch.rows[r].finish() == single.finish()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["a", "12", "=", "{", "x`", "</think", "\n"]), max_size=60), st.integers(1, 6), st.booleans())
def test_quiet_tokens_may_be_told_together(texts, min_tokens, stop):
    """Kept until the next token that may decide something, their figures summed up at once: the same steps and outcome."""
    judged = policy(1.5, segmentation=Segmentation("line", min_tokens))
    one, other = (Monitor(judged, thinking=True, stop=stop) for _ in range(2))
    waiting, figures = [], []
    rng = np.random.default_rng(len(texts))
    for text in texts:
        entropy = float(rng.uniform(0, 3))
        decision = one.feed(Token(text), EntropyBounds(entropy, entropy, entropy, 1.0, 20, 1.0))
        figures.append([entropy, 1.0, entropy, entropy, 1.0])
        if other.quiet(text):
            assert decision is Decision.GO_ON
            waiting.append(text)
            continue
        other.skim(waiting)
        waiting.clear()
        assert other.advance(text)
        if other.at_end:
            other.absorb(np.array(figures))
            figures.clear()
            assert other.decide() is decision
        assert (other.tokens, other.tokens_in_step, other.last) == (one.tokens, one.tokens_in_step, one.last)
    other.skim(waiting)
    assert other.finish() == one.finish()


def test_long_steps_are_the_same_in_both_faces():
    """Steps longer than the batch keeps figures of, with rows of different length: the same records to the last bit."""
    rng = np.random.default_rng(0)
    table = rng.random((900, 3, 5)) * 4
    table[rng.random((900, 3)) < 0.05] = np.nan
    batch, singles = (
        BatchMonitor(None, 3, segmentation=LINES, thinking=True),
        [Monitor(segmentation=LINES, thinking=True) for _ in range(3)],
    )
    for n, figures in enumerate(table):
        texts = ["\n" if (n + 1) % length == 0 else "x" for length in (7, 130, 700)]
        batch.feed(texts, figures, range(3))
        for text, single, f in zip(texts, singles, figures.tolist(), strict=True):
            single.feed(Token(text), EntropyBounds(f[0], f[2], f[3], f[1], 20, f[4]))
    assert [r.steps for r in batch.rows] == [128, 6, 1]
    assert [r.last for r in batch.rows] == [s.last for s in singles]


def test_a_batch_of_none_but_ended_rows():
    """Rows that have ended are not counted and decide nothing."""
    batch = BatchMonitor(policy(4.0), 2)
    assert batch.feed(["a\n", "b\n"], np.zeros((2, 5)), []) == {}
    assert batch.rows[0].finish().tokens == 0
