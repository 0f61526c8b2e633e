"""The guarantee, tested as one: seeded repeats against the closed-form risk, violations counted; and faults that must be caught.

A scenario is a small probability model of a run. Steps are independent draws of cells (entropy, tokens, right or wrong), so the
true risk of any policy is a finite sum. The certificate promises risk <= 5 % with 90 % confidence: over R repeats at most a tenth
may violate, and R Bernoulli draws at .1 exceed the 99 % quantile of their count once in a hundred. A harness that cannot see a
broken procedure proves nothing, so public mistakes are planted in it, and each must violate more often than that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
from scipy import stats

from entropy_chains.core.answers import same
from entropy_chains.core.policy import Policy
from entropy_chains.core.rules import MISSING, EntropyRule, Reading, Rule
from entropy_chains.offline.calibrate import calibrate
from entropy_chains.offline.certify import allowances, curve, last_passing, one_run_a_group
from entropy_chains.offline.table import Table

pytestmark = pytest.mark.slow

EPSILON, DELTA, REPEATS = 0.05, 0.1, 300
ALLOWED = int(stats.binom.ppf(0.99, REPEATS, DELTA))
RIGHT, WRONG = "1", "0"


class Cell(NamedTuple):
    """One possible outcome of a step: its chance, entropy, tokens, whether it has the right answer, or any, and further signals."""

    chance: float
    entropy: float | None
    tokens: int
    right: bool
    signals: tuple[tuple[str, float], ...] = ()
    answered: bool = True

    @property
    def answer(self) -> str | None:
        return (RIGHT if self.right else WRONG) if self.answered else None


@dataclass(frozen=True)
class Scenario:
    """Independent steps, then a full run that is right with a chance of its own; ``copies``: runs of one question, all equal."""

    name: str
    steps: tuple[tuple[Cell, ...], ...]
    full: float = 0.95
    questions: int = 158
    copies: tuple[int, ...] = (1,)
    probe: int = 0
    mode: str = "thinking"

    def table(self, seed: int) -> Table:
        """Recorded runs drawn from the scenario."""
        rng = np.random.default_rng([seed, 77])
        drawn = [rng.choice(len(cells), self.questions, p=[c.chance for c in cells]) for cells in self.steps]
        right = rng.random(self.questions) < self.full
        copies = rng.choice(self.copies, self.questions)
        return Table.from_traces(self._record(q, r, drawn, right) for q in range(self.questions) for r in range(copies[q]))

    def _record(self, question, run, drawn, right):
        steps = []
        for cells, which in zip(self.steps, drawn, strict=True):
            cell = cells[which[question]]
            signals = dict(cell.signals) | ({} if cell.entropy is None else {"sum_entropy": cell.entropy * cell.tokens})
            steps.append(
                {
                    "answer": cell.answer,
                    "entropy": cell.entropy,
                    "tokens": cell.tokens,
                    "signals": signals,
                    "probe_tokens": self.probe,
                }
            )
        steps.append(
            {"answer": RIGHT if right[question] else WRONG, "entropy": 0.1, "tokens": 100, "signals": {"sum_entropy": 10.0}}
        )
        steps[-1]["signals"] |= {name: 0.1 for cell in self.steps[0] for name, _ in cell.signals}
        return {
            "id": f"{question}-{run}",
            "group": str(question),
            "gold": RIGHT,
            "k": 20,
            "estimator": "renormalised",
            "mode": self.mode,
            "steps": steps,
        }

    def risk(self, policy: Policy | None) -> float:
        """The policy's exact chance of losing a right answer: a sum over the cells of each step, and the answer before."""
        if policy is None or not policy.active:
            return 0.0
        alive, lost = {None: 1.0}, 0.0
        for number, cells in enumerate(self.steps, 1):
            passed = {RIGHT: 0.0, WRONG: 0.0, None: 0.0}
            for (previous, chance), cell in product(alive.items(), cells):
                value = cell.entropy
                if value is not None and policy.signal != "mean_entropy":
                    value = value * cell.tokens if policy.signal == "sum_entropy" else dict(cell.signals)[policy.signal]
                answer, rule = cell.answer, policy.stop_rule
                seen = cell.answered or not rule.sees_answers(policy.mode, policy.scope)
                if seen and rule.stops(Reading(number, MISSING if value is None else value, answer, previous)):
                    lost += chance * cell.chance * (not cell.right) * self.full
                else:
                    passed[answer] += chance * cell.chance
            alive = passed
        return lost


def cells(values, chances, wrong, tokens=(100,), missing=0.0) -> tuple[Cell, ...]:
    """A step from its entropies, their chances, and how often each is wrong; lengths and missing entropies independent of both."""
    made = []
    for (value, p, w), length in product(zip(values, chances, wrong, strict=True), tokens):
        for right, q in ((True, 1 - w), (False, w)):
            share = p * q / len(tokens)
            made.append(Cell(share * (1 - missing), value, length, right))
            if missing:
                made.append(Cell(share * missing, None, length, right))
    return tuple(made)


def unanswered(step: tuple[Cell, ...], share: float) -> tuple[Cell, ...]:
    """The step with a share of its answers malformed, most of them where the model is surest."""
    made = []
    for cell in step:
        lost = min(0.6, share * 0.4 / (cell.entropy or 1.0))
        made += [
            cell._replace(chance=cell.chance * (1 - lost)),
            cell._replace(chance=cell.chance * lost, right=False, answered=False),
        ]
    return tuple(made)


VALUES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
SIXTH = (1 / 6,) * 6
STEEP = (0.01, 0.03, 0.09, 0.2, 0.5, 0.8)  # times .95/6 and summed: .0016, .0063, .021, .052, .13, .26

SCENARIOS = (
    Scenario("one step, ties, risk .052 just past the line", (cells(VALUES, SIXTH, STEEP),)),
    Scenario("three steps that get surer", tuple(cells([v * 0.7**i for v in VALUES], SIXTH, STEEP) for i in range(3))),
    Scenario(
        "sums that differ from means, six steps",
        (cells(VALUES, SIXTH, (0.005, 0.02, 0.05, 0.2, 0.5, 0.8), tokens=(40, 100, 200)),) * 6,
        questions=120,
    ),
    Scenario("one question, up to four equal runs", (cells(VALUES, SIXTH, STEEP),) * 2, questions=120, copies=(1, 2, 4)),
    Scenario("missing entropies", (cells(VALUES, SIXTH, STEEP, missing=0.3),) * 4),
    Scenario(
        "answers that agree, free", (cells(VALUES, SIXTH, (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)),) * 3, questions=200, mode="refine"
    ),
    Scenario("answers that are missing", (unanswered(cells(VALUES, SIXTH, STEEP), 0.2),) * 3, questions=200, mode="refine"),
    Scenario(
        "an eighth of the full answers right", (cells(VALUES, SIXTH, (0.05, 0.1, 0.3, 0.6, 0.9, 0.99)),), full=0.125, questions=240
    ),
    Scenario("a fifth of the full answers right", (cells(VALUES, SIXTH, STEEP),) * 2, full=0.2, questions=200),
)

SILENT = cells((0.1, 0.4, 1.6), (0.3, 0.3, 0.4), (0.9, 0.9, 0.9))

FEW = (
    Scenario("one of sixty right", (SILENT,) * 2, full=0.02, questions=60),
    Scenario("three in a hundred right", (SILENT,) * 2, full=0.03, questions=240),
)
"""Models of which hardly any full answer is right: any rule would pass the exact test, and lose most of them."""


@pytest.mark.parametrize("scenario", FEW, ids=lambda s: s.name)
def test_hardly_any_right_answer_is_no_ground_for_a_promise(scenario):
    """A policy stops in at most a tenth of the repeats; the bare walk, planted, often loses more than half of the right answers."""
    active, empty = 0, 0
    for seed in range(REPEATS):
        table = scenario.table(seed)
        active += calibrate(table, seed=seed).active
        found = walked(table, EntropyRule(), allowances(scenario.questions, EPSILON, DELTA)[0])
        empty += found is not None and scenario.risk(found[0]) > scenario.full / 2
    print(
        f"\n{scenario.name}: {active}/{REPEATS} stop; by the bare walk {empty}/{REPEATS} lose more than half of the right answers"
    )
    assert active <= ALLOWED < empty


def violations(scenario: Scenario, choose: Callable[[Table, int], Policy | None]) -> int:
    """In how many repeats the chosen policy's true risk is above what was promised."""
    return sum(scenario.risk(choose(scenario.table(seed), seed)) > EPSILON for seed in range(REPEATS))


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
def test_the_certificate_holds(scenario):
    """Over 300 repeats the certified policy violates in at most a tenth; the paper's plain mean is shown beside."""
    stopped, plain = [], []

    def certified(table, seed):
        policy = calibrate(table, seed=seed)
        stopped.append(policy.active)
        plain.append(scenario.risk(calibrate(table, method="mean", seed=seed)) > EPSILON if seed < 60 else False)
        return policy

    found = violations(scenario, certified)
    print(f"\n{scenario.name}: {found}/{REPEATS} violations certified ({np.mean(stopped):.0%} stop), mean {sum(plain)}/60")
    assert found <= ALLOWED
    assert np.mean(stopped) > 0.3  # a policy that never stops keeps every promise and proves nothing


AGREEING = Scenario(
    "no entropies, answers that agree from a step on",
    tuple(cells((None,), (1.0,), (w,)) for w in (0.4, 0.35, 0.3, 0.2, 0.15)),
    questions=158,
    mode="refine",
)


def test_the_certificate_holds_for_agreement():
    """Without logprobs: agreement is walked from the last step to earlier ones, with the promise broken somewhere between."""
    risks = [AGREEING.risk(Policy("m", (None,), rule="agreement", min_steps=s, mode="refine")) for s in range(2, 6)]
    assert min(risks) <= EPSILON < max(risks)
    rules = [calibrate(AGREEING.table(seed), seed=seed).rule for seed in range(20)]
    assert rules.count("agreement") > 10
    found = violations(AGREEING, lambda table, seed: calibrate(table, seed=seed))
    broken = violations(AGREEING, lambda table, seed: Policy("m", (None,), rule="agreement", min_steps=2, mode="refine"))
    print(f"\n{AGREEING.name}: {found}/{REPEATS} violations")
    assert found <= ALLOWED < broken


def test_the_true_risk_is_the_one_that_is_simulated():
    """The closed form equals the share of losses among 40,000 simulated questions, within four standard errors."""
    from entropy_chains.offline.replay import decisions

    scenario = Scenario("big", SCENARIOS[4].steps, questions=40_000)
    table = scenario.table(1)
    for policy in (
        Policy("m", (0.4,), k=20),
        Policy("m", (0.2, 0.8), rule="entropy+agreement"),
        Policy("m", (2.0,), rule="fixed-step", min_steps=2),
    ):
        stops = decisions(table, policy)
        rows = np.where(stops > 0, table.offsets[:-1] + stops - 1, table.last)
        risk = scenario.risk(policy)
        assert table.lost[rows].mean() == pytest.approx(risk, abs=4 * np.sqrt(risk / 40_000))
    assert same(RIGHT, RIGHT)
    assert not same(RIGHT, WRONG)


def test_the_risk_crosses_the_line_inside_the_grid():
    """Every scenario has thresholds on both sides of the promise; otherwise it could not be broken."""
    for scenario in SCENARIOS:
        risks = [
            scenario.risk(Policy("m", (t,))) for t in (0.0, *sorted({c.entropy for s in scenario.steps for c in s if c.entropy}))
        ]
        assert min(risks) <= EPSILON < max(risks), scenario.name


# --- planted faults: each a mistake found in public code


def walked(table: Table, candidate: Rule, allowed: int, tested=None, *, fault: str = "") -> tuple[Policy, float] | None:
    """The walk by hand with so many losses allowed, so that it can be broken; with its saving."""
    found = curve(table, candidate, one_run_a_group(table, 0) if tested is None else tested)
    failed = found.losses > allowed
    if fault == "first failing":
        at = int(np.argmax(failed)) if failed.any() else len(failed) - 1
    elif fault == "best of all thresholds":
        passing = np.flatnonzero(~failed)
        at = passing[np.argmax(found.saved[passing])] if len(passing) else None
    else:
        at = last_passing(found.losses, allowed)
    if at is None:
        return None
    return Policy("m", (float(found.settings[at]),), rule=candidate.name, signal=candidate.signal, k=20), float(found.saved[at])


def compare_fault(scenario: Scenario, sound, broken) -> None:
    """The sound procedure keeps the promise in this scenario, and the broken one does not."""
    kept, failed = (violations(scenario, lambda table, _, f=f: (f(table) or (None,))[0]) for f in (sound, broken))
    print(f"\n{scenario.name}: sound {kept}/{REPEATS}, broken {failed}/{REPEATS}, allowed {ALLOWED}")
    assert kept <= ALLOWED < failed


def alone(scenario: Scenario, runs: int = 0) -> int:
    """Losses allowed to a rule that is tried alone."""
    return allowances(runs or scenario.questions, EPSILON, DELTA)[0]


NAMES = tuple(f"s{i}" for i in range(6))


def six_signals(questions: int, risk: float) -> Scenario:
    """Six independent signals, each with this risk."""
    made = []
    for right, chance, low in ((True, 0.75, 0.6), (False, 0.25, risk / 0.25 / 0.95)):
        for bits in product((True, False), repeat=6):
            share = chance * float(np.prod([low if b else 1 - low for b in bits]))
            made.append(Cell(share, 1.0, 100, right, tuple((n, 0.1 if b else 3.0) for n, b in zip(NAMES, bits, strict=True))))
    return Scenario(f"six signals, {questions} questions", (tuple(made),), questions=questions)


def best(table: Table, allowed: list[int]) -> tuple[Policy, float] | None:
    """What saves most of the six, each walked with the losses allowed to it."""
    found = [
        w for n, k in zip(NAMES, allowed, strict=True) if k >= 0 and (w := walked(table, EntropyRule(signal=n), k)) is not None
    ]
    return max(found, key=lambda w: w[1], default=None)


def test_choosing_among_rules_at_full_delta_is_caught():
    """The best of six, each at the full delta, violates; with the losses that one delta allows to all of them, it does not."""
    scenario = six_signals(158, 0.056)
    shared = allowances(scenario.questions, EPSILON, DELTA, 6)
    compare_fault(scenario, lambda t: best(t, shared), lambda t: best(t, [alone(scenario)] * 6))


@pytest.mark.parametrize("questions", [75, 99, 120])
def test_one_loss_more_than_allowed_is_caught(questions):
    """The allocation leaves nothing unused: the same six rules, each with one loss more, violate."""
    scenario = six_signals(questions, 0.0505)
    shared = allowances(questions, EPSILON, DELTA, 6)
    compare_fault(scenario, lambda t: best(t, shared), lambda t: best(t, [k + 1 for k in shared]))


def test_counting_copies_as_independent_is_caught():
    """Sixty questions with four equal runs each, tested as 240 independent ones, violate."""
    scenario = Scenario("copies", (cells((0.1, 1.6), (0.5, 0.5), (0.11, 0.5)),), questions=60, copies=(4,))
    candidate = EntropyRule()
    copies = alone(scenario, 240)
    compare_fault(
        scenario,
        lambda t: walked(t, candidate, alone(scenario)),
        lambda t: walked(t, candidate, copies, np.ones(t.runs, bool)),
    )


def test_returning_the_first_failing_threshold_is_caught():
    """Where the risk jumps from 2 to 9 %, the first threshold that fails is the bad one."""
    scenario = Scenario("first failing", (cells((0.1, 0.4, 1.6), (0.4, 0.3, 0.3), (0.04, 0.26, 0.8)),))
    candidate = EntropyRule()
    allowed = alone(scenario)
    compare_fault(scenario, lambda t: walked(t, candidate, allowed), lambda t: walked(t, candidate, allowed, fault="first failing"))


def test_the_best_over_all_thresholds_is_caught():
    """Each threshold stops everyone at another step, each too risky by a hair: one of eleven passes by luck, and is taken."""
    steps = tuple(cells((2.0 * 0.7**i,), (1.0,), (0.056 / 0.95,)) for i in range(11))
    candidate, scenario = EntropyRule(), Scenario("best of all", steps)
    allowed = alone(scenario)
    compare_fault(
        scenario,
        lambda t: walked(t, candidate, allowed),
        lambda t: walked(t, candidate, allowed, fault="best of all thresholds"),
    )
