"""What ``doctor`` finds, against the scripted server of the tests (a fake: it thinks nothing) and the bundled model."""

from __future__ import annotations

import json
import math

import loopback
import openai
import pytest
from click.testing import CliRunner
from loopback import Loopback, Reply, Tok, is_answer_call, said

from entropy_chains.cli import main
from entropy_chains.doctor.examine import examine
from entropy_chains.doctor.findings import WORKS, continuation, judge, temperature_mode

# The first four stand together: so a turn more is as many words, which the server counts as tokens, as tokens were begun.
THOUGHT = [Tok(f"w{n}" + (" " if n > 2 else "")) for n in range(2000)]
KEY = "sk-verysecret123"


class Model:
    """A thinking that can be gone on with, and how the server tells of it."""

    def __init__(
        self,
        *,
        limit=20,
        prefill="exact",
        scaled=False,
        missing=0,
        logprobs=True,
        thinks=True,
        inline=False,
        refuse=None,
        again=False,
    ):
        self.again = again
        self.limit, self.prefill, self.scaled, self.missing = limit, prefill, scaled, missing
        self.logprobs, self.thinks, self.inline, self.refuse = logprobs, thinks, inline, refuse
        self.temperature, self.told = 1.0, 0

    def __call__(self, body):
        if self.refuse:
            return Reply(status=self.refuse, message=f"no, {KEY}")
        asked = body.get("top_logprobs", 0)
        if asked > self.limit:
            message = f"Requested sample logprobs of {asked}, which is greater than max allowed: {self.limit}"
            return Reply(status=400, message=message)
        self.temperature, self.told = body.get("temperature") or 1.0, 0
        if is_answer_call(body):
            again = [Tok(t.text, reasoning=not self.inline) for t in ([Tok("<think>\n")] if self.inline else []) + THOUGHT[:20]]
            return Reply([*(again if self.again else []), *said("It is 42")])
        last = body["messages"][-1]
        begun = last["content"].count("w") if last["role"] == "assistant" and self.prefill == "exact" else 0
        if last["role"] == "assistant" and self.prefill == "refused":
            return Reply(status=422, message="Unexpected fields in the request")
        made = THOUGHT[begun:] if self.thinks else said("The answer is 42 " * 500)
        if self.inline:
            made = [Tok(t.text, t.entropy, reasoning=False) for t in ([] if begun else [Tok("<think>"), Tok("\n")]) + made]
        return Reply(made[: body.get("max_tokens", body.get("max_completion_tokens"))], pace=0.0005)

    def entry(self, token, k):
        """Twenty alternatives, each half as likely as the one before."""
        self.told += 1
        if not self.logprobs or (self.missing and self.told % self.missing == 0):
            return None
        power = 1 / self.temperature if self.scaled else 1.0
        weights = [2.0 ** (-n * power) for n in range(30)]
        texts = [token.text, *(f"alt{n}" for n in range(1, 30))]
        ranked = [
            {"token": t, "logprob": math.log(w / sum(weights)), "bytes": list(t.encode())}
            for t, w in zip(texts[:k], weights, strict=False)
        ]
        return {**ranked[0], "top_logprobs": ranked}


def metrics(server, goes_on=False):
    """Counters as vLLM shows them; ``goes_on``: as of a server that does not notice the close."""

    def page():
        running = sum(not c.gone and c.made < c.planned for c in server.calls)
        made = sum(c.planned for c in server.calls) if goes_on else server.made
        return f'vllm:generation_tokens_total{{model="m"}} {made}.0\nvllm:num_requests_running{{model="m"}} {running}.0\n'

    return {"/metrics": page}


@pytest.fixture
def examined(monkeypatch):
    """Examine a scripted server."""

    def run(model=None, *, counters=False, goes_on=False, **settings):
        model = model or Model()
        monkeypatch.setattr(loopback, "entry", model.entry)
        with Loopback(model, **settings) as server:
            if counters:
                server.pages.update(metrics(server, goes_on))
            with openai.OpenAI(base_url=server.url, api_key=KEY, max_retries=0) as client:
                found = examine(client, "scripted")
            server.settled()
            return found, server

    return run


VARIANTS = {
    "all there": (
        Model(),
        {},
        True,
        WORKS,
        {"logprobs": True, "reasoning": "field", "k": 20, "prefill": "exact", "answer": "prefill"},
    ),
    "raw": (Model(), {}, True, WORKS, {"temperature_mode": "raw", "missing_entries": 0, "plugin": None, "usage_on_close": False}),
    "scaled": (Model(scaled=True), {}, True, "temperature_mode='scaled'", {"temperature_mode": "scaled"}),
    "inline": (Model(inline=True), {"field_name": ""}, True, WORKS, {"reasoning": "inline", "reasoning_logprobs": True}),
    "no logprobs": (Model(logprobs=False), {}, False, "gives no logprobs", {"logprobs": False}),
    "few entries": (Model(missing=4), {}, True, "fewer steps", {"missing_entries": 16}),
    "k of 5": (Model(limit=5), {}, True, "k=5", {"k": 5}),
    "no prefill": (Model(prefill="refused"), {}, True, "continuation 'turn'", {"prefill": "refused", "answer": "turn"}),
    "prefill ignored": (Model(prefill="ignored"), {}, True, "continuation 'turn'", {"prefill": "inexact", "answer": "turn"}),
    "unknown server": (Model(), {"owned_by": "x"}, True, "continuation='prefill'", {"server": "unknown", "prefill": "exact"}),
    "no thinking": (Model(thinks=False), {}, True, "mode 'refine' only", {"reasoning": "none"}),
    "plug-in": (Model(prefill="refused"), {"plugin": "1.2.3"}, True, WORKS, {"plugin": "1.2.3"}),
}


@pytest.mark.parametrize(
    ("said_", "value"), [("hm </think>\n\n42", "opened"), ("42 is between <think> tags", "none"), ("<think>hm</think>42", "inline")]
)
def test_a_tag_in_the_text_tells_who_opened_the_thinking(examined, said_, value):
    """A closing tag that nothing opens: the prompt did, and ``opened=True`` is the advice. A tag in the middle says nothing."""

    class Says(Model):
        def __call__(self, body):
            return Reply(said(said_))

    found, _ = examined(Says(), field_name="")
    assert found["reasoning"] == value
    assert ("opened=True" in " ".join([found.verdict, *found.remedies])) is (value == "opened")


@pytest.mark.parametrize("name", VARIANTS)
def test_what_a_server_can_do_and_what_it_means(examined, name):
    """Every kind of server is seen as what it is, and the verdict says what stopping works with, or why not."""
    model, settings, stopping, said_, values = VARIANTS[name]
    found, _ = examined(model, **settings)
    assert {k: found[k] for k in values} == values
    assert found.stopping is stopping
    assert said_ in found.verdict
    assert bool(found.remedies) == (found.verdict != WORKS)


def test_the_servers_counters_say_whether_a_close_stops_it(examined):
    """Counters that rest below the limit: it stopped, with so many tokens too many; at the limit: it did not; none: not seen."""
    stopped, server = examined(counters=True)
    closed = server.calls[-1]
    assert (stopped["close_stops"], closed.gone) == (True, True)
    assert stopped["overshoot"] == closed.made - 20
    went_on, _ = examined(counters=True, goes_on=True)
    assert went_on["close_stops"] is False
    assert "goes on after the close" in went_on.verdict
    unseen, _ = examined()
    assert unseen["close_stops"] is None


def test_every_token_is_counted(examined):
    """Where the server has counters, the tokens told are those that it made."""
    found, server = examined(counters=True)
    assert found.completion_tokens == server.made
    assert found.requests == len(server.calls) + 1  # and the question whether the plug-in is there, which makes no token


@pytest.mark.parametrize("status", [401, 404])
def test_what_cannot_be_examined_ends_with_status_2(monkeypatch, status):
    """A wrong key or model is one line with the server's message, without the key; so is no server at all."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Loopback(Model(refuse=status)) as server:
        result = CliRunner().invoke(main, ["doctor", "--base-url", server.url, "--model", "scripted"])
    gone = CliRunner().invoke(main, ["doctor", "--base-url", server.url, "--model", "scripted"])
    assert (result.exit_code, gone.exit_code) == (2, 2)
    assert str(status) in result.stderr
    assert "check the address" in gone.stderr
    assert KEY not in result.output + gone.output
    assert "Traceback" not in result.output + gone.output


@pytest.mark.parametrize("given", [[], ["--base-url", "x", "--model", "m"], ["--model", "no/such/folder"]])
def test_a_wrong_value_ends_with_status_2(given):
    """The message names it."""
    result = CliRunner().invoke(main, ["doctor", *given])
    assert result.exit_code == 2
    assert (given[-3] if len(given) > 2 else "--model" if not given else given[1]) in result.stderr or "'x'" in result.stderr


def test_a_finding_is_an_answer(monkeypatch):
    """A server without logprobs: exit status 0, one JSON object with the reason; for people a table with verdict and tokens."""
    model = Model(logprobs=False)
    monkeypatch.setattr(loopback, "entry", model.entry)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Loopback(model) as server:
        command = ["doctor", "--base-url", server.url, "--model", "scripted"]
        told = CliRunner().invoke(main, [*command, "--json"])
        shown = CliRunner().invoke(main, command)
    found = json.loads(told.stdout)
    assert (told.exit_code, shown.exit_code, found["stopping"]) == (0, 0, False)
    assert "no logprobs" in found["reason"]
    assert {"name", "value", "evidence", "meaning"} == set(found["findings"][0])
    assert "Early stopping cannot work" in shown.stdout
    assert f"{found['requests']}; {found['prompt_tokens']} prompt" in " ".join(shown.stdout.split())
    assert KEY not in told.output + shown.output


def test_the_bundled_model_can_be_stopped():
    """``--model demo``: tags, closing text, steps, room and an entropy in bits are found."""
    result = CliRunner().invoke(main, ["doctor", "--model", "demo", "--json"])
    found = json.loads(result.stdout)
    values = {f["name"]: f["value"] for f in found["findings"]}
    assert (result.exit_code, found["stopping"], found["verdict"]) == (0, True, WORKS)
    assert (values["reasoning"], values["closing_text"], values["segmentation"]) == ("inline", True, "line")
    assert (values["vocabulary"], values["room"], values["penalties"]) == (102, 2048, None)
    assert 0 < values["entropy"] < 0.5


@pytest.mark.parametrize(
    ("high", "mode"),
    [
        ({"a": -0.1, "b": -2.4, "c": -9999.0}, "raw"),  # the same at both temperatures
        ({"a": -0.4, "b": -1.167, "c": -9999.0}, "scaled"),  # 2.3 nats apart at 0.5, a third of it at 1.5
        ({"a": -0.2, "b": -1.7}, None),  # neither: 1.5 nats
        ({"z": -0.1}, None),  # nothing in common
    ],
)
def test_temperature_mode_by_hand(high, mode):
    """Differences of logprobs are the same before temperature, and scale with it after."""
    assert temperature_mode([{"a": -0.1, "b": -2.4, "c": -9999.0}], [high], 3.0) == mode


@pytest.mark.parametrize(
    ("made", "grew", "value"),
    [
        (" so 4", 30, "exact"),
        (" so 4", None, "exact"),
        (" so 4", 40, "inexact"),
        ("no", 30, "inexact"),
        ("no", 3, "ignored"),
        ("", 3, "ignored"),
    ],
)
def test_continuation_by_hand(made, grew, value):
    """Exact is the same text after the same tokens."""
    assert continuation("so 4 is", made, grew, 30) == value


@pytest.mark.parametrize(
    ("values", "said_"),
    [
        ({"logprobs": True, "reasoning": "hidden"}, "hides the thinking"),
        ({"logprobs": True, "reasoning": "field", "reasoning_logprobs": False}, "no logprobs on reasoning tokens"),
    ],
)
def test_what_makes_stopping_impossible(values, said_):
    """Thinking that is not sent, or not measured, cannot be stopped by its entropy."""
    stopping, verdict, remedies = judge(values)
    assert not stopping
    assert said_ in verdict
    assert remedies


@pytest.mark.parametrize("inline", [False, True], ids=["field", "inline"])
def test_thinking_begun_again_is_no_way_to_an_answer(examined, inline):
    """After the close the model thinks anew, as any thinking model may that is asked by a turn: a stop there is run in full."""
    settings = {"owned_by": "deepseek", "field_name": "" if inline else "reasoning_content"}
    found, _ = examined(Model(again=True, inline=inline), **settings)
    assert (found.stopping, found["answer"]) == (True, None)
    assert "full runs in place of most stops" in found.verdict


def test_lists_of_other_tokens_are_no_logprobs(examined):
    """Entropy cannot be computed from them, whatever they look like."""

    class Others(Model):
        def entry(self, token, k):
            made = super().entry(token, k)
            others = [{**a, "token": f"other {a['token']}"} for a in made["top_logprobs"]]
            return {**made, "logprob": -0.01, "top_logprobs": others}

    found, _ = examined(Others())
    assert (found.stopping, found["logprobs"]) == (False, False)
    assert "of another token" in next(f for f in found.findings if f.name == "logprobs").evidence
