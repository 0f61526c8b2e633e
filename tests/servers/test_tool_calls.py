"""A function agent of LlamaIndex on a real vLLM that reads tool calls: the thinking before a call is stopped, the call is whole.

The model is a fake in this alone: what it says stands in its weights. The engine, its parsers and the agent are real.
"""

from __future__ import annotations

import asyncio
from itertools import pairwise

import engines  # tests/servers/conftest.py puts scripts/ on the path
import openai
import pytest
from chained import save_chained
from langchain_core.tools import tool
from langchain_entropy_chains import EarlyStopChatModel
from langchain_openai import ChatOpenAI
from llama_index.core.agent.workflow import FunctionAgent, ToolCallResult
from llama_index.llms.entropy_chains import EarlyStopLLM
from llama_index.llms.openai_like import OpenAILike

from entropy_chains.backends import Sampling
from entropy_chains.backends.openai import OpenAIBackend
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation

pytestmark = pytest.mark.servers

BEGIN, RESULT, END = "<begin>", "<result>", "<|im_end|>"
"""What ends a prompt: without and with a tool's result; and what ends a turn."""

TEMPLATE = """
{%- for m in messages -%}{{- "<|im_start|>" + m.role + "\n" + (m.content or "") + "<|im_end|>\n" -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<result>" if messages[-1].role == "tool" else "<begin>" -}}{%- endif -%}
"""
LINES = [f"Line {n} of the thinking.\n" for n in range(1, 9)]
CALL = ["<tool_call>", '{"name": "multiply", ', '"arguments": {"a": 34, ', '"b": 7}', "}", "</tool_call>"]
TURNS = [[BEGIN, "<think>", *LINES, END], ["\n", *CALL, END], [RESULT, "I have it.", "</think>", "It is 238.", END]]
"""What follows what. A line's end alone stands where the thinking was closed by force: without a stop nothing is called."""

POLICY = Policy("chained", (9.0,), segmentation=Segmentation("line", 2))
ASKED = "34*7=?"


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """A vLLM with a parser of tool calls."""
    folder = tmp_path_factory.mktemp("chained") / "model"
    save_chained(folder, {text: then for turn in TURNS for text, then in pairwise(turn)}, TEMPLATE)
    options = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    with engines.start("vllm", model=folder, name="chained", parallel=4, extra=options) as running:
        yield running


def multiply(a: int, b: int) -> int:
    """The product of two numbers."""
    return a * b


@pytest.mark.parametrize("streaming", [True, False])
def test_a_function_agent_of_llama_index(engine, streaming):
    """It thinks, is stopped, calls, and answers with the result."""
    inner = OpenAILike(
        model="chained",
        api_base=engine.base_url,
        api_key="none",
        is_chat_model=True,
        is_function_calling_model=True,
        temperature=0,
        max_tokens=60,
    )
    told = []

    class Kept(EarlyStopLLM):
        """Keeps what each call came to."""

        def get_tool_calls_from_response(self, response, **settings):
            if "early_stop_stopped" in response.additional_kwargs:
                told.append((response.additional_kwargs["early_stop_stopped"], response.additional_kwargs["early_stop_reason"]))
            return super().get_tool_calls_from_response(response, **settings)

    async def asked():
        handler = FunctionAgent(tools=[multiply], llm=Kept(inner, POLICY), streaming=streaming).run(ASKED)
        calls = [event async for event in handler.stream_events() if isinstance(event, ToolCallResult)]
        return str(await handler), calls

    answer, calls = asyncio.run(asked())
    assert answer == "It is 238.", told
    assert [(call.tool_name, call.tool_kwargs) for call in calls] == [("multiply", {"a": 34, "b": 7})]
    assert True in [stopped for stopped, _ in told], told


def test_a_chat_model_of_langchain(engine):
    """The same call, and the same stop."""
    chat = ChatOpenAI(model="chained", base_url=engine.base_url, api_key="none", temperature=0, max_tokens=60)
    message = EarlyStopChatModel(chat, POLICY).bind_tools([tool(multiply)]).invoke(ASKED)
    assert [(call["name"], call["args"]) for call in message.tool_calls] == [("multiply", {"a": 34, "b": 7})]
    assert message.response_metadata["early_stop_stopped"] is True, message.response_metadata


def test_the_begun_turn_that_vllm_sends_back_is_no_part_of_the_answer(engine):
    """With its ``echo`` set vLLM sends it as content; the run is the same as without."""
    with openai.OpenAI(base_url=engine.base_url, api_key="none") as client:
        runs = []
        for echo in (False, True):
            backend = OpenAIBackend(client, "chained", request={"extra_body": {"echo": echo}})
            (run,) = backend.generate([[{"role": "user", "content": ASKED}]], policy=POLICY, sampling=Sampling(0, max_tokens=60))
            runs.append((run.answer, run.outcome.stopped, run.tokens))
    assert runs[0] == runs[1]
    assert runs[0][1] is True
