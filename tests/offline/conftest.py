"""Recorded runs, and the comparison of all rules on them, made once."""

from __future__ import annotations

import pytest
from comparisons import population

from entropy_chains.offline.compare import compare


@pytest.fixture(scope="session")
def runs():
    """150 runs of five steps with every signal."""
    return population()


@pytest.fixture(scope="session")
def compared(runs):
    """All rules on them."""
    return compare(runs, resamples=200)
