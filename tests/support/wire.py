"""The JSON that the scripted servers send, as vLLM has it: chunks, entries of logprobs, tool calls, token counts."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loopback import Call, Loopback, Reply, Tok

HEAD = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "scripted"}


def finish_of(reply: Reply) -> str:
    """What a reply ends with."""
    return reply.finish or ("tool_calls" if reply.tools else "stop")


def top(body: dict[str, Any]) -> int:
    """Alternatives asked for: a completion says so by ``logprobs`` alone, which is a number."""
    asked = body.get("logprobs") if "prompt" in body else body.get("top_logprobs")
    return 0 if asked is True else int(asked or 1)


def entry(token: Tok, k: int) -> dict[str, Any] | None:
    """A token's logprob entry as vLLM sends it."""
    if token.entropy is None:
        return None
    probabilities = spread(token.entropy)[: k or 1]
    ranked = [
        {
            "token": token.text if n == 0 else f"alt{n}",
            "logprob": math.log(p),
            "bytes": list((token.text if n == 0 else f"alt{n}").encode()),
        }
        for n, p in enumerate(probabilities)
    ]
    return {**ranked[0], "top_logprobs": ranked if k else []}


def flat(logprob: dict[str, Any]) -> dict[str, Any]:
    """An entry as the raw completions of vLLM have it."""
    ranked = {e["token"]: e["logprob"] for e in logprob["top_logprobs"]}
    return {"tokens": [logprob["token"]], "token_logprobs": [logprob["logprob"]], "top_logprobs": [ranked], "text_offset": [0]}


def response_of(call: Call, server: Loopback, reply: Reply) -> dict[str, Any]:
    """A finished object of the Responses API."""
    text = "".join(t.text for t in server.content(reply))
    parts = [{"type": "output_text", "text": text, "annotations": []}]
    message = {"type": "message", "id": "m1", "role": "assistant", "status": "completed", "content": parts}
    found = usage(call)
    counts = {"input_tokens": found["prompt_tokens"], "output_tokens": call.made, "total_tokens": found["total_tokens"]}
    details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    head = {"id": "r1", "object": "response", "created_at": 1, "model": "scripted", "status": "completed"}
    return {
        **head,
        "output": [message],
        "parallel_tool_calls": False,
        "tool_choice": "auto",
        "tools": [],
        "usage": counts | details,
    }


def spread(entropy: float) -> list[float]:
    """Probabilities with this entropy, bits: 2**entropy equally likely ones from 1 bit on, else a pair."""
    if entropy >= 1:
        return [1 / round(2**entropy)] * round(2**entropy)
    low, high = 0.0, 0.5
    for _ in range(50):
        p = (low + high) / 2
        h = -(p * math.log2(p) + (1 - p) * math.log2(1 - p)) if p else 0.0
        low, high = (p, high) if h < entropy else (low, p)
    return [1 - high, max(high, 1e-12)]


def tool_calls(reply: Reply) -> list[dict[str, Any]]:
    """Tool calls as a message has them."""
    return [
        {"id": f"call_{n}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for n, (name, arguments) in enumerate(reply.tools)
    ]


def usage(call: Call) -> dict[str, Any]:
    """Token counts; a prompt's tokens are its words."""
    prompt = len(json.dumps(call.body.get("messages") or call.body.get("prompt") or call.body.get("input")).split())
    return {"prompt_tokens": prompt, "completion_tokens": call.made, "total_tokens": prompt + call.made}
