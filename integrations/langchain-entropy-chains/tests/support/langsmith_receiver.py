"""A receiver for what the real LangSmith SDK posts, on loopback: multipart, compressed or not, merged into runs.

It knows one project, ``p``, and answers the two calls by which its runs are read back::

    with Receiver() as receiver:
        client = receiver.client()
        ...
        client.flush()
        assert receiver.runs[run_id]["extra"]["metadata"]
"""

from __future__ import annotations

import email
import email.policy
import json
import threading
from http.server import BaseHTTPRequestHandler
from typing import Any

import langsmith
import zstandard
from serving import Serving

PROJECT = "8c9b2a4e-0000-4000-8000-000000000001"


class Receiver(Serving):
    """``runs`` by id, as they stand after every post and patch; ``feedback`` in order; ``posted``: all bytes that came."""

    def __init__(self, *, zstd: bool = True):
        self.runs: dict[str, dict[str, Any]] = {}
        self.feedback: list[dict[str, Any]] = []
        self.queries: list[dict[str, Any]] = []
        self.posted = b""
        self.compressed = False
        self.page = 1000
        self._lock = threading.Lock()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                if self.path.endswith("/info"):
                    flags = {"zstd_compression_enabled": zstd}
                    limits = {"use_multipart_endpoint": True, "size_limit": 100, "size_limit_bytes": 20_000_000}
                    limits |= {"scale_up_qsize_trigger": 1000, "scale_up_nthreads_limit": 16, "scale_down_nempty_trigger": 4}
                    self._json({"version": "1", "instance_flags": flags, "batch_ingest_config": limits})
                else:
                    ids = {"id": PROJECT, "tenant_id": PROJECT, "reference_dataset_id": None}
                    project = {**ids, "name": "p", "start_time": "2026-01-01T00:00:00Z"}
                    self._json([project] if "name=p&" in self.path + "&" else [])

            def do_POST(self) -> None:
                data = self._body()
                if self.path.endswith("/runs/multipart"):
                    receiver.take(data, self.headers["Content-Type"])
                    self._json({})
                elif self.path.endswith("/runs/query"):
                    receiver.queries.append(json.loads(data))
                    self._json(receiver.found(json.loads(data)))
                elif self.path.endswith("/feedback"):
                    receiver.feedback.append(json.loads(data))
                    self._json(receiver.feedback[-1])
                elif "/feedback/" in self.path:  # one that is known, changed
                    known = next(f for f in receiver.feedback if f["id"] == self.path.rpartition("/")[2])
                    known |= json.loads(data)
                    self._json(known)
                else:
                    self._json({})

            do_PATCH = do_POST  # noqa: N815 (http.server's name)

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") == "chunked":
                    parts = []
                    while size := int(self.rfile.readline(), 16):
                        parts.append(self.rfile.read(size))
                        self.rfile.readline()
                    self.rfile.readline()
                    data = b"".join(parts)
                else:
                    data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.headers.get("Content-Encoding") == "zstd":
                    receiver.compressed = True
                    return zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read()
                return data

            def _json(self, value: Any) -> None:
                data = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.serve(Handler)

    def client(self) -> langsmith.Client:
        """The real SDK's client, posting here."""
        return langsmith.Client(api_url=self.origin, api_key="lsv2-test-key", auto_batch_tracing=True)

    def take(self, data: bytes, content_type: str) -> None:
        """Merge a multipart body into the runs: ``post.ID``, ``patch.ID``, ``post.ID.outputs``, ``feedback.ID``."""
        head = f"Content-Type: {content_type}\r\n\r\n".encode()
        message = email.message_from_bytes(head + data, policy=email.policy.HTTP)
        with self._lock:
            self.posted += data
            for part in message.iter_parts():
                kind, _, rest = str(part.get_param("name", header="content-disposition")).partition(".")
                run_id, _, field = rest.partition(".")
                value = json.loads(part.get_payload(decode=True))
                if kind == "feedback":
                    self.feedback.append(value)
                else:
                    said = {field: value} if field else {n: v for n, v in value.items() if v is not None}
                    known = self.runs.get(run_id, {})
                    # Several bodies are under way at once: a run's beginning may come after its end.
                    self.runs[run_id] = {**said, **known} if kind == "post" else {**known, **said}

    def found(self, query: dict[str, Any]) -> dict[str, Any]:
        """A page of the runs of the type asked for, with the fields asked for, as ``/api/v2/runs/query`` gives them."""
        kept = [r for r in self.runs.values() if r.get("run_type") == query["run_type"].lower()]
        start, size = int(query.get("cursor") or 0), min(query["page_size"], self.page)
        more = start + size < len(kept)
        fields = [name.lower() for name in query["selects"]]
        items = [{n: v for n, v in {**r, "metadata": r["extra"]["metadata"]}.items() if n in fields} for r in kept]
        return {"items": items[start : start + size], "next_cursor": str(start + size) if more else None}

    def llm(self) -> list[dict[str, Any]]:
        """The model runs, in the order they began."""
        return sorted((r for r in self.runs.values() if r["run_type"] == "llm"), key=lambda r: r["start_time"])

    def roots(self) -> list[dict[str, Any]]:
        """The root runs."""
        return [r for r in self.runs.values() if not r.get("parent_run_id")]
