"""The oldest LangChain that installs: this distribution's own tests, run in small environments that have it.

The newest is what ``constraints.txt`` holds, and what every other test runs on.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib

import pytest
from places import ROOT

pytestmark = pytest.mark.servers

HERE = ROOT / "integrations" / "langchain-entropy-chains"
COMMON = [
    "langsmith==0.12.0",
    "langchain-deepseek==1.0.1",
    "langchain-ollama==1.0.1",
    "zstandard",
    "numpy",
    "scipy",
    "click",
    "rich",
    "pytest",
    "pytest-timeout",
    "pytest-asyncio",
]
OLDEST = {
    "langchain-core-1.2.5": ["langchain-core==1.2.5", "langchain==1.2.0", "langchain-openai==1.1.6", "langchain-tests==1.1.2",
                             "langgraph==1.0.5", "langgraph-prebuilt==1.0.5", "langgraph-checkpoint==3.0.1"],
    "langchain-1.2.9": ["langchain-core==1.2.9", "langchain==1.2.9", "langchain-openai==1.1.7", "langchain-tests==1.1.4",
                        "langgraph==1.0.7", "langgraph-prebuilt==1.0.7", "langgraph-checkpoint==4.0.0"],
}  # fmt: skip
"""By what is the oldest: of all, and of what agents need (the ``agents`` extra)."""
TESTS = {
    "langchain-core-1.2.5": ["attachment", "callbacks", "chat_models", "closing", "numbers", "reach", "tracing"],
    "langchain-1.2.9": ["agent_shapes", "middleware", "attachment", "root_runs"],
}


@pytest.fixture(params=OLDEST)
def oldest(request, environment):
    """Name and interpreter of an environment."""
    return request.param, environment(f"{request.param}-tests", [*OLDEST[request.param], *COMMON])


@pytest.mark.timeout(1800)  # it installs, and runs some hundred tests
def test_it_works_with_the_oldest_langchain(oldest):
    """The same tests pass; only what runs the local model is left out, for these environments have no torch."""
    name, python = oldest
    package, _, old = name.rpartition("-")
    asked = f"from importlib.metadata import version; print(version({package!r}))"
    found = [subprocess.run([p, "-c", asked], capture_output=True, text=True, check=True).stdout for p in (python, sys.executable)]
    there, here = ([int(n) for n in text.strip().split(".")] for text in found)
    assert there == [int(n) for n in old.split(".")] < here
    tests = [HERE / "tests" / f"test_{t}.py" for t in TESTS[name]] + [HERE / "tests" / "unit_tests"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, HERE))), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [python, "-m", "pytest", "-q", "-k", "not on_a_local_model", *tests]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def test_these_are_the_oldest_that_the_package_names():
    """What ``pyproject.toml`` asks for at least is what is tested here."""
    project = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    least = dict(p.split(",")[0].split(">=") for p in project["dependencies"] if ">=" in p)
    least |= dict(p.split(">=") for p in project["optional-dependencies"]["agents"])
    tested = dict(p.split("==") for p in [*OLDEST["langchain-core-1.2.5"], *COMMON] if "==" in p)
    tested |= {"langchain": "1.2.9"}
    assert least == {name: tested[name] for name in least}
