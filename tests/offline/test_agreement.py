"""The rule ``agreement``: two equal answers in a row, certified where every call answers, with or without logprobs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from entropy_chains.backends.scripted import Script, ScriptedBackend
from entropy_chains.core.rules import AgreementRule
from entropy_chains.errors import InputError
from entropy_chains.offline.calibrate import calibrate
from entropy_chains.offline.certify import allowances, curve, examples_needed
from entropy_chains.offline.compare import compare
from entropy_chains.offline.replay import decisions, replay
from entropy_chains.offline.table import as_table
from entropy_chains.offline.traces import Step, Trace
from entropy_chains.recording import conversation, record
from entropy_chains.refine import run_refine
from entropy_chains.show import advice

RIGHT, WRONG = "1", "0"


def loops(questions=200, entropy=None, mode="refine", **given):
    """Five calls; of the first ten questions in a hundred the first three answers are wrong and equal, of the others all right."""
    return [
        Trace(str(n), [Step(WRONG if n % 100 < 10 and s <= 3 else RIGHT, entropy, 10) for s in range(1, 6)], gold=RIGHT, mode=mode)
        for n in range(questions)
    ]


def test_the_first_step_is_walked():
    """Before step 4 two equal wrong answers would be returned for a tenth of the questions; from step 4 on none is lost."""
    found = curve(as_table(loops()), AgreementRule(min_steps=2), np.ones(200, bool))
    assert (found.settings.tolist(), found.losses.tolist()) == ([4, 3, 2], [0, 20, 20])
    policy = calibrate(loops(), rule="agreement")
    assert (policy.rule, policy.min_steps, policy.thresholds, policy.reason) == ("agreement", 4, (None,), "certified")
    assert policy.calibration["certificate"]["rules_tried"] == ["agreement"]
    assert "from step 4 on" in policy.stop_rule.describe()
    assert calibrate([t for n, t in enumerate(loops()) if n % 100 >= 10], rule="agreement").min_steps == 2


def test_without_any_entropy_auto_tries_what_reads_none():
    """Agreement and a fixed step in a loop, a fixed step alone in one stream; the number of losses allowed is for so many rules."""
    certificate = calibrate(loops()).calibration["certificate"]
    assert certificate["rules_tried"] == ["agreement", "fixed-step"]
    assert certificate["allowed"] == allowances(200, 0.05, 0.1, 2)
    stream = calibrate(loops(mode="thinking"))
    assert stream.calibration["certificate"]["rules_tried"] == ["fixed-step"]
    assert stream.calibration["examples_needed"] == examples_needed(0.05, 0.1) == 45
    assert "agreement" not in calibrate(loops(entropy=0.1)).calibration["certificate"]["rules_tried"]


def test_auto_keeps_agreement_where_it_saves_more():
    """Some answers change until the end, so no fixed step is safe; those that repeat are right."""
    runs = [Trace(str(n), [Step(str(s) if n % 3 == 0 else RIGHT, None, 10) for s in (5, 6, 7, 8, 1)], gold=RIGHT, mode="refine")
            for n in range(120)]  # fmt: skip
    policy = calibrate(runs)
    assert (policy.rule, policy.min_steps, policy.reason) == ("agreement", 2, "certified")
    assert replay(runs, policy).tokens_saved == pytest.approx(2 / 3 * 3 / 5)
    assert "It needs no logprobs." in advice.places(policy)


def test_one_stream_has_no_answers_to_compare():
    """In thinking mode every answer is a probe that is paid for: refused, and the message says where the rule can be certified."""
    with pytest.raises(InputError, match="'agreement', which cannot be calibrated in mode 'thinking', only in refine"):
        calibrate(loops(mode="thinking"), rule="agreement")
    with pytest.raises(InputError, match="no entropy threshold"):
        calibrate(loops(), rule="agreement", method="mean")


def test_a_broken_loop_that_was_not_stopped_counts_as_lost():
    """Nothing keeps this rule from stopping a longer run after steps that were not recorded: each such run is a loss."""
    runs = loops(100)[10:]
    said = [Step(answer, None, 10) for answer in ("7", "8", "9")]
    broken = [replace(t, steps=[*said, Step(None, None, 0)], finish="error") for t in runs[:6]]
    found = curve(as_table([*broken, *runs[6:]]), AgreementRule(min_steps=2), np.ones(90, bool))
    assert found.losses.tolist() == [6, 6, 6]
    assert calibrate([*broken, *runs[6:]], rule="agreement").reason == "no_safe_threshold"
    assert calibrate(runs, rule="agreement").reason == "certified"


def test_live_stops_where_replay_says():
    """A policy certified on loops without logprobs ends a live loop at its step, for the tokens of its calls."""
    backend = ScriptedBackend({"q": [Script(answer=[(said, None)]) for said in ("5", "4", "4", "4")]})
    traces = list(record(backend, [{"id": "1", "question": "q", "gold": "4"}], mode="refine"))
    policy = calibrate([replace(traces[0], id=str(n), group=str(n)) for n in range(60)], rule="agreement")
    assert (policy.rule, policy.reason) == ("agreement", "certified")
    live = run_refine(backend, [conversation({"question": "q"})], policy=policy)[0]
    assert decisions(as_table(traces), policy).tolist() == [live.outcome.step] == [3]
    assert replay(traces, policy).tokens == live.outcome.tokens


def test_compare_has_it_where_it_can_be_certified():
    """A row of its own for loops, none for a stream."""
    for mode, there in (("refine", True), ("thinking", False)):
        found = compare(loops(120, entropy=0.1, mode=mode), folds=2, resamples=100)
        assert any(r.rule == "agreement" for r in found.rules) is there
