"""Chunks to tokens: every shape and quirk, and that an entropy is never given to a text that is not its own."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai._models import construct_type
from openai.types import Completion
from openai.types.chat import ChatCompletionChunk
from openai.types.responses import ResponseStreamEvent

from entropy_chains import Monitor, Policy, token_entropy
from entropy_chains.backends.remote.alignment import HELD, PATIENCE, PROOF, TOKEN, WINDOW
from entropy_chains.backends.remote.readers import (
    ChatReader,
    CompletionReader,
    ResponsesReader,
    Update,
    Usage,
    read_message,
    tokens_of,
)
from entropy_chains.core.steps import Phase, Segmentation
from entropy_chains.core.tokens import Alternative, Token
from entropy_chains.errors import BackendError, SettingsError

THINKING, ANSWER = Phase.THINKING, Phase.ANSWER


def entry(text, logprob=-0.5, *, rest=-1.5, sent: object = True, **more):
    """A chat entry with two alternatives; ``sent``: its bytes, or True for those of its text."""
    data = list(text.encode()) if sent is True else sent
    top = [{"token": text, "logprob": logprob, "bytes": data}, {"token": "other", "logprob": rest, "bytes": None}]
    return {"token": text, "logprob": logprob, "bytes": data, "top_logprobs": top, **more}


def chunk(content=None, entries=None, *, reasoning=None, name="reasoning_content", index=0, logprobs=None, **delta):
    """A chat chunk as it comes over the wire."""
    logprobs = logprobs or (None if entries is None else {"content": entries})
    delta = {"content": content, name: reasoning, **delta}
    return {"id": "c", "model": "m", "choices": [{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}]}


def read(chunks, reader=None, *, sdk=None):
    """All pieces of a stream."""
    reader = reader or ChatReader()
    objects = [construct_type(value=c, type_=sdk) for c in chunks] if sdk else chunks
    return [piece for update in [*map(reader.feed, objects), reader.finish()] for piece in update.pieces]


def shown(pieces):
    """Text, phase, and the sampled token's logprob."""
    return [(p.text, p.phase, p.token.logprob) for p in pieces]


def words(texts, *, first=1):
    """Entries that can be told apart by their logprobs, -0.001, -0.002, …."""
    return [entry(t, -n / 1000) for n, t in enumerate(texts, first)]


# Entries to tokens

CHAT = {"content": [entry("a"), entry("b")]}
COMPLETION = {
    "tokens": ["a", "b"],
    "token_logprobs": [-0.5, -0.5],
    "top_logprobs": [{"a": -0.5, "other": -1.5}, {"b": -0.5, "other": -1.5}],
}
SHAPES = {
    "chat": CHAT,
    "deepseek": {"reasoning_content": [entry("a")], "content": [entry("b")]},
    "flat": [entry("a"), entry("b")],
    "completion": COMPLETION,
    "choice": {**CHAT, "refusal": [entry("no")]},
    "sdk": construct_type(value=chunk("ab", CHAT["content"]), type_=ChatCompletionChunk).choices[0].logprobs,
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_gives_the_same_tokens(shape):
    """Chat, DeepSeek's second list, flat, completions, SDK objects; a refusal's list is not part of the answer."""
    found = tokens_of(SHAPES[shape])
    assert [(t.text, t.logprob) for t in found] == [("a", -0.5), ("b", -0.5)]
    assert [[(a.text, a.logprob) for a in t.alternatives] for t in found] == [
        [("a", -0.5), ("other", -1.5)], [("b", -0.5), ("other", -1.5)],
    ]  # fmt: skip


@pytest.mark.parametrize("nothing", [None, {}, [], {"content": None}, {"content": []}, {"content": "x"}, "x", 3, [None, 1, {}]])
def test_nothing_is_no_tokens(nothing):
    """What is missing, empty or unreadable gives no token."""
    assert tokens_of(nothing) == []


def test_values_go_through():
    """Impossible, NaN and missing logprobs are handed on; entropy.py knows what they mean."""
    for value in (-9999.0, -3.4028e38, -math.inf, 0):
        (token,) = tokens_of([entry("a", -0.1, rest=value)])
        assert token.alternatives[1].logprob == value
        assert token_entropy(token) is not None
    for value in (math.nan, None, "-1", 10**400, True, [], {}):
        (token,) = tokens_of([entry("a", -0.1, rest=value)])
        assert math.isnan(token.alternatives[1].logprob)
        assert token_entropy(token) is None
    assert tokens_of([entry("a", None)])[0].logprob is None
    assert math.isnan(tokens_of([entry("a", math.nan)])[0].logprob)


@pytest.mark.parametrize(
    "top", [None, "x", {}, [None], [{"token": "a"}], [{"logprob": -1.0}], [{"token": 3, "logprob": -1.0}], [3]]
)
def test_an_unreadable_alternative_makes_all_missing(top):
    """Part of a distribution is not a distribution; the token itself stays."""
    (token,) = tokens_of([{"token": "a", "logprob": -0.1, "top_logprobs": top}])
    assert (token.text, token.logprob, token.alternatives) == ("a", -0.1, None)


def test_empty_alternatives_and_texts_are_allowed():
    """An empty list is a list; an alternative may have no text and no bytes."""
    (token,) = tokens_of([{"token": "", "logprob": -0.1, "bytes": None, "top_logprobs": []}])
    assert token == Token("", None, None, -0.1, ())


def test_token_ids_instead_of_texts():
    """An entry ``token_id:374`` of vLLM: the id is read, and the bytes of that string are not taken for the token's."""
    top = [{"token": "token_id:374", "logprob": -0.1, "bytes": [116]}, {"token": "token_id:9", "logprob": -2.0, "bytes": [116]}]
    (token,) = tokens_of([{**top[0], "top_logprobs": top}])
    assert token == Token("", 374, None, -0.1, (Alternative("", -0.1, 374), Alternative("", -2.0, 9)))
    (token,) = tokens_of({"tokens": ["token_id:374"], "token_logprobs": [-0.1], "top_logprobs": [{"token_id:374": -0.1}]})
    assert token == Token("", 374, None, -0.1, (Alternative("", -0.1, 374),))


def test_llama_cpp_tells_ids():
    """Its entries and alternatives have ``id``, in dicts and in SDK objects, where the SDK knows no such field."""
    made = entry("a", id=7)
    made["top_logprobs"] = [{**t, "id": n} for n, t in enumerate(made["top_logprobs"], 7)]
    for sdk in (None, ChatCompletionChunk):
        (piece,) = read([chunk("a", [made])], sdk=sdk)
        assert (piece.token.id, [a.id for a in piece.token.alternatives]) == (7, [7, 8])


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


# Which entry is which text's


def test_several_tokens_in_a_chunk():
    """Entries are iterated, not chunks."""
    assert shown(read([chunk("one two", words(["one", " two"]))])) == [("one", None, -0.001), (" two", None, -0.002)]


def test_late_entries():
    """Texts wait for logprobs that come with a later chunk, alone or with the next text, and no text is shown twice."""
    e = words(["one", " two", " three"])
    expected = [("one", None, -0.001), (" two", None, -0.002), (" three", None, -0.003)]
    assert shown(read([chunk("one"), chunk(" two"), chunk(" three"), chunk(entries=e)])) == expected
    assert shown(read([chunk("one"), chunk(" two", e[:1]), chunk(" three", e[1:2]), chunk(entries=e[2:])])) == expected


def test_all_entries_on_the_first_chunk():
    """A whole step's logprobs with its first token, or before it, are kept for their texts, however long the step is."""
    texts = [f" w{n}" for n in range(300)]
    chunks = [chunk(texts[0], words(texts)), *map(chunk, texts[1:])]
    expected = [(t, None, -n / 1000) for n, t in enumerate(texts, 1)]
    assert shown(read(chunks)) == expected
    assert shown(read([chunk("", words(texts)), *map(chunk, texts)])) == expected


def test_a_text_waits_only_so_long():
    """After a few chunks, or so many characters, it goes on without logprobs; entries that come then are dropped."""
    reader = ChatReader()
    given = [len(reader.feed(chunk("ab")).pieces) for _ in range(PATIENCE + 1)]
    assert given == [0] * (PATIENCE - 1) + [PATIENCE, 1]
    assert reader.feed(chunk(entries=words(["ab"] * PATIENCE))).pieces == ()
    long = "x" * (WINDOW + 1)
    pieces = ChatReader().feed(chunk(long)).pieces
    assert "".join(p.text for p in pieces) == long
    assert len(pieces) == math.ceil(len(long) / TOKEN), "a long text must not count as one missing position"
    assert {p.token.logprob for p in pieces} == {None}


def test_entries_of_another_text_are_dropped():
    """Neither reading holds: the text goes on without logprobs. A stream that has proved itself goes on as before."""
    texts = [f"w{n}" for n in range(PROOF)]
    chunks = [*map(chunk, texts, ([e] for e in words(texts))), chunk("foo", words(["bar"])), chunk("end", [entry("end", -0.9)])]
    assert shown(read(chunks))[-2:] == [("foo", None, None), ("end", None, -0.9)]


def test_a_list_one_position_late_is_not_believed():
    """Where the order is lost, a text that agrees by chance gets no entropy; many different ones that agree are believed."""
    late = ["ha"] * 20
    chunks = [chunk("foo", words(["bar"])), *(chunk(t, [e]) for t, e in zip(late, words(late), strict=True))]
    assert {logprob for _, _, logprob in shown(read(chunks))} == {None}
    texts = [f"w{n}" for n in range(PROOF + 2)]
    chunks = [chunk("foo", words(["bar"])), *(chunk(t, [e]) for t, e in zip(texts, words(texts), strict=True))]
    known = [logprob is not None for _, _, logprob in shown(read(chunks))]
    assert known == [False] * PROOF + [True] * 3


def test_two_readings_that_differ_are_both_refused():
    """The entry may be the first "a"'s, late, or the second's: neither gets it."""
    assert shown(read([chunk("a"), chunk("a", words(["a"]))])) == [("a", None, None), ("a", None, None)]


def test_text_without_logprobs_before_text_with():
    """llama.cpp echoes a prefill: it has no logprobs, and does not take those of what follows."""
    assert shown(read([chunk("1+1"), chunk("=", words(["="])), chunk("2", words(["2"], first=2))])) == [
        ("1+1", None, None), ("=", None, -0.001), ("2", None, -0.002),
    ]  # fmt: skip


def test_the_end_of_the_stream_has_no_text():
    """An entry for it is a token, and shows nothing."""
    pieces = read([chunk("4", words(["4"])), chunk("", [entry("<|im_end|>", -0.7)])])
    assert shown(pieces) == [("4", None, -0.001), ("", None, -0.7)]
    assert pieces[1].token.text == "<|im_end|>"


def test_token_ids_take_their_chunks_text():
    """One id has its chunk's text. Of several the last has it, for where the cut lies is not known."""
    ids = [{"token": f"token_id:{n}", "logprob": -n / 10, "top_logprobs": []} for n in (1, 2, 3)]
    pieces = read([chunk("one", ids[:1]), chunk(" two three", ids[1:])])
    assert [(p.token.id, p.text, p.token.text, p.token.logprob) for p in pieces] == [
        (1, "one", "one", -0.1), (2, "", "", -0.2), (3, " two three", " two three", -0.3),
    ]  # fmt: skip
    assert {p.token.logprob for p in read([chunk("one"), chunk(" two", ids[:1])])} == {None}, "late or not, who can tell"


def test_a_character_split_over_tokens():
    """Its last token has the text. OpenAI writes the bytes; vLLM only U+FFFD, with the bytes of that."""
    openai = [entry("bytes:\\xe7\\xa9", -0.1, sent=[0xE7, 0xA9]), entry("bytes:\\xba", -0.2, sent=[0xBA]), entry("が", -0.3)]
    vllm = [entry("\ufffd", -0.1), entry("\ufffd", -0.2), entry("が", -0.3)]
    for e in (openai, vllm):
        assert shown(read([chunk("空が", e)])) == [("", None, -0.1), ("空", None, -0.2), ("が", None, -0.3)]
        assert shown(read([chunk("", e[:1]), chunk("空", e[1:2]), chunk("が", e[2:])])) == [
            ("", None, -0.1), ("空", None, -0.2), ("が", None, -0.3),
        ]  # fmt: skip


def test_servers_strip_blanks_around_the_parts():
    """A finished answer of llama.cpp: entries for the tag, the blanks around it and the end, which no text has."""
    e = words(["so", ".\n", "</think>", "\n\n", "It", "\n", "<|im_end|>"])
    message = {"role": "assistant", "reasoning_content": "so.", "content": "It"}
    update = read_message({"choices": [{"index": 0, "message": message, "logprobs": {"content": e}, "finish_reason": "stop"}]})
    assert [(p.text, p.phase) for p in update.pieces if p.text] == [("so", THINKING), (".", THINKING), ("It", ANSWER)]
    assert [p.token.logprob for p in update.pieces] == [-n / 1000 for n in range(1, 8)]


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


# However a server cuts it

TEXTS = st.lists(st.text("ab\né", min_size=1, max_size=3), min_size=1, max_size=30)


@st.composite
def streams(draw):
    """A stream's token texts, where its thinking ends, and chunks: texts and entries cut apart, each in order."""
    texts = draw(TEXTS)
    thinking = draw(st.integers(0, len(texts)))
    cuts = draw(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), max_size=40))
    whole, seam, entries = "".join(texts), len("".join(texts[:thinking])), words(texts)
    at = n = 0
    chunks = []
    for characters, count in [*cuts, (len(whole), 0), (0, len(entries))]:
        text, some = whole[at : at + characters], entries[n : n + count]
        reasoning, content = text[: max(0, seam - at)], text[max(0, seam - at) :]
        at, n = at + len(text), n + len(some)
        chunks.append(chunk(content or None, some or None, reasoning=reasoning or None))
    return texts, seam, chunks


@settings(deadline=None, max_examples=400)
@given(streams())
def test_joined_text_is_unchanged_and_every_entropy_is_at_its_own_text(made):
    """Texts and entries cut and delayed in any way, few letters, so much repeats: a token has its own place, or no logprob."""
    texts, seam, chunks = made
    pieces = read(chunks)
    assert "".join(p.text for p in pieces) == "".join(texts)
    assert "".join(p.text for p in pieces if p.phase is THINKING) == "".join(texts)[:seam]
    starts = [len("".join(texts[:n])) for n in range(len(texts))]
    at = 0
    for piece in pieces:
        if piece.token.logprob is not None and piece.text:
            n = round(-piece.token.logprob * 1000) - 1
            assert (at, piece.text, piece.token.alternatives[0].text) == (starts[n], texts[n], texts[n])
        at += len(piece.text)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=5), min_size=1, max_size=20))
def test_entries_of_the_same_chunk_are_all_matched(grouped):
    """Any number of tokens a chunk, any characters: every token gets its own, none is missing."""
    numbered = iter(words([t for texts in grouped for t in texts]))
    chunks = [chunk("".join(texts), [next(numbered) for _ in texts]) for texts in grouped]
    expected = [(t, None, -n / 1000) for n, t in enumerate((t for texts in grouped for t in texts), 1)]
    assert shown(read(json.loads(json.dumps(chunks)))) == expected


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(0, 9999), min_size=3, max_size=40, unique=True), st.integers(1, PATIENCE - 1))
def test_a_short_delay_loses_nothing(numbers, delay):
    """Entries a few chunks late, different texts: every token gets its own."""
    texts = [f" w{n}" for n in numbers]
    entries = [*[None] * delay, *([e] for e in words(texts))]
    chunks = [chunk(t or None, e) for t, e in zip([*texts, *[""] * delay], entries, strict=True)]
    assert shown(read(chunks)) == [(t, None, -n / 1000) for n, t in enumerate(texts, 1)]
