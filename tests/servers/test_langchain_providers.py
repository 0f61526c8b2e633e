"""LangChain's provider classes in an environment of their own: what their servers make, as the page's table says it."""

from __future__ import annotations

import json
import os
import re
import subprocess

import pytest
from places import ROOT

pytestmark = pytest.mark.servers

HERE = ROOT / "integrations" / "langchain-entropy-chains"
PAGE = ROOT / "docs" / "langchain-providers.md"
PACKAGES = ["langchain-openai", "langchain-deepseek", "langchain-groq", "langchain-fireworks", "langchain-mistralai"]
COMMON = ["numpy", "scipy", "click", "rich", "langchain-core"]
IN_FLIGHT = 24
"""Tokens that a server may make before it hears that a connection was closed."""


def table():
    """The page's rows: class, and tokens without ``asyncio`` and with it."""
    rows = re.findall(r"^\| `(\w+)` \|.*\| (\d+) \| (\d+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: [int(one), int(other)] for name, one, other in rows}


@pytest.mark.timeout(1200)  # it installs
def test_the_table_of_providers_is_what_servers_make(environment):
    """Each class, sync and async: where it stops, the server stops; where it cannot, the table says a full run."""
    python = environment("langchain-providers-1", [*PACKAGES, *COMMON])
    settings = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, HERE)))}
    command = [str(python), str(HERE / "tests" / "support" / "providers.py")]
    done = subprocess.run(command, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found, told = json.loads(done.stdout), table()
    assert found.keys() == told.keys()
    for name, tokens in found.items():
        assert all(abs(a - b) <= IN_FLIGHT for a, b in zip(tokens, told[name], strict=True)), (name, tokens, told[name])
