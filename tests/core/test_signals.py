"""The table of signals: each with a label, a unit, a direction and a grid, and each recorded as its formula says."""

from __future__ import annotations

import json
import math
import random
import re
from dataclasses import replace

import numpy as np
import pytest
from places import ROOT

from entropy_chains.core.entropy import EntropyBounds
from entropy_chains.core.policy import Policy
from entropy_chains.core.signals import SIGNALS, STEP_SIGNALS, TAIL, Signal, StepRecord, Tally
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import InputError, PolicyError
from entropy_chains.offline.calibrate import calibrate
from entropy_chains.offline.compare import compare
from entropy_chains.offline.diagnose import diagnose
from entropy_chains.offline.replay import replay
from entropy_chains.offline.table import as_table
from entropy_chains.offline.traces import Step, Trace
from entropy_chains.show.report import build_report

RIGHT, WRONG = "1", "0"
FORMULAS = {
    "mean_entropy": lambda h, c: math.fsum(h) / len(h),
    "sum_entropy": lambda h, c: math.fsum(h),
    "top_tenth_entropy": lambda h, c: math.fsum(sorted(h)[-math.ceil(len(h) / 10) :]) / math.ceil(len(h) / 10),
    "tail_entropy": lambda h, c: math.fsum(h[-TAIL:]) / len(h[-TAIL:]),
    "max_entropy": lambda h, c: max(h),
    "deepconf": lambda h, c: math.fsum(c) / len(c),
}
"""Of the entropies and confidences of a step's tokens, written down once more."""


@pytest.mark.parametrize("name", STEP_SIGNALS)
@pytest.mark.parametrize("count", [1, 9, 10, 31, 32, 33, 200])
def test_every_signal_of_a_step_is_its_formula(name, count):
    """What is recorded live, a token at a time or many at once, is the statistic of the tokens computed afterwards."""
    rng = random.Random(count)
    tokens = [EntropyBounds(h := rng.random(), 0.99, h, h + 0.1, 20, 5 * rng.random()) for _ in range(count)]
    single, together = Tally(), Tally()
    for token in tokens:
        single.add(token)
    together.add_many(np.array([[t.entropy, t.mass, t.lower, t.upper, t.confidence] for t in tokens]))
    expected = FORMULAS[name]([t.entropy for t in tokens], [t.confidence for t in tokens])
    for tally in (single, together):
        record = tally.record(1, count)
        value = record.entropy if name == "mean_entropy" else record.signals[name]
        assert value == pytest.approx(expected, rel=1e-12)


def test_the_table_is_what_is_recorded_of_a_step():
    """A row that no step records, or a statistic without a row, is a mistake."""
    tally = Tally()
    tally.add(EntropyBounds(0.5, 0.99, 0.5, 0.6, 20, 1.0))
    assert ("mean_entropy", *tally.record(1, 1).signals) == STEP_SIGNALS
    assert set(FORMULAS) == set(STEP_SIGNALS)


@pytest.mark.parametrize("name", SIGNALS)
def test_every_row_is_whole(name):
    """Its key is its name; label and unit are words; the title has both; its grid ascends from 0 to its maximum."""
    row = Signal.named(name)
    assert row is SIGNALS[name]
    assert row.name == name
    assert row.unit in ("bits", "nats", "probability")
    assert row.source in ("step", "probe")
    assert row.title == f"{row.label} ({row.unit})"
    assert len({r.label for r in SIGNALS.values()}) == len(SIGNALS)
    grid = row.grid(20)
    assert (grid[0], grid[-1]) == (0.0, math.log2(20) if row.bits_a_token else 2.0**14)
    assert (np.diff(grid) > 0).all()
    assert not row.bits_a_token or row.unit == "bits"


def runs(name, wrong=1.0, right=0.1, questions=120):
    """Runs of three steps: wrong answers have one value of the signal, right ones another, and the mean tells nothing."""
    rng = random.Random(7)
    made = []
    for n in range(questions):
        steps = []
        for step in range(3):
            bad = step < 2 and rng.random() < 0.3
            value = (wrong if bad else right) + 0.05 * rng.random()
            entropy = value if name == "mean_entropy" else rng.random()
            signals = {} if name == "mean_entropy" else {name: value}
            steps.append(Step(WRONG if bad else RIGHT, entropy, 50, probe_tokens=3, signals=signals))
        made.append(Trace(str(n), steps, gold=RIGHT, k=20, estimator="renormalised"))
    return made


@pytest.mark.parametrize("name", [*SIGNALS, "own"])
def test_the_direction_is_that_of_diagnose(name):
    """Where lower means surer, wrong answers with the higher values are a signal, with the lower ones an inverted one.

    A signal of which higher means surer is refused; one without a row counts as lower = surer.
    """
    if Signal.named(name).higher_is_surer:
        for refused in (lambda: diagnose(runs(name), signal=name), lambda: calibrate(runs(name), signal=name)):
            with pytest.raises(InputError, match="higher means surer"):
                refused()
        with pytest.raises(PolicyError, match="higher means surer"):
            Policy("m", (0.5,), signal=name)
        return
    assert diagnose(runs(name), signal=name).verdict == "signal"
    assert diagnose(runs(name, wrong=0.1, right=1.0), signal=name).verdict == "inverted_signal"


@pytest.mark.parametrize("name", [*(s.name for s in SIGNALS.values() if not s.higher_is_surer), "own"])
def test_every_signal_is_certified_on_its_grid(name):
    """The threshold between right and wrong answers is of the row's grid; replay stops by it, the report names the signal."""
    policy = calibrate(runs(name), rule="entropy", signal=name)
    assert (policy.signal, policy.reason) == (name, "certified")
    assert policy.thresholds[0] in Signal.named(name).grid(20)
    assert 0.1 < policy.thresholds[0] < 1.05
    found = replay(runs(name), policy)
    assert found.stopped_early > 0.8
    assert found.lost_correct == 0
    assert Signal.named(name).title in build_report(runs(name), policy)


@pytest.mark.parametrize("name", [s.name for s in SIGNALS.values() if s.source == "probe"])
def test_a_signal_of_a_probe_needs_one(name):
    """Where a step is a call nobody asks for a further answer: such a policy is refused there."""
    with pytest.raises(PolicyError, match="higher means surer" if SIGNALS[name].higher_is_surer else "read of a probe"):
        Policy("m", (0.5,), signal=name, mode="refine", segmentation=Segmentation("call", 1))


@pytest.mark.parametrize("name", [s.name for s in SIGNALS.values() if s.tried])
def test_what_is_tried_unasked_is_tried_and_compared(name):
    """Where it is recorded, calibration walks it beside the traces' own signal, and a comparison shows it."""
    traces = runs(name)
    tried = calibrate(traces).calibration["certificate"]["rules_tried"]
    assert f"entropy ({name})" in tried
    row = next(r for r in compare(traces, folds=2, resamples=100).rules if r.rule == f"entropy ({name.removesuffix('_entropy')})")
    assert row.applicable


def test_the_page_lists_what_a_step_leaves_behind():
    """The table of the monitor's page has a row for each of them, and no other."""
    page = (ROOT / "docs" / "monitor.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \|", page.partition("| signal | meaning |")[2].partition("\n\n")[0], re.MULTILINE)
    assert tuple(listed) == STEP_SIGNALS


# --- a signal of the user's own


def test_a_name_without_a_row_has_one_documented_row():
    """It is the traces' own, of no known unit, lower = surer, on the grid up to 2^14; its name is its label."""
    own = Signal.named("surprise")
    assert own == replace(own, name="surprise", label="surprise", unit="", source="trace", bits_a_token=False, tried=False)
    assert (own.title, own.higher_is_surer, own.grid(20)[-1]) == ("surprise", False, 2.0**14)


def test_a_hostile_name_is_made_printable_and_short():
    """It stands in pages and plots."""
    assert Signal.named("a\nb\u202e" + "x" * 99).title == "a b\ufffd" + "x" * 35 + "…"


def test_an_own_signal_may_be_what_entropy_holds():
    """Traces that name another signal for their ``entropy`` are calibrated and replayed on that; so the policy names it."""
    traces = [replace(t, steps=[replace(s, signals={}) for s in t.steps], signal="surprise") for t in runs("mean_entropy")]
    policy = calibrate(traces, rule="entropy")
    assert (policy.signal, policy.reason) == ("surprise", "certified")
    assert replay(traces, policy).stopped_early > 0.8
    assert json.loads(json.dumps(policy.to_dict()))["signal"] == "surprise"


def test_an_own_signal_never_stops_live():
    """Nothing here computes it, so it is missing, and what is missing never stops."""
    record = StepRecord(1, 10, 0.0, 1.0)
    policy = Policy("m", (9.0,), signal="surprise")
    assert not policy.stop_rule.stops(policy.stop_rule.reading(record, policy.mass_floor, "4", "4"))
    assert policy.stop_rule.unrecorded == ("surprise",)
    assert as_table(runs("surprise")).values("surprise")[0] > 0
