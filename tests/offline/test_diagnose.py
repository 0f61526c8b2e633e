"""Is there a signal: AUROC within steps, Cohen's d, intervals over groups."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_chains.errors import InputError
from entropy_chains.offline import bootstrap
from entropy_chains.offline import diagnose as diagnosis
from entropy_chains.offline.diagnose import diagnose, separation
from entropy_chains.offline.table import as_table
from entropy_chains.offline.traces import Step, Trace

RIGHT, WRONG = "1", "0"


def traces(*runs):
    """Runs as lists of (right, entropy) pairs."""
    return [Trace(str(i), [Step(RIGHT if c else WRONG, h, 10) for c, h in steps], gold=RIGHT) for i, steps in enumerate(runs)]


def population(rng, shift, questions=150, steps=3):
    """Random runs in which wrong answers lie ``shift`` bits higher."""
    right = rng.random((questions, steps)) < 0.7
    return traces(*[list(zip(r, rng.normal(5, 0.5, steps) + shift * ~r, strict=True)) for r in right])


def test_auroc_by_hand():
    """Step 1: wrong {.3, .2} against right {.1, .2}: wins 1 + 1 + 1 + ½ of 4 = .875; step 2: wrong .1 against right .5: 0 of 1.

    Over all steps only those count after which a run goes on: wrong .3 against right .1.
    """
    found = diagnose(traces([(True, 0.1), (True, 0.5)], [(False, 0.3), (False, 0.1)], [(True, 0.2)], [(False, 0.2)]))
    assert found.steps[0].auroc == pytest.approx(3.5 / 4)
    assert found.steps[1].auroc == 0.0
    assert found.auroc == 1.0
    assert [s.n for s in found.steps] == [4, 2]
    assert [s.accuracy for s in found.steps] == [0.5, 0.5]


def test_one_bootstrap_gives_all_intervals(monkeypatch):
    """The interval over early steps and those of single steps come from the same resamples, drawn once."""
    drawn = []
    monkeypatch.setattr(diagnosis, "resampled_weights", lambda *given: drawn.append(1) or bootstrap.resampled_weights(*given))
    result = diagnose(population(np.random.default_rng(1), 0.3))
    assert (len(drawn), result.auroc_interval is None, len(result.steps)) == (1, False, 3)


def test_pooling_makes_a_signal_out_of_nothing():
    """Simpson: no difference within a step, but entropy falls as accuracy rises; pooled .5 becomes more, stratified stays ½."""
    easy = [[(True, 1.0), (True, 0.1)], [(False, 1.0), (True, 0.1)], [(False, 1.0), (False, 0.1)]]
    found = diagnose(traces(*easy))
    assert found.auroc == 0.5
    assert found.auroc_pooled > 0.6


def test_auroc_lost_asks_only_what_a_stop_can_lose():
    """Positive is a wrong step of a right run: a wrong step of a wrong run is a negative, and last steps are left out."""
    found = diagnose(traces([(False, 0.9), (True, 5.0)], [(False, 0.1), (False, 9.0)], [(True, 0.5), (True, 0.0)]))
    assert found.auroc_lost == 1.0
    assert found.steps[0].auroc == 0.5


@st.composite
def small_runs(draw):
    step = st.tuples(st.booleans(), st.one_of(st.none(), st.sampled_from([0.0, 0.1, 0.2, 0.3])))
    return draw(st.lists(st.lists(step, min_size=1, max_size=4), min_size=1, max_size=12))


@given(small_runs())
@settings(max_examples=100, deadline=None)
def test_auroc_equals_counting_pairs(runs):
    """The sorted computation equals a loop over all pairs of an early step, ties a half, missing entropies left out."""
    wins = pairs = 0.0
    for step in range(4):
        rows = [r[step] for r in runs if len(r) > step + 1 and r[step][1] is not None]
        for wrong in (h for c, h in rows if not c):
            for right in (h for c, h in rows if c):
                wins += (wrong > right) + (wrong == right) / 2
                pairs += 1
    found = diagnose(traces(*runs), resamples=100).auroc
    assert found == pytest.approx(wins / pairs) if pairs else found is None


@given(small_runs(), st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_a_weight_is_a_repeated_group(runs, extra):
    """Weighted pair counts equal plain ones of a table in which a group stands as often as its weight says."""
    table = as_table(traces(*runs))
    weights = np.ones((1, table.groups))
    weights[0, 0] = extra
    repeated = as_table(traces(*([runs[0]] * extra + runs[1:]))) if extra or len(runs) > 1 else None

    def counted(t, w):
        strata = diagnosis.stratify(t.values(), t.correct == 0, t.step, t.group[t.run], ~np.isnan(t.values()))
        return [sum(float(x[0]) for x in counts) for counts in zip(*[diagnosis.pair_counts(s, w) for s in strata], strict=True)]

    expected = counted(repeated, np.ones((1, repeated.groups))) if repeated else []
    assert sum(counted(table, weights)) == pytest.approx(sum(expected))


def test_cohens_d_by_hand():
    """Right {1, 2, 3}, wrong {4, 6}: means 2 and 5, variances 1 and 2, pooled SD √((2·1 + 1·2)/3) = 1.1547, d = 2.598."""
    s = separation(np.array([1.0, 2.0, 3.0, 4.0, 6.0, np.nan]), np.array([False] * 3 + [True] * 3))
    assert (s.mu_correct, s.sigma_correct, s.mu_wrong, s.sigma_wrong) == pytest.approx((2, 1, 5, math.sqrt(2)))
    assert s.cohens_d == pytest.approx(3 / math.sqrt(4 / 3))
    assert (s.right, s.wrong) == (3, 2)


def test_one_wrong_answer_has_no_spread():
    """Below two of either class there is no standard deviation, hence no d."""
    assert separation(np.array([1.0, 2.0, 9.0]), np.array([False, False, True])).cohens_d is None


def test_missing_entropies_are_told_as_such():
    """Where no step before the last has an entropy, the sentence says that, and not that more questions help."""
    found = diagnose(traces(*[[(n % 2 == 0, None), (True, 0.1)] for n in range(40)]))
    assert (found.recorded, found.verdict) == (0.0, "too_few_examples")
    assert "No entropy is recorded" in found.sentence
    assert "No entropy" not in diagnose(traces([(True, 0.1), (True, 0.1)])).sentence


@pytest.mark.parametrize(("shift", "verdict"), [(1.0, "signal"), (0.0, "no_signal"), (-1.0, "inverted_signal")])
def test_verdicts(shift, verdict):
    """Wrong answers higher, alike or lower: the verdict says which, and ``signal`` is the lower bound's being above a half."""
    found = diagnose(population(np.random.default_rng(6), shift))
    assert found.verdict == verdict
    assert found.signal == (verdict == "signal") == (found.auroc_interval[0] > 0.5)
    assert found.sentence


@pytest.mark.parametrize(
    "runs", [[[(True, 0.1)]] * 5, [[(True, 0.1)], [(True, 0.2)], [(False, 0.9)]], [[(True, None)], [(False, 0.2)]]]
)
def test_too_few_examples(runs):
    """One class only, a single wrong question, or no entropies: no interval and no verdict but that."""
    found = diagnose(traces(*runs))
    assert (found.verdict, found.signal, found.auroc_interval) == ("too_few_examples", False, None)


def test_agreement_labels_leave_the_last_step_out():
    """The last answer always agrees with itself, so it is no evidence; there is no accuracy of the full run either."""
    runs = [Trace(str(i), [Step(str(i % 2), 0.1 * i, 1), Step("1", 0.0, 1)]) for i in range(8)]
    found = diagnose(runs)
    assert (found.labels, found.accuracy_full) == ("agreement", None)
    assert [s.step for s in found.steps] == [1]


def test_the_object_has_the_contract_s_keys():
    """``to_dict`` has exactly the keys that the contract lists, ``recorded`` and ``answers_missing``, and is JSON."""
    found = diagnose(traces([(True, 0.1)], [(False, 0.3)])).to_dict()
    keys = "questions groups labels judged cut accuracy_full recorded answers_missing longest signal verdict"
    keys += " auroc auroc_interval auroc_pooled auroc_lost cohens_d steps"
    assert set(found) == set(keys.split())
    assert set(found["steps"][0]) == {"step", "n", "accuracy", "auroc", "auroc_interval", "cohens_d"}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_intervals_are_seeded_and_cover():
    """Equal seeds give equal intervals; over 60 samples the 95 % interval holds the true .760 (Φ(1/√2)) in at least 85 %."""
    rng = np.random.default_rng(1)
    sample = population(rng, 0.5, questions=60)
    assert diagnose(sample, seed=3).to_dict() == diagnose(sample, seed=3).to_dict()
    truth, held = 0.5 * (1 + math.erf(1 / math.sqrt(2) / math.sqrt(2))), 0
    for _ in range(60):
        low, high = diagnose(population(rng, 0.5, questions=60), resamples=300).auroc_interval
        held += low <= truth <= high
    assert held >= 51


def test_runs_of_one_question_are_not_independent():
    """The same runs recorded nine times under their groups give no narrower interval than once; as own groups they would."""
    rng = np.random.default_rng(2)
    once = population(rng, 0.5, questions=40)
    nine = [Trace(f"{t.id}-{i}", t.steps, group=t.id, gold=t.gold) for t in once for i in range(9)]
    apart = [Trace(t.id, t.steps, gold=t.gold) for t in nine]

    def width(found):
        return found.auroc_interval[1] - found.auroc_interval[0]

    single = width(diagnose(once))
    assert width(diagnose(nine)) == pytest.approx(single, rel=0.05)
    assert width(diagnose(apart)) < single / 2


def test_a_part_of_the_groups_gives_nearly_the_whole_s_interval(monkeypatch):
    """Above the row limit the bootstrap works on a part; scaled and centred, its interval is that of the whole within a tenth."""
    sample = as_table(population(np.random.default_rng(3), 0.5, questions=2000))
    low, high = diagnose(sample).auroc_interval
    monkeypatch.setattr(bootstrap, "MAX_ROWS", 2400)
    part_low, part_high = diagnose(sample).auroc_interval
    assert part_high - part_low == pytest.approx(high - low, rel=0.15)
    assert (part_low + part_high) / 2 == pytest.approx((low + high) / 2, abs=0.1 * (high - low))


@pytest.mark.parametrize("bad", [{"seed": -1}, {"seed": 1.0}, {"resamples": 5}, {"signal": "deepconf"}, {"signal": "unheard"}])
def test_bad_arguments_are_named(bad):
    """Each wrong argument is refused with its name and value."""
    (name, value), *_ = bad.items()
    with pytest.raises(InputError, match=f"{name} is {value!r}"):
        diagnose(traces([(True, 0.1)]), **bad)
