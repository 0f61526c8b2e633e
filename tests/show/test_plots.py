"""The plots: their points by hand, their axes, and their size."""

from __future__ import annotations

import numpy as np
import pytest
from report_runs import policy, random_traces, worked

from entropy_chains.offline.table import Table
from entropy_chains.show import plots, report
from entropy_chains.show.report import build_report


def test_points_of_the_tradeoff_by_hand(monkeypatch) -> None:
    """Full (200, .95), oracle (150, .95), cut at step 1 (100, .55), the policy (140, .95): the curve passes through its point."""
    seen = {}

    def capture(curve, fixed, marks, policy_point, judged):
        seen.update(curve=curve, fixed=fixed, marks=marks, policy_point=policy_point, judged=judged)
        return "<svg></svg>"

    monkeypatch.setattr(plots, "accuracy_against_tokens", capture)
    build_report(worked(), policy())
    assert seen["fixed"] == pytest.approx(np.array([[100, 0.55], [200, 0.95]]))
    assert seen["marks"] == [("full", 200.0, pytest.approx(0.95)), ("oracle", 150.0, pytest.approx(0.95))]
    assert (seen["policy_point"]["tokens"], seen["policy_point"]["accuracy"]) == (140.0, pytest.approx(0.95))
    assert [140.0, pytest.approx(0.95)] in seen["curve"].tolist()
    assert seen["curve"][0].tolist() == [200.0, pytest.approx(0.95)]


def test_the_users_matplotlib_is_left_alone() -> None:
    """Drawing changes no setting and opens no figure of the user's pyplot."""
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    build_report(worked(), policy())
    assert dict(mpl.rcParams) == before


def test_many_runs_make_no_large_page() -> None:
    """25,000 runs (75,000 steps, above the curve's limit): dots are limited and the page stays under 600 kB."""
    table = Table.from_traces(random_traces(25_000))
    assert len(table.step) > report.CURVE_ROWS
    page = build_report(table, policy())
    dots = page[page.index('id="tokens-') :].split("</svg>")[0].count("<use")
    assert 1000 < dots < plots.MOST_DOTS + 100
    assert "1,500 of 25,000 runs" in page
    assert len(page) < 600_000


def test_signal_axis_is_logarithmic_over_many_decades() -> None:
    """Values over five decades get a logarithmic axis with zeros kept at its edge; a narrow spread a linear one."""
    wide = np.concatenate([[0.0], np.geomspace(1e-5, 1.0, 50)])
    assert "logarithmic; zeros at the left edge" in plots.right_and_wrong(wide, wide, 0.1, "x", ("right", "wrong"))
    assert "logarithmic" not in plots.right_and_wrong(np.linspace(0.1, 1, 50), wide[:0], None, "x", ("right", "wrong"))
