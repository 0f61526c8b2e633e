"""A plug-in's rows without vLLM: requests with a model of their own, and a batch that moves as vLLM's does."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import torch
from transformers import AutoTokenizer

from entropy_chains.backends.engine.requests import Rows
from entropy_chains.backends.engine.settings import Serving, read
from entropy_chains.backends.engine.slots import Seats
from entropy_chains.core.entropy import EntropyBounds
from entropy_chains.core.entropy_rows import logits_entropy
from entropy_chains.core.monitor import Decision, Monitor
from entropy_chains.core.tokens import Token
from entropy_chains.demo import MODEL_FOLDER

SERVING = Serving.of(("a/path", "demo"), AutoTokenizer.from_pretrained(str(MODEL_FOLDER)))
WORDS = SERVING.vocabulary
LINE, OPEN = (WORDS.encode(t)[0] for t in ("\n", "<think>"))
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
        self.rows = Rows(SERVING, places, late=late)
        self.seats = Seats(self.rows, left_limit=64)
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


def one(keys, steps=60, *, opened=True, seed=3, spoil=None):
    """One request alone in the batch, with its engine."""
    request = Request(seed, keys, opened=opened)
    rows = Rows(SERVING, 1)
    seats = Seats(rows, left_limit=4)
    seats.update(SimpleNamespace(removed=[], added=[(0, request.params, request.prompt, request.output)], moved=[]))
    for _ in range(steps):
        logits = request.logits(request.output)[None].clone()
        if spoil:
            spoil(request, logits)
        request.output.append(int(seats.step(logits).argmax()))
    return request, rows, seats


def closed_at(request):
    return next((n for n, token in enumerate(request.output) if token == CLOSE[0]), None)
