"""Requests of a plug-in, without vLLM: what is closed and where, what is left alone, and that an error harms its request only."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from engine_rows import CLOSE, LINE, LOW, OPEN, SERVING, SIZE, WORDS, Engine, Request, asked, closed_at, one

from entropy_chains.backends.engine import buffers
from entropy_chains.backends.engine import settings as engine_settings
from entropy_chains.backends.engine.buffers import Row
from entropy_chains.backends.engine.requests import Rows
from entropy_chains.backends.engine.slots import Seats
from entropy_chains.core.entropy_rows import logits_entropy
from entropy_chains.core.steps import Phase


def test_the_close_is_forced_right_at_the_boundary():
    """The token after the step's last is the closing tag: none in between, and all of the closing text."""
    request, *_ = one(LOW | {"threshold": 9})
    at = closed_at(request)
    assert request.output[at : at + len(CLOSE)] == CLOSE
    assert request.output[at - 1] == LINE
    assert closed_at(one(LOW | {"threshold": -1})[0]) is None


@pytest.mark.parametrize("keys", [{"stop": 0}, {"holdout": 1}])
def test_a_request_that_is_only_watched_is_not_changed(keys, caplog):
    """Its tokens are those of a request that asks nothing; the log says where it would have been closed."""
    caplog.set_level(logging.INFO, "vllm.entropy_chains")
    request, *_ = one(LOW | {"threshold": 9, "id": "mine"} | keys)
    assert request.output == one({})[0].output
    assert "'mine' would have been closed" in caplog.text


def test_the_off_switch_holds_in_the_engine(monkeypatch):
    """ENTROPY_CHAINS_STOP=0 in the server's environment: nothing is closed."""
    monkeypatch.setenv("ENTROPY_CHAINS_STOP", "0")
    assert closed_at(one(LOW | {"threshold": 9})[0]) is None


def test_the_prompt_tells_that_thinking_has_begun():
    """Without the opening tag at the prompt's end, or in the output, a text is an answer and never closed."""
    spoil = lambda request, logits: logits.__setitem__((0, OPEN), -50.0)  # noqa: E731
    assert closed_at(one(LOW | {"threshold": 9}, opened=False, spoil=spoil)[0]) is None
    assert closed_at(one(LOW | {"threshold": 9}, opened=True, spoil=spoil)[0]) is not None


@pytest.mark.parametrize(
    ("prompt", "reply"),
    [
        ("34*7=?<think>\n</think>\n\n", "ok <think>\n"),  # a template with thinking switched off
        ("34*7=?<think>\n</think>\n\n", "<think>\n"),
        ("34*7=?", "ok <think>\n"),  # a reply that answers at once
        ("34*7=?", "<think>\n1\n</think>\n\nok <think>\n"),  # an answer after thinking
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_an_answer_that_mentions_a_tag_is_left_alone(prompt, reply, late):
    """However sure its lines are: thinking begins at the start of the output, if the prompt has not closed it."""
    seats = Seats(Rows(SERVING, 1, late=late), left_limit=1)
    output, tokens = [], WORDS.encode(reply + "12*3=36;so 36.\n" * 4)
    added = [(0, asked(**{**LOW, "threshold": 9, "min_tokens": 8}), WORDS.encode(prompt), output)]
    seats.update(SimpleNamespace(removed=[], added=added, moved=[]))
    for token in tokens:
        logits = torch.zeros(1, SIZE)
        logits[0, token] = 20.0
        assert torch.equal(seats.step(logits.clone()), logits)
        output.append(token)


def test_a_token_that_a_grammar_forbids_is_not_forced():
    """Where the closing tag is impossible the logits stay as they are, and the row runs on unwatched."""
    request, _, seats = one(LOW | {"threshold": 9}, spoil=lambda r, logits: logits.__setitem__((0, CLOSE[0]), -torch.inf))
    assert closed_at(request) is None
    assert request.output == one({})[0].output
    assert not seats._seats[0].row.on


def test_an_error_of_ours_ends_the_watching_of_its_row_only(caplog):
    """The other rows are closed where they would be, nothing is raised, and the log tells once."""
    requests = [Request(n, LOW | {"threshold": 2.0}, opened=True) for n in range(3)]
    engine = Engine([], 0)
    added = [(n, r.params, r.prompt, r.output) for n, r in enumerate(requests)]
    engine.seats.update(SimpleNamespace(removed=[], added=added, moved=[]))
    engine.seats._seats[1].row.monitor = SimpleNamespace(phase=Phase.THINKING)  # the next token cannot be fed
    for _ in range(60):
        logits = engine.seats.step(torch.stack([r.logits(r.output) for r in requests]))
        for request, token in zip(requests, logits.argmax(-1).tolist(), strict=True):
            request.output.append(token)
    for n, request in enumerate(requests):
        plain = Request(n, {}, opened=True)
        plain.length = request.length = 60
        assert request.output == (plain if n == 1 else request).alone()[0]
    assert caplog.text.count("entropy-chains failed") == 1


BAD_K = 7
"""Likeliest tokens that only the request `bad` asks for."""


def bad(row):
    return row.settings.id == "bad"


def fails(function, when):
    """The function, but for calls that ``when`` picks out: those raise."""

    def called(*args):
        if when(*args):
            raise ZeroDivisionError("made for a test")
        return function(*args)

    return called


def unreadable(part, k):
    """Figures that cannot be read once they have arrived."""
    found = logits_entropy(part, k)
    return SimpleNamespace(figures=lambda: found.figures().requires_grad_()) if k == BAD_K else found


def too_large_k(row, seat, sit=Row.sit):
    """A k that no array of 64 bits holds, as if the door had let it in."""
    if bad(row):
        object.__setattr__(row.settings.policy, "k", 2**63)
    sit(row, seat)


def closed_too_far(rows, row, known, token, take=Rows.take):
    """A row that has more of the closing text than there is."""
    take(rows, row, known, token)
    if bad(row) and row.closing is not None:
        row.closing -= 100


BREAKS = {
    "while it begins": (Rows, "begin", fails(Rows.begin, lambda rows, settings, *_: settings.id == "bad")),
    "while it takes its seat": (Row, "sit", fails(Row.sit, lambda row, seat: bad(row))),
    "at a seat that cannot hold its k": (Row, "sit", too_large_k),
    "while it leaves its seat": (Row, "rise", fails(Row.rise, bad)),
    "with a token": (Rows, "take", fails(Rows.take, lambda rows, row, known, token: bad(row))),
    "while its entropies are computed": (buffers, "logits_entropy", fails(logits_entropy, lambda part, k: k == BAD_K)),
    "while its entropies arrive": (buffers, "logits_entropy", unreadable),
    "while it is closed": (Rows, "take", closed_too_far),
}
"""Where one request may break: a function of ours, and what it does then."""


@pytest.mark.parametrize("where", BREAKS)
def test_one_request_that_breaks_harms_no_other(where, monkeypatch, caplog):
    """It runs in full, whatever broke. The others are closed exactly where they would be, and nothing is raised."""
    monkeypatch.setattr(engine_settings, "_made_of", engine_settings._made_of.__wrapped__)
    monkeypatch.setattr(*BREAKS[where])
    keys = [LOW | {"threshold": 2.0}] * 2 + [LOW | {"threshold": 2.5, "k": BAD_K, "id": "bad"}]
    requests = [Request(n, k, opened=True) for n, k in enumerate(keys, 2)]
    seats = Seats(Rows(SERVING, 3), left_limit=4)
    added = [(n, r.params, r.prompt, r.output) for n, r in enumerate(requests)]
    seats.update(SimpleNamespace(removed=[], added=added[:2], moved=[]))
    batch = requests[:2]
    for step in range(60):
        if step == 2:  # the bad one comes to rows that are watched already
            seats.update(SimpleNamespace(removed=[], added=added[2:], moved=[]))
            batch = requests[:]
        if step == 4:  # and changes places with one of them
            seats.update(SimpleNamespace(removed=[], added=[], moved=[(1, 2, SimpleNamespace(name="SWAP"))]))
            batch = [requests[n] for n in (0, 2, 1)]
        logits = seats.step(torch.stack([r.logits(r.output) for r in batch]))
        for request, token in zip(batch, logits.argmax(-1).tolist(), strict=True):
            request.output.append(token)
    for request in requests[:2]:
        request.length = 60
        assert (request.output, True) == request.alone()
    plain = Request(4, {}, opened=True)
    plain.length = len(requests[2].output)
    assert requests[2].output == plain.alone()[0]
    assert caplog.text.count("entropy-chains failed") == 1


def test_a_token_that_no_vocabulary_has_harms_its_row_only():
    """All rows' tokens are looked up at once; where that fails, each row is tried alone."""
    requests = [Request(n, LOW | {"threshold": 2.0 if n != 1 else 9}, opened=True) for n in range(3)]
    seats = Seats(Rows(SERVING, 3), left_limit=4)
    added = [(n, r.params, r.prompt, r.output) for n, r in enumerate(requests)]
    seats.update(SimpleNamespace(removed=[], added=added, moved=[]))
    for step in range(60):
        logits = seats.step(torch.stack([r.logits(r.output) for r in requests]))
        for n, (request, token) in enumerate(zip(requests, logits.argmax(-1).tolist(), strict=True)):
            request.output.append(10**9 if (n, step) == (1, 1) else token)
    for request in (requests[0], requests[2]):
        request.length = 60
        assert request.output == request.alone()[0]
    assert closed_at(requests[1]) is None


def test_phases_end_the_watching():
    """A row whose thinking ended by itself is not looked at any more."""
    natural = lambda request, logits: logits.__setitem__((0, CLOSE[0]), 50.0 if len(request.output) == 10 else -50.0)  # noqa: E731
    request, _, seats = one(LOW | {"threshold": -1}, spoil=natural)
    row = seats._seats[0].row
    assert request.output[10] == CLOSE[0]
    assert (row.on, row.fed, row.monitor.phase) == (False, 11, Phase.ANSWER)
