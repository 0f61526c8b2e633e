"""The table of providers: a stream of each in the tests, a page that is the table, and its names where users meet them."""

from __future__ import annotations

import asyncio
import itertools
import re
import warnings

import httpx
import openai
import pytest
from hostile import Hostile, begin
from hypothesis import given
from hypothesis import strategies as st
from loopback import Loopback, Reply, said
from places import ROOT

from entropy_chains.backends.openai import AsyncOpenAIBackend, OpenAIBackend
from entropy_chains.backends.remote.providers import PROVIDERS, at, of_class, page
from entropy_chains.backends.remote.transfer import Transfer
from entropy_chains.core.steps import Segmentation
from entropy_chains.doctor.examine import examine

STREAMS = ROOT / "tests" / "data" / "streams"
LINES = Segmentation("line", 1)
ASKED = [[{"role": "user", "content": "6*7?"}]]
THOUGHT = "Six times seven is forty two."


def run_of(name, *, asynchronous=False, size=None):
    """What the backend makes of a stream, whose bytes come as they are, or so many at a time."""
    data = (STREAMS / f"{name}.sse").read_bytes()
    parts = [data] if size is None else [data[at : at + size] for at in range(0, len(data), size)]

    async def waited(server):
        async with openai.AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
            return (await AsyncOpenAIBackend(client, "m", without_logprobs="full").agenerate(ASKED, segmentation=LINES))[0]

    with Hostile(lambda request: [*begin(), *parts], owned_by="x") as server, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if asynchronous:
            return asyncio.run(waited(server))
        with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
            return OpenAIBackend(client, "m", without_logprobs="full").generate(ASKED, segmentation=LINES)[0]


def test_every_row_has_a_stream_and_every_stream_a_row():
    """None is forgotten on either side."""
    assert {p.stream for p in PROVIDERS} == {path.stem for path in STREAMS.glob("*.sse")}
    assert len({p.name for p in PROVIDERS}) == len(PROVIDERS)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda p: p.stream)
def test_its_stream_is_read(provider, asynchronous):
    """The answer, letter for letter; the thinking where it is sent; an entropy of it where the table says so, and nowhere else."""
    run = run_of(provider.stream, asynchronous=asynchronous)
    assert (run.answer, run.finish_reason) == ("42", "stop")
    assert run.reasoning in (THOUGHT, "")
    entropies = [step.record.entropy for step in run.steps]
    assert (entropies != [] and None not in entropies) is bool(provider.reasoning)
    assert run.tokens > 0


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize("name", ["vllm", "gateway", "openrouter"])
def test_it_is_read_alike_however_its_bytes_are_cut(name, size):
    """A byte order mark, keep-alives and events without data included."""
    whole, cut = run_of(name), run_of(name, size=size)
    assert (whole.answer, whole.reasoning, whole.tokens) == (cut.answer, cut.reasoning, cut.tokens)
    assert [s.record for s in whole.steps] == [s.record for s in cut.steps]


@given(st.sets(st.integers(1, 60) | st.integers(1, 1000)))
def test_the_bytes_that_are_passed_on_are_the_same_however_they_came(cuts):
    """Without the byte order mark and the events that hold nothing; the end of the stream is seen, too."""
    data = (STREAMS / "gateway.sse").read_bytes()
    ends = [*sorted(cuts), len(data)]
    whole, cut = Transfer(), Transfer()
    passed = whole.take(data) + whole.rest()
    assert b"".join(cut.take(data[a:b]) for a, b in itertools.pairwise([0, *ends])) + cut.rest() == passed
    assert (whole.done, cut.done) == (True, True)
    assert not passed.startswith(b"\xef")
    assert re.search(rb"(?m)^data:[ \t]*$", passed) is None


def test_reasoning_in_details_alone_is_read():
    """OpenRouter's."""
    assert run_of("openrouter").reasoning == THOUGHT


def test_a_count_of_nothing_is_no_count():
    """A gateway that counts 0 tokens: those that came are told."""
    assert run_of("gateway").tokens == run_of("groq").tokens == 8


def test_the_page_is_the_table():
    """``docs/providers.md`` holds it, row by row, and no row besides."""
    text = (ROOT / "docs" / "providers.md").read_text(encoding="utf-8")
    assert page() in text
    assert len(re.findall(r"(?m)^\|", text)) == len(page().splitlines())


def test_an_address_names_its_providers():
    """By the host alone; a name within another one, or none, is nobody's."""
    assert [p.name for p in at("https://api.deepseek.com/v1")] == ["DeepSeek API"]
    assert [p.stream for p in at("https://api.openai.com/v1")] == ["openai_reasoning", "openai_gpt5"]
    assert [p.stream for p in at("https://eu.api.mistral.ai:443/v1")] == ["mistral"]
    for other in ("http://127.0.0.1:8000/v1", "https://api.deepseek.com.example.org/v1", "https://xapi.groq.com", "", "http://["):
        assert not at(other)


def test_the_doctor_names_the_provider():
    """Whoever it asks at that address, the table's row is told."""
    with Loopback(lambda body: Reply(said("42"))) as server:
        client = openai.OpenAI(base_url="http://api.deepseek.com/v1", api_key="none", max_retries=0)

        def elsewhere(request):
            request.url = httpx.URL(server.url).copy_with(path=request.url.path)
            request.headers["host"] = request.url.netloc.decode()

        client = client.with_options(http_client=httpx.Client(event_hooks={"request": [elsewhere]}, base_url=client.base_url))
        found = examine(client, "scripted")
    row = next(f for f in found.findings if f.name == "provider")
    assert (row.value, "reasoning_content" in row.meaning) == ("DeepSeek API", True)


def test_classes_are_names_of_one_provider():
    """A class that passes on no logprobs leads to its row."""
    assert of_class("ChatMistralAI").name == "Mistral"
    assert of_class("ChatOpenAI") is None
