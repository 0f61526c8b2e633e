"""An agent with two tools, and retrieval with history, on a real vLLM: the added line, and what server, answers and root then say.

The bundled model multiplies and does nothing else. So what it is asked stands in tool results and documents, one product each, and
the decision to call a tool is scripted (:class:`Calling`). Thinking, tokens, stops and answers are the server's own.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from engine_counts import MOST, counted, stopped
from langchain.agents import create_agent
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.documents import Document
from langchain_core.messages import AIMessageChunk, HumanMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableBranch, RunnablePassthrough
from langchain_core.runnables.history import RunnableWithMessageHistory
from langchain_core.tools import tool
from langchain_entropy_chains import EarlyStopMiddleware, EarlyStopTracer, with_early_stop
from langchain_openai import ChatOpenAI
from places import ROOT

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.demo import MODEL_NAME

sys.path.insert(0, str(ROOT / "integrations" / "langchain-entropy-chains" / "tests" / "support"))

from langsmith_receiver import Receiver

pytestmark = pytest.mark.servers
POLICY = Policy(MODEL_NAME, (0.005,), k=5, segmentation=Segmentation("line", 32)).for_model("demo")
SUMS = {"204*687=?": "140148", "7687*386=?": "2967182", "5080*764=?": "3881120"}
FIRST, SECOND, THIRD = SUMS


@tool
def stock(value: str) -> str:
    """How many pieces there are."""
    return SECOND


@tool
def price(value: str) -> str:
    """What all of them cost."""
    return THIRD


class Calling(ChatOpenAI):
    """Reads the last question alone, and hands its answer to the two tools, one after the other, before it is the reply."""

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self.bind()  # vLLM refuses tools where it was started without a parser for calls

    def _stream(self, messages: Any, *given: Any, **kwargs: Any) -> Any:
        called, text = sum(m.type == "tool" for m in messages), ""
        last = max(n for n, m in enumerate(messages) if m.type in ("human", "tool"))
        for chunk in super()._stream([HumanMessage(messages[last].text), *messages[last + 1 :]], *given, **kwargs):
            text += chunk.text
            if (chunk.generation_info or {}).get("finish_reason") and called < 2:
                call = tool_call_chunk(
                    name=("stock", "price")[called], args=json.dumps({"value": text.strip()}), id=f"c{called}", index=0
                )
                yield ChatGenerationChunk(message=AIMessageChunk(content="", tool_call_chunks=[call]))
            yield chunk

    def _generate(self, messages: Any, *given: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("streaming is on")


class Shelf(BaseRetriever):
    """One document for each query: the next product."""

    def _get_relevant_documents(self, query: str, **kwargs: Any) -> list[Document]:
        return [Document(THIRD if query.strip() == SUMS[FIRST] else SECOND)]


def chat(engine: Any, kind: type[ChatOpenAI] = ChatOpenAI) -> ChatOpenAI:
    settings = {"streaming": True, "stream_usage": True, "temperature": 0, "max_tokens": 1600}
    return kind(model=engine.name, base_url=engine.base_url, api_key="none", **settings)


def rag(model: Any) -> Any:
    """With a history the question is put anew first, by the model; then the document found is asked."""
    anew = ChatPromptTemplate.from_template("{question}") | model | StrOutputParser()
    search = RunnableBranch((lambda asked: asked["history"], anew | Shelf()), (lambda asked: asked["question"]) | Shelf())
    texts = search | (lambda documents: documents[0].page_content)
    return RunnablePassthrough.assign(context=texts) | ChatPromptTemplate.from_template("{context}") | model


def answers_of_agent(agent: Any, config: dict[str, Any]) -> list[str]:
    """The values that the tools were given, and the last answer."""
    messages = agent.invoke({"messages": [HumanMessage(FIRST)]}, config)["messages"]
    return [*(m.tool_calls[0]["args"]["value"] for m in messages[1:-1:2]), messages[-1].text.strip()]


def answers_of_chain(chain: Any, config: dict[str, Any]) -> list[str]:
    """Two turns: the first asks one call of the model, the second two."""
    history = InMemoryChatMessageHistory()
    told = RunnableWithMessageHistory(chain, lambda _: history, input_messages_key="question", history_messages_key="history")
    session = {**config, "configurable": {"session_id": "1"}}
    found = [told.invoke({"question": FIRST}, session).text.strip() for _ in range(2)]
    assert [m.text.strip() for m in history.messages] == [FIRST, found[0], FIRST, found[1]]
    return found


def with_middleware(engine: Any, policy: Policy | None, **settings: Any) -> Any:
    middleware = [EarlyStopMiddleware(policy, **settings)] if policy else []
    return create_agent(chat(engine, Calling), [stock, price], middleware=middleware)


def with_line(engine: Any, policy: Policy | None, **settings: Any) -> Any:
    return with_early_stop(rag(chat(engine)), policy, **settings) if policy else rag(chat(engine))


APPS = {
    "agent": (with_middleware, answers_of_agent, list(SUMS.values()), 1, 3),
    "rag": (with_line, answers_of_chain, [SUMS[SECOND], SUMS[THIRD]], 2, 3),
}
"""How it is built, how it is asked, the right answers, root runs, calls of the model."""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", APPS)
def test_the_added_line_in_an_application(vllm, kind):
    """The answers are those of the full run, the server makes a third less, and the roots' totals are what it counted.

    Where nothing is stopped, to the token. A server runs ahead of its client: what is under way when a stream is closed, the client
    never sees. That is a few tokens, or a hundred where its client gets no processor.
    """
    build, ask, right, roots, calls = APPS[kind]
    full, made_full = counted(vllm, lambda: ask(build(vllm, None), {}))
    assert full == right

    def early(**settings: Any) -> tuple[list[str], list[dict[str, Any]]]:
        with Receiver() as receiver:
            tracer = EarlyStopTracer(project_name="p", client=receiver.client())
            found = ask(build(vllm, POLICY, **settings), {"callbacks": [tracer]})
            tracer.wait_for_futures()
            return found, [run["extra"]["metadata"] for run in receiver.roots()]

    (_, totals), made = counted(vllm, lambda: early(holdout=1.0))
    assert sum(root["early_stop_tokens"] for root in totals) == made == made_full
    (found, totals), made = stopped(vllm, early, made_full)
    told = sum(root["early_stop_tokens"] for root in totals)
    stops = [sum(root[f"early_stop_{name}"] for root in totals) for name in ("runs", "stopped_runs")]
    print(f"\n{kind}: {made_full} tokens in full, {made} stopped, {told} on {len(totals)} root(s); {stops[1]} of {stops[0]} calls")
    assert found == full
    assert made < MOST * made_full
    assert (len(totals), stops) == (roots, [calls, calls])
    assert told <= made
