"""Rules side by side: judged on runs they were not fitted on, same costs, nothing faked; the table, the plot and the command."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from recorded import every_signal

from entropy_chains.cli import main
from entropy_chains.core.rules import RULES
from entropy_chains.core.signals import MEAN, SIGNALS
from entropy_chains.errors import InputError, PolicyMismatch
from entropy_chains.offline import compare as comparing
from entropy_chains.offline import contenders
from entropy_chains.offline.calibrate import calibrate
from entropy_chains.offline.compare import Comparison, compare, transfer
from entropy_chains.offline.contenders import Decided
from entropy_chains.offline.published import BASELINES
from entropy_chains.offline.replay import replay
from entropy_chains.offline.table import as_table
from entropy_chains.offline.traces import Step, Trace, append_traces
from entropy_chains.options import OPTIONS
from entropy_chains.show.plots import figure_format, saved_against_change, together

RIGHT, WRONG = "1", "0"
ALL = tuple(name for name in SIGNALS if name != MEAN)


def population(questions=150, steps=5, *, shift=0.5, copies=1, seed=0, record=ALL, gold=RIGHT, **given):
    """Runs whose wrong answers are less sure by ``shift`` on every signal; the last step is right nineteen times in twenty."""
    rng = np.random.default_rng(seed)
    runs = []
    for n in range(questions * copies):
        recorded = []
        for i in range(1, steps + 1):
            wrong = rng.random() < (0.05 if i == steps else 0.4 / i)
            unsure, tokens = abs(rng.normal(0.1, 0.1)) + shift * wrong, int(rng.integers(30, 60))
            special = {"deepconf": max(0.0, 10 - unsure), "trial_confidence": 1 / (1 + unsure), "sum_entropy": unsure * tokens}
            signals = every_signal(unsure) | special
            kept = {name: signals[name] for name in record}
            recorded.append(Step(WRONG if wrong else RIGHT, unsure, tokens, probe_tokens=4, signals=kept))
        runs.append(
            Trace(f"{seed}-{n}", recorded, gold=gold, group=f"{seed}-{n // copies}", k=20, estimator="renormalised", **given)
        )
    return runs


@pytest.fixture(scope="module")
def runs():
    return population()


@pytest.fixture(scope="module")
def compared(runs):
    return compare(runs, resamples=200)


def row(found: Comparison, rule: str, method: str = "certified"):
    return next(r for r in found.rules if (r.rule, r.method) == (rule, method))


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


def test_everyone_takes_part(compared):
    """Ours, the paper's four, each published rule both ways (budgets have no published value), never and the oracle, each once."""
    pairs = [(r.rule, r.method) for r in compared.rules]
    assert len(set(pairs)) == len(pairs)
    assert {("auto", "certified"), ("fixed-step", "certified"), ("never", "none"), ("oracle", "hindsight")} <= set(pairs)
    assert {(m, "published") for m in OPTIONS["method"] if m != "certified"} <= set(pairs)
    for rule in BASELINES:
        assert (rule.name, "certified") in pairs
        assert ((rule.name, "published") in pairs) is ("budget" not in rule.name)
    assert all(r.applicable for r in compared.rules)


def test_never_and_the_oracle_frame_the_rest(compared):
    """Never saves nothing and loses nothing; the oracle loses nothing, and the others are measured against its saving."""
    never, oracle = row(compared, "never", "none"), row(compared, "oracle", "hindsight")
    assert (never.tokens_saved, never.lost_correct, never.accuracy_change) == (0.0, 0, 0.0)
    assert (oracle.tokens_saved, oracle.oracle_fraction, oracle.lost_correct) == (compared.oracle_tokens_saved, 1.0, 0)
    assert row(compared, "auto").oracle_fraction == row(compared, "auto").tokens_saved / oracle.tokens_saved


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


SETTINGS = {
    ("auto", "certified"): {},
    ("entropy", "certified"): {"rule": "entropy", "signal": "mean_entropy"},
    ("entropy (sum)", "certified"): {"rule": "entropy", "signal": "sum_entropy"},
    ("entropy (trial)", "certified"): {"rule": "entropy", "signal": "trial_entropy"},
    ("entropy+agreement", "certified"): {"rule": "entropy+agreement", "signal": "mean_entropy"},
    ("fixed-step", "certified"): {"rule": "fixed-step"},
    **{(m, "published"): {"method": m} for m in OPTIONS["method"] if m != "certified"},
}


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


# --- nothing faked


def test_what_the_traces_lack_is_said_and_not_faked():
    """Without its signal a rule has no figures and names what is missing; it stands at the end."""
    found = compare(population(60, record=()), folds=2, resamples=100)
    missing = {r.rule: r for r in found.rules if not r.applicable}
    assert set(missing) - {name for name, rule in RULES.items() if rule.also_reads} == {
        "eat",
        "deepconf",
        "trial-confidence",
        "entropy (sum)",
        "entropy (trial)",
    }
    assert "trial_confidence" in missing["trial-confidence"].reason
    assert all(r.tokens_saved is None and r.lost_correct is None and not r.pareto for r in missing.values())
    assert [r.applicable for r in found.rules] == sorted((r.applicable for r in found.rules), reverse=True)


def test_without_logprobs_the_others_are_still_compared():
    """Runs without any entropy: entropy rules cannot be judged; answers and budgets can."""
    runs = population(60, record=())
    for t in runs:
        t.steps = [replace(s, entropy=None) for s in t.steps]
    found = compare(runs, folds=2, resamples=100)
    assert row(found, "entropy").reason == "the traces do not record 'mean_entropy'"
    assert row(found, "auto").applicable
    assert row(found, "fixed-step").applicable
    assert row(found, "answer-consistency", "published").tokens_saved > 0


def test_no_signal_means_no_stop():
    """Negative control: entropies that know nothing of the answers. The entropy rules say so and never stop."""
    found = compare(population(300, shift=0.0, seed=1), folds=2, resamples=100)
    for rule, method in SETTINGS:
        if rule != "fixed-step":
            assert (row(found, rule, method).reason, row(found, rule, method).tokens_saved) == ("no_signal", 0.0), rule


def test_transfer_shows_the_loss_it_causes(runs):
    """A threshold that keeps its promise at home loses answers where wrong ones look sure; the row says how many."""
    elsewhere = population(150, shift=0.02, seed=9)
    home, away = compare(runs, folds=2, resamples=100), transfer(runs, elsewhere, resamples=100)
    assert row(home, "entropy").within_max_loss
    assert not row(away, "entropy").within_max_loss
    assert row(away, "entropy").lost_correct > 3 * row(home, "entropy").lost_correct


def test_agreement_labels_have_no_accuracy():
    """Without gold answers accuracy is None, and a rule is measured by how many runs end with another answer."""
    found = compare(population(60, gold=None), folds=2, resamples=100)
    assert found.labels == "agreement"
    assert all(r.accuracy_change is None and r.accuracy_change_interval is None for r in found.rules)
    never = row(found, "never", "none")
    assert (never.lost_share, never.change) == (0.0, 0.0)
    assert row(found, "information", "published").change == -row(found, "information", "published").lost_share < 0


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


# --- table, plot, command


@pytest.fixture
def files(tmp_path, runs):
    append_traces(tmp_path / "t.jsonl", runs)
    append_traces(tmp_path / "u.jsonl", population(60, seed=4, record=("deepconf",)))
    return tmp_path


def command(*arguments: object):
    return CliRunner().invoke(main, ["compare", *map(str, arguments)], env={"COLUMNS": "80"})


def test_the_command_prints_what_compare_returns(files, runs):
    """``--json`` is the object; without it every rule has a line of the table, none cut off at 80 columns."""
    result = command(files / "t.jsonl", "--folds", 2, "--json")
    assert result.exit_code == 0, result.output
    written = compare(runs, folds=2).to_dict()
    assert json.loads(result.stdout) == written
    shown = command(files / "t.jsonl", "--folds", 2).stdout
    assert all(r["rule"] in shown for r in written["rules"])
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_a_signal_s_name_cannot_steer_the_terminal(tmp_path):
    """A trace file may name its signal as it likes; control characters are shown, not sent."""
    runs = [Trace(str(n), [Step(RIGHT, None, 5), Step(RIGHT, None, 5)], gold=RIGHT, signal="\x1b[31mred") for n in range(4)]
    append_traces(tmp_path / "t.jsonl", runs)
    shown = command(tmp_path / "t.jsonl", "--folds", 2)
    assert shown.exit_code == 0, shown.output
    assert "entropy cannot be compared" in shown.stdout
    assert "\x1b[31m" not in shown.stdout


def test_transfer_from_the_command_line(files):
    """``--transfer`` fits on the first file, judges on the second, and names what that one lacks."""
    written = json.loads(command(files / "t.jsonl", "--transfer", files / "u.jsonl", "--json").stdout)
    assert (written["folds"], written["questions"]) == (None, 60)
    assert "eat cannot be compared" in command(files / "t.jsonl", "--transfer", files / "u.jsonl").stdout


@pytest.mark.parametrize(("name", "start"), [("p.png", b"\x89PNG"), ("p.svg", b"<?xml")])
def test_the_plot_is_written(name, start, files):
    """A PNG or SVG file, by its ending, with every rule's name in it (readable in SVG)."""
    result = command(files / "t.jsonl", "--folds", 2, "--plot", files / name)
    assert result.exit_code == 0, result.output
    drawn = (files / name).read_bytes()
    assert drawn.startswith(start)
    assert len(drawn) > 10_000
    if name.endswith("svg"):
        assert b"trial-confidence (published)" in drawn


def test_labels_that_have_no_room_share_one():
    """Three places of which two lie closer than a label is wide and high: two labels, the shared one at the left of the two."""
    assert together([(5.0, 1.0), (0.0, 0.0), (5.5, 1.2)], (1.0, 0.5)) == [((0.0, 0.0), [1]), ((5.0, 1.0), [0, 2])]
    assert together([(5.0, 1.0), (5.5, 1.6)], (1.0, 0.5)) == [((5.0, 1.0), [0]), ((5.5, 1.6), [1])]


def test_the_plot_takes_agreement_labels(tmp_path):
    """Without accuracy the share of changed answers stands on the axis."""
    found = compare(population(60, gold=None), folds=2, resamples=100).to_dict()
    saved_against_change(tmp_path / "p.svg", "svg", found)
    assert "another answer" in (tmp_path / "p.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["missing.jsonl"], "missing.jsonl"),
        (["{t}", "--folds", "1"], "folds is 1"),
        (["{t}", "--max-loss", "2"], "max_loss is 2"),
        (["{t}", "--plot", "p.pdf"], "p.pdf"),
        (["{t}", "--transfer", "missing.jsonl"], "missing.jsonl"),
    ],
)
def test_bad_usage_ends_with_status_2(arguments, named, files, monkeypatch):
    """The message names the value; nothing is written."""
    monkeypatch.chdir(files)
    before = sorted(files.iterdir())
    result = command(*(a.format(t=files / "t.jsonl") for a in arguments))
    assert result.exit_code == 2
    assert named in result.stderr
    assert sorted(files.iterdir()) == before


def test_a_plot_s_name_says_its_format(tmp_path):
    """Upper case is fine, anything else is refused before runs are read."""
    assert figure_format(tmp_path / "P.PNG") == "png"
    with pytest.raises(InputError, match=r"p\.pdf"):
        figure_format(tmp_path / "p.pdf")
