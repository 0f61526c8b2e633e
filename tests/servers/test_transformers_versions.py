"""The oldest major version of transformers: the backend's own tests, run in an environment that has it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from places import ROOT

pytestmark = pytest.mark.servers

VERSION = "4.57.6"
NEEDED = [
    "numpy",
    "scipy",
    "click",
    "rich",
    f"transformers=={VERSION}",
    "jinja2",
    "pytest",
    "hypothesis",
    "pytest-timeout",
    "pytest-asyncio",
]
TESTS = [
    "tests/backends/test_transformers.py",
    "tests/backends/test_transformers_probes.py",
    "tests/backends/test_transformers_settings.py",
    "tests/test_live_equals_replay.py",
]


@pytest.fixture
def python(environment):
    index = ["--index-url", os.environ["TORCH_INDEX"]] if os.environ.get("TORCH_INDEX") else []
    return environment(f"transformers-{VERSION}", ["torch==2.13.0", *index], NEEDED)


@pytest.mark.timeout(1800)  # it installs, and runs some ninety tests
def test_the_backend_works_with_transformers_4(python):
    """The same tests pass with version 4, probes, caches and greedy runs among them; this environment has version 5."""
    asked = [python, "-c", "import transformers; print(transformers.__version__)"]
    assert subprocess.run(asked, capture_output=True, text=True, check=True).stdout.startswith("4.")
    assert subprocess.run([sys.executable, *asked[1:]], capture_output=True, text=True, check=True).stdout.startswith("5.")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([python, "-m", "pytest", "-q", *TESTS], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
