"""The oldest LlamaIndex that the distribution allows, under the distribution's own tests; else they run on the newest."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import engines  # tests/servers/conftest.py puts scripts/ on the path
import pytest
from places import ROOT

pytestmark = pytest.mark.servers

HERE = "integrations/llama-index-llms-entropy-chains"
OLDEST = {"llama-index-core": "0.14.5", "llama-index-llms-openai": "0.7.0", "llama-index-llms-openai-like": "0.7.2"}

TRACES = ("tests/test_tracing.py", "tests/test_totals.py", "tests/test_savings_scores.py")
"""OpenInference's instrumentor takes LlamaIndex from 0.14.19 on."""

NOT_OURS = [
    # Its streams keep a field named "reasoning" under no name that its whole replies have: ``raw`` lacks it there.
    *(
        f"tests/test_raw.py::test_a_run_in_full_has_the_raw_response_of_the_plain_class[reasoning-{way}-True]"
        for way in ("chat", "complete", "achat", "acomplete")
    ),
    *(f"tests/test_raw.py::test_tool_calls_stand_in_the_raw_response[reasoning-{way}]" for way in ("chat", "achat")),
    *(
        f"tests/test_raw.py::test_a_stopped_run_has_a_whole_raw_response[reasoning-{way}]"
        for way in ("chat", "complete", "achat", "acomplete")
    ),
    # LlamaIndex 0.14.5 fails here on any reply with a ThinkingBlock, without the wrapper as well.
    "tests/test_local.py::test_a_chat_engine_on_it[stream_chat]",
    "tests/test_attachment.py::test_a_chat_engine_stops_and_answers[stream_chat-simple]",
    "tests/test_attachment.py::test_a_chat_engine_stops_and_answers[astream_chat-simple]",
    "tests/test_attached_agents.py::test_an_agent_calls_its_tool_and_answers[ReActAgent]",
    "tests/test_attached_agents.py::test_an_agent_calls_its_tool_and_answers[ReActAgent, not streamed]",
    "tests/test_local_agents.py::test_a_react_agent_has_its_tools_in_the_prompts_text",
    # Its programs cannot be streamed yet.
    "tests/test_local.py::test_structured_output_is_never_stopped[stream_structured_predict]",
    "tests/test_local.py::test_structured_output_is_never_stopped[astream_structured_predict]",
]


def test_the_oldest_is_what_the_package_says():
    """The range begins with what is tested here."""
    told = (ROOT / HERE / "pyproject.toml").read_text()
    asked = dict(re.findall(r'"(llama-index[\w-]+)>=([\d.]+)', told))
    assert {name: version.removesuffix(".0") for name, version in OLDEST.items()} == asked


@pytest.fixture(scope="module")
def packages():
    """A folder with those packages and all that they need; made on the first run, and kept beside the engines."""
    folder = engines.CACHE / f"llama-index-{OLDEST['llama-index-core']}"
    done = folder / ".complete"
    if not done.exists():
        if not os.environ.get("CI"):
            pytest.skip("the oldest LlamaIndex is not installed; `make test-servers` installs it")
        folder.mkdir(parents=True, exist_ok=True)
        others = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("llama-index")]
        (folder / "constraints.txt").write_text("\n".join(others))
        wanted = [f"{name}=={version}" for name, version in OLDEST.items()]
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--target", folder]
        subprocess.run([*command, "--constraint", folder / "constraints.txt", *wanted], check=True)
        done.touch()
    return folder


@pytest.mark.timeout(1800)  # the whole suite of the distribution
def test_the_package_works_with_the_oldest(packages):
    """Its tests pass, but for those that fail there without it."""
    environment = os.environ | {"PYTHONPATH": str(packages), "PYTHONDONTWRITEBYTECODE": "1"}

    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)

    version = python("-c", "import llama_index.core as c; print(c.__version__)").stdout.strip()
    assert version == OLDEST["llama-index-core"]
    left_out = [f"--deselect={HERE}/{test}" for test in NOT_OURS]
    done = python("-m", "pytest", "-q", HERE, *(f"--ignore={HERE}/{path}" for path in TRACES), *left_out)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
