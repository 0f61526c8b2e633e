"""What the rows of a batch measure on the device: when, up to where, and what happens when it fails."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from engine_rows import CLOSE, LINE, LOW, SERVING, Request, closed_at, one

from entropy_chains.backends.engine import buffers
from entropy_chains.backends.engine.requests import Rows
from entropy_chains.backends.engine.slots import Seats
from entropy_chains.core.entropy_rows import logits_entropy


def test_only_thinking_is_measured(monkeypatch):
    """No entropy is computed before the thinking, after it, while it is being closed, or for who did not ask."""
    shapes = []
    monkeypatch.setattr(buffers, "logits_entropy", lambda part, k: shapes.append(len(part)) or logits_entropy(part, k))
    one({})
    assert not shapes
    request, *_ = one(LOW | {"threshold": 9}, opened=False)
    assert len(shapes) == closed_at(request) - 1  # the opening tag is not measured; every token of the thinking is


@pytest.mark.parametrize("late", [False, True])
def test_a_step_longer_than_a_seat_keeps_is_summed_up_on_the_way(late):
    """600 tokens without a line end, then one: the row is closed there, as a monitor of its own closes it."""
    request = Request(3, LOW | {"threshold": 9}, opened=True)
    request.length = 610
    spoil = lambda row, output: row.__setitem__(LINE, 50.0 if len(output) == 600 else -50.0)  # noqa: E731
    plain = request.logits
    request.logits = lambda output: (row := plain(output), spoil(row, output))[0]
    rows = Rows(SERVING, 1, late=late)
    seats = Seats(rows, left_limit=1)
    seats.update(SimpleNamespace(removed=[], added=[(0, request.params, request.prompt, request.output)], moved=[]))
    while not request.done(request.output):
        request.output.append(int(seats.step(request.logits(request.output)[None].clone()).argmax()))
    assert request.output[600] == LINE
    assert request.output[601 : 601 + len(CLOSE)] == CLOSE
    assert request.output == request.alone()[0]


def test_an_error_for_all_rows_at_once_leaves_their_logits(monkeypatch, caplog):
    """The one computation for all rows fails: all run in full."""
    monkeypatch.setattr(buffers, "logits_entropy", lambda part, k: 1 / 0)
    assert one(LOW | {"threshold": 9})[0].output == one({})[0].output
    assert "ZeroDivisionError" in caplog.text


def test_a_row_whose_tokens_do_not_add_up_runs_in_full():
    """Two tokens in one step, or fewer than before: what the figures belong to is not known, so nothing is stopped."""
    for change in (lambda output: output.extend([LINE, LINE]), lambda output: output.clear()):
        request, _, seats = one(LOW | {"threshold": 9}, steps=3)
        change(request.output)
        seats.step(request.logits(request.output)[None])
        assert not seats._seats[0].row.on
