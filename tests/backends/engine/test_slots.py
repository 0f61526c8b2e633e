"""Places of a batch that moves as vLLM's does, on the bundled model's tokenizer."""

from __future__ import annotations

import logging
import random
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")


from engine_rows import LOW, SERVING, Engine, Request, asked

from entropy_chains.backends.engine.requests import Rows
from entropy_chains.backends.engine.slots import Seats


def many(seed, count=14):
    drawn = random.Random(seed)
    for n in range(count):
        keys = {}
        if n % 4:
            keys = LOW | {"threshold": drawn.choice([1.0, 1.5, 2.0, 3.0]), "k": drawn.choice([0, 5, 20])}
            keys |= {"min_steps": drawn.choice([1, 2, 3]), "stop": drawn.choice([1, 1, 1, 0])}
        yield Request(seed * 1000 + n, keys, opened=drawn.random() < 0.5)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_every_request_gets_what_it_would_alone(seed, late):
    """However rows move, pause, come back and are read in parts: each is closed exactly where a monitor of its own closes it."""
    requests = list(many(seed))
    engine = Engine(requests, seed, late=late)
    engine.run()
    assert engine.resumed
    assert engine.moves
    stopped = 0
    for request in requests:
        expected, closed = request.alone()
        assert request.output == expected
        stopped += closed
    assert 0 < stopped < len(requests)


def test_a_request_that_came_back_unknown_runs_in_full(caplog):
    """It has tokens, but nobody remembers it: its steps could not be counted."""
    caplog.set_level(logging.INFO, "vllm.entropy_chains")
    seats = Seats(Rows(SERVING, 1), left_limit=4)
    seats.update(SimpleNamespace(removed=[], added=[(0, asked(threshold=9), [1], [5, 6])], moved=[]))
    assert not seats._seats
    assert "came back" in caplog.text
