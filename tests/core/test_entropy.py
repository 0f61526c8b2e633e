"""Entropy of a position: worked examples, the inequalities of its bounds, what servers really send, and logits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_chains.core.entropy import token_entropy
from entropy_chains.core.tokens import Alternative, Token
from entropy_chains.errors import InputError

HALF, QUARTER, EIGHTH = math.log(0.5), math.log(0.25), math.log(0.125)


def listed(*logprobs, ids=True):
    """Alternatives t0, t1, … with these logprobs."""
    return tuple(Alternative(f"t{n}", x, n if ids else None) for n, x in enumerate(logprobs))


def sampled(n, alternatives, ids=True):
    """The token that stands n-th in a list."""
    return Token(alternatives[n].text, n if ids else None, None, alternatives[n].logprob, alternatives)


# --- worked examples


def test_a_whole_distribution_by_hand():
    """½, ¼, ¼ has ½·1 + 2·¼·2 = 1.5 bits; the list holds all there is, so both bounds are the same; confidence is mean -ln p."""
    found = token_entropy([HALF, QUARTER, QUARTER], vocab_size=3)
    assert found.entropy == pytest.approx(1.5)
    assert (found.lower, found.upper, found.mass, found.k) == (found.entropy, found.entropy, 1.0, 3)
    assert found.confidence == pytest.approx((math.log(2) + 2 * math.log(4)) / 3)


def test_a_truncated_distribution_by_hand():
    """½, ¼ of six tokens: S = 1, M = ¾, so H_r = 1/0.75 + log2 0.75 = 0.9183; L = 1 + ¼·log2 4 = 1.5; U = 1 + ¼·log2(4/¼) = 2."""
    found = token_entropy([HALF, QUARTER], vocab_size=6)
    assert found.entropy == pytest.approx(4 / 3 + math.log2(0.75))
    assert (found.lower, found.upper, found.mass, found.k) == (pytest.approx(1.5), pytest.approx(2.0), pytest.approx(0.75), 2)


def test_a_rest_smaller_than_the_least_entry_by_hand():
    """½, ⅜: the rest of ⅛ may be one token, no more: L = S + ⅛·log2 8, not ⅛·log2(8/3)."""
    found = token_entropy([HALF, math.log(0.375)], vocab_size=10)
    spread = 0.5 + 0.375 * math.log2(8 / 3)
    assert found.lower == pytest.approx(spread + 0.125 * 3)
    assert found.upper == pytest.approx(spread + 0.125 * math.log2(8 / 0.125))


def test_the_largest_value_is_log2_k():
    """Twenty equal entries: 4.3219 bits, the top of the paper's scale."""
    assert token_entropy([-3.0] * 20).entropy == pytest.approx(math.log2(20))


def test_a_uniform_distribution_seen_through_its_top_1_is_never_confident():
    """The renormalised entropy is 0, and everything that tells the truth about it shows: mass near 0, upper bound log2 V."""
    found = token_entropy([-math.log(129_280)], vocab_size=129_280)
    assert found.entropy == 0.0
    assert found.mass < 1e-5
    assert found.upper == pytest.approx(math.log2(129_280), rel=1e-3)
    assert found.lower == pytest.approx(math.log2(129_280), rel=1e-3)


# --- bounds


def test_the_bounds_hold_on_random_distributions():
    """H_r ≤ L ≤ H ≤ U and H - H_r ≥ log2(1/M), for the true top-k of 3,000 distributions from flat to peaked."""
    rng = np.random.default_rng(0)
    for _ in range(3000):
        size = int(rng.integers(2, 60))
        p = np.sort(rng.dirichlet(np.full(size, 10 ** rng.uniform(-2, 1))))[::-1]
        p = p[p > 1e-12]
        p /= p.sum()
        true = float(-(p * np.log2(p)).sum())
        k = int(rng.integers(1, len(p) + 1))
        found = token_entropy(np.log(p[:k]).tolist(), vocab_size=len(p))
        assert found.entropy <= found.lower + 1e-9
        assert found.lower <= true + 1e-9
        assert true <= found.upper + 1e-9
        assert true - found.entropy >= math.log2(1 / found.mass) - 1e-9
        assert found.mass == pytest.approx(p[:k].sum())


NUMBERS = st.floats(-30, 0)


@settings(deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=30), st.randoms())
def test_order_does_not_matter(logprobs, random):
    """Any order of the same numbers gives the same figures."""
    shuffled = list(logprobs)
    random.shuffle(shuffled)
    first, second = token_entropy(logprobs), token_entropy(shuffled)
    assert (first is None) == (second is None)
    assert first is None or first == pytest.approx(second, rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=25), st.none() | st.integers(1, 30))
def test_any_numbers_give_sound_figures_or_none(logprobs, k):
    """Whatever a server sends: no crash, and what comes out is finite, ordered and in range."""
    found = token_entropy(logprobs, k=k)
    if found is not None:
        assert 0 <= found.entropy <= math.log2(found.k) + 1e-9
        assert found.entropy <= found.lower <= found.upper < math.inf
        assert 0 < found.mass <= 1
        assert 1 <= found.k <= (k or 25)
        assert math.isfinite(found.confidence)


# --- what servers send


@pytest.mark.parametrize("impossible", [-9999.0, -3.4e38, -math.inf])
def test_impossible_entries_count_nothing(impossible):
    """What a server finds too unlikely to report has probability 0 and is no entry."""
    assert token_entropy([HALF, HALF, impossible]) == token_entropy([HALF, HALF])


@pytest.mark.parametrize(
    "sent",
    [
        None,
        (),
        [math.nan],
        [HALF, math.nan],
        [math.nan, HALF],
        [-9999.0, -math.inf],
        [0.5],
        [800.0],
        [HALF, 1e6],
        [HALF, HALF, HALF],
    ],
)
def test_what_cannot_be_used_is_missing(sent):
    """Nothing sent, a NaN anywhere, only impossible entries, logarithms above 0, or a mass above 1: None, never 0."""
    assert token_entropy(sent) is None


def test_a_nan_is_seen_wherever_it_stands():
    """Not cut off by k, not dropped as the sampled token."""
    for at in range(4):
        logprobs = [HALF, QUARTER, EIGHTH]
        logprobs.insert(at, math.nan)
        alternatives = listed(*logprobs)
        assert token_entropy(alternatives, k=2) is None
        assert token_entropy(sampled(at, alternatives), k=2) is None


def test_a_token_without_alternatives_is_missing():
    """The chosen token's own logprob says nothing of the others."""
    assert token_entropy(Token("a", logprob=-0.1)) is None


def test_rounding_above_one_is_clipped():
    """Mass 1.005 is float noise of a server, and counts as 1."""
    assert token_entropy([math.log(0.5025)] * 2).mass == 1.0


def test_an_entry_listed_twice_counts_once():
    """By id, or by text and logprob where there are no ids; different texts with equal logprobs are two entries."""
    twice = (*listed(HALF, QUARTER, EIGHTH), Alternative("t1", QUARTER, 1))
    assert token_entropy(twice) == token_entropy([HALF, QUARTER, EIGHTH])
    twice = (*listed(HALF, QUARTER, EIGHTH, ids=False), Alternative("t1", QUARTER))
    assert token_entropy(twice) == token_entropy([HALF, QUARTER, EIGHTH])
    assert token_entropy(listed(HALF, QUARTER, QUARTER, ids=False)).k == 3


@pytest.mark.parametrize("ids", [True, False])
def test_a_sampled_token_from_below_the_top_k_is_dropped(ids):
    """As entry k+1, or put first in the place of the k-th: what is left is the true top-k, or top-(k-1)."""
    rare = math.log(0.01)
    last = listed(HALF, QUARTER, EIGHTH, rare, ids=ids)
    assert token_entropy(sampled(3, last, ids), k=3) == token_entropy([HALF, QUARTER, EIGHTH])
    first = (last[3], *last[:2])
    assert token_entropy(Token("t3", 3 if ids else None, None, rare, first), k=3) == token_entropy([HALF, QUARTER])


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_sampled_token_among_the_top_k_stays(at):
    """The likeliest, the second, and a last one among no more than k entries belong to the list."""
    alternatives = listed(HALF, QUARTER, EIGHTH)
    assert token_entropy(sampled(at, alternatives), k=3).k == 3


def test_a_sampled_token_from_below_never_lifts_the_entropy_above_the_truth():
    """H_r ≤ H for the top-3 of a fixed distribution with any other token appended or put first in the third's place."""
    p = [0.4, 0.2, 0.15, 0.1, 0.08, 0.07]
    true = -sum(x * math.log2(x) for x in p)
    entries = listed(*map(math.log, p))
    for n in range(3, 6):
        for sent in ((*entries[:3], entries[n]), (entries[n], *entries[:2])):
            assert token_entropy(Token(f"t{n}", n, None, math.log(p[n]), sent), k=3).entropy <= true


def test_more_entries_than_asked_for_are_cut():
    """With k = 2, five entries are the two likeliest, wherever they stand."""
    assert token_entropy([EIGHTH, HALF, -5.0, QUARTER, -6.0], k=2) == token_entropy([HALF, QUARTER])


@pytest.mark.parametrize("given", [{"k": 0}, {"k": -1}, {"vocab_size": 0}])
def test_impossible_arguments_are_refused(given):
    """The message names the value."""
    name, value = next(iter(given.items()))
    with pytest.raises(InputError, match=f"{name} is {value}"):
        token_entropy([HALF], **given)


# --- logits


ABSENT = [Alternative("zzz", -0.001), Alternative("q", -7.0)]


@pytest.mark.parametrize(
    ("own", "listed", "known"),
    [
        (-3.0, ABSENT, False),  # likelier than "q", and not there
        (-0.0001, ABSENT, False),  # likelier than all
        (-9.0, ABSENT, True),  # less likely than all that are listed: a true top-2
        (-7.0, ABSENT, True),  # as likely as the last one
        (-6.995, ABSENT, True),  # rounded
        (None, ABSENT, True),  # nobody says how likely it was
        (math.nan, ABSENT, True),
        (
            -3.0,
            [Alternative("zzz", -0.06), Alternative("own", -3.1), Alternative("q", -7.0)],
            True,
        ),  # listed, though its logprob was computed otherwise
        (-3.0, [Alternative("zzz", -0.06), Alternative("\ufffd", -3.0)], True),  # listed under a text that is half a character
        (-3.0, [Alternative("zzz", -0.06), Alternative("y", -9999.0)], True),  # a filler is no entry: less likely than "zzz"
    ],
)
def test_the_list_of_another_token_is_missing(own, listed, known):
    """A token that is likelier than a listed one stands in its own list, or the list is another token's: never "sure"."""
    assert (token_entropy(Token("own", logprob=own, alternatives=tuple(listed))) is not None) is known


def test_ids_and_bytes_tell_whether_a_token_is_listed():
    """Where texts do not: the same text may be two tokens, and half a character has none."""
    listed = (Alternative("a", -0.1, 7), Alternative("b", -5.0, 8))
    assert token_entropy(Token("a", 9, logprob=-3.0, alternatives=listed)) is None
    assert token_entropy(Token("x", 7, logprob=-3.0, alternatives=listed)) is not None
    halves = (Alternative("\ufffd", -0.1, None, b"\xe7"), Alternative("b", -5.0))
    assert token_entropy(Token("", bytes=b"\xe7", logprob=-3.0, alternatives=halves)) is not None
