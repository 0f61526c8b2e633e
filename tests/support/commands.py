"""Commands run as a user would, and a trace for them."""

from __future__ import annotations

from click.testing import CliRunner, Result

from entropy_chains.cli import main


def run(*arguments: object) -> Result:
    """What a command printed, and its exit status."""
    return CliRunner().invoke(main, [str(a) for a in arguments])


def trace(n: int, *, first_right: bool, entropy: float, model: str = "m") -> dict:
    """Three steps: the first has this answer and entropy, the second is right, the full answer is wrong once in seven."""
    steps = [
        {"answer": "1" if first_right else "2", "entropy": entropy, "tokens": 100, "probe_tokens": 5, "mass": 1.0},
        {"answer": "1", "entropy": 0.1, "tokens": 100, "probe_tokens": 5, "mass": 1.0},
        {"answer": "1" if n % 7 else "3", "entropy": None, "tokens": 10},
    ]
    return {"id": f"q{n}", "question": f"question {n}", "gold": "1", "model": model, "k": 20, "steps": steps}
