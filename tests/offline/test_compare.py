"""Rules side by side: judged on runs they were not fitted on, with the same costs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from comparisons import SETTINGS, population, row

from entropy_chains.errors import InputError, PolicyMismatch
from entropy_chains.offline import compare as comparing
from entropy_chains.offline import contenders
from entropy_chains.offline.calibrate import calibrate
from entropy_chains.offline.compare import compare, transfer
from entropy_chains.offline.contenders import Decided
from entropy_chains.offline.replay import replay
from entropy_chains.offline.table import as_table

# --- the object


def test_the_object_has_the_contract_s_keys(compared):
    """``to_dict`` is JSON and has, for every rule, the keys that the contract lists."""
    written = compared.to_dict()
    assert json.loads(json.dumps(written, allow_nan=False)) == written
    assert written["questions"] == 150
    wanted = {
        "rule",
        "fitted",
        "accuracy_change",
        "accuracy_change_interval",
        "tokens_saved",
        "lost_correct",
        "oracle_fraction",
        "applicable",
    }
    assert all(wanted <= set(r) for r in written["rules"])


def test_order_and_front(compared):
    """Within the loss first, then by tokens saved; on the front stands exactly what no other rule beats, the oracle left out."""
    keys = [(not r.within_max_loss, -r.tokens_saved) for r in compared.rules]
    assert keys == sorted(keys)
    real = [r for r in compared.rules if r.method != "hindsight"]
    for r in real:
        others = [o for o in real if o.tokens_saved >= r.tokens_saved and o.accuracy_change >= r.accuracy_change]
        assert r.pareto is all((o.tokens_saved, o.accuracy_change) == (r.tokens_saved, r.accuracy_change) for o in others)
    assert not row(compared, "oracle", "hindsight").pareto
    for r in real:
        assert r.within_max_loss is (r.lost_correct / 150 <= 0.05)


# --- fitted on one part, judged on the other


@pytest.mark.parametrize("folds", [2, 5])
def test_every_run_is_judged_once_by_a_rule_that_never_saw_its_question(folds, monkeypatch):
    """The parts fitted on and judged on share no group, and the judged parts together are all runs."""
    table, seen = as_table(population(40, copies=3)), []

    def decide(fit, judged, terms):
        seen.append((set(fit.ids), set(judged.ids)))
        return Decided(np.ones(judged.runs, np.int32), np.arange(judged.runs), float(judged.runs), "certified")

    spy = contenders.Contender("spy", "certified", True, decide)
    monkeypatch.setattr(comparing, "contenders", lambda table: [spy])
    found = compare(table, folds=folds, resamples=100)
    group = dict(zip(table.ids, table.group.tolist(), strict=True))
    assert len(seen) == folds
    for fit, judged in seen:
        assert fit | judged == set(table.ids)
        assert not {group[i] for i in fit} & {group[i] for i in judged}
    assert sorted(i for _, judged in seen for i in judged) == sorted(table.ids)
    assert found.rules[0].parameters == tuple(float(len(judged)) for _, judged in seen)
    rest = sum(len(judged) * (len(judged) - 1) // 2 for _, judged in seen)
    assert found.rules[0].tokens_saved == pytest.approx(1 - rest / table.tokens.sum())


@pytest.fixture(scope="module")
def transferred(runs):
    return transfer(runs, population(120, seed=7), resamples=200)


@pytest.mark.parametrize(("rule", "method"), SETTINGS)
def test_our_rows_are_calibrate_and_replay(rule, method, runs, transferred):
    """A row of this library's is what calibrate on one file and replay on the other give: figures, costs, intervals."""
    policy = calibrate(runs, **SETTINGS[rule, method])
    by_hand = replay(population(120, seed=7), policy, resamples=200)
    found = row(transferred, rule, method)
    for name in (
        "accuracy_change",
        "accuracy_change_interval",
        "tokens_saved",
        "tokens_saved_interval",
        "lost_correct",
        "gained_correct",
    ):
        assert getattr(found, name) == getattr(by_hand, name), name
    assert found.reason == policy.reason
    assert transferred.folds is None


def test_a_seed_repeats_and_another_differs(runs):
    """Folds and draws come from the seed alone."""
    first, again, other = (compare(runs, folds=2, seed=s, resamples=100).to_dict() for s in (1, 1, 2))
    assert first == again
    assert first != other


# --- what is refused


@pytest.mark.parametrize("wrong", [{"folds": 1}, {"folds": 31}, {"folds": True}, {"max_loss": 1}, {"confidence": 0}, {"seed": -1}])
def test_bad_arguments_are_named(wrong):
    """The message names the argument and its value."""
    (name, value), *_ = wrong.items()
    with pytest.raises(InputError, match=f"{name} is {value!r}"):
        compare(population(30), **wrong)


def test_one_question_cannot_be_compared():
    """Several runs of a single question leave nothing to judge on."""
    with pytest.raises(InputError, match="one question"):
        compare(population(1, copies=5))


def test_a_few_questions_and_short_runs_are_taken():
    """Two questions, and runs of a single step: nothing to stop, no error."""
    found = compare(population(2, steps=1), folds=2, resamples=100)
    assert all(r.tokens_saved in (0.0, None) for r in found.rules)


def test_transfer_refuses_another_model_and_other_labels(runs):
    """A threshold belongs to a model and its settings; "warn" goes on."""
    here, there = population(60, model="m"), population(60, model="n", seed=2)
    with pytest.raises(PolicyMismatch, match="'n'"):
        transfer(here, there)
    with pytest.warns(UserWarning, match="'n'"):
        assert transfer(here, there, on_mismatch="warn", resamples=100).questions == 60
    with pytest.raises(InputError, match="agreement labels"):
        transfer(runs, population(30, gold=None))
