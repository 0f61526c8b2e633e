"""Real engines, each started once a session by the first test that asks for it.

Without an install a test is skipped; with ``CI`` set it fails. ``make test-servers`` installs the engines and sets it.
"""

from __future__ import annotations

import os
import sys
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
