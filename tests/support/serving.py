"""What the servers and receivers of the tests have in common: threads of their own, from ``with`` on until its end."""

from __future__ import annotations

import gzip
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class Serving:
    """Serves on a free port of loopback; a context manager.

    Attributes:
        origin: its address, without a path.
    """

    def serve(self, handler: type[BaseHTTPRequestHandler]) -> None:
        """Take the port; nothing is answered yet."""
        self._server = _Server(("127.0.0.1", 0), handler)
        self.origin = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a client that goes away while it sends is no news
            super().handle_error(request, client_address)


class Receiver(Serving):
    """Takes what is posted, as collectors of traces do; ``got`` holds address, headers and body of each, unpacked."""

    def __init__(self, status: int = 200):
        self.got: list[tuple[str, Any, bytes]] = []
        got = self.got

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                got.append((self.path, self.headers, gzip.decompress(body) if self.headers["Content-Encoding"] else body))
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *args: Any) -> None:
                pass

        self.serve(Handler)
