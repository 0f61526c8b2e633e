"""The newest packages of providers for LlamaIndex install beside ours: pip's resolver finds versions that go together.

Needs a package index, and is skipped without one. Nothing is installed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from typing import Any

import pytest
from places import ROOT

pytestmark = pytest.mark.servers

HERE = ROOT / "integrations/llama-index-llms-entropy-chains"
NEIGHBOURS = ("openrouter", "nvidia", "fireworks", "groq", "deepseek")


def project(folder: Any) -> dict[str, Any]:
    """A distribution's project table."""
    table: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def wanted() -> list[str]:
    """What the documented line asks for, besides our own packages: both distributions with their extra ``openai``."""
    tables = project(ROOT), project(HERE)
    asked = [line for t in tables for line in (*t["dependencies"], *t["optional-dependencies"]["openai"])]
    return [line for line in asked if not line.startswith("entropy-chains")]


def resolved(*requirements: str) -> subprocess.CompletedProcess[str]:
    """A dry run of pip; its report is on standard output."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-input", "--ignore-installed", "--report", "-"]
    return subprocess.run([*command, *requirements], cwd=ROOT, capture_output=True, text=True, timeout=300)


def versions(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """What would be installed."""
    return {found["metadata"]["name"].lower(): found["metadata"]["version"] for found in json.loads(done.stdout)["install"]}


@pytest.mark.parametrize("neighbour", NEIGHBOURS)
def test_the_newest_installs_beside_ours(neighbour):
    """At its newest version, with the newest LlamaIndex that both allow, which ours allows to be the newest there is."""
    name = f"llama-index-llms-{neighbour}"
    newest = resolved("--no-deps", name, "llama-index-core")
    if newest.returncode:
        pytest.skip(f"no package index can be reached: {newest.stderr[-200:]}")
    asked = versions(newest)
    both = resolved(f"{name}=={asked[name]}", *wanted())
    assert both.returncode == 0, both.stderr
    assert versions(both)["llama-index-core"] == asked["llama-index-core"]
