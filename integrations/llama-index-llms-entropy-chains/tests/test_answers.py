"""Answers come out whole through LlamaIndex, with and without thinking, and when they speak about tags.

The server is the scripted one of the tests (a fake: it thinks nothing).
"""

from __future__ import annotations

import asyncio
import re

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.llms.entropy_chains import EarlyStopLLM
from llama_index.llms.openai_like import OpenAILike
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


@pytest.mark.parametrize("field_name", ["", "reasoning_content"], ids=["inline", "field"])
@pytest.mark.parametrize("thought", [(), THOUGHT], ids=["at once", "after thinking"])
def test_the_answer_is_the_servers_text(field_name, thought):
    """Chatted, streamed and awaited: what the LLM inside says, letter for letter, inline thinking included."""

    def script(body):
        asked, *continued = body["messages"]
        tokens = [Tok(part, SURE, reasoning=False) for part in re.findall(r"\s*\S+\n*|\s+", asked["content"])]
        return Reply(said("cut")) if continued else Reply([*thought, *tokens])

    with Loopback(script, field_name=field_name) as server:
        inside = OpenAILike(model="scripted", api_base=server.url, api_key="none", is_chat_model=True, context_window=8000)
        llm = EarlyStopLLM(llm=inside, policy=POLICY)
        for answer in ANSWERS:
            asked = [ChatMessage(role="user", content=answer)]
            *_, streamed = llm.stream_chat(asked)
            for response in (llm.chat(asked), asyncio.run(llm.achat(asked)), streamed):
                content = response.message.content or ""
                assert content == (inside.chat(asked).message.content if thought and not field_name else answer)
                assert content.endswith(answer)
                assert not response.additional_kwargs["early_stop_stopped"]
