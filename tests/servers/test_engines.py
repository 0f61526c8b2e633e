"""The engines run the bundled model as transformers does: what is calibrated on one holds on the others; and how they differ."""

from __future__ import annotations

import json
import os
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import torch
from engines import Engine, start
from transformers import AutoModelForCausalLM, AutoTokenizer

from entropy_chains.demo import MODEL_FOLDER
from entropy_chains.errors import BackendError, SettingsError

pytestmark = pytest.mark.servers

QUESTIONS = ["34*7=?", "12*9=?", "7*8=?", "555*444=?", "4821*93=?"]
ALL = ["vllm", "llama", "transformers_serve"]
WITH_LOGPROBS = ["vllm", "llama"]
THINKING = {"vllm": "reasoning", "llama": "reasoning_content", "transformers": "reasoning_content"}
"""The field of a message or delta that holds the thinking."""

LINE_ENDS = {"vllm": ("\n", "\n", "\n\n"), "llama": ("", "\n", ""), "transformers": ("", "", "")}
"""What is left of them before the thinking, after it, and before the answer, in a reply that is not streamed."""

CONVERSATIONS: dict[str, dict[str, Any]] = {
    "question": {"messages": [{"role": "user", "content": "34*7=?"}]},
    "white space": {"messages": [{"role": "user", "content": " 34 * 7\n\n=? \n"}]},
    "system": {"messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "34*7=?"}]},
    "several turns": {
        "messages": [
            {"role": "user", "content": "34*7=?"},
            {"role": "assistant", "content": "<think>\n34*7=238\n</think>\n\n238"},
            {"role": "user", "content": "12*9=?"},
        ]
    },
    "no thinking": {"messages": [{"role": "user", "content": "34*7=?"}], "chat_template_kwargs": {"enable_thinking": False}},
}


class Local:
    """The same checkpoint in this process."""

    def __init__(self):
        self.model = AutoModelForCausalLM.from_pretrained(MODEL_FOLDER)
        self.tokenizer = AutoTokenizer.from_pretrained(MODEL_FOLDER)
        self._replies: dict[str, list[int]] = {}

    def prompt(self, messages: list[dict[str, str]], **template_kwargs: Any) -> list[int]:
        found = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, **template_kwargs)
        return [int(i) for i in found["input_ids"]]

    def reply(self, question: str) -> list[int]:
        """Greedy, with the token that ends it."""
        if question not in self._replies:
            prompt = self.prompt(user(question))
            made = self.model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=1500)
            self._replies[question] = made[0][len(prompt) :].tolist()
        return self._replies[question]

    def logprobs(self, question: str, reply: list[int]) -> torch.Tensor:
        """Of the whole vocabulary at each token of the reply, in nats, (tokens, vocabulary)."""
        prompt = self.prompt(user(question))
        with torch.no_grad():
            logits = self.model(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1]
        return torch.log_softmax(logits.double(), -1)


@pytest.fixture(scope="module")
def local() -> Local:
    return Local()


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Engine:
    """The engine a test is parametrised with."""
    return request.getfixturevalue(request.param)


def user(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def send(url: str, body: dict[str, Any]) -> Any:
    return urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"}))


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    with send(url, body) as reply:
        return json.load(reply)


def chat(engine: Engine, question: str, **settings: Any) -> dict[str, Any]:
    body = {"model": engine.name, "messages": user(question), "temperature": 0, "max_tokens": 1500, **settings}
    return post(f"{engine.base_url}/chat/completions", body)


def stream(engine: Engine, question: str, **settings: Any) -> Iterator[dict[str, Any]]:
    """The events of a streamed reply; closing the iterator closes the connection."""
    body = {"model": engine.name, "messages": user(question), "temperature": 0, "max_tokens": 1500, "stream": True, **settings}
    with send(f"{engine.base_url}/chat/completions", body) as reply:
        for line in reply:
            if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                yield json.loads(line[6:])


def waited(condition: Any, seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("engine", ALL, indirect=True)
def test_the_greedy_text_is_the_same(engine: Engine, local: Local):
    """Thinking and answer are those of transformers, up to known line ends around them, and so is the number of tokens."""
    for question in QUESTIONS:
        expected = local.reply(question)
        thinking, _, answer = local.tokenizer.decode(expected[1:-1]).partition("</think>")
        found = chat(engine, question)
        message = found["choices"][0]["message"]
        before, after, between = LINE_ENDS[engine.kind]
        assert message[THINKING[engine.kind]] == before + thinking.strip("\n") + after
        assert message["content"] == between + answer.strip("\n")
        assert found["usage"]["completion_tokens"] == len(expected)


@pytest.mark.parametrize("engine", WITH_LOGPROBS, indirect=True)
def test_the_logprobs_are_those_of_transformers(engine: Engine, local: Local):
    """The whole vocabulary at every token, thinking included, within 0.001 nats: hence every entropy too."""
    form = {"top_logprobs": -1, "return_tokens_as_token_ids": True} if engine.kind == "vllm" else {"top_logprobs": 102}
    for question in QUESTIONS:
        entries = chat(engine, question, logprobs=True, **form)["choices"][0]["logprobs"]["content"]
        reply = local.reply(question)
        assert [token_id(e) for e in entries] == reply
        expected = local.logprobs(question, reply)
        rows = [{token_id(a): a["logprob"] for a in e["top_logprobs"]} for e in entries]
        found = torch.tensor([[row[i] for i in range(expected.shape[1])] for row in rows], dtype=torch.float64)
        print(f"{engine.kind} {question} largest difference {(found - expected).abs().max():.1e}")
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def token_id(entry: dict[str, Any]) -> int:
    return int(entry["id"] if "id" in entry else entry["token"].removeprefix("token_id:"))


@pytest.mark.parametrize("engine", WITH_LOGPROBS, indirect=True)
def test_logprobs_come_with_the_thinking(engine: Engine):
    """Streamed, every piece of thinking has its logprobs, and so has all the rest with vLLM.

    llama-server drops those of what it does not show: the line end after ``<think>``, ``</think>``, the two line ends before the
    answer, and the end of the reply.
    """
    events = list(stream(engine, "34*7=?", logprobs=True, top_logprobs=20, stream_options={"include_usage": True}))
    choices = [e["choices"][0] for e in events if e["choices"]]
    thinking = [c for c in choices if c["delta"].get(THINKING[engine.kind])]
    assert len(thinking) > 100
    for choice in thinking:
        assert all(len(e["top_logprobs"]) == 20 for e in choice["logprobs"]["content"])
        text = "".join(e["token"] for e in choice["logprobs"]["content"])
        assert choice["delta"][THINKING[engine.kind]] in text
    entries = sum(len(c["logprobs"]["content"]) for c in choices if c.get("logprobs"))
    tokens = next(e["usage"]["completion_tokens"] for e in events if e.get("usage"))
    assert entries == (tokens if engine.kind == "vllm" else tokens - 5)


def test_transformers_serve_ignores_logprobs(transformers_serve: Engine):
    """It accepts the request and answers without: a client must notice by itself."""
    assert "logprobs" not in chat(transformers_serve, "7*8=?", logprobs=True, top_logprobs=5)["choices"][0]
    events = list(stream(transformers_serve, "7*8=?", logprobs=True, top_logprobs=5))
    assert any(e["choices"][0]["delta"].get("reasoning_content") for e in events)
    assert not any(e["choices"][0].get("logprobs") for e in events)
    assert transformers_serve.counters() is None


@pytest.mark.parametrize("engine", WITH_LOGPROBS, indirect=True)
def test_counters_rise_by_the_tokens_made(engine: Engine):
    """``generated`` grows by the usage of the replies, no more."""
    before = engine.counters()
    made = sum(chat(engine, q)["usage"]["completion_tokens"] for q in QUESTIONS[:2])
    assert before
    assert waited(lambda: engine.counters() == {"generated": before["generated"] + made, "running": 0}), (before, made)


@pytest.mark.parametrize("engine", WITH_LOGPROBS, indirect=True)
def test_closing_the_stream_stops_the_generation(engine: Engine):
    """Of 1900 tokens asked for, few more than were read are made, and after the close none."""
    before = engine.counters()
    assert before
    with closing(stream(engine, "34*7=?", max_tokens=1900, ignore_eos=True, logprobs=True, top_logprobs=20)) as events:
        for n, _ in enumerate(events):
            if n == 20:
                break
        assert waited(lambda: engine.counters()["running"] == 1)
    assert waited(lambda: engine.counters()["running"] == 0)
    stopped = engine.counters()
    print(f"{engine.kind}: {stopped['generated'] - before['generated']} tokens made, 20 events read")
    assert 20 <= stopped["generated"] - before["generated"] < 950
    time.sleep(1)
    assert engine.counters() == stopped


@pytest.mark.parametrize("conversation", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_the_prompt_is_the_same(vllm: Engine, llama: Engine, local: Local, conversation: dict[str, Any]):
    """One conversation is rendered to the same tokens by vLLM, llama-server and transformers."""
    expected = local.prompt(conversation["messages"], **conversation.get("chat_template_kwargs", {}))
    assert post(f"{vllm.root_url}/tokenize", {"model": vllm.name, **conversation})["tokens"] == expected
    rendered = post(f"{llama.root_url}/apply-template", conversation)["prompt"]
    assert rendered == local.tokenizer.decode(expected)
    found = post(f"{llama.root_url}/tokenize", {"content": rendered, "add_special": True, "parse_special": True})
    assert found["tokens"] == expected


def test_unknown_characters_differ(vllm: Engine, llama: Engine, local: Local):
    """A character that the vocabulary lacks is one ``<unk>`` in vLLM, as in transformers, and nothing in llama.cpp."""
    prompt = local.prompt(user("3\u00d74=?"))
    assert local.tokenizer.unk_token_id in prompt
    assert post(f"{vllm.root_url}/tokenize", {"model": vllm.name, "messages": user("3\u00d74=?")})["tokens"] == prompt
    assert chat(llama, "3\u00d74=?", max_tokens=1)["usage"]["prompt_tokens"] == len(prompt) - 1


def test_llama_samples_from_the_whole_distribution(llama: Engine):
    """What a request leaves out is neutral, not llama.cpp's own taste."""
    with urllib.request.urlopen(f"{llama.root_url}/props") as reply:
        found = json.load(reply)["default_generation_settings"]["params"]
    neutral = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0, "presence_penalty": 0.0}
    assert {k: found[k] for k in neutral} == neutral


def test_an_engine_goes_with_its_block(llama: Engine):
    """At the end of the block, by an exception too, the process is gone; another engine of the kind is not touched."""
    with pytest.raises(KeyboardInterrupt), start("llama", parallel=1) as second:  # noqa: PT012  # the block is what is tested
        assert second.alive
        assert second.root_url != llama.root_url
        raise KeyboardInterrupt
    assert not second.alive
    assert not second.log.exists()
    with pytest.raises(ProcessLookupError):
        os.killpg(second.pid, 0)
    assert llama.alive


def test_a_failed_start_shows_the_log(llama: Engine):
    """An engine that ends at once raises BackendError with what it said; settings that do not fit are refused before."""
    with (
        pytest.raises(BackendError, match=r"llama ended with status 1(.|\n)*invalid argument: --bogus"),
        start("llama", extra=["--bogus"]),
    ):
        pass
    with pytest.raises(SettingsError, match="plugin=True does not fit llama"), start("llama", plugin=True):
        pass
