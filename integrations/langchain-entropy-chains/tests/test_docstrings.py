"""The blocks in the docstrings of the chat models run as they stand."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap

import pytest
from langchain_entropy_chains import ChatTransformers, EarlyStopChatModel
from langchain_tools import Answer
from loopback import Loopback, Reply, said, sums

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.demo import MODEL_FOLDER, MODEL_NAME

WORDS = ("Setup", "Instantiate", "Invoke", "stream", "asyncio", "Tools", "tructured output", "Metadata")


def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


def blocks(kind):
    """The literal blocks of a class's docstring, in order."""
    text = inspect.getdoc(kind) or ""
    assert all(word in text for word in WORDS)
    return [textwrap.dedent(block) for block in re.findall(r"::\n\n((?:    .*\n|\n)+)", text)]


async def run(source, namespace):
    """Run a block, ``await`` at its top level too."""
    made = eval(compile(source, "docstring", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), namespace)
    if made is not None:
        await made


@pytest.mark.filterwarnings("ignore:this call is not stopped early")
async def test_the_wrappers_docstring_runs(tmp_path, monkeypatch):
    """On a server: the message is the answer, stopped early; structured output comes whole."""

    def script(body):
        return Reply(said('{"value": 42}')) if body.get("response_format") else sums(body)

    monkeypatch.chdir(tmp_path)
    Policy("demo", (0.2,), segmentation=Segmentation("line", 32)).save("policy.json")
    with Loopback(script) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        names = {"multiply": multiply, "Answer": Answer}
        for block in blocks(EarlyStopChatModel):
            await run(block, names)
    assert (names["text"], names["value"]) == ("The answer is 42", Answer(value=42))
    assert names["message"].response_metadata["early_stop_stopped"]


async def test_the_local_models_docstring_runs_on_a_local_model(tmp_path, monkeypatch):
    """On the bundled model, in the place of the one that is named."""
    monkeypatch.chdir(tmp_path)
    names = {"multiply": multiply}
    for block in blocks(ChatTransformers):
        if "from_model_id" in block:
            compile(block, "docstring", "exec")
            names["llm"] = ChatTransformers.from_model_id(MODEL_FOLDER, name=MODEL_NAME, max_tokens=300, temperature=0)
        else:
            await run(block, names)
    assert names["message"].response_metadata["early_stop_stopped"] is False
