"""The pages run as they stand: Python and console blocks are executed, files shown are read, links and names are checked.

``<!-- parsed only -->`` before a block means that it is slow, or needs what a test has not: it is compiled, or its options looked
up. The blocks of a page run in order, in one namespace and one empty folder that holds ``questions.jsonl``, ``traces.jsonl`` and
``policy.json``, the latter as ``demo/policy.json`` too; a scripted server answers at ``OPENAI_BASE_URL``. A ``text`` block right
after a Python block is what that block prints.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import click
import pytest
from loopback import Loopback
from places import ROOT

import entropy_chains
from entropy_chains.cli import main
from entropy_chains.core.families import detect_tags, template_hash
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import detect_segmentation
from entropy_chains.demo import MODEL_FOLDER, MODEL_NAME
from entropy_chains.offline.calibrate import calibrate
from entropy_chains.offline.traces import Step, Trace, append_traces

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^(?P<mark>```+)(?P<language>[\w-]*)[^\n]*\n(?P<body>.*?)^(?P=mark)[ ]*$", re.MULTILINE | re.DOTALL)
LLAMA_INDEX = "integrations/llama-index-llms-entropy-chains/llama_index/llms/entropy_chains"
CONSOLE = ("bash", "console", "sh", "shell")


class Block(NamedTuple):
    """A fenced block: its language, text and first line's number, whether it is only parsed, and the text it must print."""

    language: str
    body: str
    line: int
    parsed_only: bool
    printed: str | None


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = list(FENCE.finditer(text))
    made = []
    for n, match in enumerate(found):
        before = text[found[n - 1].end() if n else 0 : match.start()].rstrip()
        after = found[n + 1] if n + 1 < len(found) else None
        follows = after is not None and after["language"] == "text" and not text[match.end() : after.start()].strip()
        printed = after["body"] if follows and after is not None else None
        line = text.count("\n", 0, match.start("body")) + 1
        made.append(Block(match["language"], match["body"], line, before.endswith("<!-- parsed only -->"), printed))
    return made


def commands(block: Block) -> list[str]:
    """A console block's commands: the lines after ``$ `` where there are any, else all; continued lines are joined."""
    lines = block.body.replace("\\\n", " ").splitlines()
    prompted = [x[2:] for x in lines if x.startswith("$ ")]
    return [x for x in prompted or lines if x.strip() and not x.lstrip().startswith("#")]


def arguments(command: str) -> list[str] | None:
    """What follows ``entropy-chains``, or None for another program; leading assignments are left out."""
    words = shlex.split(command, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    if words and Path(words[0]).name == "entropy-chains":
        return words[1:]
    if words[1:3] == ["-m", "entropy_chains"]:
        return words[3:]
    return None


def parse(args: list[str]) -> None:
    """Look the command and its options up; click raises a UsageError that names what does not exist."""
    if args and not args[0].startswith("-"):
        name, command, rest = main.resolve_command(click.Context(main), args)
        assert command is not None
        if not {"-h", "--help"} & set(rest):
            command.make_context(name, list(rest))


def check_targets(command: str) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    words = shlex.split(command, comments=True)[1:]
    assert {w for w in words if "=" not in w and not w.startswith("-")} <= targets, command


def run_console(block: Block) -> None:
    for command in commands(block):
        words = shlex.split(command, comments=True)
        if words and words[0] == "make":
            check_targets(command)
        args = arguments(command)
        if args is None:
            continue
        expected = re.search(r"# exit status (\d)", command)
        if not expected or expected[1] == "0":
            parse(args)
        if block.parsed_only or (args[:1] == ["demo"] and "--questions" not in args):  # `make demo`, minutes
            continue
        if args[0] == "record" and "--resume" not in args and not expected:  # may name a prepared file: it is written anew
            Path(args[args.index("--out") + 1]).unlink(missing_ok=True)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(["bash", "-c", command], env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=300)
        assert done.returncode == int(expected[1] if expected else 0), f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        if "--json" in args and done.returncode == 0:
            json.loads(done.stdout)


def run_python(block: Block, page: Path, namespace: dict[str, object]) -> None:
    source = "\n" * (block.line - 1) + block.body  # a traceback names the page's own line
    code = compile(source, str(page), "exec")
    if block.parsed_only:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "entropy_chains":
                assert all(hasattr(import_module(str(node.module)), a.name) for a in node.names), ast.unparse(node)
        return
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        exec(code, namespace)
    if block.printed is not None:
        assert shown.getvalue().rstrip() == block.printed.rstrip(), f"{page.name}, line {block.line}"


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files of the bundled model: wrong answers have the higher entropy, and thinking on repairs most of them."""
    folder = tmp_path_factory.mktemp("prepared")
    rng = random.Random(0)
    template = (MODEL_FOLDER / "chat_template.jinja").read_text(encoding="utf-8")
    stated = {
        "model": MODEL_NAME,
        "mode": "thinking",
        "estimator": "renormalised",
        "k": 20,
        "temperature": 1.0,
        "temperature_mode": "raw",
        "segmentation": detect_segmentation(template).to_dict(),
        "template": template_hash(template, detect_tags(template)),
    }
    traces, questions = [], []
    for n in range(120):
        a, b = rng.randrange(10, 100), rng.randrange(2, 10)
        right, repaired = str(a * b), rng.randrange(1, 4)
        steps = []
        for step in range(1, 4):
            correct = step >= repaired
            entropy = round(rng.uniform(0.01, 0.1) if correct else rng.uniform(0.08, 0.6), 4)
            signals = {"sum_entropy": round(60 * entropy, 3)}
            text = f"Wait {a}*{b} so {right}.\n"
            steps.append(
                Step(right if correct else "1", entropy, 60, seconds=0.5, probe_tokens=6, mass=0.999, signals=signals, text=text)
            )
        name = f"q{n}"
        steps.append(Step(right, None, 10, seconds=0.1))
        traces.append(Trace(name, steps, group=name, question=f"{a}*{b}=?", gold=right, **stated))
        questions.append({"id": name, "question": f"{a}*{b}=?", "gold": right})
    append_traces(folder / "traces.jsonl", traces)
    (folder / "questions.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions[:2]))
    calibrate(traces).save(folder / "policy.json")
    (folder / "demo").mkdir()
    calibrate(traces).save(folder / "demo" / "policy.json")  # where `make demo` leaves it
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_the_blocks_run(page: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    offline = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    namespace: dict[str, object] = {"__name__": "docs"}
    # A block may set variables.
    with Loopback() as server, mock.patch.dict(os.environ, offline | {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "none"}):
        for block in blocks(page):
            if block.language in ("python", "py"):
                run_python(block, page, namespace)
            elif block.language in CONSOLE:
                run_console(block)
            elif block.language == "json" and page.parent.name == "docs":
                shown = json.loads(block.body)
                if "thresholds" in shown:
                    Policy.from_dict(shown)
                elif "steps" in shown:
                    Trace.from_dict(shown)


def test_the_index_names_every_page():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert {p.name for p in PAGES[1:] if p.name != "index.md"} <= set(re.findall(r"\]\(([\w-]+\.md)", index))


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        if "://" in path or path.startswith("mailto:"):
            continue
        target = page if not path else page.parent / path
        assert target.exists(), f"{page.name}: {link}"
        if anchor and target.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", FENCE.sub("", target.read_text(encoding="utf-8")), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}, f"{page.name}: {link}"


@pytest.mark.parametrize("name", ["architecture.md", "changing-things.md"])
def test_files_that_pages_name_are_there(name: str):
    """A map of the code that names a file which is gone misleads."""
    named = set(re.findall(r"`([\w/-]+(?:\.py|\.j2|/))`", (ROOT / "docs" / name).read_text(encoding="utf-8")))
    places = [ROOT, ROOT / "entropy_chains", ROOT / "entropy_chains" / "backends", ROOT / LLAMA_INDEX]
    assert len(named) > 10
    assert [n for n in named if not any((place / n).exists() for place in places)] == []


def test_every_public_name_is_on_a_page():
    text = "\n".join(p.read_text(encoding="utf-8") for p in PAGES[1:])
    assert [n for n in entropy_chains.__all__ if not re.search(rf"\b{n}\b", text)] == []


def test_every_command_and_option_is_on_its_page():
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    for name, command in main.commands.items():
        section = re.search(rf"^## {name}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
        assert section, name
        for option in (o for p in command.params if isinstance(p, click.Option) for o in (*p.opts, *p.secondary_opts)):
            assert f"{option}" in section[1] or option in ("--json", "--help"), f"{name} {option}"


def test_pages_name_no_machine():
    """A path of the machine a page was written on helps nobody else."""
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]:
        assert not re.search(r"/(home|root|work|Users)/", page.read_text(encoding="utf-8")), page.name
