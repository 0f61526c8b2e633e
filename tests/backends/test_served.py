"""The backends for OpenAI-compatible APIs keep the contract, sync and async, against the scripted server of the tests."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import openai
import pytest
from blocking import Awaited, Blocking
from loopback import Loopback, Reply, Tok, is_answer_call

from entropy_chains.backends.openai import AsyncOpenAIBackend, OpenAIBackend
from entropy_chains.core.steps import Segmentation

_spec = importlib.util.spec_from_file_location("backend_contract", Path(__file__).with_name("contract.py"))
contract = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(contract)

STEPS = [("one ", 1.2), ("\n", 0.8), ("two ", 0.1), ("\n", 0.3), ("three ", 0.1), ("\n", 0.1)]
SETTINGS = {"segmentation": Segmentation("line", 1), "continuation": "prefill"}


def said(*texts):
    """Tokens of the answer's kind: the server puts all text into ``content``."""
    return [Tok(text, 0.1, reasoning=False) for text in texts]


def script(body):
    """Three questions of one to three steps, and one whose thinking never ends by itself; as long as the request allows."""
    asked = next(m["content"] for m in reversed(body["messages"]) if m["role"] == "user")
    thinking = [Tok(*step, reasoning=False) for step in (STEPS * 20 if asked == "q3" else STEPS[: 2 * int(asked[1]) + 2])]
    tokens = said("answer ", asked) if is_answer_call(body) else [*said("<think>"), *thinking]
    if not is_answer_call(body) and asked != "q3":
        tokens += said("</think>", "\n\n", "answer ", asked)
    limit = body["max_tokens"]
    return Reply(tokens[:limit], finish="length" if len(tokens) > limit else None)


class ServedContract(contract.BackendContract):
    """What both have in common: the closing text is sent, and not generated."""

    closes_in_place = False

    @pytest.fixture
    def server(self):
        props = {"/props": lambda: {"chat_template": "<think></think>"}}  # a server that tells its template
        with Loopback(script, field_name="", owned_by="llamacpp", pages=props) as running:
            yield running

    @pytest.fixture
    def conversations(self):
        return [[{"role": "user", "content": f"q{n}"}] for n in range(4)]

    def test_a_malformed_answer_means_the_full_run(self, backend, conversations, full, stepped, server):
        """An empty one: run again in full, not stopped, and both are paid for. Where there is no room, half an answer comes."""
        server.script = lambda body: Reply(()) if is_answer_call(body) else script(body)
        run = self.run(backend, conversations, policy=self.policy(backend))[stepped]
        assert (run.answer, run.outcome.stopped) == (full[stepped].answer, False)
        assert "malformed" in run.outcome.reason
        assert run.tokens == full[stepped].tokens + full[stepped].steps[0].end

    def test_template_settings_reach_the_server(self, backend, conversations, server):
        """In the fields of the API, with every request, beside what the user's own request has."""
        other = backend.with_template(tools=[contract.TOOL], enable_thinking=False).with_template(depth=2)
        self.run(other, conversations, policy=self.policy(other))
        assert len(server.calls) == 8
        assert all(call.body["tools"] == [contract.TOOL] for call in server.calls)
        assert all(call.body["chat_template_kwargs"] == {"enable_thinking": False, "depth": 2} for call in server.calls)


class TestSync(ServedContract):
    """``OpenAIBackend``."""

    @pytest.fixture
    def backend(self, server):
        with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
            backend = OpenAIBackend(client, "scripted", **SETTINGS)
            backend.connect()
            yield backend

    def test_a_rendered_prompt_has_the_template_settings(self, server):
        """Where the answer is got by a raw completion, the server renders the conversation with them."""
        asked = []
        server.rendered = "rendered: "
        with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
            backend = OpenAIBackend(client, "scripted", **{**SETTINGS, "continuation": "completion"}).with_template(a=1)
            post = client.post
            client.post = lambda path, **given: (asked.append((path, given.get("body"))), post(path, **given))[1]
            server.script = lambda body: Reply(said("42")) if "prompt" in body else script(body)
            (run,) = self.run(backend, [[{"role": "user", "content": "q1"}]], policy=self.policy(backend))
        assert (run.answer, run.outcome.stopped) == ("42", True)
        rendered = next(body for path, body in asked if path.endswith("/apply-template"))
        assert rendered == {"messages": [{"role": "user", "content": "q1"}], "chat_template_kwargs": {"a": 1}}


class TestAsync(Awaited, ServedContract):
    """``AsyncOpenAIBackend``."""

    @pytest.fixture
    def backend(self, server):
        client = openai.AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0)
        backend = Blocking(AsyncOpenAIBackend(client, "scripted", **SETTINGS))
        backend.wait(backend.connect())
        yield backend
        backend.wait(client.close())
        backend.close()

    def test_a_cancelled_task_ends_the_servers_work(self, backend, conversations, server):
        """Each of its requests is closed."""
        server.script = lambda body: replace(script(body), pace=0.1)
        assert self.is_cancelled(backend, conversations[1:], seconds=0.4)
        server.settled()
        assert [0 < call.made < call.planned for call in server.calls] == [True] * 3
