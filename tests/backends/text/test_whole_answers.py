"""What the server sent is what the user gets: answers without thinking, and answers that speak about tags, over real HTTP.

The server is the scripted one of the tests (a fake: it thinks nothing).
"""

from __future__ import annotations

import asyncio
import json
import re

import openai
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from loopback import SURE, UNSURE, Loopback, Reply, Tok, line, said
from places import CORPUS

from entropy_chains.backends import Sampling
from entropy_chains.backends.openai import AsyncOpenAIBackend, OpenAIBackend
from entropy_chains.backends.remote.continuations import Prefill
from entropy_chains.backends.remote.dialogue import Dialogue
from entropy_chains.backends.remote.events import Finish
from entropy_chains.backends.remote.plan import Plan
from entropy_chains.backends.remote.readers import ChatReader, Piece, Update
from entropy_chains.core.families import ThinkTags
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Phase, Segmentation
from entropy_chains.core.tokens import Token
from entropy_chains.errors import BackendError
from entropy_chains.recording import record
from entropy_chains.refine import run_refine

ASKED = [{"role": "user", "content": "What is 6*7?"}]
POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 8))
LINES = "one more line of the answer that must not be cut\n" * 6
ANSWERS = {
    "plain": "The answer is 42.",
    "long and sure": LINES + "The answer is 42.",
    "opening tag": f"Wrap the reasoning in <think> tags.\n{LINES}The end.",
    "closing tag": f"Qwen3 ends its thinking with </think> and answers.\n{LINES}The end.",
    "both, in a fence": f"```xml\n<think>\nreasoning\n</think>\n{LINES}```\nThe end.",
    "another family's": f"[THINK]no[/THINK] <|im_end|>\n{LINES}The end.",
    "the beginning of a tag": "<thin ice> is no tag",
    "less than a tag": "<",
}
TEXTS = tuple(ANSWERS.values())
THOUGHT = line("a step that is not sure of itself at all", UNSURE)


def words(text):
    """A token a word, all of them sure: a policy would stop at once if this were thinking."""
    return [Tok(part, SURE, reasoning=False) for part in re.findall(r"\s*\S+\n*|\s+", text)]


def echo(*, thought=(), field_name="", after_a_stop=False):
    """A server that answers with the question's own text, after these tokens of thinking."""

    def script(body):
        asked, *continued = body.get("messages") or body["input"]
        if after_a_stop and not continued:
            return Reply([*line("a step that is quite sure of itself, all of it", SURE), *words("never read")])
        return Reply(said("cut")) if continued and not after_a_stop else Reply([*thought, *words(asked["content"])])

    return Loopback(script, field_name=field_name)


def generate(server, policy, answers=TEXTS, **given):
    """Every answer's run, and what a user gets of it."""
    with openai.OpenAI(base_url=server.url, api_key="none") as client:
        backend = OpenAIBackend(client, "scripted", **given)
        runs = backend.generate([[{"role": "user", "content": text}] for text in answers], policy=policy)
    return [(run, run.answer) for run in runs]


def agenerate(server, policy, **given):
    async def run():
        async with openai.AsyncOpenAI(base_url=server.url, api_key="none") as client:
            asked = [[{"role": "user", "content": text}] for text in ANSWERS.values()]
            return await AsyncOpenAIBackend(client, "scripted", **given).agenerate(asked, policy=policy)

    return [(run, run.answer) for run in asyncio.run(run())]


def stream(server, policy, **given):
    found = []
    with openai.OpenAI(base_url=server.url, api_key="none") as client:
        backend = OpenAIBackend(client, "scripted", **given)
        for text in ANSWERS.values():
            chunks = list(backend.stream([{"role": "user", "content": text}], policy=policy))
            found.append((chunks[-1].final, "".join(c.text for c in chunks if c.phase is Phase.ANSWER)))
    return found


EVERY = pytest.mark.parametrize("ask", [generate, agenerate, stream])
FIELD = pytest.mark.parametrize("field_name", ["", "reasoning_content"], ids=["inline", "field"])


@EVERY
@FIELD
@pytest.mark.parametrize("policy", [None, POLICY], ids=["measured", "policy"])
def test_a_reply_without_thinking_is_the_answer(ask, field_name, policy):
    """Letter for letter, after one request, with nothing of it called reasoning, and never stopped."""
    with echo(field_name=field_name) as server:
        found = ask(server, policy)
    for answer, (run, got) in zip(ANSWERS.values(), found, strict=True):
        assert (got, run.answer) == (answer, answer)
        assert (run.reasoning, run.reasoning_tokens, run.steps, run.outcome.stopped) == ("", 0, (), False)
    assert len(server.calls) == len(ANSWERS)
    assert sum(run.tokens for run, _ in found) == server.made


@EVERY
@FIELD
def test_an_answer_after_thinking_comes_out_whole(ask, field_name):
    """Nothing of it is taken for thinking, and the reasoning is the reasoning alone."""
    with echo(thought=THOUGHT, field_name=field_name) as server:
        found = ask(server, POLICY)
    for answer, (run, got) in zip(ANSWERS.values(), found, strict=True):
        assert (got, run.answer) == (answer, answer)
        assert run.reasoning == "".join(t.text for t in THOUGHT).strip()
        assert not run.outcome.stopped


@EVERY
def test_an_answer_after_a_stop_comes_out_whole(ask):
    """It was asked for in a request of its own."""
    with echo(field_name="reasoning_content", after_a_stop=True) as server:
        found = ask(server, POLICY)
    for answer, (run, got) in zip(ANSWERS.values(), found, strict=True):
        assert run.outcome.stopped
        assert (got, run.answer) == (answer, answer)


@pytest.mark.filterwarnings("ignore:.*nothing was measured")  # of the items that hold its reasoning
@pytest.mark.parametrize("thought", [(), THOUGHT], ids=["at once", "after thinking"])
def test_the_responses_api_gives_it_too(thought):
    """Where its reasoning stands in items of their own, and where there is none."""
    with echo(thought=thought, field_name="reasoning_content") as server:
        assert [got for _, got in generate(server, POLICY, api="responses")] == [*ANSWERS.values()]


def test_a_recording_holds_it():
    """One step, the full run, with what the user would get."""
    with echo() as server, openai.OpenAI(base_url=server.url, api_key="none") as client:
        questions = [{"id": name, "question": text} for name, text in ANSWERS.items()]
        traces = record(OpenAIBackend(client, "scripted"), questions, sampling=Sampling(max_tokens=200))
        found = {trace.id: [step.answer for step in trace.steps] for trace in traces}
    assert found == {name: [text] for name, text in ANSWERS.items()}


@FIELD
@pytest.mark.parametrize("thought", [(), THOUGHT], ids=["at once", "after thinking"])
def test_the_refine_loop_gives_it(field_name, thought):
    """Every call of the loop answers at once, or thinks before it; both answers are the server's text."""
    with (
        echo(thought=thought, field_name=field_name) as server,
        openai.OpenAI(base_url=server.url, api_key="none") as client,
    ):
        asked = [[{"role": "user", "content": text}] for text in ANSWERS.values()]
        runs = run_refine(OpenAIBackend(client, "scripted"), asked, steps=1)
    assert [run.answer for run in runs] == [*ANSWERS.values()]


@pytest.mark.parametrize("text", ["I think so </think>\n\nThe answer is 42.", "<b>\n</think>42"])
def test_a_closing_tag_ends_thinking_only_where_the_prompt_opened_it(text):
    """Unset, such a reply is what a plain client gets; with ``opened`` its first closing tag parts it."""
    with echo() as server:
        assert generate(server, POLICY, [text])[0][1] == text
        ((run, got),) = generate(server, POLICY, [text], opened=True)
    assert got == text.partition("</think>")[2].strip()
    assert run.reasoning == text.partition("</think>")[0].strip("\n")


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.sampled_from(["<think>", "</think>", "<", "a", " ", "\n", "`", "é", "</", "think>", "[THINK]"]), min_size=1, max_size=12
    ),
    st.booleans(),
    st.booleans(),
)
def test_any_answer_comes_out_as_it_went_in(tokens, thought, field):
    """However it is cut into tokens, whatever it says: after thinking, or without; shown, and in the finished run.

    The one reply that cannot be told apart is one that begins with the opening tag itself.
    """
    text = "".join(tokens)
    assume(thought or field or not text.lstrip().startswith("<think>"))
    answer = ([Piece(Token(t), Phase.ANSWER if field else None, t)] for t in tokens)
    thinking = [[Piece(Token(t), Phase.THINKING if field else None, t)] for t in ("<think>", "hm", "</think>")] if thought else []
    dialogue = Dialogue(ASKED, Plan(ThinkTags(), (Prefill(),)))
    dialogue.start()
    events = [e for pieces in (*thinking, *answer) for e in dialogue.feed(Update(tuple(pieces)))]
    dialogue.feed(Update(finish_reason="stop"))
    rest, end = dialogue.over()
    assert end == Finish()
    run, shown = dialogue.result(), "".join(c.text for e in (*events, *rest) for c in e.chunks if c.phase is Phase.ANSWER)
    assert run.answer == (text.strip() or None)
    assert shown == (text.lstrip() if thought and not field else text)  # blanks after a tag are the tag's
    assert run.reasoning == ("hm" if thought else "")


@pytest.mark.skipif(not CORPUS.is_dir(), reason="the recorded answers are not here")
@pytest.mark.filterwarnings("ignore:.*the server gives no logprobs")
@pytest.mark.parametrize("path", sorted(CORPUS.glob("*_s*/*.[cs]*")), ids=lambda p: p.name)
def test_recorded_replies_have_their_content_as_the_answer(path):
    """Every recorded chat stream: its content is the answer, and a reply without content has none."""
    lines = [text.removeprefix("data: ") for text in path.read_text(encoding="utf-8").splitlines()]
    events = [json.loads(text) for text in lines if text.startswith("{")]
    reader, dialogue = ChatReader(), Dialogue(ASKED, Plan(ThinkTags(), (Prefill(),), without_logprobs="full"))
    dialogue.start()
    content = ""
    try:
        for event in events:
            dialogue.feed(reader.feed(event))
            for choice in event.get("choices") or ():
                content += (choice.get("delta") or {}).get("content") or ""
    except BackendError:
        pytest.skip("it ends with the server's own error")
    dialogue.feed(reader.finish())
    if "<think>" not in content:
        assert dialogue.result().answer == (content.strip() or None)
