"""The plug-in's rows, without vLLM: a batch that moves as vLLM's does, on the bundled model's tokenizer."""

from __future__ import annotations

import json
import logging
import random
import sys
import tracemalloc
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from transformers import AutoTokenizer

from entropy_chains.backends.engine import buffers as vllm_ledger
from entropy_chains.backends.engine import settings as vllm_settings
from entropy_chains.backends.engine.buffers import Row
from entropy_chains.backends.engine.requests import EngineRows
from entropy_chains.backends.engine.settings import Serving, check, read
from entropy_chains.backends.engine.slots import Seats
from entropy_chains.core.entropy import EntropyBounds
from entropy_chains.core.entropy_rows import logits_entropy
from entropy_chains.core.monitor import Decision, Monitor
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Phase, Segmentation
from entropy_chains.core.tokens import Token
from entropy_chains.demo import MODEL_FOLDER
from entropy_chains.errors import InputError, PolicyError, SettingsError

SERVING = Serving.of(("a/path", "demo"), AutoTokenizer.from_pretrained(str(MODEL_FOLDER)))
WORDS = SERVING.vocabulary
LINE, OPEN, END = (WORDS.encode(t)[0] for t in ("\n", "<think>", "<|im_end|>"))
CLOSE = WORDS.encode("</think>\n\n")
SIZE = 102
STRANGE = [n for n in range(SIZE) if not (WORDS.text(n).isalnum() or n == LINE)]
"""Tags, and what could be the beginning of code or JSON, where no step ends."""


def asked(**keys):
    """A request's sampling parameters, with these keys of the plug-in."""
    return SimpleNamespace(extra_args={f"entropy_chains_{k}": v for k, v in keys.items()} or None)


LOW = {"boundary": "line", "min_tokens": 4}


class Request:
    """A request with a model of its own: the logits of its next token follow from a seed and the tokens so far."""

    def __init__(self, seed, keys, *, opened):
        self.seed, self.params, self.output = seed, asked(**keys), []
        self.prompt = WORDS.encode("34*7=?" + ("<think>\n" if opened else ""))
        self.opened = opened
        self.length = 40 + seed % 50

    def logits(self, output):
        drawn = np.random.default_rng([self.seed, len(output), *output[-3:]])
        row = drawn.normal(0, drawn.choice([1.0, 3.0, 6.0]), SIZE)
        row[LINE] += 4.0
        row[STRANGE] = -20.0
        if not output and not self.opened:
            row[OPEN] = 30.0
        return torch.tensor(row, dtype=torch.float32)

    def done(self, output):
        return len(output) >= self.length

    def alone(self):
        """What must come out: the monitor fed token by token, and the closing tag where it says so."""
        settings, output = read(self.params.extra_args), []
        monitor = settings and Monitor(
            settings.policy, tags=WORDS.tags, thinking=self.opened, stop=settings.stop, holdout=settings.holdout
        )
        closing = []
        while not self.done(output):
            row = self.logits(output)
            token = closing[0] if closing else int(row.argmax())
            output.append(token)
            if monitor:
                e = logits_entropy(row[None], settings.policy.k)
                bounds = EntropyBounds(*(float(f[0]) for f in e[:4]), 0, float(e.confidence[0]))
                decision = monitor.feed(Token(WORDS.text(token), token), bounds, forced=bool(closing))
                closing = closing[1:] if closing else CLOSE if decision is Decision.CLOSE else []
        return output, bool(monitor and monitor.finish().stopped)


class Engine:
    """vLLM's V1 batch: places are filled and emptied, rows are moved together and swapped, prompts are read in parts.

    The tokens of a step become known before the next one's logits are changed (placeholders stand for them until then).
    """

    def __init__(self, requests, seed, places=5, *, late=False):
        self.random, self.places = random.Random(seed), places
        self.waiting, self.batch, self.unknown = list(requests), [], {}
        self.rows = EngineRows(SERVING, places, late=late)
        self.seats = Seats(self.rows, kept=64)
        self.steps = self.resumed = self.moves = 0

    def run(self):
        while self.waiting or self.batch:
            self.steps += 1
            assert self.steps < 5000
            self.change()
            for request, token in self.unknown.items():
                request.output[-1] = token
            self.unknown = {}
            if self.batch:
                self.step()

    def change(self):
        removed, added, moved = [], [], []
        for place, request in enumerate(self.batch):
            paused = self.random.random() < 0.04
            if request.done(request.output) or paused:
                removed.append(place)
                self.batch[place] = None
                if not request.done(request.output):
                    self.waiting.append(request)
        paused_now = [r for r in self.waiting if r in self.unknown]
        free = sorted(removed)
        while self.waiting and self.random.random() < 0.6:
            request = next((r for r in self.waiting if r not in paused_now), None)
            if request is None or (not free and len(self.batch) >= self.places):
                break
            self.waiting.remove(request)
            place = free.pop(0) if free else len(self.batch)
            if place == len(self.batch):
                self.batch.append(request)
            self.batch[place] = request
            if request.output:
                self.resumed += 1
                if self.random.random() < 0.5:
                    request.output = list(request.output)  # with asynchronous scheduling vLLM makes a new list
            added.append((place, request.params, request.prompt, request.output))
        while None in self.batch:  # the last row moves to the first empty place
            empty = self.batch.index(None)
            if self.batch[-1] is not None and empty < len(self.batch) - 1:
                moved.append((len(self.batch) - 1, empty, SimpleNamespace(name="UNIDIRECTIONAL")))
                self.batch[empty] = self.batch[-1]
                free.remove(empty)
            self.batch.pop()
        if len(self.batch) > 1 and self.random.random() < 0.3:
            a, b = self.random.sample(range(len(self.batch)), 2)
            self.batch[a], self.batch[b] = self.batch[b], self.batch[a]
            moved.append((a, b, SimpleNamespace(name="SWAP")))
        self.moves += len(moved)
        left = [place for place in removed if place not in {a[0] for a in added}]
        if removed or added or moved:
            self.seats.update(SimpleNamespace(removed=sorted(left, reverse=True), added=added, moved=moved))

    def step(self):
        logits = self.seats.step(torch.stack([r.logits(r.output) for r in self.batch]))
        for request, token in zip(self.batch, logits.argmax(-1).tolist(), strict=True):
            if self.random.random() < 0.15 and not request.done(request.output):
                continue  # a part of its prompt was read: what was drawn is thrown away
            request.output.append(-1)
            self.unknown[request] = token


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


def one(keys, steps=60, *, opened=True, seed=3, spoil=None):
    """One request alone in the batch, with its engine."""
    request = Request(seed, keys, opened=opened)
    rows = EngineRows(SERVING, 1)
    seats = Seats(rows, kept=4)
    seats.update(SimpleNamespace(removed=[], added=[(0, request.params, request.prompt, request.output)], moved=[]))
    for _ in range(steps):
        logits = request.logits(request.output)[None].clone()
        if spoil:
            spoil(request, logits)
        request.output.append(int(seats.step(logits).argmax()))
    return request, rows, seats


def closed_at(request):
    return next((n for n, token in enumerate(request.output) if token == CLOSE[0]), None)


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


def test_only_thinking_is_measured(monkeypatch):
    """No entropy is computed before the thinking, after it, while it is being closed, or for who did not ask."""
    shapes = []
    monkeypatch.setattr(vllm_ledger, "logits_entropy", lambda part, k: shapes.append(len(part)) or logits_entropy(part, k))
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
    rows = EngineRows(SERVING, 1, late=late)
    seats = Seats(rows, kept=1)
    seats.update(SimpleNamespace(removed=[], added=[(0, request.params, request.prompt, request.output)], moved=[]))
    while not request.done(request.output):
        request.output.append(int(seats.step(request.logits(request.output)[None].clone()).argmax()))
    assert request.output[600] == LINE
    assert request.output[601 : 601 + len(CLOSE)] == CLOSE
    assert request.output == request.alone()[0]


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
    seats = Seats(EngineRows(SERVING, 1, late=late), kept=1)
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


def closed_too_far(rows, row, known, token, take=EngineRows.take):
    """A row that has more of the closing text than there is."""
    take(rows, row, known, token)
    if bad(row) and row.closing is not None:
        row.closing -= 100


BREAKS = {
    "while it begins": (EngineRows, "begin", fails(EngineRows.begin, lambda rows, settings, *_: settings.id == "bad")),
    "while it takes its seat": (Row, "sit", fails(Row.sit, lambda row, seat: bad(row))),
    "at a seat that cannot hold its k": (Row, "sit", too_large_k),
    "while it leaves its seat": (Row, "rise", fails(Row.rise, bad)),
    "with a token": (EngineRows, "take", fails(EngineRows.take, lambda rows, row, known, token: bad(row))),
    "while its entropies are computed": (vllm_ledger, "logits_entropy", fails(logits_entropy, lambda part, k: k == BAD_K)),
    "while its entropies arrive": (vllm_ledger, "logits_entropy", unreadable),
    "while it is closed": (EngineRows, "take", closed_too_far),
}
"""Where one request may break: a function of ours, and what it does then."""


@pytest.mark.parametrize("where", BREAKS)
def test_one_request_that_breaks_harms_no_other(where, monkeypatch, caplog):
    """It runs in full, whatever broke. The others are closed exactly where they would be, and nothing is raised."""
    monkeypatch.setattr(vllm_settings, "_made_of", vllm_settings._made_of.__wrapped__)
    monkeypatch.setattr(*BREAKS[where])
    keys = [LOW | {"threshold": 2.0}] * 2 + [LOW | {"threshold": 2.5, "k": BAD_K, "id": "bad"}]
    requests = [Request(n, k, opened=True) for n, k in enumerate(keys, 2)]
    seats = Seats(EngineRows(SERVING, 3), kept=4)
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
    seats = Seats(EngineRows(SERVING, 3), kept=4)
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


def test_an_error_for_all_rows_at_once_leaves_their_logits(monkeypatch, caplog):
    """The one computation for all rows fails: all run in full."""
    monkeypatch.setattr(vllm_ledger, "logits_entropy", lambda part, k: 1 / 0)
    assert one(LOW | {"threshold": 9})[0].output == one({})[0].output
    assert "ZeroDivisionError" in caplog.text


def test_a_row_whose_tokens_do_not_add_up_runs_in_full():
    """Two tokens in one step, or fewer than before: what the figures belong to is not known, so nothing is stopped."""
    for change in (lambda output: output.extend([LINE, LINE]), lambda output: output.clear()):
        request, _, seats = one(LOW | {"threshold": 9}, steps=3)
        change(request.output)
        seats.step(request.logits(request.output)[None])
        assert not seats._seats[0].row.on


def test_a_request_that_came_back_unknown_runs_in_full(caplog):
    """It has tokens, but nobody remembers it: its steps could not be counted."""
    caplog.set_level(logging.INFO, "vllm.entropy_chains")
    seats = Seats(EngineRows(SERVING, 1), kept=4)
    seats.update(SimpleNamespace(removed=[], added=[(0, asked(threshold=9), [1], [5, 6])], moved=[]))
    assert not seats._seats
    assert "came back" in caplog.text


POLICY = Policy("demo", thresholds=(0.3,), segmentation=Segmentation("line", 32), template=WORDS.template)
GOOD = json.dumps(POLICY.to_dict())


def test_a_policy_is_read_from_a_path_or_from_its_content(tmp_path):
    """Both give the policy, and a path that changed is read anew."""
    path = tmp_path / "policy.json"
    POLICY.save(path)
    assert read({"entropy_chains_policy": str(path)}).policy == POLICY
    assert read({"entropy_chains_policy": GOOD, "entropy_chains_stop": 0}).policy == POLICY


def test_inline_numbers_make_a_policy():
    """Every number lands in its place; k 0 is the whole vocabulary."""
    keys = {"threshold": 0.25, "boundary": "line", "min_tokens": 8, "min_steps": 3, "k": 0, "stop": "true", "holdout": 0}
    settings = read(asked(**keys).extra_args)
    policy = settings.policy
    assert (policy.thresholds, policy.min_steps, policy.k, policy.estimator) == ((0.25,), 3, None, "full")
    assert policy.segmentation == Segmentation("line", 8)
    assert (settings.stop, settings.holdout) == (True, False)
    check(settings, SERVING)


def test_who_asks_nothing_has_no_settings():
    """Other extensions' arguments are none of ours."""
    assert read(None) is None
    assert read({"other": 1}) is None


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"treshold": 1}, "entropy_chains_treshold is unknown"),
        ({"threshold": "low"}, "entropy_chains_threshold is 'low'"),
        ({"threshold": float("nan")}, "nan"),
        ({"threshold": 10**400}, "entropy_chains_threshold"),
        ({"threshold": 1e9}, "1000 bits"),
        ({"threshold": [1]}, r"\[1\]"),
        ({"threshold": True}, "True"),
        ({"threshold": 1, "boundary": ["line"]}, "entropy_chains_boundary"),
        ({"threshold": 1, "min_tokens": 10**30}, "entropy_chains_min_tokens"),
        ({"threshold": 1, "min_steps": 0}, "entropy_chains_min_steps is 0"),
        ({"threshold": 1, "k": 2**63}, "entropy_chains_k is 9223372036854775808"),
        ({"threshold": 1, "k": 2.0}, "entropy_chains_k is 2.0"),
        ({"threshold": 1, "stop": 10**5000}, "entropy_chains_stop"),
        ({"threshold": 1, "stop": None}, "entropy_chains_stop is None"),
        ({"threshold": 1, "id": "x" * 201}, "entropy_chains_id"),
        ({"threshold": 1, "id": "\ud800"}, "entropy_chains_id"),
        ({"threshold": 1, "on_mismatch": ["warn"]}, "entropy_chains_on_mismatch"),
        ({"threshold": 1, "boundary": "word"}, "'word'"),
        ({"threshold": 1, "min_tokens": 0}, "min_tokens is 0"),
        ({"threshold": 1, "min_steps": 1.5}, "entropy_chains_min_steps is 1.5"),
        ({"threshold": 1, "k": -1}, "k is -1"),
        ({"threshold": 1, "stop": "perhaps"}, "entropy_chains_stop is 'perhaps'"),
        ({"threshold": 1, "on_mismatch": "ignore"}, "entropy_chains_on_mismatch is 'ignore'"),
        ({"stop": 0}, "give entropy_chains_policy or entropy_chains_threshold"),
        ({"policy": json.dumps({"format": "?"}), "threshold": 1}, "not a policy"),
        ({"policy": GOOD, "threshold": 1}, "contradict"),
        ({"policy": "{"}, "not JSON"),
        ({"policy": "{}"}, "not a policy"),
        ({"policy": 7}, "entropy_chains_policy is 7"),
        ({"policy": "/etc/hostname"}, "not a policy file"),
        ({"policy": "/nowhere/policy.json"}, "not a policy file"),
        ({"policy": "/nowhere/\0.json"}, "not a policy file"),
        ({"policy": "/" + "x" * 100_000 + ".json"}, "not a policy file"),
        ({"policy": '{"format":' + "[" * 200_000}, "nested too deep"),
        ({"policy": GOOD[:-1] + ', "active": true}'}, "'active' stands twice"),
        ({"policy": json.dumps(POLICY.to_dict() | {"thresholds": [10**400]})}, "thresholds"),
        ({"policy": json.dumps(POLICY.to_dict() | {"calibration": {"remaining_tokens": [None]}})}, "remaining_tokens"),
        ({"policy": "{" + " " * 2**20 + "}"}, "entropy_chains_policy"),
        ({"policy": [GOOD]}, "entropy_chains_policy"),
    ],
)
def test_a_setting_that_cannot_be_read_is_refused_by_name(keys, said):
    """The message names the value; vLLM makes HTTP 400 of it, for it is a ValueError."""
    with pytest.raises(InputError, match=said.replace("{", r"\{")):
        read(asked(**keys).extra_args)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*vllm_settings.KINDS, "other"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
            | st.sampled_from([0, 1, 9, 2**53, 2**63, 10**400, 0.5, "1", "true", "line", "warn", GOOD, "policy.json", "/"]),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
            max_leaves=4,
        ),
        max_size=5,
    )
)  # fmt: skip
def test_whatever_a_request_says_it_is_refused_or_watched(keys):
    """InputError at the door, or a row that is seated, fed and taken away without an error. Nothing else is ever raised."""
    params = asked(**keys)
    try:
        found = read(params.extra_args)
        if found is not None:
            check(found, SERVING, params)
    except InputError:
        return
    rows = EngineRows(SERVING, 1)
    seats = Seats(rows, kept=1)
    output = []
    seats.update(SimpleNamespace(removed=[], added=[(0, params, WORDS.encode("1=?<think>\n"), output)], moved=[]))
    for token in WORDS.encode("1234\n56789\n"):
        seats.step(torch.zeros(1, SIZE))
        output.append(token)
    seats.update(SimpleNamespace(removed=[0], added=[], moved=[]))
    assert not rows._failed


def test_what_is_remembered_of_requests_is_bounded(tmp_path):
    """Forty policies of a megabyte leave nothing behind; a file is remembered once, however its path is written."""
    path = tmp_path / "policy.json"
    POLICY.save(path)
    seats = Seats(EngineRows(SERVING, 1), kept=256)
    vllm_settings._from_file.cache_clear()
    tracemalloc.start()
    for n in range(40):
        params = asked(policy=json.dumps(POLICY.to_dict() | {"note": "y" * 10**6 + str(n)}))
        seats.update(SimpleNamespace(removed=[], added=[(0, params, WORDS.encode("<think>\n"), [])], moved=[]))
        assert seats._seats[0].row.on
        seats.update(SimpleNamespace(removed=[0], added=[], moved=[]))
        read({"entropy_chains_policy": str(tmp_path / ("x/../" * n) / "policy.json")})
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 5e6
    assert vllm_settings._from_file.cache_info().currsize == 1


def test_a_file_that_is_no_policy_is_not_told_from_one_that_is_not_there(tmp_path):
    """A request cannot find out what lies on the server."""
    (tmp_path / "other.json").write_text('{"secret": 1}')
    said = []
    for name in ("other.json", "none.json"):
        with pytest.raises(PolicyError) as caught:
            read({"entropy_chains_policy": str(tmp_path / name)})
        said.append(str(caught.value).replace(name, ""))
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rule": "entropy+agreement"}, "reads an answer"),
        ({"mode": "refine"}, "mode"),
        ({"signal": "eat"}, "on eat reads an answer"),
        ({"signal": "trial_entropy"}, "on trial_entropy reads an answer"),
        ({"signal": "of_my_own"}, "'of_my_own' is not recorded"),
        ({"model": "another"}, "model 'another'"),
        ({"template": "sha256:0"}, "template 'sha256:0'"),
        ({"temperature_mode": "scaled"}, "temperature_mode"),
    ],
)
def test_a_policy_for_something_else_is_refused(change, said):
    """What the engine cannot do or does not serve; the message names the value."""
    text = json.dumps(POLICY.to_dict() | change)
    with pytest.raises(SettingsError, match=said):
        check(read({"entropy_chains_policy": text}), SERVING)


def test_a_policy_for_what_is_served_is_taken():
    """By the served name, the path or an alias."""
    for name in ("demo", "a/path"):
        check(read({"entropy_chains_policy": json.dumps(POLICY.to_dict() | {"model": name})}), SERVING)
    check(read({"entropy_chains_policy": json.dumps(POLICY.to_dict() | {"model": "x", "aliases": ["demo"]})}), SERVING)


def test_a_mismatch_can_be_let_through():
    """on_mismatch=warn: a warning, as everywhere in the package."""
    text = json.dumps(POLICY.to_dict() | {"model": "another"})
    with pytest.warns(UserWarning, match="another"):
        check(read({"entropy_chains_policy": text, "entropy_chains_on_mismatch": "warn"}), SERVING)


def test_what_clients_send_is_not_kept():
    """Warnings of many requests leave nothing in the process's registries, and each is a short line."""
    texts = [json.dumps(POLICY.to_dict() | {"model": f"{n}" + "M" * 10_000, "temperature": [0.1] * 500}) for n in range(5)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for text in texts:
            asked_with = {"entropy_chains_policy": text, "entropy_chains_on_mismatch": "warn"}
            check(read(asked_with), SERVING, SimpleNamespace(temperature=0.7))
    assert len(caught) == 2 * len(texts)
    assert max(len(str(w.message)) for w in caught) < 400
    registries = [vars(m).get("__warningregistry__", {}) for m in list(sys.modules.values()) if hasattr(m, "__dict__")]
    assert not [key for registry in registries for key in registry if "MMM" in str(key)]


@pytest.mark.parametrize("change", [{"signal": "S" * 900_000}, {"model": "M" * 900_000}, {"template": "T" * 900_000}])
def test_a_refusal_is_short(change):
    """However long what it is about."""
    with pytest.raises(SettingsError) as raised:
        check(read({"entropy_chains_policy": json.dumps(POLICY.to_dict() | change)}), SERVING)
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize("name", ["logit_bias", "allowed_token_ids", "bad_words"])
def test_what_changes_the_logits_is_refused(name):
    """The entropy would not be the one that was calibrated."""
    settings = read(asked(threshold=1).extra_args)
    with pytest.raises(SettingsError, match=name):
        check(settings, SERVING, SimpleNamespace(**{name: [1]}))


def test_a_server_that_cannot_close_thinking_says_so():
    """No tokenizer, no tags, or tokens drafted ahead."""
    settings = read(asked(threshold=1).extra_args)
    for serving in (Serving.of(("m",), None), Serving(("m",), WORDS, speculative=True)):
        with pytest.raises(SettingsError):
            check(settings, serving)
        assert EngineRows(serving, 1).begin(settings, [1]) is None


def test_phases_end_the_watching():
    """A row whose thinking ended by itself is not looked at any more."""
    natural = lambda request, logits: logits.__setitem__((0, CLOSE[0]), 50.0 if len(request.output) == 10 else -50.0)  # noqa: E731
    request, _, seats = one(LOW | {"threshold": -1}, spoil=natural)
    row = seats._seats[0].row
    assert request.output[10] == CLOSE[0]
    assert (row.on, row.fed, row.monitor.phase) == (False, 11, Phase.ANSWER)
