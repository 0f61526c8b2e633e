"""Traces that are sound and odd: every offline command takes them, or says in one line what is the matter."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from entropy_chains.cli import main
from entropy_chains.errors import TraceError
from entropy_chains.offline.traces import Trace, read_traces

RUNS = 60
HALF = "\ud800"


def run(n: int) -> dict[str, Any]:
    """Every fourth first answer is wrong and has the higher entropy."""
    first = {"answer": "1" if n % 4 else "2", "entropy": 0.2 + 0.6 * (n % 4 == 0) + n / 1000, "tokens": 100}
    steps = [first, {"answer": "1", "entropy": 0.1, "tokens": 100}, {"answer": "1", "entropy": None, "tokens": 10}]
    return {"id": f"q{n}", "question": f"question {n}", "gold": "1", "model": "m", "k": 20, "steps": steps}


def with_steps(change: Callable[[dict[str, Any], int], dict[str, Any]]) -> Callable[[int], dict[str, Any]]:
    """The runs with other steps; the last has no entropy."""
    return lambda n: run(n) | {"steps": [s | change(s, n) for s in run(n)["steps"][:-1]] + run(n)["steps"][-1:]}


def choice(n: int) -> dict[str, Any]:
    """2 to 10 options a question."""
    letters = string.ascii_uppercase[: 2 + n % 9]
    right, wrong = letters[n % len(letters)], letters[(n + 1) % len(letters)]
    said = f"The answer is ({wrong if n % 3 == 0 else right})"
    steps = [{"answer": said, "entropy": 0.1 + (n % 3 == 0), "tokens": 50}, {"answer": right, "entropy": None, "tokens": 50}]
    return run(n) | {"question": f"Which of {', '.join(letters)}?", "gold": right, "grade": "choice", "steps": steps}


ODD: dict[str, Callable[[int], dict[str, Any]]] = {
    "sums of any size": with_steps(lambda _, n: {"signals": {"sum_entropy": 1e100 if n % 3 else -1e100}}),
    "entropies next to nothing": with_steps(lambda s, _: {"entropy": s["entropy"] * 1e-300}),
    "no entropy at all": with_steps(lambda *_: {"entropy": None}),
    "no tokens": lambda n: run(n) | {"steps": [s | {"tokens": 0} for s in run(n)["steps"]]},
    "tokens without end": lambda n: run(n) | {"steps": [s | {"tokens": 2**53} for s in run(n)["steps"]]},
    "half characters in texts": lambda n: with_steps(lambda s, _: {"answer": s["answer"] + HALF, "text": HALF})(n) | {"gold": HALF},
    "half characters in names": lambda n: run(n) | {"model": HALF, "template": HALF, "id": f"{HALF}{n}"},
    "different numbers of options": choice,
    "a single step": lambda n: run(n) | {"steps": run(n)["steps"][-1:]},
}
COMMANDS = (
    "diagnose {t}",
    "calibrate {t} -o {out}",
    "calibrate {t} -o {out} --method mean",
    "compare {t}",
    "report {t} --out {out}",
)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("odd", ODD)
def test_odd_traces_are_taken_or_refused_in_words(odd: str, tmp_path: Path) -> None:
    """No command ends in a traceback, in a warning about numbers, or in a figure that JSON has no form for."""
    traces = tmp_path / "t.jsonl"
    traces.write_text("".join(json.dumps(ODD[odd](n)) + "\n" for n in range(RUNS)))
    for command in COMMANDS:
        words = command.format(t=traces, out=tmp_path / "out").split()
        result = CliRunner().invoke(main, [*words, "--json"])
        assert "Traceback" not in result.output, command
        if result.exit_code == 0:
            json.loads(result.stdout)
        else:
            assert result.exit_code == 2, command
            assert result.stderr.startswith("error: ")
            assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("signal", "value", "told"),
    [
        ("mean_entropy", 1e300, "steps[0]: entropy is 1e+300; it must be a finite number of at least 0, at most 1e+100"),
        ("mean_entropy", 1500.0, "entropy is 1500; no token has 1000 bits of entropy: give bits a token"),
        ("mean_entropy", 900.0, None),
        ("sum_entropy", 1500.0, None),
        ("my own", 1e99, None),
    ],
)
def test_an_entropy_that_no_token_has_is_refused(signal: str, value: float, told: str | None, tmp_path: Path) -> None:
    """File, line and field are named; a sum over the tokens, or a signal of the user's own, may be larger."""
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(with_steps(lambda *_: {"entropy": value})(1) | {"signal": signal}) + "\n")
    if told is None:
        assert read_traces(path)[0].steps[0].entropy == value
        return
    with pytest.raises(TraceError) as error:
        read_traces(path)
    assert str(error.value).startswith(f"{path}, line 1: ")
    assert told in str(error.value)
    assert error.value.field == "steps[0].entropy"


def test_what_is_too_large_is_not_written_either() -> None:
    """A trace in memory is held to the same."""
    with pytest.raises(TraceError, match="1000 bits"):
        Trace.from_dict(with_steps(lambda *_: {"entropy": 1500.0})(1))
