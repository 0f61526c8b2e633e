"""The client beside vLLM's plug-in: found, told the policy, and watched. Against the scripted server, which only says hello."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import openai
import pytest
from loopback import SURE, UNSURE, Loopback, is_answer_call, said, sums, thinking

from entropy_chains.backends.openai import AsyncOpenAIBackend, OpenAIBackend
from entropy_chains.backends.remote.attempt import NOT_CLOSED
from entropy_chains.backends.remote.introductions import who
from entropy_chains.backends.remote.plugin import may_be_greeted, version_in
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Phase, Segmentation
from entropy_chains.doctor.examine import examine
from entropy_chains.errors import SettingsError

ASKED = [{"role": "user", "content": "What is 6*7?"}]
POLICY = Policy("label", (0.2,), segmentation=Segmentation("line", 32), calibration={"remaining_tokens": [90.0, 60.0, 30.0]})


def closing(body):
    """What a plug-in makes of it that decides at the third line: the closing tag comes right after."""
    return thinking(UNSURE, UNSURE, SURE, answer="The answer is 42")


def serve(script=closing, **settings):
    return Loopback(script, **{"plugin": "1.2.3", "field_name": ""} | settings)


def sync(server, policy=POLICY, settings=None, **given):
    with openai.OpenAI(base_url=server.url, api_key="none") as client:
        backend = OpenAIBackend(client, "scripted", name="label", **(settings or {}))
        return backend.generate([ASKED], policy=policy, **given)[0]


def asynchronous(server, policy=POLICY):
    async def run():
        async with openai.AsyncOpenAI(base_url=server.url, api_key="none") as client:
            return (await AsyncOpenAIBackend(client, "scripted", name="label").agenerate([ASKED], policy=policy))[0]

    return asyncio.run(run())


@pytest.mark.parametrize("run", [sync, asynchronous])
def test_the_server_closes_and_the_client_tells(run):
    """One request, told the policy under the server's name; what it leaves behind is what a close by the client does."""
    with serve() as server:
        made = run(server)
    with serve(sums, plugin=None) as other:
        by_client = run(other)
    (call,) = server.calls
    told = Policy.from_dict(json.loads(call.body["vllm_xargs"]["entropy_chains_policy"]))
    assert (told.fingerprint, told.aliases) == (POLICY.fingerprint, ("scripted",))
    assert not call.gone
    assert made.answer == "The answer is 42" == by_client.answer
    assert made.reasoning == by_client.reasoning
    assert replace(made.outcome, tokens=0) == replace(by_client.outcome, tokens=0)
    assert (made.outcome.stopped, made.outcome.step, made.outcome.tokens_saved) == (True, 3, 30)
    assert (made.tokens, made.prefill_tokens) == (call.made, 0)


def test_forced_tokens_are_marked():
    """The closing text in the stream is forced, and is no part of a step; what follows is the model's own."""
    with serve() as server, openai.OpenAI(base_url=server.url, api_key="none") as client:
        *chunks, last = OpenAIBackend(client, "scripted", name="label").stream(ASKED, policy=POLICY)
    assert [c.token.text for c in chunks if c.forced] == ["</think>", "\n\n"]
    assert "".join(c.text for c in chunks if c.phase is Phase.ANSWER) == last.final.answer == "The answer is 42"
    assert last.final.steps[-1].end == 122  # the tag that opens and its line end, 120 tokens in three lines


@pytest.mark.parametrize("run", [sync, asynchronous])
@pytest.mark.parametrize("field_name", ["", "reasoning_content"])
def test_a_server_that_does_not_close_is_noticed(run, field_name):
    """A plug-in that is switched off: the stream is closed at the next token, the answer asked for, and the reason says so."""
    with serve(sums, field_name=field_name) as server:
        made = run(server)
        server.settled()
    reasoned, answered = server.calls
    assert reasoned.gone
    assert is_answer_call(answered.body)
    assert "vllm_xargs" not in answered.body
    assert (made.answer, made.outcome.stopped, made.outcome.step) == ("The answer is 42", True, 3)
    assert made.outcome.reason.endswith(NOT_CLOSED)
    assert "step4" not in made.reasoning  # the token that showed it is computed, and not the model's thinking
    opening = 2 if not field_name else 0
    assert made.tokens == opening + 121 + answered.made


@pytest.mark.parametrize(
    ("policy", "given", "settings"),
    [
        (POLICY, {}, {"plugin": False}),
        (POLICY, {"stop": False}, {}),
        (POLICY, {"holdout": [True]}, {}),
        (replace(POLICY, active=False, reason="no_signal"), {}, {}),
        (replace(POLICY, rule="entropy+agreement"), {}, {}),
        (POLICY, {}, {"request": {"logit_bias": {"7": 1}}}),
        (POLICY, {}, {"request": {"extra_body": {"vllm_xargs": {"entropy_chains_threshold": 9}}}}),
        (None, {}, {}),
    ],
)
def test_the_server_is_told_nothing(policy, given, settings):
    """Where nothing is to be stopped, a rule needs a probe, the user forbids it or has settings of their own."""
    with serve(sums) as server:
        sync(server, policy, settings, **given)
    assert all("entropy_chains_policy" not in (c.body.get("vllm_xargs") or {}) for c in server.calls)


def test_settings_of_the_users_own_stay():
    """Other keys of ``vllm_xargs`` are sent on."""
    with serve() as server:
        sync(server, settings={"request": {"extra_body": {"vllm_xargs": {"mine": 1}}}})
    assert server.calls[0].body["vllm_xargs"]["mine"] == 1


def test_the_off_switch_is_obeyed(monkeypatch):
    """``ENTROPY_CHAINS_STOP=0``: the server is not told either."""
    monkeypatch.setenv("ENTROPY_CHAINS_STOP", "0")
    with serve(sums) as server:
        assert not sync(server).outcome.stopped
    assert "vllm_xargs" not in server.calls[0].body


def test_a_closed_thinking_without_an_answer_is_run_in_full():
    """The engine cannot repair a malformed answer: the client asks again, without the plug-in."""

    def script(body):
        return replace(closing(body), tokens=closing(body).tokens[:120] + said(" ")) if "vllm_xargs" in body else sums(body)

    with serve(script) as server:
        made = sync(server)
    assert ["vllm_xargs" in c.body for c in server.calls] == [True, False]
    assert (made.answer, made.outcome.stopped) == ("The answer is 42", False)


def test_a_wrong_setting_is_named():
    """``plugin`` has two values."""
    with pytest.raises(SettingsError, match="plugin is 'always'"):
        OpenAIBackend(None, "m", plugin="always")


@pytest.mark.parametrize("text", ["Token id 2147483647 is out of vocabulary", "", "the plug-in is here"])
def test_other_refusals_are_no_hello(text):
    """Only the plug-in's own words tell of it."""
    assert version_in(text) is None
    assert version_in(f"{text} entropy-chains plug-in 0.1.0 (EntropyStop) is here: model demo") == "0.1.0"


@pytest.mark.parametrize(
    ("version", "safe"),
    [
        ("0.6.4", True), ("0.6.4.post1", True), ("v0.7", True), ("0.32.0+cpu", True), ("1.0.0rc1", True), ("0.19.1.dev4+g1", True),
        ("0.6.3.post1", False), ("0.5.5", False), ("0.1.dev1+gabc", False), ("dev", False), ("", False), (None, False), (7, False),
    ],
)  # fmt: skip
def test_a_server_that_the_question_could_harm_is_not_asked_for_the_plug_in(version, safe):
    """A vLLM before 0.6.4 dies of an id that no vocabulary has; one that tells no version may be such a server."""
    with Loopback(plugin="0.1.0", version=version) as server, openai.OpenAI(base_url=server.url, api_key="none") as client:
        found = [who(client, "scripted", plugin=True).plugin, examine(client, "scripted")["plugin"]]
        assert (server.greeted, found) == ((2, ["0.1.0"] * 2) if safe else (0, [None] * 2))


@pytest.mark.parametrize("told", [None, [], "0.32.0", {"version": {}}, {"version": "9" * 5000 + ".1"}, {}])
def test_what_is_no_version_is_none(told):
    """Whatever stands at the address."""
    assert not may_be_greeted(told)
