"""``ChatTransformers`` and ``TransformersLLM`` call a backend by its protocol alone: a scripted one as well as a real model."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

pytest.importorskip("transformers")

from langchain_core.tools import tool
from langchain_entropy_chains import ChatTransformers
from llama_index.core.llms import ChatMessage
from llama_index.llms.entropy_chains import TransformersLLM

from entropy_chains.backends.scripted import Script, ScriptedBackend
from entropy_chains.backends.transformers import TransformersBackend
from entropy_chains.core.policy import MassFloor, Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.demo import MODEL_FOLDER, MODEL_NAME

ASKED = "7*8=?"
MESSAGES = [ChatMessage(role="user", content=ASKED)]
GREEDY = {"temperature": 0.0, "max_tokens": 200}
LONG = {"temperature": 5.0, "max_tokens": 2000, "seed": 1}
"""On the bundled model such a run hardly ends by itself."""
THREADS = ("entropy-chains-generate", "entropy-chains-await")


class Slow(list):
    """Pieces of a model that takes its time."""

    def __iter__(self):
        for piece in super().__iter__():
            time.sleep(0.001)
            yield piece


class Kept(ScriptedBackend):
    """Keeps what was said to the template in each call, and how many conversations came together."""

    def __init__(self, *args, **given):
        super().__init__(*args, **given)
        self.calls = []

    def generate(self, conversations, **given):
        self.calls.append((self.template_settings, len(conversations)))
        return super().generate(conversations, **given)

    def stream(self, messages, **given):
        self.calls.append((self.template_settings, 1))
        return super().stream(messages, **given)


def scripted():
    steps = [(word, 0.5) for n in range(3) for word in (*["so "] * 40, f"step {n}\n")]
    return Kept(Script(Slow(steps), answer="56", early=["56"]), segmentation=Segmentation("line", 1))


@pytest.fixture(scope="module")
def bundled():
    return TransformersBackend.from_pretrained(MODEL_FOLDER, name=MODEL_NAME)


@pytest.fixture(params=["scripted", "bundled"])
def backend(request):
    return scripted() if request.param == "scripted" else request.getfixturevalue("bundled")


@pytest.fixture(params=[True, False], ids=["stopped", "in full"])
def policy(backend, request):
    """It stops after the first step, whatever that is; or never."""
    given = {"segmentation": backend.segmentation, "template": backend.template, "mass_floor": MassFloor(0.0, 0.0)}
    return Policy(backend.model, (99.0 if request.param else None,), **given)


def parts(message):
    """Reasoning, answer, and whether it was stopped, of a LangChain message."""
    told = message.response_metadata
    return (
        message.additional_kwargs.get("reasoning_content"),
        message.content,
        told["early_stop_stopped"],
        told["early_stop_tokens"],
    )


def whole(chunks):
    return sum(chunks[1:], chunks[0])


async def read(chunks):
    return [chunk async for chunk in chunks]


LANGCHAIN = {
    "invoke": lambda m: [m.invoke(ASKED)],
    "stream": lambda m: [whole(list(m.stream(ASKED)))],
    "batch": lambda m: m.batch([ASKED] * 3),
    "ainvoke": lambda m: [asyncio.run(m.ainvoke(ASKED))],
    "astream": lambda m: [whole(asyncio.run(read(m.astream(ASKED))))],
    "abatch": lambda m: asyncio.run(m.abatch([ASKED] * 3)),
}


@tool
def look(what: str) -> str:
    """Look something up."""
    return what


SETTINGS = {
    "plain": ({}, {}),
    "tools": (None, {"tools": ["look"]}),
    "template": ({"chat_template_kwargs": {"enable_thinking": True}}, {"enable_thinking": True}),
}


@pytest.mark.parametrize("settings", SETTINGS)
def test_langchain_gets_the_same_in_every_way(backend, policy, settings):
    """Invoked, streamed, batched, awaited, with tools and with settings of the template; stopped and in full."""
    model = ChatTransformers(backend=backend, policy=policy, **GREEDY)
    bound, told = SETTINGS[settings]
    model = model.bind_tools([look]) if bound is None else model.bind(**bound)
    found = {name: [parts(message) for message in way(model)] for name, way in LANGCHAIN.items()}
    first = found["invoke"][0]
    assert first[1] == "56"
    assert first[2] is (policy.thresholds[0] is not None)
    assert {name: set(each) for name, each in found.items()} == {name: {first} for name in LANGCHAIN}
    for seen, _ in getattr(backend, "calls", ()):
        seen = {name: [t["function"]["name"] for t in value] if name == "tools" else value for name, value in seen.items()}
        assert seen == told


def test_a_batch_is_one_call(backend):
    """Awaited or not: the backend gets all of it at once."""
    model = ChatTransformers(backend=backend, **GREEDY)
    assert [m.content for m in model.batch([ASKED] * 3) + asyncio.run(model.abatch([ASKED] * 2))] == ["56"] * 5
    assert [count for _, count in getattr(backend, "calls", [({}, 3), ({}, 2)])] == [3, 2]


def told(response):
    """The same of a LlamaIndex response; a completion has no thinking."""
    figures = response.additional_kwargs
    message = getattr(response, "message", None)
    text = message.content if message else response.text
    return text, figures["early_stop_stopped"], figures["early_stop_tokens"]


def last(responses):
    *_, final = responses
    return final


async def alast(responses):
    return last(await read(await responses))


LLAMA_INDEX = {
    "chat": lambda m, given: m.chat(MESSAGES, **given),
    "stream_chat": lambda m, given: last(m.stream_chat(MESSAGES, **given)),
    "achat": lambda m, given: asyncio.run(m.achat(MESSAGES, **given)),
    "astream_chat": lambda m, given: asyncio.run(alast(m.astream_chat(MESSAGES, **given))),
    "complete": lambda m, given: m.complete(ASKED, **given),
    "stream_complete": lambda m, given: last(m.stream_complete(ASKED, **given)),
    "acomplete": lambda m, given: asyncio.run(m.acomplete(ASKED, **given)),
    "astream_complete": lambda m, given: asyncio.run(alast(m.astream_complete(ASKED, **given))),
}


@pytest.mark.parametrize("settings", ["plain", "template"])
def test_llama_index_gets_the_same_in_every_way(backend, policy, settings):
    """All eight methods, with settings of the template and without; stopped and in full."""
    model = TransformersLLM(backend=backend, policy=policy, **GREEDY)
    given, seen = SETTINGS[settings]
    found = {name: told(way(model, given)) for name, way in LLAMA_INDEX.items()}
    assert found["chat"][:2] == ("56", policy.thresholds[0] is not None)
    assert found == dict.fromkeys(LLAMA_INDEX, found["chat"])
    assert all(settings == seen for settings, _ in getattr(backend, "calls", ()))


def test_the_context_window_is_the_backends(backend):
    """Or LlamaIndex's default where nobody says."""
    assert TransformersLLM(backend=backend).metadata.context_window == (backend.context_window or 3900)


CANCELLED = {
    "LangChain ainvoke": lambda backend: ChatTransformers(backend=backend, **LONG).ainvoke(ASKED),
    "LangChain astream": lambda backend: read(ChatTransformers(backend=backend, **LONG).astream(ASKED)),
    "LangChain abatch": lambda backend: ChatTransformers(backend=backend, **LONG).abatch([ASKED] * 2),
    "LlamaIndex achat": lambda backend: TransformersLLM(backend=backend, **LONG).achat(MESSAGES),
    "LlamaIndex astream_chat": lambda backend: alast(TransformersLLM(backend=backend, **LONG).astream_chat(MESSAGES)),
    "LlamaIndex acomplete": lambda backend: TransformersLLM(backend=backend, **LONG).acomplete(ASKED),
}


@pytest.mark.parametrize("way", CANCELLED)
def test_a_cancelled_task_ends_the_work(backend, way):
    """At its next token: no thread goes on, and the backend answers the next question."""
    if isinstance(backend, ScriptedBackend):
        backend = ScriptedBackend(Script(Slow([("so ", 0.5)] * 20_000), answer="56"))

    async def run():
        task = asyncio.create_task(CANCELLED[way](backend))
        await asyncio.sleep(0.1)
        begun = time.monotonic()
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled(), time.monotonic() - begun

    cancelled, seconds = asyncio.run(run())
    assert cancelled
    assert seconds < 1.5
    assert not [t for t in threading.enumerate() if t.name.startswith(THREADS)]
    assert ChatTransformers(backend=backend, max_tokens=3).invoke(ASKED).usage_metadata["output_tokens"] == 3
