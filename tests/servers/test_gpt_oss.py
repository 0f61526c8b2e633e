"""gpt-oss on its real tokenizer, with a template of our own in its style: every kind of reply, tool calls, and an agent's turns.

The model is tiny, random and steered: it writes a script.
"""

from __future__ import annotations

import functools

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_entropy_chains import ChatTransformers
from steered import Script, real_tokenizer, tiny

from entropy_chains.backends import Sampling
from entropy_chains.backends.transformers import TransformersBackend
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.core.tool_calls import ToolCall
from entropy_chains.doctor.local import examine_local

pytestmark = pytest.mark.servers

TEMPLATE = """
{%- if tools -%}
  {{- "<|start|>developer<|message|>tools: " + tools | map(attribute="function.name") | join(", ") + "<|end|>" -}}
{%- endif -%}
{%- for m in messages -%}
  {%- if m.role == "assistant" -%}
    {%- if "<|channel|>" in (m.content or "") or "<|channel|>" in (m.thinking or "") -%}
      {{- raise_exception("a turn holds channels") -}}
    {%- endif -%}
    {%- if m.tool_calls -%}
      {%- if m.content and m.thinking -%}{{- raise_exception("both content and thinking beside a call") -}}{%- endif -%}
      {{- "<|start|>assistant<|channel|>analysis<|message|>" + (m.thinking or m.content) + "<|end|>" -}}
      {{- "<|start|>assistant to=functions." + m.tool_calls[0].function.name + "<|channel|>commentary json<|message|>" -}}
      {{- m.tool_calls[0].function.arguments | tojson + "<|call|>" -}}
    {%- else -%}{{- "<|start|>assistant<|channel|>final<|message|>" + m.content + "<|end|>" -}}{%- endif -%}
  {%- elif m.role == "tool" -%}
    {{- "<|start|>functions.multiply to=assistant<|channel|>commentary<|message|>" + m.content + "<|end|>" -}}
  {%- else -%}{{- "<|start|>user<|message|>" + m.content + "<|end|>" -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|start|>assistant" -}}{%- endif -%}
"""
GPT_OSS = {
    "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip
THOUGHT = "We compute 34*7 = 238, and check each digit once more.\n\n"
NEXT = "<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>"
ANALYSIS = "<|channel|>analysis<|message|>"
CALL = '<|channel|>commentary to=functions.multiply <|constrain|>json<|message|>{"a": 34, "b": 7}<|call|>'
GREEDY = Sampling(temperature=0, max_tokens=200)
STEPS = Segmentation("blank_line", 8)
ASKED = [{"role": "user", "content": "34*7=?"}]
REPLIES = {
    "analysis and final": (f"{ANALYSIS}{THOUGHT}{NEXT}{FINAL}It is 238.<|return|>", THOUGHT, "It is 238.", 0),
    "final at once": (f"{FINAL}It is 238.<|return|>", "", "It is 238.", 0),
    "several analyses": (f"{ANALYSIS}{THOUGHT}{NEXT}{ANALYSIS}Sure.{NEXT}{FINAL}238<|return|>", f"{THOUGHT}\n\nSure.", "238", 0),
    "a preamble": (
        f"{ANALYSIS}{THOUGHT}{NEXT}<|channel|>commentary<|message|>One moment.{NEXT}{FINAL}238<|return|>",
        THOUGHT,
        "One moment.\n\n238",
        0,
    ),
    "a call": (f"{ANALYSIS}{THOUGHT}{NEXT}{CALL}", THOUGHT, None, 1),
    "a preamble and a call": (
        f"{ANALYSIS}{THOUGHT}{NEXT}<|channel|>commentary<|message|>One moment.{NEXT}{CALL}",
        THOUGHT,
        "One moment.",
        1,
    ),
}


def multiply(a: int, b: int) -> int:
    """The product of two numbers."""
    return a * b


@functools.cache
def loaded():
    tokenizer = real_tokenizer("gptoss", TEMPLATE)
    ends = [tokenizer.convert_tokens_to_ids(t) for t in ("<|return|>", "<|endoftext|>", "<|call|>")]
    model = tiny(tokenizer, "gpt_oss", eos=ends, **GPT_OSS)
    return tokenizer, model, Script(model, tokenizer)


def set_up(text, answer="It is 238.<|return|>"):
    """The backend of a model that writes this, and a policy that stops it at its first step."""
    tokenizer, model, script = loaded()
    script.set(text if isinstance(text, dict) else {"34*7=?": text}, NEXT + FINAL, answer)
    backend = TransformersBackend(model, tokenizer, name="tiny")
    return backend, Policy("tiny", thresholds=(9.0,), segmentation=STEPS, template=backend.template)


@pytest.mark.parametrize("name", REPLIES)
def test_every_kind_of_reply(name):
    """The thinking, the answer and the calls, in a batch and in a stream; no markup in any of them."""
    text, reasoning, answer, calls = REPLIES[name]
    backend, _ = set_up(text)
    (run,) = backend.generate([ASKED], sampling=GREEDY, segmentation=STEPS)
    *chunks, last = backend.stream(ASKED, sampling=GREEDY, segmentation=STEPS)
    assert (run.reasoning, run.answer) == (reasoning.strip("\n"), answer)
    assert list(run.tool_calls) == [ToolCall("multiply", '{"a": 34, "b": 7}')] * calls
    assert run.finish_reason == "stop"
    assert "".join(c.text for c in chunks if c.phase.value == "answer").strip() == (answer or "")
    assert "".join(c.text for c in chunks if c.phase.value == "thinking").strip("\n") == run.reasoning
    assert last.final.tool_calls == run.tool_calls


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_tool_calls_stand_on_the_message(way):
    """As ``tool_calls``, with the thinking beside; nothing of the call is content."""
    backend, _ = set_up(REPLIES["a preamble and a call"][0])
    chat = ChatTransformers(backend=backend, temperature=0, max_tokens=200).bind_tools([multiply])
    message = chat.invoke("34*7=?") if way == "invoke" else functools.reduce(lambda a, b: a + b, chat.stream("34*7=?"))
    assert message.content == "One moment."
    assert [(call["name"], call["args"]) for call in message.tool_calls] == [("multiply", {"a": 34, "b": 7})]
    assert message.additional_kwargs["reasoning_content"] == THOUGHT.strip()


def test_an_agents_next_turn():
    """The call with its thinking goes into the prompt as the template reads it, and the tool's result is answered."""
    backend, policy = set_up(
        {"<|message|>238<|end|>": f"{ANALYSIS}{THOUGHT}And so on.{NEXT}{FINAL}no<|return|>", "34*7=?": REPLIES["a call"][0]},
        "It is 238.<|return|>",
    )
    chat = ChatTransformers(backend=backend, temperature=0, max_tokens=200).bind_tools([multiply])
    asked = HumanMessage("34*7=?")
    first = chat.invoke([asked])
    result = ToolMessage("238", tool_call_id=first.tool_calls[0]["id"])
    stopping = ChatTransformers(backend=backend, policy=policy, temperature=0, max_tokens=200).bind_tools([multiply])
    second = stopping.invoke([asked, first, result])
    assert second.content == "It is 238."
    assert second.tool_calls == []
    assert second.response_metadata["early_stop_stopped"] is True
    third = chat.invoke([asked, first, result, second, HumanMessage("34*7=?")])
    assert third.response_metadata["finish_reason"] == "stop"


def test_a_stop_closes_the_analysis_and_opens_the_final_channel():
    """In the very tokens of the run; also in a second message of analysis."""
    backend, policy = set_up(f"{ANALYSIS}{THOUGHT}And so on, for ever.{NEXT}{FINAL}no<|return|>")
    (run,) = backend.generate([ASKED], policy=policy, sampling=GREEDY)
    written = backend.vocabulary.decode(run.token_ids)
    assert written == f"{ANALYSIS}{THOUGHT}{NEXT}{FINAL}It is 238.<|return|>"
    assert (run.outcome.stopped, run.answer) == (True, "It is 238.")
    backend, policy = set_up(f"{ANALYSIS}Hm.{NEXT}{ANALYSIS}{THOUGHT}And so on.{NEXT}{FINAL}no<|return|>")
    (run,) = backend.generate([ASKED], policy=policy, sampling=GREEDY)
    assert (run.outcome.stopped, run.outcome.step, run.answer) == (True, 1, "It is 238.")
    assert run.reasoning == f"Hm.\n\n{THOUGHT}".strip()


def test_nothing_is_stopped_in_a_call():
    """Its text has lines; none of them ends a step."""
    call = CALL.replace('{"a": 34, "b": 7}', '{\n\n"a": 34,\n\n"b": 7,\n\n"note": "one more line, and yet another one"\n\n}')
    backend, policy = set_up(f"{ANALYSIS}Short.{NEXT}{call}")
    (run,) = backend.generate([ASKED], policy=policy, sampling=GREEDY)
    assert (run.outcome.stopped, run.tool_calls[0].name) == (False, "multiply")


def test_doctor_says_what_holds():
    """Channels, and a closing text that the tokenizer keeps."""
    backend, _ = set_up(f"{ANALYSIS}{THOUGHT}{NEXT}{FINAL}It is 238.<|return|>")
    found = {finding.name: finding for finding in examine_local(backend).findings}
    assert (found["reasoning"].value, found["closing_text"].value) == ("channels", True)
