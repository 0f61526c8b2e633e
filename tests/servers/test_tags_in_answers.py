"""Answers of real engines that mention thinking tags come out letter for letter, by the core and both frameworks in every way."""

from __future__ import annotations

import json
import re

import openai
import pytest
from frameworks import WAYS, Asker

from entropy_chains.backends import Sampling
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.demo import MODEL_NAME

pytestmark = pytest.mark.servers
POLICY = Policy(MODEL_NAME, (0.005,), segmentation=Segmentation("line", 32))
QUESTION = "4821*93=?"
TEXT = "Write <think> first, then </think>: `<think>12*3=36</think>36`, never </think> alone; [/THINK] is another's."
LIMIT = 1500


@pytest.fixture(params=["vllm", "llama"])
def engine(request):
    return request.getfixturevalue(request.param)


def asked(engine, way, body, **settings):
    """The reply in this way."""
    given = {"sampling": Sampling(max_tokens=LIMIT)} if way.startswith("core") else {}
    body = body if given else {**body, "max_tokens": LIMIT}
    return Asker(way, engine.base_url, POLICY, body, model=engine.name, question=QUESTION, name=MODEL_NAME, **settings).ask(**given)


def form(engine, text):
    """Settings under which the engine lets the model write just this text."""
    if engine.kind == "vllm":
        return {"structured_outputs": {"regex": re.escape(text)}}
    return {"grammar": f"root ::= {json.dumps(text)}"}


@pytest.mark.filterwarnings("ignore:this call is not stopped early")
@pytest.mark.parametrize("way", WAYS)
def test_the_model_itself_writes_tags(engine, way):
    """Held to a text by a grammar, with the thinking off: its tokens are the text's."""
    off = {"chat_template_kwargs": {"enable_thinking": False}}
    got = asked(engine, way, {"temperature": 0, "extra_body": {**off, **form(engine, TEXT)}})
    assert (got.answer, got.finish, got.stopped) == (TEXT, "stop", False)


@pytest.mark.filterwarnings("ignore:this call is not stopped early")
@pytest.mark.parametrize("way", WAYS)
def test_after_thinking_as_well(vllm, way):
    """VLLM applies the grammar once the thinking is over.

    Where LangChain asks for a whole reply it gets what any client gets: there vLLM's parser leaves closing tags out itself.
    """
    body = {"temperature": 0, "extra_body": form(vllm, TEXT)}
    got = asked(vllm, way, body)
    assert got.answer == (plain(vllm, body) if way in ("langchain", "langchain async") else TEXT)


@pytest.mark.parametrize("begun", ["The tags are <think> and </think>, or `<think>`.\nSo ", "Say <think> now. So 2*3="])
@pytest.mark.parametrize("way", WAYS)
def test_a_reply_that_is_measured(llama, way, begun):
    """llama.cpp repeats what it was given to go on from, tags included and goes on; the second time with a tag of its own."""
    got = asked(llama, way, {"temperature": 0}, begun=begun)
    said = plain(llama, {"temperature": 0}, begun=begun)
    assert (got.answer, said.count("</think>")) == (said, 1)


def plain(engine, body, begun=None):
    """What a client without this package gets."""
    turns = [{"role": "user", "content": QUESTION}, *([{"role": "assistant", "content": begun}] if begun else [])]
    with openai.OpenAI(base_url=engine.base_url, api_key="none") as client:
        return (
            client.chat.completions.create(model=engine.name, messages=turns, max_tokens=LIMIT, **body).choices[0].message.content
        )
