"""Many calls at once over real HTTP: each its own policy, key, question and counts, and root totals that are their sum.

Thirty of them in every run of the tests, three hundred with the slow ones.
"""

from __future__ import annotations

import asyncio
import sys
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hostile import Hostile, begin, end, events
from langchain_core.runnables import RunnableLambda
from langchain_deepseek import ChatDeepSeek
from langchain_entropy_chains import EarlyStopChatModel, EarlyStopTracer, instrument
from langchain_openai import ChatOpenAI
from loopback import SURE, UNSURE, Reply, is_answer_call, said, thinking

from entropy_chains import is_holdout
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation

sys.path.insert(0, str(Path(__file__).parent / "support"))

from langsmith_receiver import Receiver

LINES, WORDS, ANSWER = 6, 5, len(said("full 0"))
LEAST = (1, 2, 5)
"""Steps that the policies ask for at least: the first model's, the second's, the third's."""
SHARE = 0.2
"""Of the third model's calls that run in full."""


def number(body: dict[str, Any]) -> int:
    return int(body["messages"][0]["content"])


def stop_of(n: int) -> int:
    """The step at which call ``n`` stops: its thinking is sure from line ``n % 4 + 1`` on."""
    return max(n % 4 + 1, LEAST[n % 3])


def reply(body: dict[str, Any]) -> Reply:
    n = number(body)
    if is_answer_call(body):
        return Reply(said(f"answer {n}"))
    return thinking(*[UNSURE] * (n % 4), *[SURE] * (LINES - n % 4), words=WORDS, answer=f"full {n}")


class Crowd:
    """The server's script: no first request is answered before all ``calls`` wait. ``keys``: by question, those that asked it."""

    def __init__(self, calls: int):
        self.calls, self.waiting, self.open, self.keys = calls, 0, asyncio.Event(), dict[int, set[str]]()

    async def __call__(self, request: Any) -> Any:
        self.keys.setdefault(number(request.body), set()).add(request.headers["authorization"].removeprefix("Bearer "))
        for act in begin():
            yield act
        made = reply(request.body)
        if not is_answer_call(request.body):
            self.waiting += 1
            if self.waiting >= self.calls:
                self.open.set()
            await self.open.wait()
        for act in (*events(made, request.body), *end(len(made.tokens))):
            yield act


@dataclass
class Served:
    """A server where all calls meet, and three models of it: two wrappers around different classes, one instrumented."""

    url: str
    crowd: Crowd

    def __post_init__(self) -> None:
        self.calls = self.crowd.calls
        policy = Policy("scripted", (0.2,), segmentation=Segmentation("line", WORDS))
        self.policies = [replace(policy, min_steps=least) for least in LEAST]
        common = {"model": "scripted", "max_retries": 0, "timeout": 60}
        chats = [
            ChatOpenAI(base_url=self.url, api_key="sk-of-model-0", stream_usage=True, **common),
            ChatDeepSeek(api_base=self.url, api_key="sk-of-model-1", **common),
            ChatOpenAI(base_url=self.url, api_key="sk-of-model-2", stream_usage=True, **common),
        ]
        self.models = [
            EarlyStopChatModel(chats[0], self.policies[0]),
            EarlyStopChatModel(chats[1], self.policies[1]),
            instrument(chats[2], self.policies[2], holdout=SHARE),
        ]

    def check(self, n: int, message: Any, root: uuid.UUID) -> int:
        """That this is the reply to call ``n``, and of no other; its tokens."""
        held = n % 3 == 2 and is_holdout(str(root), share=SHARE)
        told, usage = message.response_metadata, message.usage_metadata
        tokens = WORDS * (LINES if held else stop_of(n)) + ANSWER
        assert message.content == (f"full {n}" if held else f"answer {n}")
        assert (told["early_stop_stopped"], told["early_stop_holdout"], told["early_stop_step"]) == (not held, held, stop_of(n))
        assert told["early_stop_policy"] == self.policies[n % 3].fingerprint
        assert told["early_stop_tokens"] == usage["output_tokens"] == tokens
        assert len(message.additional_kwargs["reasoning_content"].split()) == tokens - ANSWER
        assert self.crowd.keys[n] == {f"sk-of-model-{n % 3}"}
        return tokens


@pytest.fixture(params=[30, pytest.param(300, marks=pytest.mark.slow)])
def served(request):
    crowd = Crowd(request.param)
    with Hostile(crowd) as server:
        yield Served(server.url, crowd)
        assert server.quiet()


@pytest.fixture
def receiver():
    with Receiver() as running:
        yield running


def test_many_calls_on_one_loop_keep_their_own(served):
    """All stand open at once; half of them are streamed."""
    roots = [uuid.uuid4() for _ in range(served.calls)]

    async def ask(n: int) -> Any:
        model, config = served.models[n % 3], {"run_id": roots[n]}
        if n % 2:
            return await model.ainvoke(str(n), config)
        chunks = [chunk async for chunk in model.astream(str(n), config)]
        return sum(chunks[1:], chunks[0])

    async def run() -> list[Any]:
        return await asyncio.gather(*map(ask, range(served.calls)))

    for n, message in enumerate(asyncio.run(run())):
        served.check(n, message, roots[n])
    assert served.crowd.waiting == served.calls


def test_many_calls_in_threads_are_summed_up_on_their_root(served, receiver):
    """``batch`` of each model below one root run, as many threads as calls: the root's totals are the sum over all of them."""
    root = uuid.uuid4()
    tracer = EarlyStopTracer(project_name="p", client=receiver.client())
    ask = RunnableLambda(lambda n: served.models[int(n) % 3].invoke(n))
    whole = RunnableLambda(lambda numbers, config: ask.batch(numbers, {**config, "max_concurrency": served.calls}))
    asked = [str(n) for n in range(served.calls)]
    messages = whole.invoke(asked, {"run_id": root, "callbacks": [tracer]})
    tokens = sum(served.check(n, message, root) for n, message in enumerate(messages))
    tracer.wait_for_futures()
    totals = receiver.runs[str(root)]["extra"]["metadata"]
    assert (totals["early_stop_runs"], totals["early_stop_tokens"]) == (served.calls, tokens)
    held = is_holdout(str(root), share=SHARE)
    assert (totals["early_stop_stopped_runs"], totals["early_stop_holdout"]) == (served.calls * (2 if held else 3) // 3, held)
    assert totals["early_stop_policy"] == ", ".join(sorted(policy.fingerprint for policy in served.policies))


def test_many_roots_have_each_their_own_totals(served, receiver):
    """One tracer and one chain for all of them, in threads."""
    tracer = EarlyStopTracer(project_name="p", client=receiver.client())
    roots = [uuid.uuid4() for _ in range(served.calls)]
    chain = RunnableLambda(lambda n: n) | RunnableLambda(lambda n: served.models[int(n) % 3].invoke(n))
    configs = [{"run_id": root, "callbacks": [tracer], "max_concurrency": served.calls} for root in roots]
    messages = chain.batch([str(n) for n in range(served.calls)], configs)
    tracer.wait_for_futures()
    for n, message in enumerate(messages):
        totals = receiver.runs[str(roots[n])]["extra"]["metadata"]
        assert totals["early_stop_tokens"] == served.check(n, message, roots[n])
        assert (totals["early_stop_runs"], totals["early_stop_policy"]) == (1, served.policies[n % 3].fingerprint)
