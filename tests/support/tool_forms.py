"""One call, ``add`` of 1 and "x", in the form of every family (written for these tests)."""

from __future__ import annotations

ADD = '{"a": 1, "b": "x"}'
FORMS = {
    "Hermes, Qwen3": f'<tool_call>\n{{"name": "add", "arguments": {ADD}}}\n</tool_call>',
    "Qwen3-Coder": "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\nx\n</parameter>\n</function>"
    "\n</tool_call>",
    "a function alone": f"<function=add>{ADD}</function>",
    "Seed-OSS": "<seed:tool_call><function=add><parameter=a>1</parameter><parameter=b>x</parameter></function></seed:tool_call>",
    "GLM": "<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n<arg_key>b</arg_key>\n<arg_value>x</arg_value>"
    "</tool_call>",
    "DeepSeek V3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n"
    + ADD
    + "\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "DeepSeek V3.1": f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{ADD}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "Kimi K2": "<|tool_calls_section_begin|><|tool_call_begin|>functions.add:0<|tool_call_argument_begin|>"
    + ADD
    + "<|tool_call_end|><|tool_calls_section_end|>",
    "Mistral": f"[TOOL_CALLS]add[ARGS]{ADD}",
    "Mistral, before": f'[TOOL_CALLS][{{"name": "add", "arguments": {ADD}}}]',
    "Llama 3.1": f'<|python_tag|>{{"name": "add", "parameters": {ADD}}}',
    "Gemma 4": '<|tool_call>call:add{a:1,b:<|"|>x<|"|>}<tool_call|>',
    "Command A": f'<|START_ACTION|>[{{"tool_call_id": "0", "tool_name": "add", "parameters": {ADD}}}]<|END_ACTION|>',
}
