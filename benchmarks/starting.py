"""What importing the package costs, in fresh interpreters."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

from measure import ROOT, Row, compare

HEAVY = ("torch", "numpy", "scipy", "transformers", "openai")


def imports(quick: bool) -> list[Row]:
    """Benchmark 5: seconds over the start of a bare interpreter."""
    rows = []
    rounds = 3 if quick else 21
    cases = (
        ("import entropy_chains", 0.3),
        ("from entropy_chains import Monitor, Policy, Token", None),
        ("from entropy_chains import calibrate, replay", None),
    )
    for code, goal in cases:
        paired = compare(lambda code=code: _python(code), lambda: _python("pass"), rounds)
        over = [a - b for a, b in zip(paired.a, paired.b, strict=True)]
        loaded = _python(f"{code}\nimport sys\nprint(*(m for m in {HEAVY!r} if m in sys.modules))").split()
        if goal and loaded:
            raise AssertionError(f"importing entropy_chains loads {', '.join(loaded)}")
        note = f"loads {', '.join(loaded) if loaded else 'none of ' + ', '.join(HEAVY)}"
        note += f"; {statistics.median(paired.a) / statistics.median(paired.b):.2f} × a bare start"
        rows.append(Row("import", code, statistics.median(over), "s", min(over), max(over), goal, note=note))
    return rows


def _python(code: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
