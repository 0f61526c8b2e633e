"""The OpenAI-compatible backend on real servers with the bundled reasoner."""

from __future__ import annotations

import asyncio
import json
import time

import openai
import pytest
from click.testing import CliRunner

from entropy_chains.backends import Sampling
from entropy_chains.backends.openai import AsyncOpenAIBackend, OpenAIBackend
from entropy_chains.backends.transformers import TransformersBackend
from entropy_chains.cli import main
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation
from entropy_chains.demo import MODEL_FOLDER, MODEL_NAME
from entropy_chains.demo.questions import draw_questions
from entropy_chains.errors import BackendError, NoLogprobsError, SettingsError
from entropy_chains.offline.traces import read_traces
from entropy_chains.recording import conversation, record

pytestmark = pytest.mark.servers
LINES = Segmentation("line", 32)
POLICY = Policy(MODEL_NAME, (0.005,), segmentation=LINES)
GREEDY = Sampling(temperature=0, max_tokens=1600)
QUESTIONS = draw_questions(12, 5)
ASKED = [conversation(q) for q in QUESTIONS]


def client_of(engine, cls=openai.OpenAI, **settings):
    return cls(base_url=engine.base_url, api_key="none", **settings)


def backend_of(engine, **settings):
    given = {"name": MODEL_NAME, "segmentation": LINES, "concurrency": 4} | settings
    return OpenAIBackend(client_of(engine), engine.name, **given)


@pytest.fixture(params=["vllm", "llama"])
def engine(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def in_place():
    """The same runs, stopped in place by the transformers backend."""
    backend = TransformersBackend.from_pretrained(MODEL_FOLDER, name=MODEL_NAME)
    return [backend.generate(ASKED, policy=POLICY, sampling=GREEDY, stop=stop) for stop in (False, True)]


def test_the_same_decisions_and_answers_as_in_place(engine, in_place):
    """Greedy: every run stops at the same step for the same entropy as in the transformers backend, and answers the same."""
    full = backend_of(engine).generate(ASKED, policy=POLICY, sampling=GREEDY, stop=False)
    early = backend_of(engine).generate(ASKED, policy=POLICY, sampling=GREEDY)
    assert [g.answer for g in full] == [g.answer for g in in_place[0]]
    assert [g.tokens for g in full] == [g.tokens for g in in_place[0]]
    assert [g.answer for g in early] == [g.answer for g in in_place[1]]
    for ours, theirs in zip(early, in_place[1], strict=True):
        assert (ours.outcome.stopped, ours.outcome.step) == (theirs.outcome.stopped, theirs.outcome.step)
        assert [s.record.entropy for s in ours.steps] == pytest.approx([s.record.entropy for s in theirs.steps], abs=2e-4)
    assert sum(g.outcome.stopped for g in early) >= 10
    assert sum(g.tokens for g in early) < 0.6 * sum(g.tokens for g in full)


def test_the_entropy_of_a_tried_answer_decides_as_in_place(engine):
    """Greedy: the same entropies of the same answers after the same steps, so the same stops; and recorded, the same figures."""
    policy = Policy(MODEL_NAME, (0.002,), signal="trial_entropy", segmentation=LINES)
    local = TransformersBackend.from_pretrained(MODEL_FOLDER, name=MODEL_NAME)
    theirs = local.generate(ASKED, policy=policy, sampling=GREEDY)
    ours = backend_of(engine).generate(ASKED, policy=policy, sampling=GREEDY)
    assert [(g.answer, g.outcome.stopped, g.outcome.step) for g in ours] == [
        (g.answer, g.outcome.stopped, g.outcome.step) for g in theirs
    ]
    for a, b in zip(ours, theirs, strict=True):
        assert a.outcome.entropy == (None if b.outcome.entropy is None else pytest.approx(b.outcome.entropy, abs=2e-4))
    assert len({g.outcome.step for g in ours}) > 1
    trace = next(iter(record(backend_of(engine), QUESTIONS[:1], sampling=GREEDY, segmentation=LINES)))
    told = [s.signals["trial_entropy"] for s in trace.steps[:-1]]
    alone = next(iter(record(local, QUESTIONS[:1], sampling=GREEDY, segmentation=LINES)))
    assert told == pytest.approx([s.signals["trial_entropy"] for s in alone.steps[:-1]], abs=2e-4)


@pytest.mark.filterwarnings("ignore:.*think again")
@pytest.mark.parametrize("continuation", ["auto", "prefill", "completion", "turn"])
def test_every_way_gives_answers(engine, continuation, in_place):
    """Where the model goes on from its own tokens the answers are those of the stop in place; a way a server lacks falls back."""
    runs = backend_of(engine, continuation=continuation).generate(ASKED, policy=POLICY, sampling=GREEDY)
    assert all(g.answer for g in runs)
    exact = {"auto", "prefill"} if engine.kind == "vllm" else {"auto", "completion"}
    if continuation in exact:
        assert [g.answer for g in runs] == [g.answer for g in in_place[1]]


def test_sync_and_async_are_the_same(engine):
    """The two shells make the same runs."""

    async def both():
        async with client_of(engine, openai.AsyncOpenAI) as client:
            backend = AsyncOpenAIBackend(client, engine.name, name=MODEL_NAME, segmentation=LINES)
            runs = await backend.agenerate(ASKED[:4], policy=POLICY, sampling=GREEDY)
            chunks = [c async for c in backend.astream(ASKED[0], policy=POLICY, sampling=GREEDY)]
            return runs, chunks, await backend.aprobe([(ASKED[0], runs[0], 1)], sampling=GREEDY)

    runs, chunks, probes = asyncio.run(both())
    backend = backend_of(engine)
    twins = backend.generate(ASKED[:4], policy=POLICY, sampling=GREEDY)
    assert [(g.answer, g.outcome.step, g.reasoning) for g in runs] == [(g.answer, g.outcome.step, g.reasoning) for g in twins]
    assert chunks[-1].final.answer == runs[0].answer == probes[0].answer
    again = backend.probe([(ASKED[0], twins[0], 1)], sampling=GREEDY)[0]
    assert (probes[0].answer, probes[0].tokens) == (again.answer, again.tokens)
    assert probes[0].signals["trial_confidence"] == pytest.approx(again.signals["trial_confidence"], abs=1e-4)


def test_a_stream_shows_thinking_then_answer(engine):
    """Joined, the chunks are the run: thinking without tags, then the answer alone."""
    chunks = list(backend_of(engine).stream(ASKED[3], policy=POLICY, sampling=GREEDY))
    run = chunks[-1].final
    thinking = "".join(c.text for c in chunks if c.phase.value == "thinking").strip("\n")
    answer = "".join(c.text for c in chunks if c.phase.value == "answer").strip()
    assert (thinking, answer) == (run.reasoning, run.answer)
    assert run.outcome.stopped


def test_recorded_answers_are_those_of_a_live_stop(engine, in_place):
    """The answer forced after a step is what the stop at that step gives; nothing but tokens and time differ between engines."""
    traces = {t.id: t for t in record(backend_of(engine), QUESTIONS[:4], sampling=GREEDY, segmentation=LINES)}
    for question, live in zip(QUESTIONS[:4], in_place[1][:4], strict=True):
        trace = traces[question["id"]]  # a server's come as they are done
        assert trace.steps[live.outcome.step - 1].answer == live.answer
        assert all(s.entropy is not None for s in trace.steps[:-1])


def test_the_command_records_from_a_server(engine, tmp_path):
    """``record --base-url`` writes traces that can be calibrated on, and ``--resume`` repeats none of them."""
    data, out = tmp_path / "q.jsonl", tmp_path / "t.jsonl"
    data.write_text("".join(json.dumps(q) + "\n" for q in QUESTIONS[:4]), encoding="utf-8")
    settings = ["--base-url", engine.base_url, "--model", engine.name, "--temperature", "0", "--boundary", "line"]
    settings += ["--max-tokens", "1600", "--json"]
    for extra, recorded in ((["--limit", "2"], 2), (["--resume"], 2)):
        result = CliRunner().invoke(main, ["record", "--data", str(data), "--out", str(out), *settings, *extra])
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["recorded"] == recorded
    assert sorted(t.id for t in read_traces(out)) == sorted(q["id"] for q in QUESTIONS[:4])


def test_a_closed_stream_stops_the_server(engine):
    """Closing our generator ends the server's work: nothing runs any more, and few tokens were made."""
    backend = backend_of(engine)
    list(backend.stream(ASKED[0], sampling=Sampling(max_tokens=8)))  # identified, compiled
    before = engine.counters()["generated"]
    stream = backend.stream(ASKED[10], sampling=GREEDY)
    for _ in range(20):
        next(stream)
    stream.close()
    for _ in range(100):
        if engine.counters()["running"] == 0:
            break
        time.sleep(0.1)
    made = engine.counters()["generated"] - before
    assert engine.counters()["running"] == 0
    assert made < 700  # of 1079 that the full run has


def test_a_stop_of_the_server_itself(llama):
    """llama.cpp is told to end the thinking: one request, the same answers in all but what was cut in the middle of a line."""
    runs = backend_of(llama, continuation="control").generate(ASKED, policy=POLICY, sampling=GREEDY)
    assert all(g.answer for g in runs)
    assert all(g.prefill_tokens == 0 for g in runs if g.outcome.stopped)


def test_a_server_without_logprobs_is_refused(transformers_serve):
    """``transformers serve`` accepts the setting and sends none."""
    with pytest.raises(NoLogprobsError, match="without_logprobs"):
        backend_of(transformers_serve, concurrency=1).generate(ASKED[:1], policy=POLICY, sampling=GREEDY)


def test_a_server_without_logprobs_may_run_in_full(transformers_serve):
    """Allowed by name it warns, and answers."""
    backend = backend_of(transformers_serve, without_logprobs="full", concurrency=1)
    with pytest.warns(UserWarning, match="no logprobs"):
        (run,) = backend.generate(ASKED[:1], policy=POLICY, sampling=GREEDY)
    assert (run.answer, run.outcome.stopped) == (QUESTIONS[0]["gold"], False)


def test_a_wrong_model_or_address_is_one_clear_error(vllm):
    """What the server says is passed on; no server at all is said too."""
    with pytest.raises(BackendError, match="404"):
        OpenAIBackend(client_of(vllm), "nobody").generate(ASKED[:1], sampling=GREEDY)
    client = openai.OpenAI(base_url="http://127.0.0.1:9/v1", api_key="sk-verysecret123", max_retries=0)
    with pytest.raises(BackendError, match=r"connection to http://127\.0\.0\.1:9 failed .*check the address") as caught:
        OpenAIBackend(client, "demo").generate(ASKED[:1], sampling=GREEDY)
    assert "verysecret" not in str(caught.value)


def test_settings_that_stopping_owns_are_refused(vllm):
    """A request with its own n or stream would not be one stream of tokens."""
    with pytest.raises(SettingsError, match="request sets n"):
        backend_of(vllm, request={"n": 2})
