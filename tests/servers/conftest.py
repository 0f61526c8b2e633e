"""Real engines, each started once a session by the first test that asks for it.

Without an install a test is skipped; with ``CI`` set it fails. ``make test-servers`` installs the engines and sets it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))  # tests and users start engines by the same script

import engines


def running(kind: engines.Kind, *, plugin: bool = False) -> Iterator[engines.Engine]:
    if engines.installed(kind) is None and not os.environ.get("CI"):
        pytest.skip(f"{kind} is not installed; `make test-servers` installs it")
    with engines.start(kind, plugin=plugin) as engine:
        engine.let_others_first()
        yield engine


def interpreter(name: str, *installs: list[str]) -> Path:
    """The Python of an environment with other versions; made on the first run with ``CI`` set, and kept beside the engines.

    Args:
        name: of its folder, with the version that it is for.
        installs: what each call of pip is given.
    """
    folder = engines.CACHE / name
    python, done = folder / "bin" / "python", folder / ".complete"
    if not done.exists():
        if not os.environ.get("CI"):
            pytest.skip(f"no environment {name}; `make test-servers` makes it")
        venv.create(folder, clear=True, with_pip=True)
        for wanted in installs:
            subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
        done.touch()
    return python


@pytest.fixture(scope="session")
def environment():
    """See :func:`interpreter`."""
    return interpreter


@pytest.fixture(scope="session")
def vllm() -> Iterator[engines.Engine]:
    """An engine with logprobs of the whole vocabulary: vLLM as it comes."""
    yield from running("vllm")


@pytest.fixture(scope="session")
def vllm_plugin() -> Iterator[engines.Engine]:
    """The same with this package's logits processor inside."""
    yield from running("vllm", plugin=True)


@pytest.fixture(scope="session")
def llama() -> Iterator[engines.Engine]:
    """The other engine with logprobs: llama-server."""
    yield from running("llama")


@pytest.fixture(scope="session")
def transformers_serve() -> Iterator[engines.Engine]:
    """An engine without: ``transformers serve`` accepts ``logprobs`` and sends none."""
    yield from running("transformers")
