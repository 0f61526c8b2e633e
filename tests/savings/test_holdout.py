"""The holdout: drawn by hash, and what stopping saved against it."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_chains.errors import InputError
from entropy_chains.savings.holdout import holdout_saving, is_holdout
from entropy_chains.savings.runs import Run


def test_module_needs_no_numpy() -> None:
    """Live wrappers import the module and assign the holdout without numpy, scipy or pynvml being loaded."""
    code = (
        "import sys; from entropy_chains.savings.figures import Figure; from entropy_chains.savings.holdout import is_holdout;"
        "is_holdout('r', share=0.5);"
        "Figure(1.0, 's', 'measured', 'clock'); print([m for m in ('numpy', 'scipy', 'pynvml') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_holdout_assignment_is_pinned() -> None:
    """The assignment is SHA-256 of the JSON list [salt, root run]: a value computed by hand never changes between releases.

    sha256('["", "run-1"]') begins with these 53 bits as a fraction; a share just above holds it out, one at it does not.
    """
    import hashlib

    fraction = (int(hashlib.sha256(b'["", "run-1"]').hexdigest()[:16], 16) >> 11) / 2**53
    assert is_holdout("run-1", share=np.nextafter(fraction, 1.0))
    assert not is_holdout("run-1", share=fraction)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.02, 0.98), st.text(max_size=8))
def test_holdout_share_is_about_right(share: float, salt: str) -> None:
    """Of 2,000 runs the held-out part is within 5 standard errors of the share, and a second look assigns alike."""
    drawn = [is_holdout(f"run-{i}", share=share, salt=salt) for i in range(2000)]
    assert abs(np.mean(drawn) - share) < 5 * (share * (1 - share) / 2000) ** 0.5
    assert drawn[:50] == [is_holdout(f"run-{i}", share=share, salt=salt) for i in range(50)]


@given(st.text(), st.text(), st.floats(0, 1), st.floats(0, 1))
def test_holdout_grows_with_the_share(root: str, salt: str, a: float, b: float) -> None:
    """A run held out at one share is held out at every larger one; 0 holds out none and 1 all."""
    assert is_holdout(root, share=min(a, b), salt=salt) <= is_holdout(root, share=max(a, b), salt=salt)
    assert not is_holdout(root, share=0.0, salt=salt)
    assert is_holdout(root, share=1.0, salt=salt)


def test_holdout_is_the_same_in_another_process() -> None:
    """Python's hash randomisation plays no part: another process assigns the same runs."""
    printed = "print([is_holdout(f'ü{i}', share=0.3, salt='s') for i in range(40)])"
    code = f"from entropy_chains.savings.holdout import is_holdout; {printed}"
    env = {"PYTHONHASHSEED": "77", "PYTHONPATH": ":".join(sys.path)}
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout.strip()
    here = [is_holdout(f"ü{i}", share=0.3, salt="s") for i in range(40)]
    assert other == str(here)
    assert 0 < sum(here) < 40


def test_salts_draw_different_holdouts_and_cannot_be_confused() -> None:
    """Another salt draws another holdout, and (salt, run) = ('a', 'bc') is not ('ab', 'c')."""
    runs = [str(i) for i in range(200)]
    assert [is_holdout(r, share=0.5, salt="x") for r in runs] != [is_holdout(r, share=0.5, salt="y") for r in runs]
    pairs = [(is_holdout(f"bc{i}", share=0.5, salt="a"), is_holdout(f"c{i}", share=0.5, salt="ab")) for i in range(100)]
    assert any(a != b for a, b in pairs)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), True])
def test_holdout_share_is_checked(share: float) -> None:
    """A share outside 0 to 1 is an input error."""
    with pytest.raises(InputError, match="between 0"):
        is_holdout("r", share=share)


def test_holdout_saving_by_hand() -> None:
    """Intention to treat: runs assigned to stopping count whether they stopped or not.

    Holdout 100 and 300 tokens (mean 200), stopping 100 and 40 (mean 70): 1 - 70/200 = 65 %. Shadow decisions would have made the
    holdout cost 50 + 150: 1 - 200/400 = 50 %. Two runs a side are too few for an interval, and the reason says so.
    """
    runs = [
        Run("h1", 100, holdout=True, shadow_tokens=50, correct=True),
        Run("h2", 300, holdout=True, shadow_tokens=150, correct=True),
        Run("s1", 100, correct=True),
        Run("s2", 30, correct=False),
        Run("s2", 10),
    ]
    found = holdout_saving(runs)
    assert (found.runs_holdout, found.runs_stopping) == (2, 2)
    assert (found.tokens_holdout.value, found.tokens_stopping.value) == (200, 70)
    assert found.saved.value == pytest.approx(0.65)
    assert found.saved_shadow.value == pytest.approx(0.5)
    assert (found.accuracy_holdout, found.accuracy_stopping, found.accuracy_change) == (1.0, 0.5, -0.5)
    assert (found.saved.kind, found.saved_shadow.kind, found.tokens_holdout.kind) == ("measured", "estimated", "counted")
    assert found.saved_interval is None
    assert "30 runs" in found.reason
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize(("held", "stopping", "has"), [(29, 300, False), (300, 29, False), (30, 30, True)])
def test_intervals_need_thirty_runs_a_side(held: int, stopping: int, has: bool) -> None:
    """Of fewer on either side neither the saving nor the accuracy change has one, and the reason gives both numbers."""
    runs = [Run(f"h{n}", 100 + n, holdout=True, shadow_tokens=50, correct=n % 9 > 0) for n in range(held)]
    found = holdout_saving(runs + [Run(f"s{n}", 60 + n, correct=n % 9 > 0) for n in range(stopping)])
    assert (found.saved_interval is not None) is (found.accuracy_change_interval is not None) is has
    assert (found.saved_shadow_interval is not None) is (held >= 30)
    assert found.saved is not None
    assert found.reason == (None if has else f"an interval needs 30 runs on each side; there are {held} and {stopping}")


def test_a_root_run_on_both_sides_is_refused() -> None:
    """Assignment per call instead of per root run is an input error."""
    with pytest.raises(InputError, match="root run"):
        holdout_saving([Run("a", 1, holdout=True), Run("a", 1)])


def test_an_empty_side_gives_no_saving_but_a_reason() -> None:
    """Without holdout runs nothing was measured: no figure, and the reason counts both sides."""
    found = holdout_saving([Run("a", 5)])
    assert found.saved is None
    assert "0 runs in the holdout and 1" in found.reason


def test_holdout_interval_covers_and_shadow_is_tighter() -> None:
    """The true saving of 40 % is inside the 95 % interval in most of 40 repeats, and the paired interval is narrower.

    Full costs are lognormal (spread 0.6); stopping saves exactly 40 % of each run, so the shadow figure is 40 % in every repeat.
    A correct interval misses 5 % of 40 = 2 on average; 8 misses or more have a chance below 0.1 %.
    """
    missed = 0
    for repeat in range(40):
        rng = np.random.default_rng(repeat)
        costs = rng.lognormal(6.0, 0.6, 400).round()
        runs = [Run(str(i), int(c), holdout=True, shadow_tokens=int(0.6 * c)) for i, c in enumerate(costs[:200])]
        runs += [Run(str(i), int(0.6 * c)) for i, c in enumerate(costs[200:], 200)]
        found = holdout_saving(runs, seed=repeat)
        low, high = found.saved_interval
        missed += not low <= 0.4 <= high
        assert found.saved_shadow.value == pytest.approx(0.4, abs=0.01)
        assert found.saved_shadow_interval[1] - found.saved_shadow_interval[0] < (high - low) / 10
    assert missed < 8


def test_holdout_interval_is_seeded_and_keeps_its_width_in_blocks() -> None:
    """The same seed gives the same interval; above 20,000 runs the blocks keep the width of √(σ²/n) theory within a third."""
    rng = np.random.default_rng(3)
    costs = rng.normal(1000, 100, 50_000)
    runs = [Run(str(i), int(c), holdout=i % 2 == 0) for i, c in enumerate(costs)]
    first, second = holdout_saving(runs, seed=5), holdout_saving(runs, seed=5)
    assert first == second
    width = first.saved_interval[1] - first.saved_interval[0]
    theory = 2 * 1.96 * 0.1 * (2 / 25_000) ** 0.5
    assert theory * 0.67 < width < theory * 1.33
