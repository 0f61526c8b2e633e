"""Words and figures of the report, by hand."""

from __future__ import annotations

import pytest
from report_runs import CERTIFICATE, policy, text_of, worked

from entropy_chains.show import wording
from entropy_chains.show.report import build_report


def test_error_bars_by_hand() -> None:
    """Saved .3 in [.2, .45] of 200 tokens is 140 tokens in [110, 160]: 30 to the left, 20 to the right."""
    assert wording.distances([0.2, 0.45], 0.3, 200.0, flipped=True) == [[pytest.approx(30.0)], [pytest.approx(20.0)]]
    assert wording.distances([-0.02, 0.01], -0.01, 1.0) == [[pytest.approx(0.01)], [pytest.approx(0.02)]]
    assert wording.distances(None, 0.3, 200.0) == [[0.0], [0.0]]


def test_promise_in_plain_words() -> None:
    """A certificate is one sentence with its confidence, its loss and its evidence; a plain method promises nothing."""
    page = text_of(build_report(worked(), policy()))
    assert "Stopping is on: with 90 % confidence, at most 5 % of the questions lose a correct answer" in page
    assert "(4 of 240 did there)" in page
    plain = text_of(build_report(worked(), policy(method="mean", reason="uncertified")))
    assert "Stopping is on, uncertified" in plain
    assert "with 90 % confidence" not in plain
    other = wording.certificate_sentence(
        policy(calibration={"certificate": CERTIFICATE | {"risk": "disagreement", "max_loss": 0.025}})
    )
    assert "at most 2.5 % of the questions end with another answer" in other


def test_a_change_for_the_worse_reads_as_more():
    """Nobody has to read "-25 % less"."""
    assert [wording.less_or_more(4.0, after) for after in (3.0, 4.0, 5.0)] == ["25.0 % less", "0.0 % less", "25.0 % more"]
