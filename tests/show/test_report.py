"""The report page: what it says, and where its runs come from."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from report_runs import policy, random_traces, text_of, worked

from entropy_chains.core.policy import Policy
from entropy_chains.errors import MissingExtraError, OutputError, PolicyMismatch
from entropy_chains.offline.table import Table
from entropy_chains.offline.traces import Trace, append_traces
from entropy_chains.show import wording
from entropy_chains.show.report import build_report, write_report

# --- what it says


def test_headline_by_hand() -> None:
    """12 of 20 runs stop at step 1: 1 - (12·100 + 8·200)/4000 = 30 % saved; one lost, one gained: change 0.0.

    The oracle stops the ten runs whose first answer is the final one: 10·100/4000 = 25 %, and more was saved, with other answers.
    """
    page = text_of(build_report(worked(), policy()))
    assert "stopping saved 30 % of the tokens and changed accuracy by 0.0 points (right answers lost: 1, gained: 1)" in page
    assert "tokens saved 30 %" in page
    assert "saves 25 %" in page
    assert "120 %" not in page
    assert "possible saving more" in page
    assert "More can be saved only by giving other answers" in page
    assert "95.0 % 95.0 %" in page


def test_without_a_policy_it_says_what_could_be_saved() -> None:
    """No policy: accuracy and cost of the full runs, the oracle's saving, and nothing about stopped runs."""
    page = build_report(worked())
    text = text_of(page)
    assert "no policy was given" in text
    assert "would save 25 % of the tokens" in text
    assert "Stopping is not set up." in text
    assert page.count("<svg") == 2
    assert "stopped after step" not in text


@pytest.mark.parametrize("reason", ["no_signal", "inverted_signal", "no_safe_threshold", "too_few_examples"])
def test_inactive_policy_says_why(reason: str) -> None:
    """A policy that never stops: off, the reason in words, and no saving is claimed."""
    off = policy(active=False, reason=reason, calibration={"examples_needed": 45})
    text = text_of(build_report(worked(), off))
    assert "Stopping is off: " + wording.REASONS[reason] in text
    assert "nothing is saved" in text
    assert "tokens saved" not in text
    assert ("at least 45 questions" in text) == (reason == "too_few_examples")


def test_agreement_labels_claim_no_accuracy() -> None:
    """Without right answers accuracy is not known: the page counts changed answers and never speaks of lost right ones."""
    traces = random_traces(120, gold=False)
    text = text_of(build_report(traces, policy()))
    changed = sum(
        next((s.answer for s in t.steps[:-1] if s.entropy <= 0.5), t.steps[-1].answer) != t.steps[-1].answer for t in traces
    )
    assert 0 < changed < 120
    assert f"{changed} questions end with another answer than in full" in text
    assert "accuracy is not known" in text
    assert "right answers lost" not in text
    assert "same answer as in full" in text
    assert "change of accuracy" not in text
    assert "accuracy of full runs not known" in text_of(build_report(traces))


def test_live_figures_stand_in_the_headline() -> None:
    """Given a live run, headline, stop counts and latencies are its own, marked measured; FLOPs are marked estimated."""
    live = {
        "questions": 400, "groups": 400, "accuracy_full": 0.96, "accuracy": 0.955, "accuracy_change": -0.005,
        "accuracy_change_interval": [-0.0125, 0.0025], "lost_correct": 3, "gained_correct": 1, "tokens_full": 80000,
        "tokens": 32000, "tokens_saved": 0.6, "tokens_saved_interval": [0.58, 0.62], "seconds_full": 100.0, "seconds": 41.0,
        "oracle_tokens_saved": 0.75, "stopped_early": 0.5, "stops_at_step": [150, 50, 0], "model": "live-model",
        "parameters": 1.3e6, "method": "certified", "flops_full": 2.08e11, "flops": 8.32e10,
        "latency_full": {"mean": 0.25, "p50": 0.24, "p95": 0.4, "std": 0.05},
        "latency": {"mean": 0.11, "p50": 0.1, "p95": 0.3, "std": 0.06}, "policy": "x",
    }  # fmt: skip
    page = build_report(worked(), policy(), live=live)
    text = text_of(page)
    assert "Run live on 400 questions, stopping saved 60 % of the tokens and changed accuracy by −0.5 points" in text
    assert "live-model" in text
    assert "possible saving 80 %" in text
    assert "95 % interval −1.2 to +0.2" in text or "95 % interval −1.3 to +0.2" in text
    assert re.search(r"FLOPs 2.08e11 8.32e10 −60.0 % estimated", text)
    assert re.search(r"latency, mean \(s\) 0.25 0.11 −56.0 % measured", text)
    assert "150 after step 1, 50 after step 2, 200 in full" in page
    assert "in full median 0.24 s" in page


def test_live_without_optional_figures() -> None:
    """A live run without clock or parameters leaves those rows and the latency plot out."""
    live = {
        "questions": 10,
        "tokens_full": 100,
        "tokens": 50,
        "tokens_saved": 0.5,
        "oracle_tokens_saved": 0.0,
        "stops_at_step": [5],
    }
    page = build_report(worked(), policy(), live=live)
    assert "FLOPs" not in text_of(page)
    assert "latency-" not in page


def test_examples_show_each_outcome() -> None:
    """Examples name their outcome, show the text of each step, and mark what stopping would not have computed."""
    text = text_of(build_report(worked(), policy()))
    for outcome in (
        "stopped after step 1 of 2, right",
        "wrong, though the full run is right: a lost answer",
        "right, though the full run is wrong",
        "ran all 2 steps, right",
    ):
        assert outcome in text
    assert "thinking about 18" in text
    assert "0.1 bits, threshold 0.5 · 100 tokens" in text
    assert "not computed with stopping" in text


def test_long_texts_lose_their_middle() -> None:
    """A step of 100,000 characters is shown by its beginning and end, and the gap is counted."""
    traces = worked()
    traces[0].steps[0].text = "BEGIN" + "x" * 100_000 + "FINISH"
    page = build_report(traces, policy())
    assert "BEGIN" in page
    assert "FINISH" in page
    assert "98,511 characters left out" in page
    assert len(page) < 400_000


# --- sources


def test_files_memory_and_generators_give_the_same_page(tmp_path) -> None:
    """One file, two files, a list and a generator make the same page; a table the same without examples."""
    traces = worked()
    append_traces(tmp_path / "all.jsonl", traces)
    append_traces(tmp_path / "a.jsonl", traces[:9])
    append_traces(tmp_path / "b.jsonl", traces[9:])
    page = build_report(traces, policy())
    assert build_report(tmp_path / "all.jsonl", policy()) == page
    assert build_report([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], policy()) == page
    assert build_report((t for t in traces), policy()) == page
    write_report(tmp_path / "page.html", traces, policy())
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page
    table = build_report(Table.from_traces(traces), policy())
    assert "Example runs" not in table
    assert table.split("<h2>The policy")[0] == page.split("<h2>The policy")[0]


def test_a_page_never_takes_the_place_of_its_traces(tmp_path):
    """Named as a file, several, or an iterator of them: refused before anything is read, and the traces are kept."""
    path, link = tmp_path / "t.jsonl", tmp_path / "link"
    path.write_text("kept")
    link.symlink_to(path)
    for given in (path, str(path), [tmp_path / "other.jsonl", path], iter([link])):
        with pytest.raises(OutputError, match="is the same file as the input"):
            write_report(path, given)
    assert path.read_text() == "kept"


def test_mismatch_is_an_error() -> None:
    """A policy of another model is refused, unless the caller only wants a warning."""
    with pytest.raises(PolicyMismatch, match="model"):
        build_report(worked(), Policy("other", (0.5,)))
    with pytest.warns(UserWarning, match="model"):
        build_report(worked(), Policy("other", (0.5,)), on_mismatch="warn")


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_missing_extra_names_the_line_to_type(monkeypatch, package: str) -> None:
    """Without jinja2 or matplotlib the error says what to install."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package}.*entropy-chains\[report\]"):
        build_report(worked(), policy())


def test_importing_loads_neither_matplotlib_nor_jinja2() -> None:
    """The module can be imported where the extra is not installed."""
    code = "import sys; import entropy_chains.show.report; print([m for m in ('matplotlib', 'jinja2') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# --- odd data


def test_traces_without_a_model_s_name_make_a_page():
    """Only ids and steps are needed."""
    traces = [Trace(t.id, t.steps, gold=t.gold) for t in worked()]
    assert "unnamed model" in build_report(traces)
