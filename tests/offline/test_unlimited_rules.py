"""Rules that nothing keeps from stopping after steps that were not recorded, in files with runs that were cut off."""

from __future__ import annotations

import numpy as np
import pytest

from entropy_chains.core.rules import AgreementRule, FixedStepRule
from entropy_chains.offline.calibrate import calibrate
from entropy_chains.offline.certify import curve
from entropy_chains.offline.table import as_table
from entropy_chains.offline.traces import Step, Trace

WHOLE = [Trace(f"w{n}", [Step("1", None, 10)] * 4, gold="1", mode="refine") for n in range(94)]


def broken(*answers: str | None) -> list[Trace]:
    """Six loops with these answers, which an error ended."""
    steps = [Step(answer, None, 10) for answer in (*answers, None)]
    return [Trace(f"b{n}", steps, gold="1", mode="refine", finish="error") for n in range(6)]


def losses(runs: list[Trace], rule: AgreementRule | FixedStepRule) -> dict[int, int]:
    """How many are lost at each first step."""
    found = curve(as_table(runs), rule, np.ones(len(runs), bool))
    return {int(s): int(n) for s, n in zip(found.settings, found.losses, strict=True)}


@pytest.mark.parametrize("answers", ["56", "5678", "56789"])
def test_a_broken_loop_without_agreement_is_lost_however_long_it_is(answers):
    """Live, the next two answers may be equal and wrong, also where no recorded run is longer than the broken one."""
    assert set(losses([*broken(*answers), *WHOLE], AgreementRule(min_steps=2)).values()) == {6}
    assert not calibrate([*broken(*answers), *WHOLE], rule="agreement").active


def test_a_broken_loop_that_agrees_on_the_right_answer_is_not_lost():
    """It was stopped, and the answer is known."""
    assert losses([*broken("1", "1", "7", "8"), *WHOLE], AgreementRule(min_steps=2))[2] == 0


def test_a_fixed_step_without_an_answer_is_left_later():
    """Where the step has no answer the rule stops at the next one that has: a wrong answer there is lost, none at all, too."""
    found = losses([*broken("1", None, "5", "6"), *WHOLE], FixedStepRule())
    assert {step: found[step] for step in (1, 2, 3)} == {1: 0, 2: 6, 3: 6}
    assert losses([*broken("1", None, None), *WHOLE], FixedStepRule())[2] == 6
