"""A tokenizer's own description of its replies serves for tool calls, where it has one."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import AutoTokenizer

from entropy_chains.backends.text.vocabulary import Vocabulary
from entropy_chains.core.steps import Phase
from entropy_chains.core.tool_calls import ToolCall
from entropy_chains.demo import MODEL_FOLDER

DESCRIPTION = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "tool_calls": {
            "open": "<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": {"name": "{content.fun}", "arguments": "{content.args}"}},
        },
        "content": {"content": "text"},
    },
}
"""Of calls in a form that nobody else has."""
WRITTEN = '<tool_call>{"fun": "add", "args": {"a": 1}}</tool_call>'


def read(description):
    tokenizer = AutoTokenizer.from_pretrained(str(MODEL_FOLDER))
    if description is not None and not hasattr(tokenizer, "response_template"):
        pytest.skip("this transformers has no descriptions of replies")
    tokenizer.response_template = description
    words = Vocabulary(tokenizer, "demo").with_template({"tools": [{}]})
    ids = words.encode(f"Let me see. {WRITTEN}")
    reader = words.read(ids, Phase.BEFORE)
    return reader.answer.strip(), words.calls(reader, ids)


@pytest.mark.parametrize(
    ("description", "call"),
    [
        (DESCRIPTION, ToolCall("add", '{"a": 1}')),
        (None, ToolCall(None, '{"fun": "add", "args": {"a": 1}}')),
        ({"fields": 7}, ToolCall(None, '{"fun": "add", "args": {"a": 1}}')),
    ],
)
def test_the_tokenizers_own_description_is_asked_first(description, call):
    """Without one, or by one that does not fit, the known forms are tried."""
    assert read(description) == ("Let me see.", (call,))


def test_templates_by_name_are_used_as_transformers_uses_them():
    """The default tells the family and is what a policy belongs to; that for tools is rendered where tools are offered."""
    tokenizer = AutoTokenizer.from_pretrained(str(MODEL_FOLDER))
    alone = Vocabulary(tokenizer, "demo")
    tokenizer.chat_template = {"default": alone.chat_template, "tool_use": "{{ messages[0].content }} <think>\n"}
    several = Vocabulary(tokenizer, "demo")
    asked = [{"role": "user", "content": "34*7=?"}]
    assert (several.tags, several.template, several.prompt(asked)) == (alone.tags, alone.template, alone.prompt(asked))
    ids, phase = several.with_template({"tools": [{"type": "function", "function": {"name": "f"}}]}).prompt(asked)
    assert (several.decode(ids).strip(), phase) == ("34*7=? <think>", Phase.THINKING)
