"""What reaches a terminal: texts of files and servers never act on it, and nothing that it cannot show is an error."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import unicodedata
import warnings
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Group
from rich.table import Table
from rich.text import Text

from entropy_chains.cli import main
from entropy_chains.errors import BackendError, one_line, quoted, reason
from entropy_chains.show.printing import console, echo, echo_json, print_anything

EVIL = "\x1b]0;owned\x07\x1b[31mred\x9b2J\u202egnp\u2066x\nerror: forged\r\u2028z\x7f"
"""A title set, a colour, a screen cleared, writing turned around, and a line of its own."""


def acting(text: str) -> list[str]:
    """Characters that a terminal obeys, but for line ends."""
    return [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c != "\n"]


@pytest.mark.parametrize("text", ["naïve − “x” 日本語 ①", "👩\u200d🔬 می\u200cخواهم", ""])
def test_text_that_only_says_something_stays(text: str) -> None:
    """Scripts, emoji and their joiners are shown as they are."""
    assert one_line(text) == text


@pytest.mark.parametrize("clean", [one_line, quoted, lambda text: reason(BackendError(text))])
def test_messages_hold_nothing_that_acts(clean) -> None:
    """What others said is one line in which no character acts, wherever a message takes it up."""
    assert acting(EVIL)
    found = clean(EVIL + "\ud800")
    assert not acting(found)
    assert "\n" not in found
    assert "[31mred" in found


def test_lines_stay_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """``echo`` prints as many lines as it is given, and JSON holds no control character at all."""
    echo(f"a {EVIL}", "  b")
    echo_json({EVIL: "\x7f"})
    first, second, found = capsys.readouterr().out.splitlines()
    assert not acting(first)
    assert second == "  b"
    assert found.isprintable()
    assert json.loads(found) == {EVIL: "\x7f"}


@pytest.mark.parametrize("terminal", [True, False])
def test_tables_hold_nothing_that_acts(terminal: bool) -> None:
    """Titles, cells, styled and unstyled lines: on a terminal only rich's own colours, and no name makes a line of its own."""
    table = Table("a", EVIL, title=EVIL)
    table.add_row(EVIL, Text(EVIL, style="bold"))
    out = io.StringIO()
    console(file=out, force_terminal=terminal, width=200).print(Group(table, EVIL, f"[bold]{EVIL}"))
    shown = out.getvalue()
    own = ("\x1b[0m", "\x1b[1m", "\x1b[3m")
    for code in own if terminal else ():
        shown = shown.replace(code, "")
    assert not acting(shown)
    assert not any(line.startswith("error") for line in shown.splitlines())


def test_what_is_in_square_brackets_is_shown() -> None:
    """The extra of a line to install is no markup."""
    out = io.StringIO()
    table = Table("a")
    table.add_row("pip install 'langchain-entropy-chains[agents]'")
    console(file=out, width=80).print(table)
    assert "[agents]" in out.getvalue()


def test_warnings_are_lines() -> None:
    """A warning of a command is one line in which no character acts; afterwards Python's form is back."""
    former = warnings.formatwarning
    with print_anything():
        told = warnings.formatwarning(UserWarning(EVIL), UserWarning, "file.py", 1)
    assert told.startswith("warning: ")
    assert told.count("\n") == 1
    assert not acting(told)
    assert warnings.formatwarning is former


def hostile(n: int) -> dict:
    first = {"answer": "1" if n % 4 else "2", "entropy": 0.2 + 0.6 * (n % 4 == 0) + n / 1000, "tokens": 100}
    steps = [first | {"signals": {EVIL: 1.0}}, {"answer": "1" if n % 7 else EVIL, "entropy": None, "tokens": 10}]
    names = {"id": f"q{n}{EVIL}", "question": f"{n}{EVIL}", "model": EVIL, "template": EVIL, "finish_raw": EVIL}
    return names | {"gold": "1", "finish": "stop", "steps": steps}


def written(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Traces whose every name is hostile, a policy from them, some that are refused, and questions."""
    made = {"traces": written(tmp_path / "traces.jsonl", *map(hostile, range(60)))}
    made["wrong"] = written(tmp_path / "wrong.jsonl", *(hostile(n) | {"gold": EVIL} for n in range(12)))
    made["bad"] = written(tmp_path / "bad.jsonl", hostile(0) | {"mode": EVIL})
    made["policy"] = tmp_path / "policy.json"
    assert not CliRunner().invoke(main, ["calibrate", str(made["traces"]), "-o", str(made["policy"])]).exit_code
    policy = json.loads(made["policy"].read_text())
    made["other"] = written(tmp_path / "other.json", policy | {"model": f"another {EVIL}", "reason": EVIL})
    made["off"] = written(tmp_path / "off.json", policy | {"active": False, "reason": EVIL})
    made["typo"] = written(tmp_path / "typo.json", policy | {"segmentation": {EVIL: 1}})
    made["questions"] = written(tmp_path / "questions.jsonl", *[{"id": EVIL, "question": "1+1=?", "gold": "2"}] * 2)
    return made | {"out": tmp_path / "out.json"}


COMMANDS = {
    "diagnose {traces}": 0,
    "calibrate {traces} -o {out}": 0,
    "calibrate {wrong} -o {out}": 0,
    "compare {traces}": 0,
    "report {traces} --policy {off} --out {out}": 0,
    "replay {traces} --policy {policy}": 0,
    "replay {traces} --policy {off}": 0,
    "replay {traces} --policy {other}": 2,
    "replay {traces} --policy {other} --on-mismatch warn": 0,
    "replay {traces} --policy {typo}": 2,
    "diagnose {bad}": 2,
    "record --data {questions} --out {out} --model demo": 2,
    "doctor": 2,
    "demo --help": 0,
    "nonsense": 2,
}
"""Each with its exit status."""


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
def test_every_command_prints_in_any_encoding(encoding: str, files: dict[str, Path]) -> None:
    """No command prints a character that acts, and what the output cannot encode is replaced: a minus by a hyphen."""
    code = (
        "import sys; from entropy_chains.cli import main\n"
        "for line in sys.stdin.read().splitlines():\n"
        "    try: main(line.split(), prog_name='entropy-chains')\n"
        "    except SystemExit as end: print('ended with', end.code)\n"
    )
    lines = "\n".join(line.format(**files) for line in COMMANDS)
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code], input=lines.encode(), capture_output=True, env=environment, check=False
    )
    out, told = done.stdout.decode(encoding), done.stderr.decode(encoding)
    assert done.returncode == 0, told
    assert not acting(out + told)
    assert "Traceback" not in told
    assert [int(line.split()[-1]) for line in out.splitlines() if line.startswith("ended with")] == list(COMMANDS.values())
    assert not any(line.startswith("error: forged") for line in told.splitlines())
    assert ("−" if encoding == "utf-8" else "-") in out


def test_an_error_of_ours_is_told_without_what_acts(monkeypatch: pytest.MonkeyPatch, files: dict[str, Path]) -> None:
    """A fault that nobody foresaw ends with status 1 and its traceback, in which a server's words do not act either."""
    monkeypatch.setattr("entropy_chains.offline.diagnose.diagnose", lambda *_, **__: {}[EVIL])
    result = CliRunner().invoke(main, ["diagnose", str(files["traces"])])
    assert result.exit_code == 1
    assert "KeyError" in result.stderr
    assert not acting(result.stderr)
