"""Arize Phoenix for tests and docs, on this machine only: ``python scripts/phoenix.py [--port N]``.

``start()`` is a context manager that gives a Phoenix; the command runs one in the foreground until Ctrl-C. The install comes from
``scripts/install_phoenix.sh``. Spans go to ``traces_url`` (OTLP over HTTP) and are read back with ``spans()``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines import CACHE, free_port, stop

from entropy_chains.errors import BackendError, SettingsError

FOLDER = CACHE / "phoenix-20.26.1"  # as in the install script

QUIET = {
    "PHOENIX_TELEMETRY_ENABLED": "false",
    "PHOENIX_ALLOW_EXTERNAL_RESOURCES": "false",
    "PHOENIX_DISABLE_AGENT_ASSISTANT": "true",
    "PHOENIX_ENABLE_MCP_SERVER": "false",
    "DO_NOT_TRACK": "1",
}
"""It sends nothing to anybody, and loads nothing from elsewhere."""


@dataclass(frozen=True)
class Phoenix:
    """A running Phoenix.

    Attributes:
        url: of its pages and its REST API.
        traces_url: where an OTLP exporter sends spans, as protobuf over HTTP.
    """

    url: str

    @property
    def traces_url(self) -> str:
        return f"{self.url}/v1/traces"

    def get(self, path: str) -> Any:
        """A page of the REST API."""
        with urllib.request.urlopen(f"{self.url}{path}", timeout=30) as reply:  # noqa: S310  # our own loopback address
            return json.load(reply)

    def spans(self, project: str, least: int = 1, timeout: float = 30) -> list[dict[str, Any]]:
        """A project's spans, once there are at least so many and none lacks its parent; Phoenix stores them after they arrive.

        Raises:
            BackendError: there are fewer when the time is over, or the trace is not whole.
        """
        deadline, found = time.monotonic() + timeout, list[dict[str, Any]]()
        while time.monotonic() < deadline:
            with suppress(urllib.error.HTTPError):  # no such project yet
                found = self.get(f"/v1/projects/{urllib.parse.quote(project)}/spans?limit=1000")["data"]
            known = {None, *(s["context"]["span_id"] for s in found)}
            if len(found) >= least and all(s["parent_id"] in known for s in found):
                return found
            time.sleep(0.2)
        what = f"project {project!r} has {len(found)} spans after {timeout:.0f} s"
        raise BackendError(f"{what}; at least {least} with all their parents were expected")


@contextmanager
def start(*, port: int = 0, timeout: float = 180) -> Iterator[Phoenix]:
    """Start Phoenix with an empty database, wait until it answers, and stop it at the end.

    Args:
        port: on the loopback interface; 0 = one that is free. (Its second port, for gRPC, listens on all interfaces.)
        timeout: seconds until it must answer.

    Raises:
        SettingsError: it is not installed.
        BackendError: it ended or did not answer in time; the message shows the end of its log.
    """
    if not (FOLDER / ".complete").exists():
        raise SettingsError("Phoenix is not installed; run scripts/install_phoenix.sh")
    port = port or free_port()
    with tempfile.TemporaryDirectory(prefix="entropy-chains-") as temporary:
        log = Path(temporary) / "phoenix.log"
        places = {"PHOENIX_HOST": "127.0.0.1", "PHOENIX_PORT": str(port), "PHOENIX_GRPC_PORT": str(free_port())}
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603  # a command of ours
                [str(FOLDER / "bin" / "phoenix"), "serve"],
                cwd=temporary,
                env=os.environ | QUIET | places | {"PHOENIX_WORKING_DIR": temporary},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        phoenix = Phoenix(f"http://127.0.0.1:{port}")
        try:
            deadline = time.monotonic() + timeout
            while not _answers(phoenix):
                if process.poll() is not None or time.monotonic() > deadline:
                    tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
                    raise BackendError(f"Phoenix did not answer; the end of its log:\n{tail}")
                time.sleep(0.2)
            yield phoenix
        finally:
            stop(process)


def _answers(phoenix: Phoenix) -> bool:
    with suppress(OSError, ValueError):
        return "data" in phoenix.get("/v1/projects")
    return False


def main() -> None:
    """Run Phoenix in the foreground; the only line on standard output is its address."""
    parser = argparse.ArgumentParser(description="Run Arize Phoenix until Ctrl-C.")
    parser.add_argument("--port", type=int, default=0, help="default: one that is free")
    try:
        with start(port=parser.parse_args().port) as phoenix:
            print(phoenix.url, flush=True)
            print(f"send spans to {phoenix.traces_url}; Ctrl-C ends it", file=sys.stderr)
            while True:
                time.sleep(3600)
    except (SettingsError, BackendError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
