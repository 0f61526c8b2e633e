"""The families of models: each is known by a template in its style (written for these tests), and none by a mention of its tags."""

from __future__ import annotations

import pytest
from places import ROOT

from entropy_chains.core.families import FAMILIES, TABLE, ThinkTags, begun_at_end, detect_family, detect_tags
from entropy_chains.core.monitor import NO_STEP, NO_THINKING, Monitor
from entropy_chains.core.phases import Phase, phase_after_prompt
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Scanner, Segmentation
from entropy_chains.core.tokens import Token

THINK = ThinkTags()
TURN = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
OURS = {
    "Qwen3": (
        "{%- for m in messages -%}{{- '\\n<think>\\n' + m.reasoning_content + '\\n</think>\\n\\n' -}}{{- m.text -}}{%- endfor -%}"
        "{%- if enable_thinking is false -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}",
        "<think>",
    ),
    "DeepSeek-R1": (TURN + "{{ messages[-1].content.split('</think>')[-1] }}", "<think>"),
    "DeepSeek V3.1": (TURN + "{{ '<A>' }}{% if thinking %}{{ '<think>' }}{% else %}{{ '</think>' }}{% endif %}", "<think>"),
    "SmolLM3": (
        "{%- if mode == '/think' -%}{{ 'Think, as in <think> your thoughts </think> your solution.' }}{%- endif -%}"
        + TURN
        + '{%- if mode != "/think" -%}{{ "<A>\\n<think>\\n\\n</think>\\n" }}{%- endif -%}',
        "<think>",
    ),
    "Nemotron": (
        TURN + "{% if '/no_think' in messages[0].content %}{{ '<think></think>' }}{% else %}{{ '<think>\\n' }}{% endif %}",
        "<think>",
    ),
    "GLM": (TURN + "{{- '\\n<think>' + reasoning.strip() + '</think>' -}}{{ '<|assistant|>\\n<think></think>' }}", "<think>"),
    "EXAONE 4": (TURN + '{%- if enable_thinking -%}{{- "[|assistant|]<think>\\n" -}}{%- endif -%}', "<think>"),
    "Phi-4-reasoning": ("{{ 'Structure it so: <think> {thoughts} </think> {solution}. ' }}" + TURN, "<think>"),
    "Phi-4-mini-reasoning": ("{{ '<|system|>Your name is Phi, an AI math expert of ours.' }}" + TURN, "<think>"),
    "a prompt that has begun to think": (TURN + "{{ 'A:\\n<think>\\nOkay, ' }}", "<think>"),
    "EXAONE Deep": (TURN + "{% if add_generation_prompt %}{{ '[|assistant|]<thought>\\n' }}{% endif %}", "<thought>"),
    "Gemma 4": (TURN + "{{- '<|channel>thought\\n' + m.reasoning + '\\n<channel|>' -}}", "<|channel>thought"),
    "Magistral": ("{%- set prompt = 'Draft first: [THINK]your thoughts[/THINK]Then answer.' -%}" + TURN, "[THINK]"),
    "Command A Reasoning": (TURN + "<|CHATBOT|>{% if reasoning %}<|START_THINKING|>{% endif %}", "<|START_THINKING|>"),
    "Seed-OSS": ("{%- set begin = '<seed:think>' -%}{%- set end = '</seed:think>' -%}" + TURN, "<seed:think>"),
    "Apriel": (TURN + "{{ content.split('[BEGIN FINAL RESPONSE]')[-1] }}<|assistant|>", "Here are my reasoning steps:"),
    "Granite 3.2": ("{{ 'Write \\'Here is my thought process:\\' and then the answer.' }}" + TURN, "Here is my thought process:"),
    "gpt-oss": (
        TURN + '{{- "<|start|>assistant<|channel|>analysis<|message|>" + m.thinking + "<|end|>" -}}',
        "<|channel|>analysis<|message|>",
    ),
}  # fmt: skip
"""Templates of our own in the style of families, and the opening tag that each shows."""
MENTIONS = {
    "a comment": "{#- Not for models that write <think> and </think>. -#}" + TURN,
    "a comment of some lines": "{#\n<think>\n</think>\n#}" + TURN,
    "a sentence": "You must never write a <think> tag, nor </think>. " + TURN,
    "a sentence in a statement": "{{ 'Do not write <think> tags.' }}" + TURN,
    "a refusal": TURN + "{% if '<think>' in m.content %}{{ raise_exception('a turn holds a <think> tag') }}{% endif %}",
    "a test": "{% if m.content.startswith('<think>') or '</think>' not in m.content or x == '<think>' %}x{% endif %}" + TURN,
    "other families' turns": "<|user|>{{ m.content }}<|end|>",
    "channels refused": "{% if '<|channel|>analysis<|message|>' in m.content %}{{ raise_exception('no') }}{% endif %}" + TURN,
    "tool responses": "{{ '<tool_response>\\n' + m.content + '\\n</tool_response>' }}",
}


@pytest.mark.parametrize("name", OURS)
def test_a_family_is_known_by_its_template(name):
    """By what its template writes, or takes messages apart at; alone, or as the default of several templates."""
    template, opening = OURS[name]
    found = detect_tags(template)
    assert found is not None
    assert found.open == opening
    assert detect_tags({"tool_use": "{{ tools }}", "default": template}) == found


@pytest.mark.parametrize("name", MENTIONS)
def test_a_template_that_mentions_a_tag_is_no_thinking_models(name):
    """It would be waited for thinking that never comes."""
    assert detect_tags(MENTIONS[name]) is None


def test_the_table_has_every_pair_once():
    """A row has tags of its own, or signs of its own; the general row is the last."""
    assert len({family.tags for family in TABLE}) == len(FAMILIES)
    assert TABLE[-1].tags == THINK
    assert not TABLE[-1].signs


def test_templates_by_name():
    """Without a default the first is used; none is none."""
    assert detect_tags({"rag": "{{ '<think>' }}"}) == THINK
    assert detect_tags({}) is None
    assert detect_family(None) is None


@pytest.mark.parametrize("family", TABLE, ids=lambda f: f.models or f.tags.open)
def test_prompts_tell_where_an_output_begins(family):
    """In every family: a prompt may open the thinking, and may close it; what comes after its tags is no answer yet."""
    tags = family.tags
    assert phase_after_prompt(f"A:{tags.open}\n", tags) is Phase.THINKING
    assert phase_after_prompt(f"A:{tags.open}\n\n{tags.close}{tags.after}", tags) is Phase.ANSWER
    assert phase_after_prompt(f"Q:{tags.open}\nOkay, ", tags, "Q:") is Phase.THINKING


@pytest.mark.parametrize("tags", FAMILIES, ids=lambda t: t.open)
def test_steps_end_in_the_thinking_of_every_family(tags):
    """And nowhere else: fed a character at a time, as the finest tokens are."""
    scanner, ends = Scanner(tags, "line"), []
    text = f"{tags.open}\none\ntwo\n{tags.close}{tags.after}three\nfour\n"
    for n, character in enumerate(text, 1):
        scanner.feed(character)
        if scanner.at_boundary:
            ends.append(text[:n].rsplit("\n", 2)[-2])
    assert [end for end in ends if end and end != tags.open] == ["one", "two"]
    assert scanner.phase is Phase.ANSWER


@pytest.mark.parametrize("tags", FAMILIES, ids=lambda t: t.open)
def test_a_run_says_why_nothing_could_be_stopped(tags):
    """Of an answer without thinking, and of thinking in which no step ended: two reasons, with two remedies."""
    policy = Policy("m", (9.0,), segmentation=Segmentation("line", 32))
    reasons = {}
    for what, text in (("plain", "It is 42.\n"), ("short", f"{tags.open}\n6*7\n{tags.close}{tags.after}It is 42.")):
        monitor = Monitor(policy, tags=tags)
        for character in text:
            monitor.feed(Token(character))
        reasons[what] = monitor.finish().reason
    assert reasons == {"plain": NO_THINKING, "short": NO_STEP}


def test_tags_in_a_reply_are_the_common_ones_first():
    """Whoever sees a reply and no template finds the family by its tags: one that writes more after them is no better guess."""
    assert next(tags for tags in FAMILIES if tags.open == "<think>") == ThinkTags()


@pytest.mark.parametrize(
    ("text", "marks", "count"),
    [("a </th", ["</think>"], 4), ("a </think>", ["</think>", "k>b"], 8), ("<<", ["<a", "<<b"], 2), ("a", ["<"], 0), ("a", [], 0)],
)
def test_what_may_become_a_mark_is_the_longest_beginning_at_the_end(text, marks, count):
    """Worked by hand: a whole mark counts, and of several the one that began first."""
    assert begun_at_end(text, marks) == count


def test_the_page_names_every_model():
    """``docs/steps.md`` has the models of the table, each as the table has it."""
    page = " ".join((ROOT / "docs" / "steps.md").read_text(encoding="utf-8").split())
    named = {name for family in TABLE for name in family.models.split(", ") if name}
    assert [name for name in sorted(named) if name not in page] == []
