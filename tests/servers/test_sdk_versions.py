"""The other major version of the openai SDK: the backend's own tests, run in a small environment that has it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from places import ROOT

pytestmark = pytest.mark.servers

NEEDED = ["numpy", "scipy", "click", "rich", "openai==3.*", "pytest", "hypothesis", "pytest-timeout", "pytest-asyncio"]
REMOTE = ("hostile", "leaving", "failing_batches", "readers", "logprob_entries", "alignment")
TESTS = ["tests/backends/test_openai.py", *(f"tests/backends/remote/test_{name}.py" for name in REMOTE)]


@pytest.fixture
def python(environment):
    return environment("openai-3", NEEDED)


def test_the_backend_works_with_openai_3(python):
    """The same tests pass with version 3, without any framework installed; this environment has version 2."""
    asked = [python, "-c", "import openai, sys; print(openai.VERSION)"]
    assert subprocess.run(asked, capture_output=True, text=True, check=True).stdout.startswith("3.")
    assert subprocess.run([sys.executable, *asked[1:]], capture_output=True, text=True, check=True).stdout.startswith("2.")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([python, "-m", "pytest", "-q", *TESTS], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
