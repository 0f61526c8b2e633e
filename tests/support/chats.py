"""EarlyStopChatModel around a chat model of the scripted server, asked in every way."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from langchain_deepseek import ChatDeepSeek
from langchain_entropy_chains import EarlyStopChatModel
from langchain_openai import ChatOpenAI
from loopback import Reply, is_answer_call, said, thinking

from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation

ASKED = "What is 6*7?"
POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32), calibration={"remaining_tokens": [200, 160, 120]})
NEVER = replace(POLICY, thresholds=(None,))


def chat(server, **settings):
    return ChatOpenAI(model="scripted", base_url=server.url, api_key="sk-verysecret123", **{"max_retries": 0, **settings})


def deepseek(server, **settings):
    return ChatDeepSeek(model="scripted", api_base=server.url, api_key="sk-verysecret123", **settings)


def stopping(server, policy=POLICY, **settings):
    return EarlyStopChatModel(chat(server), policy, **settings)


def invoke(model, *given, **kwargs):
    return model.invoke(*given, **kwargs)


def stream(model, *given, **kwargs):
    return merged(list(model.stream(*given, **kwargs)))


def batch(model, asked, config=None, **kwargs):
    return model.batch([asked], config, **kwargs)[0]


def ainvoke(model, *given, **kwargs):
    return asyncio.run(model.ainvoke(*given, **kwargs))


def astream(model, *given, **kwargs):
    async def run():
        return [c async for c in model.astream(*given, **kwargs)]

    return merged(asyncio.run(run()))


def abatch(model, asked, config=None, **kwargs):
    return asyncio.run(model.abatch([asked], config, **kwargs))[0]


def merged(chunks):
    return sum(chunks[1:], chunks[0]) if chunks[1:] else chunks[0]


WAYS = [invoke, stream, batch, ainvoke, astream, abatch]


# --- logprobs


def blind(body):
    return thinking(None, None, None, answer="The answer is 42") if not is_answer_call(body) else Reply(said("The answer is 42"))
