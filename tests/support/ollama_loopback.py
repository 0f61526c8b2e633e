"""A scripted Ollama on loopback: it speaks Ollama's own chat API, one JSON object a line, and counts what it made.

It is a fake, made after the documentation of Ollama's API and the code of its server (0.12.11 to 2026-08): a model thinks unless
``think`` is false; tags are never sent, and neither are the blanks around them; what may become the closing tag is held back, and
the logprobs of such a token are lost; every other object has those of its token; ``top_logprobs`` above 20 is refused.
"""

from __future__ import annotations

import json
import select
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

from loopback import Reply, Tok
from serving import Serving
from wire import entry

OPEN, CLOSE = "<think>", "</think>"


class Ollama(Serving):
    """Answers every chat by ``script(body) -> Reply``, of which it sends the tokens.

    Args:
        script: makes the replies; their thinking is left out where the request says ``"think": false``.
        tags: the model writes its thinking in tags, which the server splits off; else every token is sent as it is.
        since: versions before 0.12.11 know no logprobs.
        obeys: the model can be told not to think (gpt-oss cannot).

    Attributes:
        script: as above; another may be set.
        url: its address.
        bodies: the requests that came.
        made: tokens computed in each.
        gone: requests whose client left before the end.
    """

    def __init__(
        self,
        script: Callable[[dict[str, Any]], Reply],
        *,
        tags: bool = False,
        since: tuple[int, int, int] = (0, 12, 11),
        obeys: bool = True,
    ):
        self.script = script
        self.bodies: list[dict[str, Any]] = []
        self.made: list[int] = []
        self.gone = 0
        self.lock = threading.Lock()
        ollama = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path == "/api/show":
                    self._json(200, {"model_info": {"scripted.context_length": 8000}, "capabilities": ["completion", "thinking"]})
                    return
                with ollama.lock:
                    number = len(ollama.made)
                    ollama.bodies.append(body)
                    ollama.made.append(0)
                if (body.get("top_logprobs") or 0) > 20:
                    self._json(400, {"error": "top_logprobs must be between 0 and 20"})
                    return
                reply = ollama.script(body)
                if reply.status != 200:
                    self._json(reply.status, {"error": reply.message})
                    return
                try:
                    self._reply(number, body, reply)
                except OSError:  # the client has what it wants
                    ollama.gone += 1
                    self.close_connection = True

            def _json(self, status: int, value: Any) -> None:
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(data)

            def _reply(self, number: int, body: dict[str, Any], reply: Reply) -> None:
                streamed = body.get("stream") is not False
                thinks = body.get("think") is not False or not obeys
                tokens = [token for token in reply.tokens if thinks or not token.reasoning]
                listed = since >= (0, 12, 11) and body.get("logprobs")
                if streamed:
                    self.send_response(200)
                    self.send_header("Content-Type", "application/x-ndjson")
                    self.send_header("Transfer-Encoding", "chunked")
                    self.send_header("Connection", "close")  # users' models never close theirs
                    self.end_headers()
                whole: dict[str, Any] = {"role": "assistant", "content": ""}
                entries: list[Any] = []
                for token, shown in split(tokens) if tags else as_they_are(tokens):
                    ollama.made[number] += 1
                    if reply.pace:
                        time.sleep(reply.pace)
                    found = entry(token, body.get("top_logprobs") or 1) if listed and shown else None
                    entries += [found] if found else []
                    for name, text in shown.items():
                        whole[name] = whole.get(name, "") + text
                    if streamed and shown:
                        if self._is_gone():
                            raise BrokenPipeError
                        told = {"message": {"role": "assistant", "content": "", **shown}}
                        self._send({**told, "logprobs": [found]} if found else told)
                calls = [{"function": {"name": name, "arguments": given}} for name, given in reply.tools]
                counts = {
                    "prompt_eval_count": len(json.dumps(body["messages"]).split()),
                    "eval_count": ollama.made[number],
                    "total_duration": 1,
                    "load_duration": 1,
                }
                last = {"done": True, "done_reason": reply.finish or "stop", **counts}
                if streamed:
                    if calls:
                        self._send({"message": {"role": "assistant", "content": "", "tool_calls": calls}})
                    self._send({"message": {"role": "assistant", "content": ""}, **last})
                    self.wfile.write(b"0\r\n\r\n")
                    return
                message = {**whole, **({"tool_calls": calls} if calls else {})}
                self._json(200, {**HEAD, "message": message, **last, **({"logprobs": entries} if entries else {})})

            def _send(self, told: dict[str, Any]) -> None:
                data = json.dumps({**HEAD, "done": False, **told}).encode() + b"\n"
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                self.wfile.flush()

            def _is_gone(self) -> bool:
                ready, _, _ = select.select([self.connection], [], [], 0)
                return bool(ready) and not self.connection.recv(1, 2)  # MSG_PEEK: end of file = the client is gone

        self.serve(Handler)
        self.url = self.origin

    def left(self, seconds: float = 5.0) -> int:
        """Requests whose client left before the end; one that just did is seen at the reply's next token."""
        until = time.monotonic() + seconds
        while not self.gone and time.monotonic() < until:
            time.sleep(0.005)
        return self.gone


HEAD = {"model": "scripted", "created_at": "2026-01-01T00:00:00Z"}


def as_they_are(tokens: list[Tok]) -> Iterator[tuple[Tok, dict[str, str]]]:
    """The tokens of the script, each with the text of the object that it is sent in."""
    for token in tokens:
        yield token, {"thinking" if token.reasoning else "content": token.text}


def split(tokens: list[Tok]) -> Iterator[tuple[Tok, dict[str, str]]]:
    """The tokens of a model that writes its thinking in tags, each with the texts that are sent with it; none: nothing is sent."""
    thought, said = [t for t in tokens if t.reasoning], [t for t in tokens if not t.reasoning]
    if not thought:
        yield from as_they_are(said)
        return
    own = [Tok(OPEN), Tok("\n"), *thought, Tok("\n"), Tok(CLOSE), Tok("\n\n"), *said]
    held, closed, blank = "", False, True  # blank: the blanks after a tag are being left out
    yield own[0], {}
    for token in own[1:]:
        text, shown = held + token.text, dict[str, str]()
        held = ""
        if blank:
            text = text.lstrip()
        if text and not closed:
            before, tag, text = text.partition(CLOSE)
            if not tag:
                kept = next((n for n in range(len(CLOSE) - 1, 0, -1) if before.endswith(CLOSE[:n])), 0)
                before, held = before[: len(before) - kept], before[len(before) - kept :]
            closed, blank = bool(tag), bool(tag)
            text = text.lstrip()
            shown |= {"thinking": before} if before else {}
        if text and closed:
            shown["content"] = text
            blank = False
        yield token, shown
