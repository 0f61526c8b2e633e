"""Tools, structured output and messages of ChatTransformers."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ToolStrategy
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_entropy_chains import EarlyStopMiddleware
from langchain_entropy_chains._local_messages import conversation, tool_calls
from langchain_entropy_chains.local import ChatTransformers
from langchain_tools import multiply
from local_chats import ASKED, WAYS, answers, merged
from pydantic import BaseModel

from entropy_chains import Policy, SettingsError
from entropy_chains.adapters import calls_in
from entropy_chains.backends.scripted import Script, ScriptedBackend
from entropy_chains.backends.transformers import TransformersBackend
from entropy_chains.demo import MODEL_FOLDER, MODEL_NAME


@pytest.fixture(scope="module")
def backend() -> TransformersBackend:
    return TransformersBackend.from_pretrained(MODEL_FOLDER, name=MODEL_NAME)


@pytest.fixture(scope="module")
def policy(backend) -> Policy:
    return Policy(MODEL_NAME, thresholds=(0.2,), segmentation=backend.segmentation, template=backend.template)


@pytest.fixture
def llm(backend, policy) -> ChatTransformers:
    return ChatTransformers(backend=backend, policy=policy, temperature=0, max_tokens=600)


# --- messages and tools


class Calling(ScriptedBackend):
    """A scripted model that takes settings for its chat template."""

    given: dict = {}  # noqa: RUF012

    def with_template(self, **settings):
        other = Calling(self._scripts)
        other.given = settings
        type(self).given = settings
        return other

    def generate(self, conversations, *, cancelled=None, **settings):
        return super().generate(conversations, **settings)


CALL = '<tool_call>\n{"name": "multiply", "arguments": {"a": 34, "b": 7}}\n</tool_call>'
THOUGHT = ("I shall ask the tool. It knows better than I do. " * 4 + "\n\n", 0.01)


def calling(answer: str, *, thinking=(THOUGHT,), **settings) -> ChatTransformers:
    return ChatTransformers(backend=Calling({ASKED: Script(thinking, answer=answer)}), **settings)


@pytest.mark.parametrize("way", WAYS)
def test_tool_calls_come_out_of_the_text(way):
    """The text before stays, the call is parsed, and no part of it is shown; the tools went to the template."""
    llm = calling(f"Let me see. {CALL}").bind_tools([multiply])
    message = asyncio.run(answers(llm, way))
    assert message.content == "Let me see."
    assert [(c["name"], c["args"]) for c in message.tool_calls] == [("multiply", {"a": 34, "b": 7})]
    assert message.tool_calls[0]["id"]
    assert Calling.given["tools"][0]["function"]["name"] == "multiply"


@pytest.mark.parametrize("body", ['{"name": "multiply", "arguments": {"a": 3', "no JSON", '{"arguments": {}}'])
def test_a_broken_call_is_an_invalid_one(body):
    """Cut by the limit, or no call by its form: never called, never lost."""
    message = calling(f"<tool_call>{body}").bind_tools([multiply]).invoke(ASKED)
    assert message.tool_calls == []
    assert json.loads(message.invalid_tool_calls[0]["args"]) == body


def test_several_calls_have_their_own_ids():
    """Two calls in one answer are two calls."""
    first, second = tool_calls(calls_in(CALL + "\n" + CALL))
    assert first["id"] != second["id"]
    assert (first["index"], second["index"]) == (0, 1)


def test_nothing_is_stopped_inside_a_call():
    """A call written while thinking has lines that look sure; none of them ends a step."""
    inside = [("<tool_call>", 0.0), *[('\n\n"sure"', 0.0)] * 60, ("</tool_call>", 0.0)]
    backend = Calling({ASKED: Script(inside, answer="238")})
    policy = Policy(backend.model, thresholds=(4.0,), segmentation=replace(backend.segmentation, min_tokens=2))
    message = ChatTransformers(backend=backend, policy=policy).bind_tools([multiply]).invoke(ASKED)
    assert message.response_metadata["early_stop_active"] is True
    assert message.response_metadata["early_stop_stopped"] is False


def test_without_tools_the_text_is_left_alone():
    """Nobody offered a tool, so what looks like a call is text."""
    assert calling(CALL).invoke(ASKED).tool_calls == []


@pytest.mark.parametrize(("choice", "count"), [(None, 2), ("any", 2), ("multiply", 1), ("none", 0)])
def test_the_choice_of_tools(choice, count):
    """A name offers that tool alone, none offers none; a name that is not there is an error."""
    other = {"type": "function", "function": {"name": "other", "description": "", "parameters": {}}}
    Calling.given = {}
    calling("238").bind_tools([multiply, other], tool_choice=choice).invoke(ASKED)
    assert len(Calling.given.get("tools", [])) == count
    with pytest.raises(SettingsError, match="third"):
        calling("238").bind_tools([multiply, other], tool_choice="third").invoke(ASKED)


NAMED = {"name": "multiply"}


@pytest.mark.parametrize(
    ("choice", "count"),
    [
        ({"type": "any"}, 2), ({"type": "auto"}, 2), ({"type": "none"}, 0), ({"type": "tool", **NAMED}, 1), ({}, 2),
        ({"type": "function", "function": NAMED}, 1), (NAMED, 1), ({"auto": {}}, 2), ({"any": {}}, 2), ({"tool": NAMED}, 1),
    ],
)  # fmt: skip
def test_a_choice_of_tools_as_an_object(choice, count):
    """As any API writes it: OpenAI's, Anthropic's, Bedrock's."""
    other = {"type": "function", "function": {"name": "other", "description": "", "parameters": {}}}
    Calling.given = {}
    calling("238").bind_tools([multiply, other], tool_choice=choice).invoke(ASKED)
    assert len(Calling.given.get("tools", [])) == count


@pytest.mark.parametrize(
    "choice", [{"function": "multiply"}, {"type": "allowed_tools"}, {"tool": {"name": "third"}}, ["multiply"], 3]
)
def test_a_choice_that_is_none_of_the_tools_is_refused(choice):
    """By what was given, with the remedy."""
    with pytest.raises(SettingsError, match=re.escape(f"tool_choice is {choice!r}; it must be")):
        calling("238").bind_tools([multiply], tool_choice=choice).invoke(ASKED)


# --- structured output


class Product(BaseModel):
    """What 34*7 is."""

    value: int


SURE = ("I am sure of it by now, and go on all the same. " * 4 + "\n\n", 0.01)
PRODUCT = '<tool_call>{"name": "Product", "arguments": {"value": 238}}</tool_call>'


def structured(backend=Calling):
    made = backend({ASKED: Script((SURE, SURE, SURE), answer=PRODUCT)})
    policy = Policy(made.model, thresholds=(4.0,), segmentation=replace(made.segmentation, min_tokens=2))
    return ChatTransformers(backend=made, policy=policy)


@pytest.mark.parametrize("way", WAYS)
def test_structured_output_is_never_stopped(way):
    """Nor is a call of which a tool call is wanted; the same model is stopped where it answers in text."""
    told = {}
    for name, llm in {
        "text": structured(),
        "tools": structured().bind_tools([Product]),
        "forced": structured().bind_tools([Product], tool_choice="any"),
        "structured": structured().with_structured_output(Product, include_raw=True).steps[0].steps__["raw"],
    }.items():
        metadata = asyncio.run(answers(llm, way)).response_metadata
        told[name] = metadata["early_stop_stopped"], metadata["early_stop_active"], metadata["early_stop_reason"]
    assert [stopped for stopped, _, _ in told.values()] == [True, True, False, False]
    assert told["structured"][1:] == (False, "structured output is never cut")
    assert told["forced"][1:] == (False, "a tool call is forced: it is never cut")
    assert structured().with_structured_output(Product).invoke(ASKED) == Product(value=238)


def test_structured_responses_of_an_agent_are_never_stopped():
    """The middleware knows that one is wanted, and the model's calls do not."""
    llm, told = structured(), []
    for wanted in (None, ToolStrategy(Product)):
        agent = create_agent(llm, [], middleware=[EarlyStopMiddleware(llm.policy)], response_format=wanted)
        told.append(agent.invoke({"messages": [HumanMessage(ASKED)]}))
    assert [each["early_stop_stopped"] for each in told] == [1, 0]
    assert told[1]["structured_response"] == Product(value=238)


def test_the_chat_template_renders_tools_and_results(backend):
    """What the template reads: text as a string, arguments as an object, the tool's result, the earlier reasoning."""
    template = "<think>{% for t in tools %}[{{ t.function.name }}]{% endfor %}{% for m in messages %}{{ m.role }}:{{ m.content }}"
    template += "{% for c in m.tool_calls or [] %}({{ c.function.arguments.a }}){% endfor %};{% endfor %}"
    offered = backend.with_template(tools=[{"function": {"name": "multiply"}}], chat_template=template)
    talk = [
        SystemMessage("s"),
        HumanMessage([{"type": "text", "text": "q"}]),
        AIMessage("", tool_calls=[{"name": "multiply", "args": {"a": 34, "b": 7}, "id": "1"}]),
        ToolMessage("238", tool_call_id="1"),
    ]
    ids, opened = offered._vocabulary.prompt(conversation(talk))
    assert offered._vocabulary.decode(ids) == "<think>[multiply]system:s;user:q;assistant:(34);tool:238;"
    assert backend._vocabulary.prompt(conversation(talk)) != (ids, opened)


def test_reasoning_goes_back_to_the_template_and_images_are_refused():
    """The template decides what earlier reasoning is worth; a picture would be lost without a word."""
    earlier = AIMessage("238", additional_kwargs={"reasoning_content": "34*7"})
    assert conversation([earlier])[0]["reasoning_content"] == "34*7"
    assert conversation([AIMessage([{"type": "reasoning", "reasoning": "x"}, {"type": "text", "text": "1"}])])[0]["content"] == "1"
    with pytest.raises(SettingsError, match="image_url"):
        conversation([HumanMessage([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}])])


def test_a_model_without_thinking_just_answers():
    """No tags, no policy: an ordinary chat model; a policy for it is an error of the backend."""

    class Plain(ScriptedBackend):
        @property
        def tags(self):
            raise SettingsError("no thinking tags")

    llm = ChatTransformers(backend=Plain({ASKED: Script(answer="It is 238")}))
    message = llm.invoke(ASKED)
    assert (message.content, message.additional_kwargs) == ("It is 238", {})
    assert merged(llm.stream(ASKED)).content == "It is 238"
