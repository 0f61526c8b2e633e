"""The picture of a LangChain run in Phoenix: ``python scripts/phoenix_picture.py [--policy P] [--out PNG]``.

An ordinary chain on llama-server with the bundled model is stopped early, its spans go to a Phoenix, and a headless Chromium opens
the trace there and takes the picture. Needs both installs (``scripts/install_*.sh``), the requirements of development, and a
``chromium``.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import engines
import phoenix
import websockets
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_entropy_chains import with_early_stop
from langchain_entropy_chains.spans import EarlyStopSpans
from langchain_openai import ChatOpenAI
from openinference.instrumentation.langchain import LangChainInstrumentor
from openinference.semconv.resource import ResourceAttributes
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from entropy_chains import Policy
from entropy_chains.demo.questions import draw_questions

PROJECT = "langchain"
CLICK = "[...document.querySelectorAll('*')].find(e => !e.children.length && e.textContent.trim() == '{text}').click()"
"""Clicks on the page's element with a text."""


def run_chain(engine: engines.Engine, traces_url: str, policy: Policy) -> list[str]:
    """Its answers to four questions; its spans are in Phoenix."""
    provider = TracerProvider(resource=Resource({ResourceAttributes.PROJECT_NAME: PROJECT}))
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(traces_url)))
    LangChainInstrumentor().instrument(tracer_provider=provider)
    settings = {"temperature": (policy.temperature or [0])[0], "seed": 0, "max_tokens": 1600}
    llm = ChatOpenAI(model=engine.name, base_url=engine.base_url, api_key="none", **settings)
    chain = ChatPromptTemplate.from_template("{question}") | llm | StrOutputParser()
    chain = with_early_stop(chain, policy.for_model(engine.name))
    return chain.batch(draw_questions(4, seed=777), {"callbacks": [EarlyStopSpans()]})


async def picture(address: str, out: Path) -> None:
    """Open the page, choose the model's span and its attributes, and save what is seen."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("no chromium is installed")
    port = engines.free_port()
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", f"--remote-debugging-port={port}"]
        command += [f"--user-data-dir={profile}", "--window-size=1400,900", "about:blank"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)  # noqa: S603  # a browser that is installed
        try:
            async with websockets.connect(page_of(port), max_size=None) as socket:
                numbers = itertools.count(1)

                async def ask(method: str, **params: Any) -> dict[str, Any]:
                    number = next(numbers)
                    await socket.send(json.dumps({"id": number, "method": method, "params": params}))
                    while (reply := json.loads(await socket.recv())).get("id") != number:
                        pass
                    return dict(reply["result"])

                await ask("Emulation.setDeviceMetricsOverride", width=1400, height=1760, deviceScaleFactor=1, mobile=False)
                await ask("Page.navigate", url=address)
                for text in ("EarlyStopChatModel", "Attributes"):
                    await click(ask, CLICK.format(text=text))
                await asyncio.sleep(3)
                shot = await ask("Page.captureScreenshot", format="png")
                out.write_bytes(base64.b64decode(shot["data"]))
        finally:
            process.terminate()
            process.wait(20)


async def click(ask: Any, script: str, seconds: float = 60) -> None:
    """Click as soon as it is there."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if "exceptionDetails" not in await ask("Runtime.evaluate", expression=script):
            await asyncio.sleep(2)
            return
        await asyncio.sleep(0.5)
    raise SystemExit(f"not on the page: {script}")


def page_of(port: int, seconds: float = 60) -> str:
    """The address at which the browser's page is driven."""
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=5) as reply:  # loopback
                return next(str(t["webSocketDebuggerUrl"]) for t in json.load(reply) if t["type"] == "page")
        except (OSError, StopIteration):
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def main() -> None:
    """Make the picture."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--policy", type=Path, default="demo/policy.json", help="made by: entropy-chains demo")
    parser.add_argument("--out", type=Path, default=engines.ROOT / "docs" / "pictures" / "phoenix-langchain.png")
    given = parser.parse_args()
    with engines.start("llama") as engine, phoenix.start() as running:
        print(run_chain(engine, running.traces_url, Policy.load(given.policy)), file=sys.stderr)
        stopped = [s for s in running.spans(PROJECT, 16) if s["attributes"].get("early_stop_stopped")]
        if not stopped:
            raise SystemExit("no run was stopped, so there is nothing to see")
        projects = {p["name"]: p["id"] for p in running.get("/v1/projects")["data"]}
        address = f"{running.url}/projects/{projects[PROJECT]}/traces/{stopped[0]['context']['trace_id']}"
        asyncio.run(picture(address, given.out))


if __name__ == "__main__":
    main()
