"""Answers come out whole through LangChain, with and without thinking, and when they speak about tags.

The server is the scripted one of the tests (a fake: it thinks nothing).
"""

from __future__ import annotations

import asyncio
import re

import pytest
from langchain_core.messages import HumanMessage
from langchain_deepseek import ChatDeepSeek
from langchain_entropy_chains import EntropyCallbackHandler, with_early_stop
from langchain_openai import ChatOpenAI
from loopback import SURE, UNSURE, Loopback, Reply, Tok, line, said

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 8))
LINES = "one more line of the answer that must not be cut\n" * 6
ANSWERS = [
    "The answer is 42.",
    f"Wrap the reasoning in <think> tags.\n{LINES}The end.",
    f"Qwen3 ends its thinking with </think> and answers.\n{LINES}The end.",
    f"```xml\n<think>\nreasoning\n</think>\n{LINES}```\nThe end.",
    "<",
]
THOUGHT = line("a step that is not sure of itself at all", UNSURE)


def echo(thought, field_name):
    """A server that answers with the question's own text, after these tokens of thinking."""

    def script(body):
        asked, *continued = body["messages"]
        tokens = [Tok(part, SURE, reasoning=False) for part in re.findall(r"\s*\S+\n*|\s+", asked["content"])]
        return Reply(said("cut")) if continued else Reply([*thought, *tokens])

    return Loopback(script, field_name=field_name)


def models(server):
    yield ChatOpenAI(model="scripted", base_url=server.url, api_key="none")
    yield ChatDeepSeek(model="scripted", api_base=server.url, api_key="none")


@pytest.mark.parametrize("field_name", ["", "reasoning_content"], ids=["inline", "field"])
@pytest.mark.parametrize("thought", [(), THOUGHT], ids=["at once", "after thinking"])
def test_the_answer_is_the_servers_text(field_name, thought):
    """Invoked, streamed and awaited: the content is the answer letter for letter, and the reasoning stands beside it."""
    with echo(thought, field_name) as server:
        for model in models(server):
            stopping = with_early_stop(model, POLICY)
            for answer in ANSWERS:
                invoked, awaited = stopping.invoke(answer), asyncio.run(stopping.ainvoke(answer))
                streamed = "".join(str(chunk.content) for chunk in stopping.stream(answer))
                assert [str(m.content) for m in (invoked, awaited)] + [streamed] == [answer] * 3
                assert not invoked.response_metadata["early_stop_stopped"]
                reasoning = invoked.additional_kwargs.get("reasoning_content", "")
                assert reasoning.strip() == "".join(t.text for t in thought).strip()


@pytest.mark.parametrize("field_name", ["", "reasoning_content"], ids=["inline", "field"])
def test_a_callback_cuts_no_answer(field_name):
    """A handler that stops sees no thinking in such a reply."""
    with echo((), field_name) as server:
        for model in models(server):
            for answer in ANSWERS:
                handler = EntropyCallbackHandler(POLICY, stop=True)
                streamed = model.stream([HumanMessage(answer)], config={"callbacks": [handler]}, logprobs=True, top_logprobs=20)
                assert "".join(str(chunk.content) for chunk in streamed) == answer
