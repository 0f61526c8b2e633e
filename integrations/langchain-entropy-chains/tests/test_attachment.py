"""Early stopping for chains and models that exist, against the scripted server of the tests."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from langchain.agents import create_agent
from langchain_core.caches import InMemoryCache
from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import (
    ConfigurableField,
    RunnableBranch,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
)
from langchain_entropy_chains import ChatTransformers, EarlyStopChatModel, instrument, uninstrument, with_early_stop
from langchain_openai import ChatOpenAI
from langchain_tools import Answer
from loopback import Reply, said

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import SettingsError

ASKED = "What is 6*7?"
POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))
PROMPT = ChatPromptTemplate.from_template("{q}")


def chat(server, **settings):
    return ChatOpenAI(model="scripted", base_url=server.url, api_key="none", max_retries=0, **settings)


def broken(server):
    return ChatOpenAI(model="scripted", base_url="http://127.0.0.1:9/v1", api_key="none", max_retries=0)


CHAINS = {
    "model": lambda s: chat(s),
    "sequence": lambda s: chat(s) | StrOutputParser(),
    "bind": lambda s: chat(s).bind(temperature=0.5),
    "config": lambda s: chat(s).with_config(tags=["t"]),
    "parallel": lambda s: RunnableParallel(a=chat(s), b=RunnableLambda(lambda x: x)),
    "assign": lambda s: RunnableLambda(lambda x: {"q": x}) | RunnablePassthrough.assign(a=PROMPT | chat(s)),
    "branch": lambda s: RunnableBranch((lambda x: True, chat(s)), RunnableLambda(lambda x: x)),
    "branch default": lambda s: RunnableBranch((lambda x: False, RunnableLambda(lambda x: x)), chat(s)),
    "fallback": lambda s: broken(s).with_fallbacks([chat(s)]),
    "retry": lambda s: chat(s).with_retry(),
    "listeners": lambda s: chat(s).with_listeners(on_start=lambda run: None),
    "map": lambda s: RunnableLambda(lambda x: [x]) | chat(s).map(),
    "fields": lambda s: chat(s).configurable_fields(temperature=ConfigurableField("t")),
    "alternatives": lambda s: RunnablePassthrough().configurable_alternatives(
        ConfigurableField("which"), default_key="none", model=chat(s), made=lambda: chat(s)
    ),
    "alternative default": lambda s: chat(s).configurable_alternatives(ConfigurableField("which"), other=chat(s)),
}


@pytest.mark.parametrize("shape", CHAINS)
def test_a_model_is_found_wherever_it_stands(server, shape):
    """In every shape of chain the copy stops, and the chain that was given does not."""
    chain = CHAINS[shape](server)
    config = {"configurable": {"which": "model" if shape == "alternatives" else "default"}}
    copy = with_early_stop(chain, POLICY)
    copy.invoke(ASKED, config)
    server.settled()
    assert [c.gone for c in server.calls] == [True, False]
    server.calls.clear()
    chain.invoke(ASKED, config)
    assert [c.gone for c in server.calls] == [False]


def test_configured_settings_reach_the_model(server):
    """Fields, and alternatives that a function makes, are chosen by the config as before."""
    fields = with_early_stop(CHAINS["fields"](server), POLICY)
    fields.invoke(ASKED, {"configurable": {"t": 0.75}})
    assert server.calls[0].body["temperature"] == 0.75
    server.calls.clear()
    with_early_stop(CHAINS["alternatives"](server), POLICY).invoke(ASKED, {"configurable": {"which": "made"}})
    assert [c.gone for c in server.calls] == [True, False]


def test_the_added_line_in_a_chain(server):
    """Prompt | model | parser, streamed and in a batch, sync and async: fewer tokens by the server's count, the same answer."""
    chain = PROMPT | chat(server) | StrOutputParser()
    full = chain.invoke({"q": ASKED})
    planned = server.settled()
    early = with_early_stop(chain, POLICY)

    async def streamed():
        return "".join([text async for text in early.astream({"q": ASKED})])

    for run in (
        lambda: early.invoke({"q": ASKED}),
        lambda: "".join(early.stream({"q": ASKED})),
        lambda: early.batch([{"q": ASKED}])[0],
        lambda: asyncio.run(early.ainvoke({"q": ASKED})),
        lambda: asyncio.run(streamed()),
        lambda: asyncio.run(early.abatch([{"q": ASKED}]))[0],
    ):
        server.calls.clear()
        assert run() == full == "The answer is 42"
        assert server.settled() < 0.6 * planned


def test_the_readme_runs(server, tmp_path, monkeypatch, capsys):
    """Its block, as it stands, against the scripted server: the run is stopped, and the answer printed."""
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    POLICY.save(tmp_path / "policy.json")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    exec(readme.split("```python\n")[1].split("```")[0], {})
    assert capsys.readouterr().out == "The answer is 42\n"
    assert [c.gone for c in server.calls] == [True, False]


def test_structured_output_keeps_its_form(server):
    """A chain with structured output is wrapped, and its value comes whole."""
    server.script = lambda body: Reply(said('{"value": 42}'))
    chain = with_early_stop(PROMPT | chat(server).with_structured_output(Answer), POLICY)
    with pytest.warns(UserWarning, match="not stopped early"):
        assert chain.invoke({"q": ASKED}) == Answer(value=42)


def test_a_local_model_is_given_the_policy():
    """``ChatTransformers`` stops by itself: the copy has the policy, the one given has none."""
    model = ChatTransformers(backend=object())
    copy = with_early_stop(model | StrOutputParser(), POLICY)
    assert (copy.first.policy, type(copy.first), model.policy) == (POLICY, ChatTransformers, None)


def test_wrapping_twice_is_wrapping_once(server):
    """A model that stops already, wrapped or instrumented, is left as it is, beside others too."""
    other = replace(POLICY, thresholds=(0.1,))
    for model in (EarlyStopChatModel(chat(server), other), instrument(chat(server), other)):
        chain = PROMPT | model
        assert with_early_stop(chain, POLICY) is chain
        both = with_early_stop(RunnableParallel(a=model, b=chat(server)), POLICY)
        assert both.steps__["a"] is model
        assert both.steps__["b"].policy == POLICY


def test_what_is_out_of_reach_is_named(server):
    """An agent's own model cannot be seen: the error says what helps."""
    with pytest.raises(SettingsError, match="EarlyStopMiddleware"):
        with_early_stop(create_agent(chat(server), []), POLICY)


def test_instrument_reaches_what_was_built_before(server):
    """Closures, bindings and agents stop; the class stays a ChatOpenAI; taken back, nothing is left."""
    model = chat(server)
    closure, bound, agent = RunnableLambda(lambda x: model.invoke(x)), model.bind(temperature=0.5), create_agent(model, [])
    kind = type(model)
    assert instrument(model, POLICY) is model
    assert isinstance(model, ChatOpenAI)
    assert closure.invoke(ASKED).response_metadata["early_stop_stopped"]
    assert bound.invoke(ASKED).response_metadata["early_stop_stopped"]
    assert agent.invoke({"messages": [HumanMessage(ASKED)]})["messages"][-1].response_metadata["early_stop_stopped"]
    assert asyncio.run(closure.ainvoke(ASKED)).response_metadata["early_stop_stopped"]
    assert merged(list(model.stream(ASKED))).response_metadata["early_stop_stopped"]
    assert not model.invoke(ASKED, {"configurable": {"early_stop": False}}).response_metadata["early_stop_stopped"]
    model.temperature = 0.9  # set afterwards, it counts
    model.invoke(ASKED)
    assert server.calls[-1].body["temperature"] == 0.9
    uninstrument(model)
    assert type(model) is kind
    assert "early_stop_stopped" not in closure.invoke(ASKED).response_metadata


def merged(chunks):
    return sum(chunks[1:], chunks[0])


def test_instrumented_models_share_no_cache_entry(server):
    """What a model answered in full is not taken for what it answers early, nor the other way."""
    model = chat(server, cache=InMemoryCache())
    model.invoke(ASKED)
    assert instrument(model, POLICY).invoke(ASKED).response_metadata["early_stop_stopped"]
    assert "early_stop_stopped" not in uninstrument(model).invoke(ASKED).response_metadata


def test_instrument_says_what_it_cannot_do(server):
    """A chain, a model changed before, and one that was never changed."""
    model = chat(server)
    with pytest.raises(SettingsError, match="with_early_stop"):
        instrument(PROMPT | model, POLICY)
    with pytest.raises(SettingsError, match="not changed by instrument"):
        uninstrument(model)
    instrument(model, POLICY)
    with pytest.raises(SettingsError, match="already"):
        instrument(model, POLICY)
