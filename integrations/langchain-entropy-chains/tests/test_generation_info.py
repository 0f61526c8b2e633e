"""What LangChain tells beside the message, ``generation_info``: as the model's own class tells it."""

from __future__ import annotations

import asyncio

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import HumanMessage
from langchain_entropy_chains import EarlyStopChatModel, instrument
from langchain_openai import ChatOpenAI

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))
ASKED = "What is 6*7?"


class Ends(BaseCallbackHandler):
    """Keeps the results."""

    def __init__(self):
        self.infos = []

    def on_llm_end(self, response, **_):
        self.infos.append(response.generations[0][0].generation_info)


def chat(server, **settings):
    return ChatOpenAI(model="scripted", base_url=server.url, api_key="none", max_retries=0, **settings)


@pytest.mark.parametrize("around", [EarlyStopChatModel, instrument])
@pytest.mark.parametrize("policy", [POLICY, None])
def test_callbacks_get_the_finish_reason(server, around, policy):
    """Invoked, awaited, streamed and by ``generate``, stopped or in full: finish reason and model, as a plain stream has them."""
    model, ends = around(chat(server), policy), Ends()
    config = {"callbacks": [ends]}
    model.invoke(ASKED, config)
    asyncio.run(model.ainvoke(ASKED, config))
    list(model.stream(ASKED, config))
    ends.infos.append(model.generate([[HumanMessage(ASKED)]]).generations[0][0].generation_info)
    list(chat(server).stream(ASKED, config))
    *infos, plain = ends.infos
    assert plain == {"finish_reason": "stop", "model_name": "scripted"}
    assert [{name: info[name] for name in plain} for info in infos] == [plain] * 4


def test_a_call_that_is_passed_through_has_it(server):
    """A reply of a fixed form, invoked and streamed."""
    model, ends = EarlyStopChatModel(chat(server), POLICY), Ends()
    bound = model.bind(response_format={"type": "json_object"})
    with pytest.warns(UserWarning, match="not stopped early"):
        bound.invoke(ASKED, {"callbacks": [ends]})
    with pytest.warns(UserWarning, match="not stopped early"):
        list(bound.stream(ASKED, {"callbacks": [ends]}))
    assert [info["finish_reason"] for info in ends.infos] == ["stop", "stop"]


@pytest.mark.parametrize("settings", [{"logprobs": True, "top_logprobs": 1}, {"logprobs": True}])
def test_logprobs_have_as_many_alternatives_as_were_asked_for(server, settings):
    """Where the user asked for logprobs himself: the policy's twenty alternatives stay with the policy."""
    ends, number = Ends(), settings.get("top_logprobs", 0)
    message = EarlyStopChatModel(chat(server, **settings), POLICY).invoke(ASKED, {"callbacks": [ends]})
    assert message.response_metadata["early_stop_stopped"]
    assert server.calls[0].body["top_logprobs"] == 20
    for entries in (message.response_metadata["logprobs"]["content"], ends.infos[0]["logprobs"]["content"]):
        assert len(entries) > 64
        assert {len(entry["top_logprobs"]) for entry in entries} == {number}


def test_logprobs_that_nobody_asked_for_are_left_out(server):
    """In metadata and generation info."""
    ends = Ends()
    message = EarlyStopChatModel(chat(server), POLICY).invoke(ASKED, {"callbacks": [ends]})
    assert not message.response_metadata.get("logprobs")
    assert not ends.infos[0].get("logprobs")
