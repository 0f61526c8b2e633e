"""Recorded answers of real services through the readers: exact counts, phases and texts; what was not sent stays missing."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import yaml
from openai._models import construct_type
from openai.types import responses
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from places import CORPUS

from entropy_chains import token_entropy
from entropy_chains.backends.remote.readers import ChatReader, ResponsesReader, Usage, read_message
from entropy_chains.core.steps import Phase
from entropy_chains.errors import BackendError

pytestmark = pytest.mark.skipif(not CORPUS.is_dir(), reason="the recorded answers are not here")

SDK = {"chat": ChatCompletionChunk, "responses": responses.ResponseStreamEvent}
BOTH = pytest.mark.parametrize("form", ["dict", "sdk"])


def events(text):
    """The objects of server-sent events, or of one JSON object a line."""
    lines = [line.removeprefix("data: ") for line in text.splitlines()]
    return [json.loads(line) for line in lines if line.startswith("{")]


def recorded(name):
    """A file's chunks, or its finished response, as the service sent them."""
    text = (CORPUS / name).read_text(encoding="utf-8")
    if name.endswith(".json"):
        return json.loads(text)
    if name.endswith(".yaml"):
        response = yaml.safe_load(text)["interactions"][0]["response"]
        return response["parsed_body"] if "parsed_body" in response else events(response["body"]["string"])
    return events(text)


def read(reader, chunks, form="dict"):
    """All updates of a stream, what waited at its end included."""
    kind = SDK["responses" if isinstance(reader, ResponsesReader) else "chat"]
    objects = [construct_type(value=c, type_=kind) for c in chunks] if form == "sdk" else chunks
    return [*map(reader.feed, objects), reader.finish()]


def pieces_of(updates):
    return [piece for update in updates for piece in update.pieces]


def text_of(pieces, *phases):
    return "".join(p.text for p in pieces if not phases or p.phase in phases)


def last(updates, name):
    """The last value that a stream gave for a field."""
    return next(value for u in reversed(updates) if (value := getattr(u, name)) is not None)


REASONED = {
    "reasoning_streams/deepseek-reasoning.chunks.txt": ("reasoning_content", 205, 13, Usage(18, 219, 205), "stop"),
    "reasoning_streams/groq-reasoning.chunks.txt": ("reasoning", 963, 139, Usage(17, 1107, 963), "stop"),
    "reasoning_streams/xai-text.chunks.txt": ("reasoning_content", 340, 2, Usage(12, 2, 340), "stop"),
    "responses_logprobs/test_deepseek_model_thinking_stream.yaml": ("reasoning_content", 198, 11, Usage(6, 212, 198), "stop"),
    "groq_sse/groq_gpt_oss_reasoning_only_capture.sse": ("reasoning", 5, 0, Usage(75, 8, 6), "length"),
}


@BOTH
@pytest.mark.parametrize("name", REASONED)
def test_reasoning_in_a_field_of_its_own(name, form):
    """Both field names: every chunk's text is one piece, in its phase, in order, and no logprob appears where none was sent.

    The thinking pieces are as many as the services count themselves, except Groq's 6 for the 5 deltas it sent.
    """
    field, thinking, answer, usage, reason = REASONED[name]
    chunks = recorded(name)
    updates = read(ChatReader(), chunks, form)
    pieces = pieces_of(updates)
    deltas = [c["choices"][0]["delta"] for c in chunks if c["choices"]]
    assert Counter(p.phase for p in pieces) == Counter({Phase.THINKING: thinking, Phase.ANSWER: answer})
    assert text_of(pieces, Phase.THINKING) == "".join(d.get(field) or "" for d in deltas)
    assert text_of(pieces, Phase.ANSWER) == "".join(d.get("content") or "" for d in deltas)
    assert {(p.token.logprob, p.token.alternatives, token_entropy(p.token)) for p in pieces} == {(None, None, None)}
    assert last(updates, "usage") == usage
    assert last(updates, "finish_reason") == reason
    assert last(updates, "id") == chunks[0]["id"]
    assert last(updates, "model") == chunks[0]["model"]


@BOTH
def test_an_inline_tag_with_logprobs(form):
    """Groq's Qwen3: the opening tag is text, its phase is left to the text's own tags, and an alternative may have no bytes."""
    updates = read(ChatReader(), recorded("groq_sse/groq_live_groq_readiness_capture.sse"), form)
    (piece,) = pieces_of(updates)
    assert (piece.text, piece.phase, piece.token.text, piece.token.bytes) == ("<think>", None, "<think>", b"<think>")
    assert piece.token.logprob == 0
    assert [(a.text, a.logprob) for a in piece.token.alternatives] == [
        ("<think>", 0), ("</think>", -14.689622), ("Okay", -15.249238), ("okay", -15.942385), ("", -16.635532),
    ]  # fmt: skip
    assert token_entropy(piece.token).mass == pytest.approx(1.0)


@BOTH
def test_a_tool_call(form):
    """The call is seen on its own chunk, and nothing of it is text."""
    updates = read(ChatReader(), recorded("groq_sse/groq_tool_call_capture.sse"), form)
    assert [u.tool_call for u in updates] == [False, True, False, False, False]
    assert pieces_of(updates) == []
    assert last(updates, "finish_reason") == "tool_calls"


@BOTH
def test_an_error_in_the_stream(form):
    """It is refused with the server's own words and code."""
    with pytest.raises(BackendError, match=r"Failed to call a function\. Please adjust your prompt.* \(tool_use_failed\)"):
        read(ChatReader(), recorded("groq_sse/groq_live_groq_inband_error_capture.sse"), form)


COMPLETE = {
    "domain_creative": (150, 20, 1, Usage(23, 150, 0)),
    "domain_reasoning": (150, 20, 0, Usage(32, 150, 0)),
    "lang_japanese": (100, 20, 0, Usage(27, 100, 0)),
    "temp_1.0": (100, 20, 0, Usage(18, 100, 0)),
    "topk_20": (100, 20, 0, Usage(18, 100, 0)),
    "topk_5": (100, 5, 0, Usage(18, 100, 0)),
}


@BOTH
@pytest.mark.parametrize("name", COMPLETE)
def test_finished_chat_answers(name, form):
    """OpenAI: one piece a token as the service counts them, each with its own text, logprob and all its alternatives.

    In one file one sampled token is not among its own twenty.
    """
    count, k, absent, usage = COMPLETE[name]
    response = recorded(f"openai_chat_logprobs/{name}.json")
    update = read_message(construct_type(value=response, type_=ChatCompletion) if form == "sdk" else response)
    entries = response["choices"][0]["logprobs"]["content"]
    assert len(update.pieces) == len(entries) == count
    assert text_of(update.pieces) == response["choices"][0]["message"]["content"]
    for piece, entry in zip(update.pieces, entries, strict=True):
        assert (piece.token.logprob, piece.phase) == (entry["logprob"], None)
        assert [a.logprob for a in piece.token.alternatives] == [t["logprob"] for t in entry["top_logprobs"]]
        assert len(piece.token.alternatives) == k
        assert token_entropy(piece.token, k=k) is not None
    assert sum(p.token.text not in [a.text for a in p.token.alternatives] for p in update.pieces) == absent
    assert (update.usage, update.finish_reason) == (usage, "length")


@pytest.mark.parametrize("name", COMPLETE)
def test_they_read_the_same_cut_into_chunks(name):
    """The same answer as a stream of one chunk a token, or of eight a chunk, gives the same tokens."""
    response = recorded(f"openai_chat_logprobs/{name}.json")
    whole = [p.token for p in read_message(response).pieces]
    entries = response["choices"][0]["logprobs"]["content"]
    for size in (1, 8):
        parts = [entries[at : at + size] for at in range(0, len(entries), size)]
        text = lambda part: b"".join(bytes(e["bytes"]) for e in part).decode()  # noqa: E731
        chunks = [{"choices": [{"index": 0, "delta": {"content": text(p)}, "logprobs": {"content": p}}]} for p in parts]
        assert [p.token for p in pieces_of(read(ChatReader(), chunks))] == whole


RESPONSES = {
    "test_openai_instructions_with_responses_logprobs.yaml": "resp_03c6f7a0e7df74a9006924b11a6120819395892ac2d8143b03",
    "test_openai_instructions_with_responses_logprobs_streaming.yaml": "resp_0ecff685e411ca7b0069e063569c7c819bbc74c80d853802e6",
}


@BOTH
@pytest.mark.parametrize("name", RESPONSES)
def test_responses_with_logprobs(name, form):
    """Nine tokens with logprobs and no alternatives, finished and streamed; no alternatives means no entropy, not 0."""
    found = recorded(f"responses_logprobs/{name}")
    if isinstance(found, dict):
        updates = [read_message(construct_type(value=found, type_=responses.Response) if form == "sdk" else found)]
    else:
        updates = read(ResponsesReader(), found, form)
    pieces = pieces_of(updates)
    words = ["The", " capital", " of", " Minas", " Gerais", " is", " Belo", " Horizonte", "."]
    assert [p.text for p in pieces] == [p.token.text for p in pieces] == words
    assert {(p.token.alternatives, token_entropy(p.token)) for p in pieces} == {((), None)}
    assert all(-0.001 < p.token.logprob <= 0 for p in pieces)
    assert (last(updates, "usage"), last(updates, "finish_reason")) == (Usage(25, 10, 0), "stop")
    assert last(updates, "id") == RESPONSES[name]


@BOTH
def test_responses_without_logprobs(form):
    """LM Studio: the text is whole, piece by piece, and every logprob is missing."""
    chunks = recorded("reasoning_streams/lmstudio-basic.1.chunks.txt")
    updates = read(ResponsesReader(), chunks, form)
    pieces = pieces_of(updates)
    assert text_of(pieces) == chunks[-1]["response"]["output"][0]["content"][0]["text"]
    assert {(p.phase, p.token.logprob, p.token.alternatives) for p in pieces} == {(None, None, None)}
    assert last(updates, "usage") == Usage(31, 282, 0)


def test_no_file_was_forgotten():
    """Every file of the corpus is read above, or refused there."""
    seen = {*REASONED, *(f"openai_chat_logprobs/{n}.json" for n in COMPLETE), *(f"responses_logprobs/{n}" for n in RESPONSES)}
    seen |= {f"groq_sse/groq_{n}_capture.sse" for n in ("live_groq_readiness", "live_groq_inband_error", "tool_call")}
    seen |= {"reasoning_streams/lmstudio-basic.1.chunks.txt"}
    files = {str(p.relative_to(CORPUS)) for p in CORPUS.rglob("*") if p.is_file() and p.name not in ("LICENSE", "README.md")}
    assert files == seen
