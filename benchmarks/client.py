"""The API client's cost: a reply read by ``OpenAIBackend.stream`` against the bare SDK stream of the same request, turn by turn.

The hard case is a server process that sends as fast as it can, 20 alternatives a token: nothing but the client's own work is
measured. Beside it stand the real engines that are installed, where the client mostly waits. Nothing is stopped.
``python benchmarks/client.py`` prints the rows by itself.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from typing import Any

from measure import ROOT, Paired, Row, seconds

GOAL = 1.05
"""Most that reading through the backend may take of what the bare SDK takes."""

ASKED = [{"role": "user", "content": "9876*6874=?"}]
NEVER = -1.0
"""A threshold that no entropy reaches: every token is judged, and nothing is stopped."""


def client(quick: bool) -> list[Row]:
    """Wall time over the bare SDK's, on the scripted server and on each engine."""
    sys.path.insert(0, str(ROOT / "scripts"))
    import engines

    tokens, rounds = (64, 2) if quick else (2000, 15)
    with subprocess.Popen([sys.executable, __file__, "serve", str(tokens)], stdout=subprocess.PIPE, text=True) as server:
        try:
            url = server.stdout.readline().strip()
            rows = _rows(url, "scripted", "a server that sends at once", rounds, {})
        finally:
            server.terminate()
    for kind, name in (("vllm", "vLLM"), ("llama", "llama-server")):
        if engines.installed(kind) is None:
            rows.append(Row("client", f"{name}, wall time", None, "×", goal=GOAL, note="not installed here"))
            continue
        with engines.start(kind) as engine:
            settings = {"temperature": 0.0, "max_tokens": 16 if quick else 600}
            rows += _rows(engine.base_url, engine.name, name, 2 if quick else 9, settings)
    return rows


def _rows(url: str, model: str, name: str, rounds: int, settings: dict[str, Any]) -> list[Row]:
    """Wall time and, which a busy machine disturbs less, this process's own processor time."""
    import openai

    from entropy_chains.backends import Sampling
    from entropy_chains.backends.openai import OpenAIBackend
    from entropy_chains.core.policy import Policy
    from entropy_chains.core.steps import Segmentation

    policy = Policy(model, (NEVER,), segmentation=Segmentation("line", 32))
    read: list[int] = []
    with openai.OpenAI(base_url=url, api_key="none") as sdk:
        backend = OpenAIBackend(sdk, model)
        wanted = {"stream": True, "stream_options": {"include_usage": True}, "logprobs": True, "top_logprobs": 20}

        def bare() -> None:
            with sdk.chat.completions.create(model=model, messages=ASKED, **wanted, **{"max_tokens": 4096} | settings) as stream:
                read.append([chunk.usage for chunk in stream][-1].completion_tokens)

        def ours() -> None:
            for chunk in backend.stream(ASKED, policy=policy, sampling=Sampling(**settings)):
                last = chunk
            read.append(last.final.tokens)

        wall, worked = Paired([], []), Paired([], [])
        for n in range(rounds + 1):
            for work, side in ((ours, "a"), (bare, "b")):
                before = time.process_time()
                taken = seconds(work)
                if n:  # the first round only warms up
                    getattr(wall, side).append(taken)
                    getattr(worked, side).append(time.process_time() - before)
    if len(set(read)) != 1:
        raise AssertionError(f"replies of {sorted(set(read))} tokens: the sides cannot be compared")
    given = {"per": read[0], "scale": "µs", "over": " a token, k 20"}
    return [
        wall.row("client", f"{name}, wall time", goal=GOAL, **given),
        worked.row("client", f"{name}, the client's processor time", **given),
    ]


def serve(tokens: int) -> None:
    """The scripted server: the same reply to every request, made beforehand; prints its base URL. One request a connection."""
    import asyncio

    head = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "scripted"}
    logprobs = [-1.0 - 0.5 * j for j in range(20)]  # all different, as real ones are

    def chunk(n: int) -> bytes:
        text = "\n" if n % 40 == 39 else f"word{n % 40} "
        top = [{"token": f"{text}{j}" if j else text, "logprob": x, "bytes": [*text.encode()]} for j, x in enumerate(logprobs)]
        delta = {"content": text} if n >= tokens - 8 else {"reasoning_content": text}
        choice = {"index": 0, "delta": delta, "finish_reason": None, "logprobs": {"content": [{**top[0], "top_logprobs": top}]}}
        return b"data: " + json.dumps({**head, "choices": [choice]}).encode() + b"\n\n"

    usage = {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": tokens + 5}
    last = [{**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}, {**head, "choices": [], "usage": usage}]
    tail = b"".join(b"data: " + json.dumps(x).encode() + b"\n\n" for x in last) + b"data: [DONE]\n\n"
    body = b"".join(map(chunk, range(tokens))) + tail
    stream = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n" + body
    none = b"HTTP/1.1 404 none\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: *(\d+)", asked)
        await reader.readexactly(int(length[1]) if length else 0)  # closing with something unread would reset the connection
        writer.write(stream if asked.startswith(b"POST") else none)
        await writer.drain()
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
        await server.serve_forever()

    asyncio.run(run())


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(int(sys.argv[2]))
    else:
        for row in client("--quick" in sys.argv):
            print(json.dumps(row.to_dict(), ensure_ascii=False))
