"""A scripted Ollama on loopback: it speaks Ollama's own API, one JSON object a line, and counts what it made."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from loopback import Reply, entry


class Ollama:
    """Answers every chat by ``script(body) -> Reply``, of which it sends the tokens.

    Attributes:
        url: its address.
        bodies: the requests that came.
        made: tokens sent in each.
    """

    def __init__(self, script: Callable[[dict[str, Any]], Reply]):
        self.bodies: list[dict[str, Any]] = []
        self.made: list[int] = []
        ollama = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                ollama.bodies.append(body)
                ollama.made.append(0)
                self.send_response(200)
                self.send_header("Content-Type", "application/x-ndjson")
                self.end_headers()
                with suppress(ConnectionError):  # the client has what it wants
                    self._reply(body)

            def _reply(self, body: dict[str, Any]) -> None:
                for token in script(body).tokens:
                    told = {
                        "message": {"role": "assistant", "content": "", "thinking" if token.reasoning else "content": token.text}
                    }
                    listed = entry(token, body.get("top_logprobs") or 1) if body.get("logprobs") else None
                    self._send({**told, "logprobs": [listed]} if listed else told)
                    ollama.made[-1] += 1
                self._send({"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop"})

            def _send(self, told: dict[str, Any]) -> None:
                line = {"model": "scripted", "created_at": "2026-01-01T00:00:00Z", "done": False, **told}
                self.wfile.write(json.dumps(line).encode() + b"\n")
                self.wfile.flush()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Ollama:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
