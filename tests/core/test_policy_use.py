"""What `Policy` accepts can be used: runs stopped by it, recorded runs replayed, a page written. All else is refused at once."""

from __future__ import annotations

import copy
import io
import json
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import every_signal
from rich.console import Console

from entropy_chains.backends.scripted import Script, ScriptedBackend
from entropy_chains.core.monitor import Monitor, Outcome
from entropy_chains.core.policy import FORMAT, RULES, MassFloor, Policy
from entropy_chains.core.policy_fields import (
    CALIBRATION,
    CERTIFICATE,
    FIELDS,
    JUDGED,
    MOST_BITS_A_TOKEN,
    NOT_STOPPING,
    PARTS,
    STOPPING,
)
from entropy_chains.core.signals import StepRecord
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import PolicyError
from entropy_chains.offline.calibrate import calibrate
from entropy_chains.offline.hold_out import calibrate_and_judge
from entropy_chains.offline.replay import replay
from entropy_chains.offline.traces import Step, Trace
from entropy_chains.recording import conversation, record
from entropy_chains.savings.drift import drift
from entropy_chains.show import terminal as display
from entropy_chains.show import wording
from entropy_chains.show.report import build_report

FROZEN = json.loads((Path(__file__).parent / "frozen" / "policies.json").read_text(encoding="utf-8"))
"""Policies as the first version of `calibrate` wrote them, each with its fingerprint then: they must load for ever."""


def nested(levels: int) -> list:
    """An empty list in so many lists."""
    made: list = []
    for _ in range(levels):
        made = [made]
    return made


DEEP = nested(5000)
GOOD = FROZEN[0]["policy"] | {"signal": "mean_entropy"}


def traces_for(policy: Policy) -> list[Trace]:
    """Ten runs of three steps that record every signal, the policy's among them."""
    signals = every_signal(0.2) | {policy.signal: 0.2}
    return [
        Trace(
            f"q{n}",
            [Step("7" if s + n % 2 else "8", 0.3 - 0.1 * s, 60, seconds=0.1, signals=signals) for s in range(3)],
            gold="7",
        )
        for n in range(10)
    ]


def stopped_by(policy: Policy) -> Outcome:
    """A run of four steps, each as sure as the policy asks for, with the same answer after every one."""
    sure = min([t for t in policy.thresholds if t is not None], default=0.0)
    monitor = Monitor(policy)
    for step in range(1, 5):
        monitor.take(StepRecord(step, 10, max(sure, 0.0), 1.0, signals=every_signal(sure) | {policy.signal: sure}), "7")
    return monitor.finish()


def use(policy: Policy, folder: Path) -> Outcome:
    """Everything that reads a policy reads this one; returns the outcome of a run stopped by it."""
    outcome = stopped_by(policy)
    json.dumps(outcome.metadata(), allow_nan=False).encode()
    policy.save(folder / "policy.json")
    assert Policy.load(folder / "policy.json") == Policy.from_dict(policy.to_dict())
    assert Policy.load(folder / "policy.json").fingerprint == policy.fingerprint
    traces = traces_for(policy)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the traces are of no particular model
        replay(traces, policy, resamples=100, on_mismatch="warn")
    drift([[0.1 * n for n in range(40)]] * 3, policy, full_runs=True)
    words = wording.Words("gold", live=False)
    str(words.facts(policy)) + str(words.stopping(policy)) + wording.value_text(0.1, policy.signal, policy, 1)
    Console(file=io.StringIO()).print(display.policy_table(policy, folder))
    return outcome


# --- what was written stays good


@pytest.mark.parametrize("row", FROZEN, ids=[row["made"] for row in FROZEN])
def test_what_was_written_once_still_loads(row, tmp_path):
    """Field for field, under the same fingerprint; and an active one stops a run that is sure."""
    policy = Policy.from_dict(row["policy"])
    assert policy.to_dict() == row["policy"]
    assert policy.fingerprint == row["fingerprint"]
    assert use(policy, tmp_path).stopped is policy.active


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_that_can_be_named_makes_a_page(rule):
    """Also the one that `calibrate` never writes."""
    policy = Policy("m", (0.2,), rule=rule, min_steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        page = build_report(traces_for(policy), policy, on_mismatch="warn")
    assert policy.fingerprint in page


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("min_steps", [1, 3])
@pytest.mark.parametrize("early", [["5", "4", "4", "4"], ["4", "5", "6", "7"], ["5", "4", "x", "4"]])
def test_a_rule_decides_in_replay_as_it_does_live(rule, min_steps, early):
    """The same step and the same tokens, for every rule that a policy can name."""
    lines = [(f"{letter} {letter} {letter}\n\n", bits) for letter, bits in zip("abcd", (2.0, 0.5, 2.0, 0.1), strict=True)]
    backend = ScriptedBackend({"2+2=?": Script(lines, answer="4", early=early)}, name="m")
    question = {"id": "1", "question": "2+2=?", "gold": "4"}
    about = {"segmentation": backend.segmentation, "template": backend.template}
    policy = Policy("m", (1.0,), rule=rule, min_steps=min_steps, **about)
    live = backend.generate([conversation(question)], policy=policy)[0]
    again = replay(list(record(backend, [question])), policy)
    assert again.tokens == live.tokens
    assert int(again.stop_step[0]) == (live.outcome.step or 0)


# --- what could not be used is refused


REFUSED = [
    ({"calibration": {"remaining_tokens": [None]}}, "calibration.remaining_tokens"),
    ({"calibration": {"remaining_tokens": 500}}, "calibration.remaining_tokens"),
    ({"calibration": {"remaining_tokens": [1e30]}}, "calibration.remaining_tokens"),
    ({"calibration": {"entropy_quantiles": [[0.1, 0.2]]}}, "calibration.entropy_quantiles"),
    ({"calibration": {"groups": "240"}}, "calibration.groups"),
    ({"calibration": {"groups": -1}}, "calibration.groups"),
    ({"calibration": {"auroc": "high"}}, "calibration.auroc"),
    ({"calibration": {"auroc_interval": [0.7]}}, "calibration.auroc_interval"),
    ({"calibration": {"certificate": 0.05}}, "calibration.certificate"),
    ({"calibration": {"certificate": {"max_loss": "5 %"}}}, "calibration.certificate.max_loss"),
    ({"calibration": {"certificate": {"losses": None, "groups": [4]}}}, "calibration.certificate.groups"),
    ({"calibration": {"note": DEEP}}, "nested deeper"),
    ({"calibration": {"note": float("nan")}}, "nan"),
    ({"calibration": {"note": {1: 2}}}, "its key 1"),
    ({"note": {"deep": DEEP}}, "nested deeper"),
    ({"note": "\ud800"}, "ud800"),
    ({"runs": float("nan")}, "runs"),
    ({"note": [[]] * 200_000}, "100,000 values"),
    ({"calibration": {"certificate": {"note": float("inf")}}}, "certificate"),
    ({"model": "half \ud800"}, "model"),
    ({"reason": "half \ud800"}, "reason"),
    ({"temperature": [10**400]}, "temperature"),
    ({"temperature": [10**5000]}, "temperature"),
    ({"thresholds": [10**400]}, "thresholds"),
    ({"thresholds": [1e9]}, "thresholds"),
    ({"thresholds": DEEP}, "thresholds"),
    ({"k": 10**30}, "k is"),
    ({"min_steps": 10**400}, "min_steps"),
    ({"segmentation": {"boundry": "line"}}, "boundry"),
    ({"segmentation": {"boundary": "line", "min_tokens": 10**5000}}, "min_tokens"),
    ({"mass_floor": {"position": 0.5, "step": 0.8, "floor": 1}}, "floor"),
    ({"unit": "nats"}, "unit"),
    ({"active": True, "reason": "no_signal"}, "no_signal"),
]


@pytest.mark.parametrize(("change", "said"), REFUSED, ids=[f"{said} {n}" for n, (_, said) in enumerate(REFUSED)])
def test_what_would_break_later_is_refused_at_loading(change, said):
    """By a PolicyError that names the field: no run has begun, and nothing is lost."""
    with pytest.raises(PolicyError, match=said):
        Policy.from_dict({**GOOD, **change})


def test_an_unknown_field_is_kept_whatever_its_name():
    """Also where this class has a word for it that is no field of the file."""
    data = {**GOOD, "extra": {"mine": 1}, "fingerprint": "x", "from_dict": [None]}
    assert Policy.from_dict(data).to_dict() == data
    assert Policy.from_dict(data).fingerprint == Policy.from_dict(GOOD).fingerprint


def test_a_field_is_not_given_twice():
    """A field of the policy's own among the unknown ones would replace it in the file, and fall out of the fingerprint."""
    for name in ("model", "version"):
        with pytest.raises(PolicyError, match=name):
            Policy("m", (0.2,), extra={name: "other"})


@pytest.mark.parametrize("reason", [*STOPPING, *NOT_STOPPING, "of my own"])
@pytest.mark.parametrize("active", [True, False])
def test_a_reason_agrees_with_whether_it_stops(reason, active):
    """A reason that means "it must not stop" never comes with `active`; any policy may be switched off."""
    if active and reason in NOT_STOPPING:
        with pytest.raises(PolicyError, match=reason):
            Policy("m", (0.2,), active=active, reason=reason)
    else:
        assert Policy("m", (0.2,), active=active, reason=reason).active is active


def test_every_reason_of_not_stopping_has_its_words():
    """The page and the table say in a sentence why it does not stop."""
    assert set(wording.REASONS) == set(NOT_STOPPING)


def test_a_threshold_that_calibration_scaled_up_is_taken():
    """Where step 1 has next to no entropy and no signal, a later step's threshold lies far above any entropy: it always stops."""
    runs = []
    for n in range(240):
        right = n % 5 > 0
        steps = [
            Step("7", 1e-6 * (1 + n % 13), 50, mass=1.0),
            Step("7" if right else "8", 0.5 + 0.4 * (not right), 50, mass=1.0),
            Step("7", 0.4, 50, mass=1.0),
        ]
        runs.append(Trace(f"q{n}", steps, gold="7", k=20, estimator="renormalised", segmentation={"boundary": "line"}))
    policy = calibrate(runs, per_step=True, rule="entropy", signal="mean_entropy", max_loss=0.3)
    assert max(t for t in policy.thresholds if t is not None) > MOST_BITS_A_TOKEN
    assert Policy.from_dict(policy.to_dict()) == policy


BROKEN_FILES = {
    "nested too deep": b'{"format":' + b"[" * 200_000,
    "a key twice": json.dumps(GOOD).encode()[:-1] + b', "active": true}',
    "a key twice within": json.dumps(GOOD).encode().replace(b'"boundary"', b'"min_tokens": 1, "boundary"'),
    "NaN": json.dumps({**GOOD, "note": float("nan")}).encode(),
    "a number of 5,000 digits": json.dumps({**GOOD, "k": 0}).encode().replace(b'"k": 0', b'"k": ' + b"9" * 5000),
    "not UTF-8": b"\xff\xfe",
    "empty": b"",
    "a list": b"[]",
}


@pytest.mark.parametrize("content", BROKEN_FILES.values(), ids=BROKEN_FILES)
def test_a_file_that_is_no_policy_is_refused_by_name(content, tmp_path):
    """Whatever is in it, the error is a PolicyError that names the file."""
    (tmp_path / "some.json").write_bytes(content)
    with pytest.raises(PolicyError, match=r"some\.json"):
        Policy.load(tmp_path / "some.json")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="there is no endless file")
def test_a_file_without_an_end_is_not_read_to_the_end():
    """More bytes than any policy has: refused."""
    with pytest.raises(PolicyError, match="bytes"):
        Policy.load("/dev/zero")


def test_the_table_of_checks_knows_every_field():
    """A new field of the policy, or of its calibration, cannot be added without a check."""
    assert set(FIELDS) == set(Policy.__dataclass_fields__)
    assert set(PARTS.values()) == {Segmentation, MassFloor}
    found = calibrate_and_judge(traces_for(Policy("m", (0.2,))), method="mean").calibration
    assert set(found) == set(CALIBRATION)
    assert set(found["judged"]) == set(JUDGED)
    certificates = [row["policy"]["calibration"]["certificate"] for row in FROZEN]
    assert {name for c in certificates if c for name in c} <= set(CERTIFICATE)


# --- any change of a good one

strange = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, -1, 2**31, 2**53, 2**63, 10**30, 10**400, -(10**400), 1e300, 1e308])
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["", "\ud800", "line", "call", "bits", "nats", "certified", "no_signal", "agreement", "trial_entropy"])
    | st.just(nested(40)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def changed(draw):
    """A good policy's object with one to three of its values, at any depth, changed, left out or added."""
    data = copy.deepcopy(draw(st.sampled_from(FROZEN))["policy"])
    for _ in range(draw(st.integers(1, 3))):
        at = data
        while True:
            key = draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
            if not (isinstance(at[key], dict | list) and at[key] and draw(st.booleans())):
                break
            at = at[key]
        what = draw(st.sampled_from(["changed", "changed", "left out", "added"]))
        if what == "left out" and len(at) > 1:
            del at[key]
        elif what == "added" and isinstance(at, dict):
            at[draw(st.text(max_size=5))] = draw(strange)
        else:
            at[key] = draw(strange)
    return data


@settings(max_examples=250, deadline=None)
@given(changed())
def test_any_changed_policy_is_refused_or_can_be_used(tmp_path_factory, data):
    """PolicyError at once, or a run to its outcome, a file, a replay and the words of a page. Nothing else is ever raised."""
    try:
        policy = Policy.from_dict(data)
    except PolicyError:
        return
    use(policy, tmp_path_factory.getbasetemp())


def test_format_is_checked_first():
    """What says that it is something else is not read as a policy."""
    with pytest.raises(PolicyError, match=FORMAT):
        Policy.from_dict({**GOOD, "format": "other"})
