"""Who takes part in a comparison, and that nothing is faked of what the traces lack."""

from __future__ import annotations

from dataclasses import replace

from comparisons import SETTINGS, population, row

from entropy_chains.core.rules import RULES
from entropy_chains.offline.compare import compare, transfer
from entropy_chains.offline.published import BASELINES
from entropy_chains.options import OPTIONS


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
