"""Inputs of the commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    """120 runs in which a wrong first answer mostly has the higher entropy."""
    from commands import trace

    path = tmp_path / "traces.jsonl"
    rows = [trace(n, first_right=n % 4 > 0, entropy=0.2 + 0.6 * (n % 4 == 0) + n / 1000) for n in range(120)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Six sums of the demo, with gold answers."""
    from entropy_chains.demo.questions import draw_questions

    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(q) + "\n" for q in draw_questions(6, 3)))
    return path
