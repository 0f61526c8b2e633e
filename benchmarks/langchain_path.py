"""The LangChain wrapper's cost: ``EarlyStopChatModel.stream`` against ``ChatOpenAI.stream`` of the same request, turn by turn.

Both ask for 20 alternatives a token; nothing is stopped. The hard case is a server process that sends as fast as it can; beside it
stand the real engines that are installed, where the client mostly waits. The other figure is what the LangSmith SDK posts for a
chain's run with logprobs left out of the message, as the wrapper does it, and kept in it.
``python benchmarks/langchain_path.py`` prints the rows by itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

from client import ASKED, NEVER
from measure import HERE, ROOT, Paired, Row, seconds

GOAL = 1.05
"""Most that a stream through the wrapper may take of what ``ChatOpenAI`` itself takes."""
SMALLER = 10.0
"""How many times smaller the posted run must be at least."""


def langchain(quick: bool) -> list[Row]:
    """Wall time over ``ChatOpenAI``'s own, on the scripted server and on each engine; and the size of a trace."""
    sys.path.insert(0, str(ROOT / "scripts"))
    import engines

    tokens, rounds = (64, 2) if quick else (2000, 15)
    command = [sys.executable, str(HERE / "client.py"), "serve", str(tokens)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            url = server.stdout.readline().strip()
            rows = _streams(url, "scripted", "a server that sends at once", rounds, {})
        finally:
            server.terminate()
    for kind, name in (("vllm", "vLLM"), ("llama", "llama-server")):
        if engines.installed(kind) is None:
            rows.append(Row("langchain", f"{name}, wall time", None, "×", goal=GOAL, note="not installed here"))
            continue
        with engines.start(kind) as engine:
            settings = {"temperature": 0.0, "max_tokens": 16 if quick else 600}
            rows += _streams(engine.base_url, engine.name, name, 2 if quick else 9, settings)
            if kind == "vllm":
                rows.append(_payload(engine.base_url, engine.name, name, settings))
    return rows


def _models(url: str, model: str, settings: dict[str, Any]) -> tuple[Any, Any]:
    """``ChatOpenAI`` that asks for logprobs, and the wrapper around one that does not: it asks for the same."""
    from langchain_entropy_chains import EarlyStopChatModel
    from langchain_openai import ChatOpenAI

    from entropy_chains.core.policy import Policy
    from entropy_chains.core.steps import Segmentation

    given = {"model": model, "base_url": url, "api_key": "none", "stream_usage": True, **{"max_tokens": 4096} | settings}
    policy = Policy(model, (NEVER,), segmentation=Segmentation("line", 32))
    return ChatOpenAI(**given, logprobs=True, top_logprobs=20), EarlyStopChatModel(ChatOpenAI(**given), policy)


def _streams(url: str, model: str, name: str, rounds: int, settings: dict[str, Any]) -> list[Row]:
    """Wall time and, which a busy machine disturbs less, this process's own processor time."""
    plain, wrapped = _models(url, model, settings)
    read: list[int] = []

    def streamed(chat: Any) -> None:
        read.append(sum(c.usage_metadata["output_tokens"] for c in chat.stream(ASKED) if c.usage_metadata))

    wall, worked = Paired([], []), Paired([], [])
    for n in range(rounds + 1):
        for chat, side in ((wrapped, "a"), (plain, "b")):
            before = time.process_time()
            taken = seconds(lambda chat=chat: streamed(chat))
            if n:  # the first round only warms up
                getattr(wall, side).append(taken)
                getattr(worked, side).append(time.process_time() - before)
    if len(set(read)) != 1:
        raise AssertionError(f"replies of {sorted(set(read))} tokens: the sides cannot be compared")
    given = {"per": read[0], "scale": "µs", "over": " a token, k 20"}
    return [
        wall.row("langchain", f"{name}, wall time", goal=GOAL, **given),
        worked.row("langchain", f"{name}, the client's processor time", **given),
    ]


def _payload(url: str, model: str, name: str, settings: dict[str, Any]) -> Row:
    """Bytes that LangSmith's SDK posts for a run of ``prompt | wrapper``, uncompressed: logprobs kept on request, and left out."""
    sys.path[:0] = [str(ROOT / "integrations" / "langchain-entropy-chains" / "tests" / "support"), str(ROOT / "tests" / "support")]
    from langchain_core.prompts import ChatPromptTemplate
    from langchain_core.tracers import LangChainTracer
    from langsmith_receiver import Receiver

    _, wrapped = _models(url, model, settings)
    posted = []
    for kept in (True, False):
        with Receiver(zstd=False) as receiver:
            tracer = LangChainTracer(client=receiver.client(), project_name="p")
            chain = ChatPromptTemplate.from_template("{q}") | wrapped.bind(**({"logprobs": True} if kept else {}))
            message = chain.invoke({"q": ASKED[0]["content"]}, {"callbacks": [tracer]})
            tracer.client.flush()
            posted.append(len(receiver.posted))
    tokens = message.usage_metadata["output_tokens"]
    note = f"{posted[0] / tokens:,.0f} against {posted[1] / tokens:,.0f} bytes a token, {tokens} tokens, k 20"
    figure = f"{name}, a LangSmith trace without logprobs: times smaller"
    return Row("langchain", figure, posted[0] / posted[1], "×", goal=SMALLER, least=True, note=note)


if __name__ == "__main__":
    for row in langchain("--quick" in sys.argv):
        print(json.dumps(row.to_dict(), ensure_ascii=False))
