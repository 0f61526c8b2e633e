"""LlamaIndex's agents on a local model: tools through the chat template, calls as blocks, results back to the template.

The model is tiny, random and steered: it writes a script. Tokenizer, template, ``generate()`` and agents are real.
"""

from __future__ import annotations

import asyncio
import functools

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from llama_index.core.agent.react.formatter import ReActChatFormatter
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.tools import FunctionTool
from llama_index.llms.entropy_chains import TransformersLLM
from llama_index.llms.entropy_chains._local_messages import conversation
from steered import Script, tiny
from transformers import AutoTokenizer

from entropy_chains import ThinkTags
from entropy_chains.backends.transformers import TransformersBackend
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.demo import MODEL_FOLDER
from entropy_chains.errors import SettingsError

TEMPLATE = """
{%- if tools -%}{{- "<|im_start|>system\n[" + tools | map(attribute="function.name") | join(", ") + "]<|im_end|>\n" -}}{%- endif -%}
{%- for m in messages -%}
  {{- "<|im_start|>" + m.role + "\n" + m.content -}}
  {%- for call in m.tool_calls or [] -%}
    {{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' -}}
    {{- call.function.arguments | tojson + "}\n</tool_call>" -}}
  {%- endfor -%}
  {{- "<|im_end|>\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|im_start|>assistant\n" -}}{%- endif -%}
"""
ASKED = "34*7=?"
CALL = '<tool_call>\n{"name": "multiply", "arguments": {"a": 34, "b": 7}}\n</tool_call>'
THOUGHT = "The tool is there for it.\nI am sure of that.\n"
END = "<|im_end|>"
ANSWER = "It is 238."
RESULT = "tool\n238"
"""How the template ends a prompt after the tool's result."""

SHORT = ReActChatFormatter(system_header="Tools: {tool_desc} {tool_names}.")
"""LlamaIndex's own text for ReAct is long for a tokenizer of characters."""


def multiply(a: int, b: int) -> int:
    """The product of two numbers."""
    return a * b


@functools.cache
def loaded():
    tokenizer = AutoTokenizer.from_pretrained(str(MODEL_FOLDER))
    tokenizer.chat_template = TEMPLATE
    model = tiny(tokenizer)
    return tokenizer, model, Script(model, tokenizer)


def local(texts, answer=ANSWER, *, policy=False, **settings):
    """A model that writes these texts, by what the prompt holds, and the answer after a stop at its first step."""
    tokenizer, model, script = loaded()
    script.set(texts, "</think>\n\n", answer + END)
    backend = TransformersBackend(model, tokenizer, name="tiny", think_tags=ThinkTags())
    stops = Policy("tiny", thresholds=(9.0,), segmentation=Segmentation("line", 8), template=backend.template)
    given = {"temperature": 0, "max_tokens": 300, "is_function_calling_model": True} | settings
    return TransformersLLM(backend=backend, policy=stops if policy else None, **given)


def calls(llm, response):
    return [(c.tool_name, c.tool_kwargs) for c in llm.get_tool_calls_from_response(response, error_on_no_tool_call=False)]


AGENTS = {
    "FunctionAgent": lambda llm: FunctionAgent(tools=[multiply], llm=llm),
    "FunctionAgent, not streamed": lambda llm: FunctionAgent(tools=[multiply], llm=llm, streaming=False),
    "AgentWorkflow": lambda llm: AgentWorkflow(agents=[FunctionAgent(name="a", description="d", tools=[multiply], llm=llm)]),
}


@pytest.mark.parametrize("kind", AGENTS)
def test_a_function_agent_calls_its_tool_and_is_stopped(kind):
    """The call is whole; with its result the model thinks, is stopped, and answers. The next question has all of it before."""
    llm = local({RESULT: f"<think>\n{THOUGHT}And on.\n</think>\n\nno{END}", ASKED: CALL + END}, policy=True)

    async def asked():
        memory, told = ChatMemoryBuffer.from_defaults(token_limit=4000), []
        for _ in range(2):
            handler = AGENTS[kind](llm).run(ASKED, memory=memory)
            told.append([type(event).__name__ async for event in handler.stream_events()])
            last = await handler
        return str(last), told, await memory.aget_all()

    answer, told, kept = asyncio.run(asked())
    assert answer == ANSWER
    assert told[0].count("ToolCallResult") == 1
    assert [m.role.value for m in kept[:4]] == ["user", "assistant", "tool", "assistant"]
    assert [b.block_type for b in kept[3].blocks] == ["thinking", "text"]
    assert kept[3].blocks[0].content == THOUGHT.splitlines()[0]


@pytest.mark.parametrize("streamed", [False, True])
def test_thinking_before_a_call_is_stopped(streamed):
    """The call comes after the close; nothing of its markup is text."""
    llm = local({ASKED: f"<think>\n{THOUGHT}</think>\n\nno{END}"}, CALL, policy=True)
    tools = [FunctionTool.from_defaults(multiply)]
    if streamed:
        responses = [*llm.stream_chat_with_tools(tools, user_msg=ASKED)]
        response = responses[-1]
        assert "".join(r.delta or "" for r in responses) == ""
    else:
        response = llm.chat_with_tools(tools, user_msg=ASKED)
    assert calls(llm, response) == [("multiply", {"a": 34, "b": 7})]
    assert response.message.content in ("", None)
    assert response.additional_kwargs["early_stop_stopped"] is True


def test_a_forced_tool_is_never_cut_and_none_offers_none():
    """As everywhere: a named tool is a given form. ``none`` leaves the tools out of the prompt."""
    llm = local({ASKED: f"<think>\n{THOUGHT}</think>\n\n{CALL}{END}"}, policy=True)
    tools = [FunctionTool.from_defaults(multiply)]
    response = llm.chat_with_tools(tools, user_msg=ASKED, tool_choice="multiply")
    assert calls(llm, response) == [("multiply", {"a": 34, "b": 7})]
    assert response.additional_kwargs["early_stop_active"] is False
    assert calls(llm, llm.chat_with_tools(tools, user_msg=ASKED, tool_choice="none")) == []


def test_what_is_no_call_by_its_form_stays_to_be_seen():
    """Broken JSON is no call, and is not lost: it is text."""
    llm = local({ASKED: '<tool_call>\n{"name": "multiply", "arguments": {"a": 34,\n</tool_call>' + END})
    response = llm.chat_with_tools([FunctionTool.from_defaults(multiply)], user_msg=ASKED)
    assert calls(llm, response) == []
    assert '"a": 34' in response.message.content
    with pytest.raises(ValueError, match="at least one tool call"):
        llm.get_tool_calls_from_response(response)


def test_tools_need_a_model_that_is_said_to_call_them():
    """Nothing is dropped without a word: the error names the setting."""
    llm = local({ASKED: CALL + END}, is_function_calling_model=False)
    with pytest.raises(SettingsError, match="is_function_calling_model=True"):
        llm.chat_with_tools([FunctionTool.from_defaults(multiply)], user_msg=ASKED)


def test_messages_of_agents_go_to_the_template():
    """Calls with their arguments as an object, results with the call's id."""
    llm = local({ASKED: CALL + END})
    message = llm.chat_with_tools([FunctionTool.from_defaults(multiply)], user_msg=ASKED).message
    sent = conversation([message, ChatMessage(role="tool", content="238", additional_kwargs={"tool_call_id": "c1"})])
    assert sent[0]["tool_calls"][0]["function"] == {"name": "multiply", "arguments": {"a": 34, "b": 7}}
    assert (sent[1]["role"], sent[1]["content"], sent[1]["tool_call_id"]) == ("tool", "238", "c1")


def test_a_react_agent_has_its_tools_in_the_prompts_text():
    """It needs no function calling: its thinking is stopped, its ``Thought:`` lines are text."""
    use = 'Thought: I need a tool.\nAction: multiply\nAction Input: {"a": 34, "b": 7}'
    done = f"Thought: I can answer.\nAnswer: {ANSWER}"
    thinking = f"<think>\n{THOUGHT}</think>\n\n"
    llm = local({"Observation: 238": f"{thinking}no{END}", ASKED: use + END}, done, policy=True, is_function_calling_model=False)

    async def asked():
        return await ReActAgent(tools=[multiply], llm=llm, formatter=SHORT).run(ASKED)

    output = asyncio.run(asked())
    assert str(output) == ANSWER
