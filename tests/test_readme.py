"""The figures in the README and the model card are what their commands produced."""

from __future__ import annotations

import ast
import builtins
import importlib.util
import json
import re

from places import ROOT

spec = importlib.util.spec_from_file_location("readme_script", ROOT / "scripts" / "readme.py")
assert spec is not None
assert spec.loader is not None
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


def test_the_blocks_are_rendered_from_the_kept_figures():
    """README and model card hold exactly what ``scripts/readme.py`` makes of the demo's and the evaluation's files."""
    for path, text in script.rendered().items():
        assert path.read_text(encoding="utf-8") == text, f"run: python scripts/readme.py ({path.name} is stale)"


def test_the_bundled_model_is_an_honest_test():
    """As evaluated: right in full on 70 to 95 %, at least 5 points lost by always stopping after step 1, 3 or more steps."""
    found = json.loads((script.CARD / "evaluation.json").read_text())["all"]
    assert 0.70 <= found["accuracy_full"] <= 0.95
    assert found["accuracy_full"] - found["after_step_1"] >= 0.05
    assert found["steps"] >= 3


def test_each_snippet_runs_as_it_stands():
    """Pasted alone, a block needs no other one: every name that it reads is a builtin or its own."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        names = [n for n in ast.walk(ast.parse(block)) if isinstance(n, ast.Name)]
        imported = {a.asname or a.name for n in ast.walk(ast.parse(block)) if isinstance(n, ast.ImportFrom) for a in n.names}
        made = {n.id for n in names if isinstance(n.ctx, ast.Store)} | imported | set(dir(builtins))
        assert {n.id for n in names if isinstance(n.ctx, ast.Load)} <= made
