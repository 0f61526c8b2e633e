"""A begun turn that the server sends back before it goes on from it, through LangChain's models.

The servers are scripted (fakes): llama.cpp does so by default, vLLM where ``echo`` is set.
"""

from __future__ import annotations

import asyncio

import pytest
from langchain_deepseek import ChatDeepSeek
from langchain_entropy_chains import EarlyStopChatModel, EarlyStopped, EntropyCallbackHandler
from langchain_openai import ChatOpenAI
from loopback import Loopback

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from scripts import ECHOES, echoing, paced

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))
MODELS = {
    "ChatOpenAI": lambda server: ChatOpenAI(model="scripted", base_url=server.url, api_key="none"),
    "ChatDeepSeek": lambda server: ChatDeepSeek(model="scripted", api_base=server.url, api_key="none"),
}


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("form", ECHOES)
def test_the_run_is_stopped_and_the_answer_is_the_servers(form, model):
    """Whether the class passes on the reasoning or not: two requests, nothing is thrown away, and nothing is warned of."""
    with Loopback(echoing(form)) as server:
        stopping = EarlyStopChatModel(MODELS[model](server), POLICY)
        for message in (stopping.invoke("What is 6*7?"), asyncio.run(stopping.ainvoke("What is 6*7?"))):
            assert message.content == "The answer is 42"
            assert message.response_metadata["early_stop_stopped"] is True
            assert message.usage_metadata["output_tokens"] == 124
        assert len(server.calls) == 4


def test_finish_leaves_it_out_of_the_answer():
    """A reply that does not stream begins with it, too."""
    with Loopback(echoing("content", paced)) as server:
        model = MODELS["ChatOpenAI"](server)
        settings = {"logprobs": True, "top_logprobs": 20}
        with pytest.raises(EarlyStopped) as stopped:
            model.bind(**settings).invoke("6*7?", {"callbacks": [EntropyCallbackHandler(POLICY, stop=True)]}, stream=True)
        answers = [stopped.value.finish(model, continuation="prefill")]
        answers.append(asyncio.run(stopped.value.afinish(model, continuation="prefill")))
        assert [(a.content, a.response_metadata["early_stop_stopped"]) for a in answers] == [("The answer is 42", True)] * 2
        assert len(server.calls) == 3
