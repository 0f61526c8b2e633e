"""A scripted OpenAI-compatible server on loopback, for what the bundled model cannot do: it speaks real HTTP, but thinks nothing.

It answers like vLLM by default (``owned_by``, reasoning in a field of its own, logprobs where asked, prefill through
``continue_final_message``), notices within one token that its client is gone, and counts what it made::

    with Loopback() as server:
        client = openai.OpenAI(base_url=server.url, api_key="none")
        ...
        assert server.calls[-1].made < server.calls[-1].planned

What a call gets is decided by ``script(body) -> Reply``; :func:`sums` is the default one.
"""

from __future__ import annotations

import json
import select
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler
from typing import Any

from serving import Serving
from wire import HEAD, entry, finish_of, flat, response_of, tool_calls, top, usage

SURE, UNSURE = 0.05, 2.0
"""Entropies in bits."""


@dataclass(frozen=True)
class Tok:
    """A token of a reply. ``entropy`` in bits: below 1 two alternatives, else 2**entropy equal ones; None = no logprobs."""

    text: str
    entropy: float | None = UNSURE
    reasoning: bool = True


@dataclass(frozen=True)
class Reply:
    """What a call gets: tokens, then tool calls (name and arguments), which end it with ``finish_reason: tool_calls``."""

    tokens: Sequence[Tok] = ()
    tools: Sequence[tuple[str, dict[str, Any]]] = ()
    pace: float = 0.0  # seconds a token
    status: int = 200
    message: str = "scripted error"
    headers: dict[str, str] = field(default_factory=dict)
    broken: str = ""  # the message of an error that comes in the stream, after the tokens, in the place of an end
    finish: str | None = None  # the finish reason; None: tool_calls after tool calls, else stop
    echo: Sequence[Tok] = ()  # sent back of the request before the tokens; none of it was computed


@dataclass
class Call:
    """A chat or completion request that came: its body, its headers (``Each-Word`` large), what was made of the planned tokens."""

    path: str
    body: dict[str, Any]
    headers: dict[str, str]
    query: str = ""
    planned: int = 0
    made: int = 0
    gone: bool = False  # the client closed the connection before the end


def line(text: str, entropy: float | None = UNSURE, *, reasoning: bool = True) -> list[Tok]:
    """A line of one token a word, newline at the end."""
    words = text.split(" ")
    return [Tok(w + (" " if n < len(words) - 1 else "\n"), entropy, reasoning) for n, w in enumerate(words)]


def thinking(*entropies: float | None, words: int = 40, answer: str = "42", pace: float = 0.0) -> Reply:
    """A thinking of one line of ``words`` tokens for each entropy, then ``answer``, a token a word."""
    tokens = [t for n, h in enumerate(entropies, 1) for t in line(" ".join([f"step{n}"] * words), h)]
    return Reply([*tokens, *said(answer)], pace=pace)


def said(text: str, entropy: float | None = SURE) -> list[Tok]:
    """An answer, a token a word."""
    words = text.split(" ")
    return [Tok(("" if n == 0 else " ") + w, entropy, reasoning=False) for n, w in enumerate(words)]


def is_answer_call(body: dict[str, Any]) -> bool:
    """Whether a request asks for the answer after a stop: closed thinking in it, or a turn that asks for it."""
    asked = body.get("messages") or body.get("input")
    messages = asked if isinstance(asked, list) else [{"content": asked or body.get("prompt", "")}]
    last = str(messages[-1].get("content") or "")
    return "</think>" in last or "final answer now" in last


def sums(body: dict[str, Any]) -> Reply:
    """Six lines of thinking, sure from the third on, then the answer; of a stopped run the answer only."""
    if is_answer_call(body):
        return Reply(said("The answer is 42"))
    return thinking(UNSURE, UNSURE, SURE, SURE, SURE, SURE, answer="The answer is 42", pace=0.0005)


def several(call: Call, choice: dict[str, Any]) -> list[dict[str, Any]]:
    """The choice as often as the request asks for (``n``)."""
    return [choice | {"index": index} for index in range(call.body.get("n") or 1)]


REFUSALS = {
    "not allowed": Reply(status=403, message="You are not allowed to request logprobs from this model"),
    "not enabled": Reply(status=400, message="Logprobs are not enabled for this model"),
    "unsupported": Reply(status=400, message="Unsupported parameter: 'logprobs' is not supported with this model."),
    "extra": Reply(status=422, message="top_logprobs: Extra inputs are not permitted"),
    "in the stream": Reply(broken="litellm.UnsupportedParamsError: x does not support parameters: ['logprobs', 'top_logprobs']"),
}
"""How servers refuse a request because it asks for logprobs."""


def refusing(refusal: Reply = REFUSALS["not allowed"], script: Callable[[dict[str, Any]], Reply] = sums) -> Any:
    """A script that refuses every request for logprobs, and answers the others without any."""

    def answered(body: dict[str, Any]) -> Reply:
        if asks_logprobs(body):
            return refusal
        made = script(body)
        return replace(made, tokens=[replace(token, entropy=None) for token in made.tokens])

    return answered


def asks_logprobs(body: dict[str, Any]) -> bool:
    """Whether a request asks for logprobs, by any API."""
    return bool(body.get("logprobs") or body.get("top_logprobs") or body.get("include"))


class Loopback(Serving):
    """The server; a context manager. ``calls`` holds what came, ``url`` ends in ``/v1``."""

    def __init__(
        self, script: Callable[[dict[str, Any]], Reply] = sums, *, owned_by: str = "vllm", field_name: str = "reasoning_content",
        plugin: str | None = None, version: str | None = "0.32.0",
        pages: dict[str, Callable[[], Any]] | None = None, rendered: str | None = None,
    ):  # fmt: skip
        self.script, self.owned_by, self.field_name = script, owned_by, field_name  # field_name "" = inline <think> tags
        self.rendered = rendered  # what /apply-template makes of any conversation, as llama.cpp's does
        self.plugin = plugin  # what says hello as vLLM's plug-in does; it closes no thinking by itself
        self.version = version  # what /version tells, as vLLM's does
        self.greeted = self.listed = 0  # how often it was asked for the plug-in, and for its models
        self.lock, self.slow = threading.Lock(), 0.0  # seconds before its models are told
        self.split = False  # the entries of the reasoning stand in a list of their own, as DeepSeek has it
        self.ascii = True  # other characters are escaped in what is sent
        self.pages = pages or {}  # further GET addresses, with what makes their JSON or text
        self.calls: list[Call] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                pass

            def end_headers(self) -> None:
                self.send_header("Connection", "close")  # kept, it would belong to an event loop that a test has closed
                super().end_headers()

            def do_GET(self) -> None:
                if self.path.endswith("/models"):
                    with server.lock:
                        server.listed += 1
                    time.sleep(server.slow)
                    models = {"object": "list", "data": [{"id": "scripted", "object": "model", "owned_by": server.owned_by}]}
                    self._json(200, models)
                elif self.path == "/version" and server.version:
                    self._json(200, {"version": server.version})
                elif self.path in server.pages:
                    page = server.pages[self.path]()
                    self._json(200, page, {"Content-Type": "text/plain"} if isinstance(page, str) else None)
                else:
                    self._json(404, {"error": {"message": "not found"}})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
                if "entropy_chains_hello" in (body.get("vllm_xargs") or {}):  # no call: refused in any case
                    server.greeted += 1
                    said = f"entropy-chains plug-in {server.plugin} (Scripted) is here: …" if server.plugin else "no such token"
                    self._json(400, {"error": {"message": said, "code": 400}})
                    return
                if server.rendered is not None and self.path == "/apply-template":
                    self._json(200, {"prompt": server.rendered})
                    return
                path, _, query = self.path.partition("?")
                call = Call(path, body, {name.title(): value for name, value in self.headers.items()}, query)
                server.calls.append(call)
                reply = server.script(body)
                call.planned = len(reply.tokens)
                if reply.status != 200:
                    self._json(reply.status, {"error": {"message": reply.message, "code": reply.status}}, reply.headers)
                elif body.get("stream"):
                    self._stream(call, reply)
                else:
                    self._whole(call, reply)

            def _json(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
                data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
                self.send_response(status)
                for name, text in {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}.items():
                    self.send_header(name, text)
                self.end_headers()
                self.wfile.write(data)

            def _whole(self, call: Call, reply: Reply) -> None:
                call.made = call.planned
                text = "".join(t.text for t in (*reply.echo, *server.content(reply)) if not t.reasoning or not server.field_name)
                message: dict[str, Any] = {"role": "assistant", "content": text}
                if server.field_name:
                    message[server.field_name] = "".join(t.text for t in reply.tokens if t.reasoning) or None
                if reply.tools:
                    message["tool_calls"] = tool_calls(reply)
                chat = call.path.endswith("/chat/completions")
                said = {"message": message} if chat else {"text": (message.get(server.field_name) or "") + text}
                choice = {"index": 0, **said, "finish_reason": finish_of(reply)}
                if call.body.get("logprobs"):
                    choice["logprobs"] = {"content": [e for t in reply.tokens if (e := entry(t, top(call.body)))]}
                found = {
                    "id": "c1",
                    "object": "chat.completion" if chat else "text_completion",
                    "created": 1,
                    "model": "scripted",
                    "choices": several(call, choice),
                }
                self._json(200, found | {"usage": usage(call)})

            def _stream(self, call: Call, reply: Reply) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                try:
                    if not call.path.endswith("/responses"):
                        self._event(call, {"role": "assistant", "content": ""})
                    for n, token in enumerate([*reply.echo, *server.content(reply, inline_only=False)]):
                        if self._is_gone():
                            raise BrokenPipeError
                        inline = not (token.reasoning and server.field_name)
                        delta = {"content": token.text} if inline else {server.field_name: token.text}
                        if call.path.endswith("/responses"):
                            self._respond(call, token)
                        else:
                            self._event(call, delta, entry(token, top(call.body)) if call.body.get("logprobs") else None)
                        call.made += n >= len(reply.echo)
                        if reply.pace:
                            time.sleep(reply.pace)
                    if reply.broken:
                        self._send({"error": {"message": reply.broken}})
                        self.wfile.write(b"0\r\n\r\n")
                        return
                    if call.path.endswith("/responses"):
                        self._send(
                            {"type": "response.completed", "sequence_number": 0, "response": response_of(call, server, reply)}
                        )
                        self.wfile.write(b"0\r\n\r\n")
                        return
                    for n, tool in enumerate(tool_calls(reply)):
                        self._event(call, {"tool_calls": [{"index": n, **tool}]})
                    self._event(call, {}, finish=finish_of(reply))
                    if (call.body.get("stream_options") or {}).get("include_usage"):
                        self._send({**HEAD, "choices": [], "usage": usage(call)})
                    self._raw(b"data: [DONE]\n\n")
                    self.wfile.write(b"0\r\n\r\n")
                except OSError:
                    call.gone = True
                    self.close_connection = True

            def _respond(self, call: Call, token: Tok) -> None:
                """A token of the Responses API; its reasoning has no logprobs."""
                inline = not (token.reasoning and server.field_name)
                event = {"type": f"response.{'output_text' if inline else 'reasoning_summary_text'}.delta", "delta": token.text}
                logprob = entry(token, top(call.body)) if inline else None
                place = {"item_id": "m1", "output_index": 0, "sequence_number": 0}
                place |= {"content_index": 0, "logprobs": [logprob] if logprob else []} if inline else {"summary_index": 0}
                self._send(event | place)

            def _event(self, call: Call, delta: dict[str, Any], logprob: Any = None, finish: str | None = None) -> None:
                if call.path.endswith("/chat/completions"):
                    choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": finish}
                    choice["logprobs"] = {"content": [logprob]} if logprob else None
                    if logprob and server.split and server.field_name in delta:
                        choice["logprobs"] = {"content": None, "reasoning_content": [logprob]}
                    for each in several(call, choice):
                        self._send({**HEAD, "choices": [each]})
                else:
                    text = delta.get("content") or delta.get(server.field_name) or ""
                    found = {"index": 0, "text": text, "finish_reason": finish, "logprobs": flat(logprob) if logprob else None}
                    for each in several(call, found):
                        self._send({**HEAD, "object": "text_completion", "choices": [each]})

            def _send(self, value: Any) -> None:
                self._raw(b"data: " + json.dumps(value, ensure_ascii=server.ascii).encode() + b"\n\n")

            def _raw(self, data: bytes) -> None:
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                self.wfile.flush()

            def _is_gone(self) -> bool:
                ready, _, _ = select.select([self.connection], [], [], 0)
                return bool(ready) and not self.connection.recv(1, 2)  # MSG_PEEK: end of file = the client is gone

        self.serve(Handler)
        self.url = f"{self.origin}/v1"

    @property
    def made(self) -> int:
        """Tokens computed for all calls so far."""
        return sum(c.made for c in self.calls)

    def settled(self, seconds: float = 2.0) -> int:
        """Tokens computed once nothing is made any more."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            before = self.made
            time.sleep(0.05)
            if self.made == before:
                break
        return self.made

    def content(self, reply: Reply, *, inline_only: bool = True) -> list[Tok]:
        """The tokens that stand in ``content``, thinking tags included where there is no field for the reasoning."""
        tokens = list(reply.tokens)
        if self.field_name:
            return [t for t in tokens if not t.reasoning] if inline_only else tokens
        thought = [t for t in tokens if t.reasoning]
        tags = ([Tok("<think>"), Tok("\n")], [Tok("</think>"), Tok("\n\n")]) if thought else ([], [])
        return [*tags[0], *thought, *tags[1], *(t for t in tokens if not t.reasoning)]
