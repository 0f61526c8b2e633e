"""Thinking in inline tags that never ends: the text stays the reply's content, as the plain class gives it."""

from __future__ import annotations

import asyncio

import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_entropy_chains import EarlyStopChatModel, instrument, with_early_stop
from langchain_openai import ChatOpenAI
from loopback import Loopback, Reply, Tok, line, said

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation

NEVER = Policy("scripted", (0.0001,), segmentation=Segmentation("line", 32))
ASKED = "What is 6*7?"
TEXT = "<think>\n6*7 is 42.\nThe answer is 42.\n"


def inline(*texts):
    return [Tok(text, 2.0, reasoning=False) for text in texts]


def reply(finish="stop", tools=()):
    lines = [token for text in ("6*7 is 42.", "The answer is 42.") for token in line(text, reasoning=False)]
    return Reply([*inline("<think>", "\n"), *lines], finish=finish, tools=tools)


@pytest.fixture
def server():
    """A server that opens the tag and never closes it (a fake)."""
    with Loopback(lambda body: reply()) as running:
        yield running


def chat(server):
    return ChatOpenAI(model="scripted", base_url=server.url, api_key="none", max_retries=0)


@pytest.mark.parametrize("finish", ["stop", "length"])
@pytest.mark.parametrize("around", [EarlyStopChatModel, instrument])
def test_the_content_is_the_plain_models(server, around, finish):
    """Invoked, awaited and streamed, ended by itself or cut off; the thinking stands in its field, and the reason says so."""
    server.script = lambda body: reply(finish)
    plain, model = chat(server).invoke(ASKED), around(chat(server), NEVER)
    messages = [model.invoke(ASKED), asyncio.run(model.ainvoke(ASKED))]
    assert [message.content for message in messages] == [plain.content, plain.content] == [TEXT, TEXT]
    assert "".join(chunk.text for chunk in model.stream(ASKED)) == TEXT
    for message in messages:
        assert message.additional_kwargs["reasoning_content"] == "6*7 is 42.\nThe answer is 42.\n"
        assert message.response_metadata["early_stop_reason"].endswith(
            "the thinking was never closed, so the content is the whole text"
        )
        assert message.response_metadata["finish_reason"] == finish


def test_a_chain_keeps_its_text(server):
    """With a parser behind the model, which reads the content alone."""
    chain = chat(server) | StrOutputParser()
    assert with_early_stop(chain, NEVER).invoke(ASKED) == chain.invoke(ASKED) == TEXT


def test_where_there_is_an_answer_nothing_is_added(server):
    """Closed thinking, and a tool call in the place of an answer: the content is the answer, or nothing."""
    closed = Reply([*inline("<think>", "\n", "so", "</think>", "\n\n"), *said("42")])
    blank = Reply(inline("<think>", "\n", "so", "</think>", "\n", " "))
    for script, content in ((closed, "42"), (blank, ""), (reply(None, tools=[("search", {})]), "")):
        server.script = lambda body, script=script: script
        message = EarlyStopChatModel(chat(server), NEVER).invoke(ASKED)
        assert message.content == content
        assert "never closed" not in message.response_metadata["early_stop_reason"]


def test_a_full_run_after_a_stop_without_an_answer(server):
    """The answer after the stop is empty, and so the question is run in full: its text is the content, the stopped one's is not."""
    sure = [*inline("<think>", "\n"), *line(" ".join(["sure"] * 40), 0.05, reasoning=False)]

    def script(body):
        if body["messages"][-1]["role"] == "assistant":
            return Reply()
        return Reply([*sure, *line(" ".join(["more"] * 40), 0.05, reasoning=False)]) if len(server.calls) == 1 else reply()

    server.script = script
    policy = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))
    message = EarlyStopChatModel(chat(server), policy).invoke(ASKED)
    assert len(server.calls) == 3
    assert (message.content, message.response_metadata["early_stop_stopped"]) == (TEXT, False)
