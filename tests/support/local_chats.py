"""ChatTransformers asked in every way."""

from __future__ import annotations

from langchain_core.messages import AIMessageChunk

ASKED = "34*7=?"


def merged(chunks):
    full = None
    for chunk in chunks:
        full = chunk if full is None else full + chunk
    assert isinstance(full, AIMessageChunk)
    return full


async def answers(llm, way, question=ASKED):
    if way == "invoke":
        return llm.invoke(question)
    if way == "ainvoke":
        return await llm.ainvoke(question)
    if way == "stream":
        return merged(llm.stream(question))
    if way == "astream":
        return merged([c async for c in llm.astream(question)])
    return (await llm.abatch([question]))[0] if way == "abatch" else llm.batch([question])[0]


WAYS = ["invoke", "ainvoke", "stream", "astream", "batch", "abatch"]
