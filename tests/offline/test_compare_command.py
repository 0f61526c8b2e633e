"""The table, the plot and the command of a comparison."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from comparisons import RIGHT, population

from entropy_chains.cli import main
from entropy_chains.errors import InputError
from entropy_chains.offline.compare import compare
from entropy_chains.offline.traces import Step, Trace, append_traces
from entropy_chains.show.plots import figure_format, grouped_places, saved_against_change


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
    assert grouped_places([(5.0, 1.0), (0.0, 0.0), (5.5, 1.2)], (1.0, 0.5)) == [((0.0, 0.0), [1]), ((5.0, 1.0), [0, 2])]
    assert grouped_places([(5.0, 1.0), (5.5, 1.6)], (1.0, 0.5)) == [((5.0, 1.0), [0]), ((5.5, 1.6), [1])]


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
