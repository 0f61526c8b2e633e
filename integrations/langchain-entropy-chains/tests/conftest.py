"""What the tests of LangChain have in common: a scripted server, and one that LangSmith's SDK posts to."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "support"))


@pytest.fixture
def server():
    """A server that thinks in lines, unsure of the first two, and then answers (a fake: it thinks nothing)."""
    from loopback import Loopback

    from scripts import paced

    with Loopback(paced) as running:
        yield running


@pytest.fixture
def receiver():
    """LangSmith's API on loopback."""
    from langsmith_receiver import Receiver

    with Receiver() as running:
        yield running
