"""Who takes part in a comparison: each rule with what it does on runs to judge on, given runs to fit on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from entropy_chains.core.rules import RULES, EntropyRule, Rule
from entropy_chains.core.signals import SIGNALS
from entropy_chains.offline.calibrate import calibrate
from entropy_chains.offline.published import (
    BASELINES,
    Baseline,
    DeepConf,
    ThinkingBudget,
    TokenBudget,
    certified_parameter,
    lacking,
    oracle_stops,
    tokens_spent,
)
from entropy_chains.offline.replay import decisions
from entropy_chains.offline.table import Array, Table
from entropy_chains.options import OPTIONS

HINDSIGHT = "hindsight"
"""Method of the oracle: no rule, but what knowing the full run's answer beforehand would save."""


class Terms(NamedTuple):
    """What every fit is given."""

    max_loss: float
    confidence: float
    seed: int


class Decided(NamedTuple):
    """What a rule does with the judged runs: the step each stops after (0 = in full), what each costs, and why."""

    stops: Array
    spent: Array
    parameter: float | None
    reason: str


class Contender(NamedTuple):
    """A rule and what it does: ``decide(fitting part, judged part, terms)``; ``missing``: why it cannot be judged, or None."""

    rule: str
    method: str
    fitted: bool
    decide: Callable[[Table, Table, Terms], Decided]
    missing: Callable[[Table], str | None] = lambda table: None


def contenders(table: Table) -> list[Contender]:
    """All rules: this library's, the paper's formulas, the published ones both ways, never stopping, and the oracle."""
    main = table.signal
    rules = [Contender("auto", "certified", True, _calibrated())]
    rules += [_own_rule(rule.name, rule(signal=main)) for rule in RULES.values() if (table.mode or "thinking") in rule.certified_in]
    for signal in (s.name for s in SIGNALS.values() if s.tried and s.name != main):
        rules.append(_own_rule(f"{EntropyRule.name} ({signal.removesuffix('_entropy')})", EntropyRule(signal=signal)))
    rules += [Contender(m, "published", True, _calibrated(method=m), _no_entropy) for m in OPTIONS["method"] if m != "certified"]
    for rule in BASELINES:
        rules.append(Contender(rule.name, "certified", True, partial(_walked, rule), rule.missing))
        if not isinstance(rule, TokenBudget | ThinkingBudget):  # nobody publishes a budget for all models
            fitted = isinstance(rule, DeepConf)
            rules.append(Contender(rule.name, "published", fitted, partial(_as_published, rule), rule.missing))
    return [*rules, Contender("never", "none", False, _never), Contender("oracle", HINDSIGHT, False, _oracle)]


def _no_entropy(table: Table) -> str | None:
    return lacking(table, table.signal, table.entropy)


def _own_rule(name: str, rule: Rule) -> Contender:
    """A rule of this library's, on the signal that it has."""
    settings = {"rule": rule.name} | ({"signal": rule.signal} if rule.reads_signal else {})
    return Contender(name, "certified", True, _calibrated(**settings), partial(_missing, rule))


def _missing(rule: Rule, table: Table) -> str | None:
    """Which signal of the rule the table lacks, in words; None where it has all."""
    columns = {**table.signals, table.signal: table.entropy}
    return next(filter(None, (lacking(table, s.name, columns.get(s.name)) for s in rule.signals)), None)


def _calibrated(**settings: Any) -> Callable[[Table, Table, Terms], Decided]:
    """One of this library's rules, with the arguments of :func:`entropy_chains.calibrate`."""

    def decide(fit: Table, judged: Table, terms: Terms) -> Decided:
        policy = calibrate(fit, **terms._asdict(), **settings)
        stops = decisions(judged, policy)
        every_probe = policy.active and policy.stop_rule.reads_answers
        parameter = policy.thresholds[0] if policy.active else None
        return Decided(stops, tokens_spent(judged, stops, every_probe), parameter, policy.reason)

    return decide


def _walked(rule: Baseline, fit: Table, judged: Table, terms: Terms) -> Decided:
    level = round(1.0 - terms.confidence, 12)
    parameter, reason = certified_parameter(rule, fit, max_loss=terms.max_loss, level=level, seed=terms.seed)
    return _stopped(rule, judged, parameter, reason)


def _as_published(rule: Baseline, fit: Table, judged: Table, terms: Terms) -> Decided:
    return _stopped(rule, judged, rule.published(fit), "uncertified")


def _stopped(rule: Baseline, judged: Table, parameter: float | None, reason: str) -> Decided:
    stops = rule.stops(judged, parameter)
    return Decided(stops, rule.spent(judged, stops, parameter), parameter, reason)


def _never(fit: Table, judged: Table, terms: Terms) -> Decided:
    stops = np.zeros(judged.runs, np.int32)
    return Decided(stops, tokens_spent(judged, stops, every_probe=False), None, "always full")


def _oracle(fit: Table, judged: Table, terms: Terms) -> Decided:
    stops = oracle_stops(judged)
    return Decided(stops, tokens_spent(judged, stops, every_probe=False), None, HINDSIGHT)
