"""The rows of a batch decide as a monitor of each would."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from monitored import LINES, policy

from entropy_chains.core.batch_monitor import BatchMonitor
from entropy_chains.core.entropy import EntropyBounds
from entropy_chains.core.monitor import Decision, Monitor
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Phase, Segmentation
from entropy_chains.core.tokens import Token

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
