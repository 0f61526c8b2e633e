"""Events of a stream to tokens: phases, what is no token, and the other two APIs."""

from __future__ import annotations

import pytest
from chat_chunks import ANSWER, CHAT, COMPLETION, THINKING, chunk, entry, read, shown, words
from openai._models import construct_type
from openai.types import Completion
from openai.types.chat import ChatCompletionChunk
from openai.types.responses import ResponseStreamEvent

from entropy_chains import Monitor, Policy
from entropy_chains.backends.remote.alignment import HELD
from entropy_chains.backends.remote.readers import (
    ChatReader,
    CompletionReader,
    ResponsesReader,
    Update,
    Usage,
    read_message,
    tokens_of,
)
from entropy_chains.core.steps import Segmentation
from entropy_chains.core.tokens import Alternative
from entropy_chains.errors import BackendError, SettingsError

# Phases


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
@pytest.mark.parametrize("sdk", [None, ChatCompletionChunk])
def test_reasoning_fields(name, sdk):
    """Either name is thinking, what follows is the answer, and text before any reasoning is for its own tags to tell."""
    e = words(["\n", "so", " 4"])
    chunks = [chunk("\n", e[:1]), chunk(reasoning="so", name=name, entries=e[1:2]), chunk(" 4", e[2:])]
    assert shown(read(chunks, sdk=sdk)) == [("\n", None, -0.001), ("so", THINKING, -0.002), (" 4", ANSWER, -0.003)]


def test_both_in_one_chunk():
    """Entries are told apart by walking their texts; the closing tag between them has no text."""
    e = words(["so", " 4", "</think>", "\n\n", "It"])
    assert shown(read([chunk("\n\nIt", e, reasoning="so 4")])) == [
        ("so", THINKING, -0.001), (" 4", THINKING, -0.002), ("", None, -0.003), ("\n\n", ANSWER, -0.004), ("It", ANSWER, -0.005),
    ]  # fmt: skip


def test_deepseeks_two_lists():
    """The reasoning's own list belongs to it, and one without the other belongs to its own text."""
    a, b = words(["so", "It"])
    both = {"reasoning_content": [a], "content": [b]}
    assert shown(read([chunk("It", reasoning="so", logprobs=both)])) == [("so", THINKING, -0.001), ("It", ANSWER, -0.002)]
    chunks = [chunk(reasoning="so", logprobs={"reasoning_content": [a], "content": None}), chunk("It", logprobs={"content": [b]})]
    assert shown(read(chunks)) == [("so", THINKING, -0.001), ("It", ANSWER, -0.002)]


POLICY = Policy("m", (9.0,), k=None, segmentation=Segmentation("line", 2))


def test_the_closing_tag_counts_once_and_never_as_reasoning():
    """From vLLM ``</think>`` comes as an entry without text: the monitor leaves the thinking there, once."""
    e = words(["a", "b\n", "</think>", "It"])
    chunks = [
        chunk(reasoning="a", entries=e[:1]),
        chunk(reasoning="b\n", entries=e[1:2]),
        chunk(entries=e[2:3]),
        chunk("It", e[3:]),
    ]
    monitor, phases = Monitor(POLICY, thinking=True, stop=False), []
    for piece in read(chunks):
        monitor.feed(piece.token, phase=piece.phase)
        phases.append((piece.token.text, monitor.phase, monitor.tokens_in_step))
    assert phases == [("a", THINKING, 1), ("b\n", THINKING, 0), ("</think>", ANSWER, 1), ("It", ANSWER, 2)]
    assert (monitor.last.tokens, monitor.last.tokens - monitor.steps) == (2, 1)


def test_a_client_that_drops_reasoning_texts():
    """The entries still come: once no server holds a text back for so long, they go on without one; from then on without delay."""
    texts = [f"word {n:05}" for n in range(40)]
    waiting = HELD // len(texts[0])
    reader = ChatReader()
    seen = [[p.token.text for p in reader.feed(chunk("", [e])).pieces] for e in words(texts)]
    assert seen[waiting:] == [texts[: waiting + 1], *([t] for t in texts[waiting + 1 :])]
    assert [p for update in seen[:waiting] for p in update] == []


# What is no token


@pytest.mark.parametrize("nothing", [
    None, "", "[DONE]", ": keep-alive", b"", 3, [], {}, {"choices": None}, {"choices": []}, {"choices": [None]},
    {"choices": [{"index": 0, "delta": None}]}, {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
])  # fmt: skip
@pytest.mark.parametrize("reader", [ChatReader, CompletionReader, ResponsesReader])
def test_chunks_that_say_nothing(nothing, reader):
    """Keep-alives, roles and what is malformed give an empty update."""
    assert reader().feed(nothing) == Update()


def test_usage_tool_calls_and_refusals():
    """They are told with the chunk that has them."""
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "completion_tokens_details": {"reasoning_tokens": 4}}
    update = ChatReader().feed({"id": "c", "model": "m", "choices": [], "usage": usage})
    assert update == Update(usage=Usage(3, 5, 4), id="c", model="m")
    assert ChatReader().feed(chunk(tool_calls=[{"index": 0, "function": {"name": "f"}}])).tool_call
    assert ChatReader().feed(chunk(function_call={"name": "f"})).tool_call
    assert not ChatReader().feed(chunk(tool_calls=[])).tool_call
    update = ChatReader().feed(chunk(refusal="no", logprobs={"content": None, "refusal": [entry("no")]}))
    assert (update.refusal, update.pieces) == ("no", ())


def test_a_second_choice_is_refused():
    """Two texts are not one stream; an empty second choice is nothing."""
    assert read([chunk("", index=1), chunk("a", words(["a"]))])[0].text == "a"
    with pytest.raises(SettingsError, match=r"choice 1 of one request has text.*set n to 1"):
        read([chunk("a", words(["a"])), chunk("b", words(["b"]), index=1)])


@pytest.mark.parametrize(("reader", "error"), [
    (ChatReader, {"error": {"message": "too long", "code": 400}}),
    (ChatReader, {"error": "too long"}),
    (ChatReader, {"object": "error", "message": "too long", "code": 400}),
    (ChatReader, {"choices": [{"delta": {}, "finish_reason": "error", "error": {"code": 400, "message": "too long"}}]}),
    (ChatReader, {"choices": [{"delta": {"content": "a"}, "error": "too long"}]}),
    (CompletionReader, {"error": {"message": "too long"}}),
    (CompletionReader, {"choices": [{"text": "", "error": {"message": "too long"}}]}),
    (ResponsesReader, {"type": "error", "message": "too long", "code": "x"}),
    (ResponsesReader, {"type": "response.failed", "response": {"error": {"message": "too long", "code": "x"}}}),
])  # fmt: skip
def test_errors_in_the_stream(reader, error):
    """Every form of them is raised with the server's message."""
    with pytest.raises(BackendError, match="too long"):
        reader().feed(error)


def test_an_error_as_the_finish_reason_is_one():
    """Also where nothing else is said of it."""
    with pytest.raises(BackendError, match="finish_reason 'error'"):
        ChatReader().feed({"choices": [{"delta": {"content": "a"}, "finish_reason": "error"}]})


def test_an_error_shows_no_key():
    """A server that repeats the key it refuses is not quoted."""
    with pytest.raises(BackendError) as caught:
        ChatReader().feed({"error": {"message": "Incorrect API key provided: sk-proj-abcdef123456. Bearer abcdef refused"}})
    assert "abcdef" not in str(caught.value)
    assert "Incorrect API key provided: [key]" in str(caught.value)


# The other two APIs


def raw(text, logprobs):
    return {"id": "c", "choices": [{"index": 0, "text": text, "logprobs": logprobs, "finish_reason": None}]}


@pytest.mark.parametrize("sdk", [None, Completion])
@pytest.mark.parametrize("logprobs", [COMPLETION, CHAT], ids=["lists", "as in chat"])
def test_raw_completions(sdk, logprobs):
    """Parallel lists, and llama.cpp's chat shape, as dicts and SDK objects; tags are text there, so no phase is told."""
    assert shown(read([raw("ab", logprobs)], CompletionReader(), sdk=sdk)) == [("a", None, -0.5), ("b", None, -0.5)]
    assert shown(read_message(raw("ab", logprobs)).pieces) == [("a", None, -0.5), ("b", None, -0.5)]


def test_raw_completions_without_a_first_logprob():
    """An echoed prompt's first token has none: it is missing, the others keep theirs."""
    first, second = tokens_of({"tokens": ["a", "b"], "token_logprobs": [None, -0.5], "top_logprobs": [None, {"b": -0.5}]})
    assert (first.logprob, first.alternatives) == (None, None)
    assert (second.logprob, second.alternatives) == (-0.5, (Alternative("b", -0.5),))


@pytest.mark.parametrize("sdk", [None, ResponseStreamEvent])
def test_responses_events(sdk):
    """Reasoning, text, a call, the end: each event in its place; a text repeated at its end is not read twice."""
    where = {"item_id": "i", "output_index": 0, "content_index": 0, "sequence_number": 1}
    item = {"type": "function_call", "name": "f", "arguments": "", "call_id": "x"}
    response = {
        "id": "r",
        "model": "m",
        "status": "incomplete",
        "incomplete_details": {"reason": "max_output_tokens"},
        "output": [],
    }
    usage = {"input_tokens": 1, "output_tokens": 2, "output_tokens_details": {"reasoning_tokens": 1}}
    stream = [
        {"type": "response.created", "response": {"id": "r", "model": "m", "status": "in_progress", "output": []}, **where},
        {"type": "response.reasoning_text.delta", "delta": "so", **where},
        {"type": "response.output_text.delta", "delta": "It", "logprobs": words(["It"]), **where},
        {"type": "response.output_text.done", "text": "It", "logprobs": words(["It"]), **where},
        {"type": "response.output_item.added", "item": item, **where},
        {"type": "response.incomplete", "response": {**response, "usage": usage}, **where},
    ]
    reader = ResponsesReader()
    updates = [reader.feed(construct_type(value=e, type_=sdk) if sdk else e) for e in stream]
    assert shown([p for u in [*updates, reader.finish()] for p in u.pieces]) == [("so", THINKING, None), ("It", ANSWER, -0.001)]
    assert [u.tool_call for u in updates] == [False] * 4 + [True, False]
    assert (updates[0].id, updates[5].finish_reason, updates[5].usage) == ("r", "length", Usage(1, 2, 1))


def test_a_finished_responses_object():
    """Reasoning items and messages in order, calls seen."""
    output = [
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "so"}]},
        {"type": "message", "content": [{"type": "output_text", "text": "It", "logprobs": words(["It"])}]},
        {"type": "function_call", "name": "f"},
    ]
    update = read_message({"id": "r", "status": "completed", "output": output})
    assert shown(update.pieces) == [("so", THINKING, None), ("It", ANSWER, -0.001)]
    assert (update.tool_call, update.finish_reason) == (True, "stop")


def test_mistrals_blocks():
    """Content as a list of blocks, thinking among them."""
    blocks = [{"type": "thinking", "thinking": [{"type": "text", "text": "so"}]}, {"type": "text", "text": "It"}]
    assert [(p.text, p.phase) for p in read([chunk(blocks)])] == [("so", THINKING), ("It", ANSWER)]
