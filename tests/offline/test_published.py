"""Published rules: each by hand on recorded runs, their costs, what they need, and the certificate that walks them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from entropy_chains.core.signals import Signal
from entropy_chains.offline.calibrate import calibrate
from entropy_chains.offline.certify import allowances, last_passing, one_run_a_group
from entropy_chains.offline.published import (
    BASELINES,
    AnswerConsistency,
    Baseline,
    DeepConf,
    EntropyAfterThink,
    ThinkingBudget,
    TokenBudget,
    TrialConfidence,
    certified_parameter,
    tokens_spent,
)
from entropy_chains.offline.replay import decisions
from entropy_chains.offline.table import as_table
from entropy_chains.offline.traces import Step, Trace

RIGHT, WRONG = "1", "0"


def run(name, answers, *, tokens=10, probe=3, **signals):
    """A run with one answer a step; ``signals``: a list of values a name."""
    steps = [
        Step(a, 0.1, tokens, probe_tokens=probe, signals={n: v[i] for n, v in signals.items() if v[i] is not None})
        for i, a in enumerate(answers)
    ]
    return Trace(name, steps, gold=RIGHT)


def stops(rule, parameter, *runs):
    return rule.stops(as_table(runs), parameter).tolist()


# --- each rule by hand


def test_token_budget_stops_at_the_first_step_that_has_spent_it():
    """Ten tokens a step: 20 are spent after step 2, 21 after step 3; the last step is never an early stop."""
    two = run("a", [RIGHT] * 4), run("b", [RIGHT] * 2)
    assert stops(TokenBudget(), 20, *two) == [2, 0]
    assert stops(TokenBudget(), 21, *two) == [3, 0]
    assert stops(TokenBudget(), 1, *two) == [1, 1]
    assert stops(TokenBudget(), None, *two) == [0, 0]


@pytest.mark.parametrize(
    ("budget", "stop", "spent"),
    [
        (40, 0, 40),  # ends with the run
        (35, 0, 40),  # inside the last step, which holds the answer
        (30, 0, 40),  # where thinking ends by itself
        (29, 2, 29 + 3),  # inside step 3: the answer after step 2, and all 29 tokens
        (20, 2, 20 + 3),  # exactly at the end of step 2: step 3 is never begun
        (19, 1, 19 + 3),
        (4, 1, 10 + 3),  # inside step 1: nothing earlier is recorded, so the whole step is paid
    ],
)
def test_a_thinking_budget_pays_up_to_its_cut(budget, stop, spent):
    """Steps of 10, 10, 10 and an answer of 10 tokens: a cut at B tokens costs B, and the answer of the step before."""
    table = as_table([run("a", [RIGHT] * 4)])
    found = ThinkingBudget().stops(table, budget)
    assert (found.tolist(), ThinkingBudget().spent(table, found, budget).tolist()) == ([stop], [spent])


def test_a_thinking_budget_cuts_a_run_of_one_step_and_an_answer():
    """Ten tokens of thinking: a budget of 9 cuts inside it, one of 10 does not."""
    assert stops(ThinkingBudget(), 9, run("a", [RIGHT] * 2), run("b", [RIGHT])) == [1, 0]
    assert stops(ThinkingBudget(), 10, run("a", [RIGHT] * 2)) == [0]


def test_deepconf_stops_where_confidence_is_high_and_its_threshold_is_a_percentile():
    """Lowest step confidences 1 to 11: their 90th percentile is 10; a run stops at the first step that reaches it."""
    runs = [run(str(c), [RIGHT] * 3, deepconf=[c + 5.0, float(c), 99.0]) for c in range(1, 12)]
    assert DeepConf().published(as_table(runs)) == pytest.approx(10.0)
    sure = run("a", [RIGHT] * 4, deepconf=[9.9, None, 10.0, 50.0])
    assert stops(DeepConf(), 10.0, sure) == [3]


def test_trial_confidence_stops_above_its_threshold():
    """DEER's .95: .94 goes on, .96 stops; a missing confidence is never certainty."""
    low, high = run("a", [RIGHT] * 3, trial_confidence=[0.94, None, 1.0]), run("b", [RIGHT] * 3, trial_confidence=[0.9, 0.96, 1.0])
    rule = TrialConfidence()
    assert stops(rule, rule.published(as_table([low])), low, high) == [0, 2]


def test_eat_by_hand():
    """In nats E = 1, 0, 0 with α = .5: M = 1, .5, .25 and V = 0, .125, .09375; the first values never stop a run."""
    nats = np.array([1.0, 0.0, 0.0, 0.0])
    table = as_table([run("a", [RIGHT] * 4, eat=(nats / np.log(2)).tolist())])
    np.testing.assert_allclose(EntropyAfterThink(weight=0.5, first=1).values(table), [0, 0.125, 0.09375, 0.0546875])
    assert np.isnan(EntropyAfterThink(weight=0.5, first=3).values(table)).tolist() == [True, True, False, False]
    assert EntropyAfterThink(weight=0.5, first=2).stops(table, 0.1).tolist() == [3]
    assert EntropyAfterThink(weight=0.5, first=1).stops(table, 0.1).tolist() == [1]


def test_eat_passes_over_missing_values_and_runs_do_not_mix():
    """A gap neither counts as a value nor restarts; a run gives alone what it gives among others."""
    rng = np.random.default_rng(0)
    runs = [
        run(str(n), [RIGHT] * 8, eat=[None if rng.random() < 0.3 else float(rng.exponential()) for _ in range(8)]) for n in range(9)
    ]
    whole = EntropyAfterThink().values(as_table(runs))
    alone = [EntropyAfterThink().values(as_table([r])) for r in runs if any(s.signals for s in r.steps)]
    np.testing.assert_array_equal(whole, np.concatenate(alone))
    gaps = run("a", [RIGHT] * 4, eat=[1.0, None, 0.0, 0.0])
    packed = run("b", [RIGHT] * 3, eat=[1.0, 0.0, 0.0])
    rule = EntropyAfterThink(first=1)
    np.testing.assert_array_equal(rule.values(as_table([gaps]))[[0, 2, 3]], rule.values(as_table([packed])))


def test_answer_consistency_counts_equal_answers_in_a_row():
    """Normalised answers; a missing answer breaks the row and equals nothing, itself included; runs do not run together."""
    table = as_table([run("a", ["1", "1.0", None, None, "1", "1", "1"]), run("b", ["1", "0", "0"])])
    assert AnswerConsistency().values(table).tolist() == [1, 2, 1, 1, 1, 2, 3, 1, 1, 2]
    assert AnswerConsistency().stops(table, 2).tolist() == [2, 0]
    assert AnswerConsistency().published(table) == 3


# --- costs, and what a rule needs


def test_probes_are_paid():
    """Stopped after step 2 of 10 tokens: a rule that reads probes pays both, one that does not pays the one it stops with."""
    one = as_table([run("a", [RIGHT] * 3, trial_confidence=[0.0, 1.0, 1.0], deepconf=[0.0, 9.0, 9.0])])
    at = np.array([2])
    assert TrialConfidence().spent(one, at, 0.95).tolist() == [20 + 6]
    assert AnswerConsistency().spent(one, at, 2).tolist() == [20 + 6]
    assert DeepConf().spent(one, at, 9.0).tolist() == TokenBudget().spent(one, at, 20).tolist() == [20 + 3]
    full = np.array([0])
    assert TrialConfidence().spent(one, full, 0.95).tolist() == [30 + 6]  # it asked after both steps and went on
    assert TrialConfidence().spent(one, full, None).tolist() == [30]  # never stopping asks for nothing


@pytest.mark.parametrize("rule", [r for r in BASELINES if r.signal], ids=lambda r: r.name)
def test_a_signal_that_is_not_recorded_is_named(rule):
    """Without its signal a rule cannot be judged, nor where a good part of the steps lacks it; the last step needs none."""
    name = rule.signal
    assert rule.missing(as_table([run("a", [RIGHT] * 3)])) == f"the traces do not record {name!r}"
    half = as_table([run("a", [RIGHT] * 3, **{name: [1.0, None, 1.0]})])
    assert rule.missing(half) == f"{name!r} is recorded for 1 of 2 steps"
    assert rule.missing(as_table([run("a", [RIGHT] * 3, **{name: [1.0, 1.0, None]})])) is None


def test_answers_and_tokens_are_always_there():
    """Budgets and agreement need no signal; a thinking budget has no meaning where calls follow each other."""
    refine = [Trace("a", [Step(RIGHT, None, 1)] * 3, gold=RIGHT, mode="refine")]
    assert [r.missing(as_table(refine)) is None for r in (TokenBudget(), AnswerConsistency(), ThinkingBudget())] == [
        True,
        True,
        False,
    ]


@pytest.mark.parametrize("rule", BASELINES, ids=lambda r: r.name)
def test_settings_go_from_strict_to_lenient(rule):
    """Each next setting is reached by every value that reached the one before."""
    settings = rule.settings()
    assert (np.diff(settings) < 0).all() if rule.at_least else (np.diff(settings) > 0).all()


# --- the certificate


def population(questions=200, steps=4, copies=1, seed=0):
    """Runs whose wrong answers are less sure, by every signal."""
    rng = np.random.default_rng(seed)
    runs = []
    for n in range(questions):
        answers = [WRONG if rng.random() < 0.3 / (i + 1) else RIGHT for i in range(steps)] + [RIGHT]
        unsure = [abs(rng.normal(0.1 if a == RIGHT else 0.6, 0.1)) for a in answers]
        for c in range(copies):
            made = run(
                f"{n}-{c}",
                answers,
                probe=1,
                eat=unsure,
                deepconf=[10 - u for u in unsure],
                trial_confidence=[1 / (1 + u) for u in unsure],
            )
            for step, u in zip(made.steps, unsure, strict=True):
                step.entropy = u
            made.group = str(n)
            runs.append(made)
    return runs


@dataclass(frozen=True, slots=True)
class Entropy(Baseline):
    """The entropy rule of this library in the published rules' form."""

    name: ClassVar[str] = "entropy"
    at_least: ClassVar[bool] = False

    def values(self, table):
        return table.entropy

    def settings(self):
        return Signal.named("mean_entropy").grid(None)


@pytest.mark.parametrize("copies", [1, 3])
def test_the_walk_is_calibration_s(copies):
    """The entropy rule, walked as a published one is, gets the threshold that calibrate certifies, and stops where it stops."""
    table = as_table(population(copies=copies))
    policy = calibrate(table, rule="entropy", signal="mean_entropy", seed=3)
    found = certified_parameter(Entropy(), table, max_loss=0.05, level=0.1, seed=3)
    assert found == (policy.thresholds[0], policy.reason)
    assert Entropy().stops(table, found[0]).tolist() == decisions(table, policy).tolist()
    assert found[0] > 0


@pytest.mark.parametrize("rule", BASELINES, ids=lambda r: r.name)
def test_the_walk_against_a_plain_loop(rule):
    """The last setting before the first whose losses are too many, counted run by run on one run a question."""
    table = as_table(population(copies=2, seed=5))
    tested = one_run_a_group(table, 1)
    losses = []
    for parameter in rule.settings():
        lost = 0
        for n, stop in enumerate(rule.stops(table, parameter)):
            first, last = table.offsets[n], table.offsets[n + 1] - 1
            lost += bool(stop and tested[n] and table.correct[last] and not table.correct[first + stop - 1])
        losses.append(lost)
    at = last_passing(np.array(losses), allowances(int(tested.sum()), 0.05, 0.1)[0])
    found, reason = certified_parameter(rule, table, max_loss=0.05, level=0.1, seed=1)
    if reason == "certified":
        assert found == rule.settings()[at]
    else:  # nothing passed, or what passed saves nothing
        kept = None if at is None else rule.settings()[at]
        stopped = rule.stops(table, kept)
        assert (found, reason) == (None, "no_safe_threshold")
        assert kept is None or rule.spent(table, stopped, kept).sum() >= table.tokens.sum()


def test_too_few_questions_certify_nothing():
    """44 questions cannot show 5 % at 90 %, 45 without a loss can; copies of a question do not help."""
    runs = [run(str(n), [RIGHT] * 3) for n in range(45)]
    settings = {"max_loss": 0.05, "level": 0.1, "seed": 0}
    assert certified_parameter(TokenBudget(), as_table(runs), **settings) == (1.0, "certified")
    copies = [Trace(f"{t.id}-{i}", t.steps, gold=RIGHT, group=t.id) for t in runs[:44] for i in range(3)]
    assert certified_parameter(TokenBudget(), as_table(copies), **settings) == (None, "too_few_examples")


def test_what_costs_more_than_it_saves_is_not_kept():
    """Probes dearer than the steps they save: the rule is safe, and useless."""
    runs = [run(str(n), [RIGHT] * 5, probe=100) for n in range(60)]
    assert certified_parameter(AnswerConsistency(), as_table(runs), max_loss=0.05, level=0.1, seed=0) == (None, "no_safe_threshold")


def test_tokens_spent_by_hand():
    """Two runs, one stopped after step 1: 10 tokens and its probe against all 30."""
    table = as_table([run("a", [RIGHT] * 3), run("b", [RIGHT] * 3)])
    assert tokens_spent(table, np.array([1, 0]), every_probe=False).tolist() == [13, 30]
