"""Pictures of Phoenix for the docs: ``python scripts/phoenix_picture.py [--policy P]``.

A LlamaIndex query engine and a LangChain chain on llama-server, with the bundled model, are stopped early; their spans and what was
saved go to a Phoenix, and a headless Chromium takes its pictures there: the table of traces with the column and the chart of what
was saved, and a model's span with its attributes. Needs both installs (``scripts/install_*.sh``), the requirements of development,
and a ``chromium``.
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
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import engines
import phoenix
import websockets
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_entropy_chains import with_early_stop
from langchain_entropy_chains.spans import EarlyStopSpans, phoenix_savings
from langchain_openai import ChatOpenAI
from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.llms.entropy_chains import attach
from llama_index.llms.openai_like import OpenAILike
from openinference.instrumentation.langchain import LangChainInstrumentor
from openinference.instrumentation.llama_index import LlamaIndexInstrumentor
from openinference.semconv.resource import ResourceAttributes
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from entropy_chains import Policy
from entropy_chains.demo.questions import draw_questions

PROJECT, RUNS = "savings", 6
PICTURES = engines.ROOT / "docs" / "pictures"
SHARE = "early_stop_tokens_saved_share"
COLUMNS = (
    "statusCode",
    "error",
    "userId",
    "annotations",
    "traceAnnotations",
    "startTime",
    "cumulativeTokenCostTotal",
    f"trace-annotations-score-{SHARE}",
)
"""Columns of Phoenix's table that are ticked the other way: the first say nothing here, and the last is ours."""

ELEMENT = "[...document.querySelectorAll('*')].filter(e => e.textContent.trim() == '{text}').pop()"
"""The page's last, innermost element with a text."""


def run_both(engine: engines.Engine, running: phoenix.Phoenix, policy: Policy) -> None:
    """Some questions to each framework; their spans and savings are sent to Phoenix."""
    provider = TracerProvider(resource=Resource({ResourceAttributes.PROJECT_NAME: PROJECT}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(running.traces_url)))
    provider.add_span_processor(phoenix_savings(running.url))
    for instrumentor in (LlamaIndexInstrumentor(), LangChainInstrumentor()):
        instrumentor.instrument(tracer_provider=provider)
    policy, temperature = policy.for_model(engine.name), (policy.temperature or [0])[0]
    questions = [drawn["question"] for drawn in draw_questions(2 * RUNS, seed=777)]

    llm: Any = OpenAILike(
        model=engine.name,
        api_base=engine.base_url,
        api_key="none",
        is_chat_model=True,
        temperature=temperature,
        max_tokens=1000,
        context_window=2048,
        timeout=300,
    )
    notes = VectorStoreIndex([TextNode(text="the total of each order is a product")], embed_model=MockEmbedding(8))
    query_engine = attach(notes.as_query_engine(llm=llm), policy)
    for question in questions[:RUNS]:
        print(query_engine.query(question), file=sys.stderr)

    settings: Any = {"temperature": temperature, "seed": 0, "max_tokens": 1600}
    model = ChatOpenAI(model=engine.name, base_url=engine.base_url, api_key="none", **settings)
    chain = with_early_stop(ChatPromptTemplate.from_template("{question}") | model | StrOutputParser(), policy, holdout=0.3)
    for question in questions[RUNS:]:
        print(chain.invoke({"question": question}, {"callbacks": [EarlyStopSpans()]}), file=sys.stderr)
    provider.shutdown()


class Page:
    """A browser's page, driven by its protocol for developers."""

    def __init__(self, socket: Any):
        self._socket, self._numbers = socket, itertools.count(1)

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol."""
        number = next(self._numbers)
        await self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while (reply := json.loads(await self._socket.recv())).get("id") != number:
            pass
        return dict(reply["result"])

    async def open(self, address: str, text: str, width: int, height: int) -> None:
        """Load a page and wait until it shows a text."""
        await self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        await self.ask("Page.navigate", url=address)
        await self.run(f"if (!document.body.innerText.includes({text!r})) throw 0")

    async def click(self, text: str) -> None:
        """Click on the element with a text, as soon as it is there."""
        await self.run(ELEMENT.format(text=text) + ".click()")

    async def run(self, script: str, *, seconds: float = 120, wait: float = 3) -> None:
        """Run a script as soon as it does not fail, and wait until its effect is seen."""
        end = time.monotonic() + seconds
        while "exceptionDetails" in await self.ask("Runtime.evaluate", expression=script, userGesture=True):
            if time.monotonic() > end:
                raise SystemExit(f"not on the page: {script}")
            await asyncio.sleep(0.5)
        await asyncio.sleep(wait)

    async def save(self, out: Path) -> None:
        """Save what is seen."""
        shot = await self.ask("Page.captureScreenshot", format="png")
        out.write_bytes(base64.b64decode(shot["data"]))


@asynccontextmanager
async def browser() -> AsyncIterator[Page]:
    """A headless Chromium."""
    command = shutil.which("chromium") or shutil.which("google-chrome")
    if command is None:
        raise SystemExit("no chromium is installed")
    port = engines.free_port()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        settings = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            f"--remote-debugging-port={port}",
            f"--user-data-dir={profile}",
        ]
        process = subprocess.Popen([command, *settings, "about:blank"], stderr=subprocess.DEVNULL)  # noqa: S603  # an installed one
        try:
            async with websockets.connect(page_of(port), max_size=None) as socket:
                yield Page(socket)
        finally:
            process.terminate()
            process.wait(20)


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


async def pictures(project: str, trace: str, folder: Path) -> None:
    """What was saved, at a glance; and the span of a model.

    Args:
        project: the address of the project's page.
        trace: the address of a trace with a stopped run of LangChain's.
        folder: where the pictures are saved.
    """
    async with browser() as page:
        await page.open(f"{project}/traces?timeRangeKey=15m", SHARE, 1600, 800)
        await page.click("Columns")
        for column in COLUMNS:
            await page.run(f"document.querySelector('input[name={column}]').click()", wait=0.2)
        for kind in ("mousePressed", "mouseReleased"):  # beside the list of columns, which closes it
            await page.ask("Input.dispatchMouseEvent", type=kind, x=900, y=20, button="left", clickCount=1)
        await asyncio.sleep(5)
        await page.save(folder / "phoenix-savings.png")
        await page.open(trace, "EarlyStopChatModel", 1400, 1760)
        for text in ("EarlyStopChatModel", "Attributes"):
            await page.click(text)
        await page.save(folder / "phoenix-langchain.png")


def main() -> None:
    """Make the pictures."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--policy", type=Path, default="demo/policy.json", help="made by: entropy-chains demo")
    parser.add_argument("--out", type=Path, default=PICTURES, help="a folder")
    given = parser.parse_args()
    with engines.start("llama") as engine, phoenix.start() as running:
        run_both(engine, running, Policy.load(given.policy))
        stopped, end = list[dict[str, Any]](), time.monotonic() + 30
        while not stopped and time.monotonic() < end:  # Phoenix stores spans after they have arrived
            spans = [s for s in running.spans(PROJECT) if s["name"] == "EarlyStopChatModel"]
            stopped = [s for s in spans if s["attributes"].get("early_stop_stopped")]
        if not stopped:
            raise SystemExit("no run was stopped, so there is nothing to see")
        ids = {p["name"]: p["id"] for p in running.get("/v1/projects")["data"]}
        project = f"{running.url}/projects/{ids[PROJECT]}"
        asyncio.run(pictures(project, f"{project}/traces/{stopped[0]['context']['trace_id']}", given.out))


if __name__ == "__main__":
    main()
