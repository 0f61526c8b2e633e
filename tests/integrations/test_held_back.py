"""vLLM with stop strings: the text comes late by their length, the logprobs at once. All is measured and stopped as without."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from frameworks import QUESTION, WAYS, Asker
from hostile import Hostile, begin, end, event
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_entropy_chains import EntropyCallbackHandler
from langchain_openai import ChatOpenAI
from loopback import SURE, UNSURE, Tok, is_answer_call
from wire import HEAD, entry, top

from entropy_chains.backends.remote.alignment import HELD
from entropy_chains.backends.remote.readers import ChatReader
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Phase, Segmentation

PROSE = "We need the product. Forty two times nine is what? First take forty times nine, which is three hundred sixty.\n"
LIST = "Thinking Process:\n\n1.  **Analyze the Request:**\n    *   Product: 42 * 9.\n    *   Form: a number.\n\n"
ALIKE = "ha ha ha ha ha ha ha ha ha ha ha ha ha ha ha ha ha ha ha ha ha ha ha ha ha ha\n"
STOPS = (None, ["END"], ["\nObservation:", "<|im_end|>"], ["a stop string that is longer than most others are" * 2])
POLICY = Policy("scripted", (0.5,), segmentation=Segmentation("line", 8))


def tokens_of(text: str, entropy: float = SURE, *, reasoning: bool = True) -> list[Tok]:
    return [Tok(part, entropy, reasoning) for part in re.findall(r" ?[A-Za-z]+|\n+| +|[^A-Za-z\n]", text)]


def held_back(tokens: list[Tok], body: dict, *, inline: bool = False) -> Iterator[bytes]:
    """A stream as vLLM sends it: a chunk a token, its text late, and of another field once the thinking is closed."""
    stops = body.get("stop") or [""]
    behind, text, sent, made = (
        max(map(len, [stops] if isinstance(stops, str) else stops)) - 1,
        "".join(t.text for t in tokens),
        0,
        0,
    )
    yield from begin()
    for n, token in enumerate([*tokens, None]):
        made += len(token.text) if token else 0
        upto = max(sent, made - max(behind, 0)) if token else len(text)
        name = "reasoning" if not inline and (token or tokens[n - 1]).reasoning else "content"
        logprobs = {"content": [entry(token, top(body))]} if token and body.get("logprobs") else None
        delta = {name: text[sent:upto]} if upto > sent else {}
        yield event({**HEAD, "choices": [{"index": 0, "delta": delta, "finish_reason": None, "logprobs": logprobs}]})
        sent = upto
    yield from end(len(tokens))


def script(thought: str, *, inline: bool = False):
    """A thinking that is unsure and then sure for longer than any text is held back; then an answer in the content."""
    unsure, sure = tokens_of(thought, UNSURE), tokens_of(thought, SURE) * 4
    tags = [Tok("<think>", SURE), Tok("\n", SURE)] if inline else []
    closing = tokens_of("\n</think>\n\nThe answer is 42" if inline else "The answer is 42", reasoning=False)

    def answered(request):
        if is_answer_call(request.body):
            return held_back(tokens_of("The answer is 42", reasoning=False), request.body)
        return held_back([*tags, *unsure, *sure, *closing], request.body, inline=inline)

    return answered


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("thought", [LIST, ALIKE], ids=["a list", "all alike"])
@pytest.mark.parametrize("inline", [False, True], ids=["field", "inline"])
def test_a_run_is_stopped_as_without_stop_strings(way, thought, inline):
    """At the same step, by the same entropy, with the same answer, however long the stop strings are."""
    seen = []
    with Hostile(script(thought, inline=inline)) as server:
        for stop in STOPS:
            got = Asker(way, server.url, POLICY, {"stop": stop} if stop else None).ask()
            seen.append((got.stopped, got.told["early_stop_step"], round(got.told["early_stop_entropy"], 9)))
            assert re.sub(r"(?s).*</think>\s*", "", got.answer) == "The answer is 42"
    assert seen == [(True, seen[0][1], seen[0][2])] * len(STOPS)


def test_a_callback_measures_the_same():
    """What it is told of the request includes the stop strings."""
    for inline in (False, True):
        with Hostile(script(PROSE, inline=inline)) as server:
            model = ChatOpenAI(model="scripted", base_url=server.url, api_key="none", logprobs=True, top_logprobs=20)
            rows = []
            for stop in STOPS:
                handler = EntropyCallbackHandler(POLICY)
                list(model.stream(QUESTION, stop=stop, config={"callbacks": [handler]}))
                rows.append(handler.runs[0])
        assert {row.metadata["early_stop_step"] for row in rows} == {rows[0].metadata["early_stop_step"]}
        assert {row.metadata["early_stop_reason"] for row in rows} == {rows[0].metadata["early_stop_reason"]}


def pieces_of(tokens: list[Tok], stop: list[str]) -> list:
    reader, found = ChatReader(), []
    for line in held_back(tokens, {"stop": stop, "logprobs": True, "top_logprobs": 20}):
        if line.startswith(b"data: {"):
            found += reader.feed(json.loads(line.removeprefix(b"data: "))).pieces
    return [*found, *reader.finish().pieces]


@given(st.lists(st.text("ab \n*é", min_size=1, max_size=4), min_size=30, max_size=80), st.integers(0, HELD // 2))
@settings(max_examples=200, deadline=None)
def test_no_entropy_is_lost_or_given_to_another_text(texts, behind):
    """Of any text, at any lag: the text comes out letter for letter, and each entry belongs to its own token or to none."""
    tokens = [Tok(text, (n % 7) / 10) for n, text in enumerate(texts)]
    pieces = pieces_of(tokens, ["x" * (behind + 1)])
    assert "".join(piece.text for piece in pieces) == "".join(texts)
    at = 0
    starts = {sum(map(len, texts[:n])): token for n, token in enumerate(tokens)}
    for piece in pieces:
        if piece.token.alternatives:
            honest = entry(starts[at], 20)
            assert (piece.text, piece.token.logprob) == (honest["token"], honest["logprob"])
        assert piece.phase in (None, Phase.THINKING)
        at += len(piece.text)


def test_all_entropies_are_kept_where_texts_differ():
    """Nothing is left without its logprobs but what a text that repeats itself leaves open at its very beginning."""
    for text in (PROSE * 2, LIST * 2):
        for behind in (0, 1, 3, 5, 8, 11, 15, 40, 100, 200):
            pieces = pieces_of(tokens_of(text), ["x" * (behind + 1)])
            assert all(piece.token.alternatives for piece in pieces), behind
