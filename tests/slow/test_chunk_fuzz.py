"""A hundred thousand mutated streams: no error but our own comes out, and no stop that the honest stream would not allow.

Chunks are dropped, repeated, swapped, cut off; fields are dropped, repeated, truncated, given other types. Every stream is fed to
a monitor whose policy always wants to stop. A **false stop** is one after a step in which

* fewer than 90 % of the words that the step's text holds, or of its tokens, have logprobs that the service sent for that very
  text (looked up outside the reader: every synthetic word and every logprob occurs once), or
* those logprobs hold a mean mass below 0.8, or
* a tool call has begun.
"""

from __future__ import annotations

import copy
import json
import math
import random

import pytest
from openai._models import construct_type
from openai.types.chat import ChatCompletionChunk
from places import CORPUS

from entropy_chains import Monitor, Policy
from entropy_chains.backends.remote.readers import ChatReader, CompletionReader, ResponsesReader
from entropy_chains.core.monitor import Decision
from entropy_chains.core.steps import Phase, Segmentation
from entropy_chains.errors import EntropyChainsError

pytestmark = pytest.mark.slow

BATCHES, STREAMS = 20, 5_000
TEMPTING = Policy("m", (99.0,), k=None, segmentation=Segmentation("line", 8))
OTHERS = [
    None,
    "",
    "x",
    "\ufffd",
    True,
    [],
    {},
    ["x"],
    {"x": 1},
    7,
    1.5,
    10**400,
    -(10**400),
    math.nan,
    math.inf,
    -math.inf,
    -9999.0,
    -3.4e38,
]
"""What a value is replaced with: no number among them could be a token's true logprob."""
JUNK = [
    None,
    "",
    ": keep-alive",
    "[DONE]",
    {},
    [],
    3,
    {"choices": []},
    {"choices": None},
    {"usage": {"prompt_tokens": 1}, "choices": []},
]
TOOLS = [
    {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": ""}}]}}]},
    {"type": "response.output_item.added", "item": {"type": "function_call", "name": "f"}},
]
ERROR = {"error": {"message": "overloaded", "code": 503}}


# Honest streams: chunks, the reader for them, and the logprobs of every text


def words(rng):
    """Texts of a thinking in lines: every word once, so that a text tells its position."""
    return [f"w{n}" + ("\n" if n % rng.choice((9, 11, 13)) == 8 else " ") for n in range(rng.randint(20, 40))]


def entries_of(texts, rng):
    """An entry for every text, its logprobs used nowhere else, with a mass of 0.97."""
    made = []
    for n, text in enumerate(texts):
        some = [math.log(p - n * 1e-4 - rng.random() * 1e-6) for p in (0.7, 0.2, 0.07)]
        top = [{"token": t, "logprob": p, "bytes": list(t.encode())} for t, p in zip((text, "b", "c"), some, strict=True)]
        made.append({**top[0], "top_logprobs": top})
    return made


def synthetic(rng):
    """Words cut into chunks of 1 to 4 tokens, for one API; their entries with them, late, early, or bundled on the first."""
    texts = words(rng)
    entries, shape = entries_of(texts, rng), rng.choice(("reasoning", "reasoning_content", "inline", "completion", "responses"))
    size, delay = rng.choice((1, 1, 1, 2, 4)), rng.choice((0, 0, 0, 1, 2, -3))
    parts = [range(at, min(at + size, len(texts))) for at in range(0, len(texts), size)]
    said = [["".join(texts[n] for n in part), [entries[n] for n in part]] for part in parts]
    if delay > 0:
        lists = [*[[] for _ in range(delay)], *(e for _, e in said)]
        said = [[text, e] for (text, _), e in zip([*said, *[["", []]] * delay], lists, strict=True)]
    elif delay < 0:
        for at in range(0, len(said), -delay):
            group = said[at : at - delay]
            group[0][1] = [e for _, some in group for e in some]
            for later in group[1:]:
                later[1] = []
    if delay == 0 and rng.random() < 0.3:  # vLLM holds the text back while it may become a stop string
        whole, behind, sent, made = "".join(texts), rng.choice((1, 5, 13, 40)), 0, 0
        for part in said:
            made += len(part[0])
            part[0], sent = whole[sent : max(sent, made - behind)], max(sent, made - behind)
        said.append([whole[sent:], []])
    honest = {t: {a["logprob"] for a in e["top_logprobs"]} for t, e in zip(texts, entries, strict=True)}
    if shape == "completion":
        return CompletionReader, [_raw(text, some) for text, some in said], honest
    if shape == "responses":
        kind = "response.reasoning_text.delta"
        return ResponsesReader, [{"type": kind, "delta": text, "logprobs": some} for text, some in said], honest
    name = "content" if shape == "inline" else shape
    return ChatReader, [
        {"id": "c", "choices": [{"index": 0, "delta": {name: text}, "logprobs": {"content": some} if some else None}]}
        for text, some in said
    ], honest  # fmt: skip


def _raw(text, entries):
    logprobs = {
        "tokens": [e["token"] for e in entries],
        "token_logprobs": [e["logprob"] for e in entries],
        "top_logprobs": [{t["token"]: t["logprob"] for t in e["top_logprobs"]} for e in entries],
    }
    return {"id": "c", "choices": [{"index": 0, "text": text, "logprobs": logprobs if entries else None}]}


def recorded():
    """The corpus as streams; finished answers are cut into chunks of a token."""
    found = []
    for path in sorted(CORPUS.rglob("*")):
        if path.suffix in (".sse", ".txt"):
            lines = [line.removeprefix("data: ") for line in path.read_text(encoding="utf-8").splitlines()]
            chunks = [json.loads(line) for line in lines if line.startswith("{")]
            found.append((ResponsesReader if "type" in chunks[0] else ChatReader, chunks, {}))
        elif path.suffix == ".json":
            entries = json.loads(path.read_text(encoding="utf-8"))["choices"][0]["logprobs"]["content"]
            for e in entries:
                e["top_logprobs"] = e["top_logprobs"][:5]
            honest = {}
            for e in entries:
                honest.setdefault(e["token"], set()).update(t["logprob"] for t in e["top_logprobs"])
            chunks = [{"choices": [{"index": 0, "delta": {"content": e["token"]}, "logprobs": {"content": [e]}}]} for e in entries]
            found.append((ChatReader, chunks, honest))
    return found


# Mutations


def places(value, found):
    """Every (container, key) within a JSON value."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        found.append((value, key))
        places(value[key], found)
    return found


def mutate_value(chunk, rng):
    """A copy of a chunk with one field dropped, repeated, truncated or of another type."""
    chunk = copy.deepcopy(chunk)
    found = places(chunk, [])
    if not found:
        return chunk
    container, key = rng.choice(found)
    value, how = container[key], rng.randrange(4)
    if how == 0:
        del container[key]
    elif how == 1 and isinstance(container, list):
        container.insert(key, copy.deepcopy(value))
    elif how == 2 and isinstance(value, str | list):
        container[key] = value[: rng.randint(0, len(value))]
    else:
        container[key] = rng.choice(OTHERS)
    return chunk


def mutate(chunks, rng):
    """A stream with one to four mutations."""
    chunks = list(chunks)
    for _ in range(rng.randint(1, 4)):
        if not chunks:
            break
        at, how = rng.randrange(len(chunks)), rng.randrange(12)
        if how == 0:
            del chunks[at : at + rng.randint(1, 3)]
        elif how == 1:
            chunks.insert(at, chunks[at])
        elif how == 2:
            chunks[at : at + 2] = reversed(chunks[at : at + 2])
        elif how == 3:
            del chunks[at:]
        elif how == 4:
            chunks.insert(at, rng.choice([*JUNK, *TOOLS, ERROR]))
        elif how == 5:  # a proxy that loses the logprobs for a while
            for n in range(at, min(at + rng.randint(1, 6), len(chunks))):
                chunks[n] = without_logprobs(chunks[n])
        else:
            chunks[at] = mutate_value(chunks[at], rng)
    return chunks


def without_logprobs(chunk):
    if not isinstance(chunk, dict):
        return chunk
    choices = chunk.get("choices")
    kept = [{**c, "logprobs": None} if isinstance(c, dict) else c for c in choices] if isinstance(choices, list) else choices
    return {**chunk, "logprobs": None, "choices": kept}


# The judge


def calls_tool(chunk, kind):
    """Whether a raw chunk begins a tool call, as this API tells it."""
    try:
        if kind is ResponsesReader:
            return chunk["type"] == "response.output_item.added" and chunk["item"]["type"] == "function_call"
        choice = chunk["choices"][0]
        return choice["index"] == 0 and bool(choice["delta"]["tool_calls"])
    except (TypeError, KeyError, IndexError):
        return False


def is_false(step, honest):
    """Whether a stop after these pieces is one that the honest stream would not allow; see the module."""
    text, at, masses = "".join(p.token.text for p in step), 0, []
    for piece in step:
        sent = {a.logprob for a in piece.token.alternatives or () if not a.logprob <= -9990}
        # An entry's own text may be mangled: its logprobs must be those of the text that stands where it was put, or was lost.
        lost = not piece.token.text
        if sent and any(sent <= known and (text.startswith(w, at) or (lost and w not in text)) for w, known in honest.items()):
            masses.append(sum(map(math.exp, sent)))
        at += len(piece.token.text)
    tokens = max(len(step), sum(text.count(word) for word in honest) if len(honest) < 50 else 0)
    return len(masses) < 0.9 * tokens or sum(masses) / len(masses) < 0.8


def follow(kind, chunks, honest):
    """Feed a stream as a backend does: (stopped, falsely stopped)."""
    reader, monitor, step = kind(), Monitor(TEMPTING, thinking=True), []
    for chunk in [*chunks, ...]:
        update = reader.finish() if chunk is ... else reader.feed(chunk)
        if isinstance(chunk, dict) and calls_tool(chunk, kind):
            assert update.tool_call
        if update.tool_call:
            return False, False
        for piece in update.pieces:
            assert isinstance(piece.text, str)
            assert isinstance(piece.token.text, str)
            step.append(piece)
            before = monitor.steps
            if monitor.feed(piece.token, phase=piece.phase) is Decision.CLOSE:
                return True, is_false(step, honest)
            if monitor.steps > before or monitor.phase is not Phase.THINKING:
                step = []
    return False, False


@pytest.mark.parametrize("batch", range(BATCHES))
def test_mutated_streams(batch):
    """Five thousand a batch: nothing but our own errors, and no false stop, while honest steps are still stopped."""
    rng = random.Random(batch)
    corpus = recorded() if CORPUS.is_dir() else []
    stopped = refused = 0
    for n in range(STREAMS):
        if corpus and rng.random() < 0.4:
            kind, chunks, honest = rng.choice(corpus)
            at = rng.randrange(max(1, len(chunks) - 20))
            chunks = chunks[at : at + 30]
        else:
            kind, chunks, honest = synthetic(rng)
        chunks = mutate(chunks, rng)
        if kind is ChatReader and n % 20 == 0:
            chunks = [construct_type(value=c, type_=ChatCompletionChunk) for c in chunks]
        try:
            stop, false = follow(kind, chunks, honest)
        except EntropyChainsError:
            refused += 1
            continue
        stopped += stop
        assert not false, f"batch {batch}, stream {n}: a stop that the honest stream does not allow"
    assert stopped > STREAMS // 5, "the policy tempts too little to prove anything"
    assert refused < STREAMS // 5


def test_honest_streams_are_stopped():
    """Without mutations nearly all synthetic streams are stopped, so the monitor was really tempted."""
    rng = random.Random(0)
    outcomes = [follow(*synthetic(rng)) for _ in range(500)]
    assert not any(false for _, false in outcomes)
    assert sum(stop for stop, _ in outcomes) == 500


def test_the_judge_sees_a_reader_that_guesses():
    """With the entries of another position the same judge does call the stop false."""
    rng, caught = random.Random(0), 0
    for _ in range(50):
        texts = words(rng)
        entries = entries_of(texts, rng)
        honest = {t: {a["logprob"] for a in e["top_logprobs"]} for t, e in zip(texts, entries, strict=True)}
        shifted = [{**e, "token": t} for t, e in zip(texts[1:], entries, strict=False)]
        chunks = [
            {"choices": [{"index": 0, "delta": {"reasoning": t}, "logprobs": {"content": [e]}}]}
            for t, e in zip(texts[1:], shifted, strict=True)
        ]
        caught += follow(ChatReader, chunks, honest) == (True, True)
    assert caught == 50
