"""What LlamaIndex's path costs a token: ``EarlyStopLLM.stream_chat`` against ``stream_chat`` of the LLM inside, turn by turn.

Both send the same request, for the same logprobs. The hard case is a server that sends as fast as it can: nothing but the client's
own work is measured, most of it LlamaIndex's. Beside it stand the real engines that are installed. Every token is judged, and
nothing is stopped. ``python benchmarks/llama_index_path.py`` prints the rows by itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

from measure import HERE, ROOT, Paired, Row, seconds

GOAL = 1.05
"""Most that the wrapped stream may take of what the plain one takes, on a real engine."""

QUESTION = "9876*6874=?"
NEVER = -1.0
"""A threshold that no entropy reaches."""


def llama_index(quick: bool) -> list[Row]:
    """Wall time over the plain stream's, on each engine and on the scripted server."""
    sys.path.insert(0, str(ROOT / "scripts"))
    import engines

    rows = []
    for kind, name in (("vllm", "vLLM"), ("llama", "llama-server")):
        if engines.installed(kind) is None:
            rows.append(Row("llama_index", f"{name}, wall time", None, "×", goal=GOAL, note="not installed here"))
            continue
        with engines.start(kind) as engine:
            rows += _rows(engine.base_url, engine.name, name, 2 if quick else 9, 16 if quick else 600, goal=GOAL)
    tokens, rounds = (64, 2) if quick else (2000, 15)
    command = [sys.executable, str(HERE / "client.py"), "serve", str(tokens)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            url = server.stdout.readline().strip()
            return rows + _rows(url, "scripted", "a server that sends at once", rounds, 4096)
        finally:
            server.terminate()


def _rows(url: str, model: str, name: str, rounds: int, max_tokens: int, goal: float | None = None) -> list[Row]:
    """Wall time and, which a busy machine disturbs less, this process's own processor time."""
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.entropy_chains import EarlyStopLLM
    from llama_index.llms.openai_like import OpenAILike

    from entropy_chains.core.policy import Policy
    from entropy_chains.core.steps import Segmentation

    inner = OpenAILike(model=model, api_base=url, api_key="none", is_chat_model=True, temperature=0.0, max_tokens=max_tokens)
    wrapped = EarlyStopLLM(llm=inner, policy=Policy(model, (NEVER,), segmentation=Segmentation("line", 32)))
    asked = [ChatMessage(role="user", content=QUESTION)]
    wanted = {"logprobs": True, "top_logprobs": 20, "stream_options": {"include_usage": True}}
    read: list[int] = []

    def plain() -> None:
        read.append([r.raw.usage for r in inner.stream_chat(asked, **wanted)][-1].completion_tokens)

    def ours() -> None:
        for response in wrapped.stream_chat(asked):
            last: Any = response
        read.append(last.additional_kwargs["completion_tokens"])

    wall, worked = Paired([], []), Paired([], [])
    for n in range(rounds + 1):
        for work, side in ((ours, "a"), (plain, "b")):
            before = time.process_time()
            taken = seconds(work)
            if n:  # the first round only warms up
                getattr(wall, side).append(taken)
                getattr(worked, side).append(time.process_time() - before)
    if len(set(read)) != 1:
        raise AssertionError(f"replies of {sorted(set(read))} tokens: the sides cannot be compared")
    given = {"per": read[0], "scale": "µs", "over": " a token, k 20"}
    return [
        wall.row("llama_index", f"{name}, wall time", goal=goal, **given),
        worked.row("llama_index", f"{name}, the client's processor time", **given),
    ]


if __name__ == "__main__":
    for row in llama_index("--quick" in sys.argv):
        print(json.dumps(row.to_dict(), ensure_ascii=False))
