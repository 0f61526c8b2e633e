"""Entropies of many rows of logits at once: the textbook formula at every border, impossible logits, and no second array."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_chains.core import entropy_rows
from entropy_chains.core.entropy import token_entropy
from entropy_chains.core.entropy_rows import logits_entropy
from entropy_chains.errors import InputError

torch = pytest.importorskip("torch")


def plain(row, k=None):
    """The textbook formula, one number at a time: entropy in bits."""
    top = max(row)
    e = [math.exp(x - top) for x in row]
    p = sorted((x / sum(e) for x in e), reverse=True)[:k]
    mass = sum(p)
    return -sum(x / mass * math.log2(x / mass) for x in p if x > 0)


@pytest.mark.parametrize("k", [None, 1, 20, 5000, 20_000])
@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 4095, 4096, 4097, 10_000])
def test_logits_at_every_block_border(size, k, monkeypatch):
    """Numpy, torch and the textbook agree for vocabularies around the block size, and k beyond the vocabulary is all of it."""
    monkeypatch.setattr(entropy_rows, "BLOCK", 4096)  # so that rows fill blocks, and torch does not leave it to numpy
    rows = np.random.default_rng(size).normal(0, 3, (3, size))
    expected = [plain(r.tolist(), k) for r in rows]
    assert logits_entropy(rows, k).entropy == pytest.approx(expected, abs=1e-9)
    assert logits_entropy(torch.tensor(rows, dtype=torch.float32), k).entropy.tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("k", [2, 20])
def test_logits_give_what_a_list_of_the_same_top_k_gives(k):
    """All five figures equal ``token_entropy`` of the same top-k."""
    rows = np.random.default_rng(7).normal(0, 2, (4, 500))
    logprobs = rows - np.log(np.exp(rows).sum(-1, keepdims=True))
    for found, tolerance in ((logits_entropy(rows, k), 1e-9), (logits_entropy(torch.tensor(rows).float(), k), 1e-4)):
        for n in range(4):
            one = token_entropy(np.sort(logprobs[n])[::-1][:k].tolist(), vocab_size=500)
            figures = [float(f[n]) for f in found]
            assert figures == pytest.approx([one.entropy, one.lower, one.upper, one.mass, one.confidence], abs=tolerance)


@pytest.mark.parametrize("k", [None, 3])
def test_impossible_logits(k):
    """-inf is a probability of 0: two equal tokens among impossible ones are 1 bit, and no figure is infinite."""
    row = [[-math.inf, 1.0, -math.inf, 1.0, -math.inf]]
    for found in (logits_entropy(np.array(row), k), logits_entropy(torch.tensor(row), k)):
        assert float(found.entropy[0]) == pytest.approx(1.0, abs=1e-5)
        assert float(found.confidence[0]) == pytest.approx(math.log(2), abs=1e-5)
        assert all(math.isfinite(float(f[0])) for f in found)


@pytest.mark.parametrize("k", [None, 2])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_with_a_nan_is_missing_and_the_others_are_not(k, bad):
    """NaN entropy means missing; the row beside it is untouched."""
    rows = [[0.0, bad, 1.0], [0.0, 0.0, -math.inf]]
    for found in (logits_entropy(np.array(rows), k), logits_entropy(torch.tensor(rows), k)):
        assert math.isnan(float(found.entropy[0]))
        assert float(found.entropy[1]) == pytest.approx(1.0, abs=1e-5)


def test_a_row_of_only_impossible_tokens_is_missing():
    """No distribution at all."""
    assert math.isnan(logits_entropy(np.full((1, 4), -np.inf)).entropy[0])
    assert math.isnan(logits_entropy(torch.full((1, 4), -torch.inf)).entropy[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_low_precision_logits(dtype):
    """The only error is that of the numbers themselves: equal to the textbook on the rounded logits."""
    rows = torch.tensor(np.random.default_rng(3).normal(0, 4, (2, 5000))).to(dtype)
    expected = [plain(r) for r in rows.double().tolist()]
    assert logits_entropy(rows).entropy.tolist() == pytest.approx(expected, abs=2e-4)
    if dtype is torch.float16:
        assert logits_entropy(rows.numpy()).entropy == pytest.approx(expected, abs=1e-6)


def test_no_second_array_of_the_logits_size():
    """Exact entropy of 16 x 250,000 float32 logits (16 MB) needs less than a quarter of that on top."""
    rows = np.random.default_rng(0).normal(0, 3, (16, 250_000)).astype(np.float32)
    tracemalloc.start()
    try:
        logits_entropy(rows)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < rows.nbytes / 4


@pytest.mark.parametrize("shape", [(5,), (2, 0), (1, 2, 3)])
def test_wrong_shapes_are_refused(shape):
    """The message says what is needed."""
    with pytest.raises(InputError, match="vocabulary"):
        logits_entropy(np.zeros(shape))


def test_k_of_logits_is_checked():
    """Zero is refused."""
    with pytest.raises(InputError, match="k is 0"):
        logits_entropy(np.zeros((1, 3)), 0)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-20, 20), min_size=1, max_size=40))
def test_logits_and_logprobs_are_the_same_thing(row):
    """Entropy does not change when a constant is added: logits equal their own logprobs."""
    logits = np.array([row])
    logprobs = logits - np.log(np.exp(logits).sum())
    assert logits_entropy(logits).entropy[0] == pytest.approx(token_entropy(logprobs[0].tolist()).entropy, abs=1e-6)


@pytest.mark.parametrize("k", [None, 3])
def test_no_rows_have_no_figures(k):
    """An empty batch is no error."""
    assert logits_entropy(np.zeros((0, 5)), k).figures().shape == (0, 5)
