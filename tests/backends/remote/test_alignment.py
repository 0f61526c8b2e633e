"""Which entry is which text's, however a server cuts them: an entropy is never given to a text that is not its own."""

from __future__ import annotations

import json
import math

from chat_chunks import ANSWER, THINKING, chunk, entry, read, shown, words
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_chains.backends.remote.alignment import MOST_CHUNKS, PROOF, TOKEN, WINDOW
from entropy_chains.backends.remote.readers import (
    ChatReader,
    read_message,
)


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
    given = [len(reader.feed(chunk("ab")).pieces) for _ in range(MOST_CHUNKS + 1)]
    assert given == [0] * (MOST_CHUNKS - 1) + [MOST_CHUNKS, 1]
    assert reader.feed(chunk(entries=words(["ab"] * MOST_CHUNKS))).pieces == ()
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
@given(st.lists(st.integers(0, 9999), min_size=3, max_size=40, unique=True), st.integers(1, MOST_CHUNKS - 1))
def test_a_short_delay_loses_nothing(numbers, delay):
    """Entries a few chunks late, different texts: every token gets its own."""
    texts = [f" w{n}" for n in numbers]
    entries = [*[None] * delay, *([e] for e in words(texts))]
    chunks = [chunk(t or None, e) for t, e in zip([*texts, *[""] * delay], entries, strict=True)]
    assert shown(read(chunks)) == [(t, None, -n / 1000) for n, t in enumerate(texts, 1)]
