"""The oldest LangChain that installs and the newest that was tried: this distribution's tests, in small environments that have it.

``constraints.txt`` holds what every other test runs on.
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
RUNNING = ["zstandard", "numpy", "scipy", "click", "rich", "pytest", "pytest-timeout", "pytest-asyncio"]
COMMON = ["langsmith==0.12.0", "langchain-deepseek==1.0.1", "langchain-ollama==1.0.1", *RUNNING]
OLDEST = {
    "langchain-core-1.2.5": ["langchain-core==1.2.5", "langchain==1.2.0", "langchain-openai==1.1.6", "langchain-tests==1.1.2",
                             "langgraph==1.0.5", "langgraph-prebuilt==1.0.5", "langgraph-checkpoint==3.0.1"],
    "langchain-1.2.9": ["langchain-core==1.2.9", "langchain==1.2.9", "langchain-openai==1.1.7", "langchain-tests==1.1.4",
                        "langgraph==1.0.7", "langgraph-prebuilt==1.0.7", "langgraph-checkpoint==4.0.0"],
}  # fmt: skip
"""By what is the oldest: of all, and of what agents need (the ``agents`` extra)."""
TESTS = {
    "langchain-core-1.2.5": ["attachment", "callbacks", "chat_models", "closing", "numbers", "reach", "tracing"],
    "langchain-1.2.9": ["agent_shapes", "middleware", "attachment", "root_runs", "inner_fields", "user_functions", "calling_model",
                        "subclasses_of_models", "langsmith_page", "many_at_once"],
}  # fmt: skip

NEWEST = ["langchain==1.5.2", "langchain-core==1.8.3", "langchain-openai==1.7.4", "langchain-tests==1.1.9", "langgraph==1.2.24",
          "langsmith==0.15.1", "langchain-deepseek==1.1.1", "langchain-ollama==1.1.0", "openai==3.57.0", "hypothesis",
          "openinference-instrumentation-langchain", "opentelemetry-sdk", *RUNNING]  # fmt: skip
"""With version 3 of OpenAI's SDK, which is built on httpx2."""


def passing(python, *asked):
    """Run tests of this distribution with another interpreter; raises AssertionError with what it printed where one fails."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, HERE))), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [python, "-m", "pytest", "-q", "-k", "not on_a_local_model", *asked]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


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
    passing(python, *[HERE / "tests" / f"test_{t}.py" for t in TESTS[name]], HERE / "tests" / "unit_tests")


@pytest.mark.timeout(3600)
def test_it_works_with_the_newest_langchain(environment):
    """All tests pass, LangChain's standard suites plain and wrapped among them; but those of the local model."""
    python = environment("langchain-1.5.2-tests", NEWEST)
    local = [f"--ignore={HERE / 'tests' / name}" for name in ("test_local.py", "test_local_messages.py")]
    passing(python, *local, HERE / "tests")


def test_these_are_the_oldest_that_the_package_names():
    """What ``pyproject.toml`` asks for at least is what is tested here."""
    project = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    least = dict(p.split(",")[0].split(">=") for p in project["dependencies"] if ">=" in p)
    least |= dict(p.split(">=") for p in project["optional-dependencies"]["agents"])
    tested = dict(p.split("==") for p in [*OLDEST["langchain-core-1.2.5"], *COMMON] if "==" in p)
    tested |= {"langchain": "1.2.9"}
    assert least == {name: tested[name] for name in least}
