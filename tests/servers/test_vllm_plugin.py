"""The plug-in inside a real vLLM server, on the bundled model: ``make test-servers``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import engines  # tests/servers/conftest.py puts scripts/ on the path
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from entropy_chains.backends import Sampling
from entropy_chains.backends.transformers import TransformersBackend
from entropy_chains.core.monitor import Decision, Monitor
from entropy_chains.core.policy import Policy
from entropy_chains.core.tokens import Alternative, Token
from entropy_chains.demo import MODEL_FOLDER
from entropy_chains.demo.questions import draw_questions

pytestmark = pytest.mark.servers

QUESTIONS = [q["question"] for q in draw_questions(24, 7)]
LENGTH = 500
LINE = {"entropy_chains_boundary": "line"}


def ask(engine, question, *, temperature=0.0, **body):
    """One chat completion: its choice, with the ids of its tokens; HTTP errors are raised."""
    body = {"model": engine.name, "temperature": temperature, "max_tokens": LENGTH, "return_token_ids": True} | body
    body["messages"] = [{"role": "user", "content": question}]
    request = urllib.request.Request(
        f"{engine.base_url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as reply:
        return json.loads(reply.read())["choices"][0]


def refused(engine, question="1+1=?", **body):
    """The message of the HTTP 400 that the request is answered with."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(engine, question, **body)
    assert caught.value.code == 400
    return json.loads(caught.value.read())["error"]["message"]


def at_once(work, *columns):
    with ThreadPoolExecutor(32) as pool:
        return list(pool.map(work, *columns))


@pytest.fixture(scope="module")
def backend():
    """The same model in this process."""
    return TransformersBackend.from_pretrained(MODEL_FOLDER, name="demo")


@pytest.fixture(scope="module")
def words(backend):
    return backend._vocabulary


def policy_for(backend, threshold, **given):
    return Policy("demo", thresholds=(threshold,), segmentation=backend.segmentation, template=backend.template, **given)


def xargs(policy, **keys):
    """The request field that hands the server a policy."""
    keys = {"policy": json.dumps(policy.to_dict())} | keys
    return {"vllm_xargs": {f"entropy_chains_{k}": v for k, v in keys.items()}}


def tokens_of(choice, words):
    """The choice's tokens with the alternatives that the API gave."""
    for entry, token in zip(choice["logprobs"]["content"], choice["token_ids"], strict=True):
        alternatives = tuple(Alternative(a["token"], a["logprob"]) for a in entry["top_logprobs"])
        yield Token(words.text(token), token, None, entry["logprob"], alternatives)


def decided_at(choice, policy, words):
    """Tokens up to and including the boundary at which a monitor, fed with what the API says, closes; None where it never does."""
    monitor = Monitor(policy, tags=words.tags, vocab_size=len(words._tokenizer))
    for n, token in enumerate(tokens_of(choice, words), start=1):
        if monitor.feed(token) is Decision.CLOSE:
            return n
    return None


def test_concurrent_requests_close_at_their_own_boundaries(vllm_plugin, backend, words):
    """Each where a monitor closes that is fed with the API's own logprobs, right at the boundary; those without settings never.

    Thresholds, k and smallest steps differ from request to request, and the temperature is 1.
    """
    close = words.encode("</think>\n\n")
    policies = [
        [
            None,
            policy_for(backend, 0.002, k=20),
            policy_for(backend, 0.02, k=5),
            policy_for(backend, 0.2, k=20, min_steps=2),
            policy_for(backend, 9.0, k=None, estimator="full", min_steps=3),
            policy_for(backend, -1.0),
        ][n % 6]
        for n in range(len(QUESTIONS))
    ]

    def run(question, policy, seed):
        wide = {"logprobs": True, "top_logprobs": -1 if policy and policy.k is None else 20}
        return ask(vllm_plugin, question, temperature=1.0, seed=seed, **wide, **(xargs(policy) if policy else {}))

    closed = set()
    for n, (choice, policy) in enumerate(zip(at_once(run, QUESTIONS, policies, range(24)), policies, strict=True)):
        at = decided_at(choice, policy, words) if policy else None
        if at is None:
            continue
        closed.add(n % 6)
        assert choice["token_ids"][at : at + len(close)] == close
        assert close[0] not in choice["token_ids"][:at]
    assert closed == {1, 2, 3, 4}


def test_a_request_that_asks_nothing_is_untouched(vllm, vllm_plugin):
    """Greedy, the tokens of a plain vLLM, also beside requests that are being closed."""
    plain = at_once(lambda q: ask(vllm, q)["token_ids"], QUESTIONS[:12])
    keys = {"vllm_xargs": {"entropy_chains_threshold": 9, **LINE}}

    def run(n):
        return ask(vllm_plugin, QUESTIONS[n % 12], **(keys if n >= 12 else {}))["token_ids"]

    mixed = at_once(run, range(24))
    assert mixed[:12] == plain
    assert all(len(short) < len(full) for short, full in zip(mixed[12:], plain, strict=True))


def test_watching_changes_nothing(vllm, vllm_plugin):
    """stop=0 and holdout=1: the tokens of a plain vLLM."""
    for key in ("stop", "holdout"):
        keys = {"vllm_xargs": {"entropy_chains_threshold": 9, f"entropy_chains_{key}": int(key == "holdout"), **LINE}}
        assert ask(vllm_plugin, QUESTIONS[0], **keys)["token_ids"] == ask(vllm, QUESTIONS[0])["token_ids"]


def test_bad_settings_are_refused_and_the_server_lives(vllm_plugin, backend, tmp_path):
    """HTTP 400 with the value in the message; the next request is answered."""
    good = policy_for(backend, 0.1)
    assert "entropy_chains_treshold is unknown" in refused(vllm_plugin, vllm_xargs={"entropy_chains_treshold": 1})
    assert "'much'" in refused(vllm_plugin, vllm_xargs={"entropy_chains_threshold": "much"})
    assert "not a policy file" in refused(vllm_plugin, vllm_xargs={"entropy_chains_policy": str(tmp_path / "no.json")})
    assert "model 'another'" in refused(vllm_plugin, **xargs(replace(good, model="another")))
    assert "sha256:0" in refused(vllm_plugin, **xargs(replace(good, template="sha256:0")))
    assert "reads an answer" in refused(vllm_plugin, **xargs(policy_for(backend, 0.1, rule="entropy+agreement")))
    assert "logit_bias" in refused(vllm_plugin, logit_bias={"7": 1}, **xargs(good))
    good.save(tmp_path / "policy.json")
    path = {"vllm_xargs": {"entropy_chains_policy": str(tmp_path / "policy.json")}}
    assert ask(vllm_plugin, "1+1=?", **path)["message"]["content"]
    assert vllm_plugin.alive


def test_a_client_can_ask_whether_the_plugin_is_there(vllm_plugin, backend):
    """The answer is a refusal that names the version and what the server serves."""
    message = refused(vllm_plugin, vllm_xargs={"entropy_chains_hello": 1})
    assert message.startswith("entropy-chains plug-in ")
    assert backend.template in message


def test_the_entry_point_loads_it_into_every_vllm(tmp_path, monkeypatch, backend):
    """``vllm-entropy-chains`` in vLLM's environment, and no option: the plug-in is there, and stops at the first step."""
    package = engines.ROOT / "integrations" / "vllm-entropy-chains"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path), str(package)]
    subprocess.run(command, check=True, capture_output=True)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{engines.ROOT}")
    with engines.start("vllm") as engine:
        assert refused(engine, vllm_xargs={"entropy_chains_hello": 1}).startswith("entropy-chains plug-in ")
        text = ask(engine, QUESTIONS[0], **xargs(policy_for(backend, 9.0)))["message"]
        whole = ask(engine, QUESTIONS[0])["message"]
    assert text["content"]
    assert whole["reasoning"].startswith(text["reasoning"].rstrip())
    assert len(text["reasoning"]) < len(whole["reasoning"]) / 2


def test_the_log_names_a_closed_request(vllm_plugin):
    """With an id of the caller's, one line with the table that every backend leaves behind."""
    ask(vllm_plugin, QUESTIONS[0], vllm_xargs={"entropy_chains_threshold": 9, "entropy_chains_id": "q-17", **LINE})
    line = next(line for line in vllm_plugin.log.read_text().splitlines() if "'q-17' closed" in line)
    told = json.loads(line[line.index("{") :])
    assert told["early_stop_stopped"]
    assert told["early_stop_step"] == 1


def test_greedy_answers_equal_the_in_place_close_of_the_local_backend(vllm_plugin, backend, words):
    """The same policy, questions and temperature 0: the same tokens from the first to the last, so the same answers."""
    policy = policy_for(backend, 0.01)
    served = at_once(lambda q: ask(vllm_plugin, q, **xargs(policy)), QUESTIONS)
    conversations = [[{"role": "user", "content": q}] for q in QUESTIONS]
    local = backend.generate(conversations, policy=policy, sampling=Sampling(temperature=0.0, max_tokens=LENGTH))
    assert sum(run.outcome.stopped for run in local) > 12
    assert [tuple(choice["token_ids"]) for choice in served] == [run.token_ids for run in local]
    assert [(choice["message"]["content"] or "").strip() for choice in served] == [run.answer or "" for run in local]


FAULTY = """
from entropy_chains.backends import vllm
from entropy_chains.backends.engine import buffers as vllm_ledger

feed = vllm_ledger.Row.feed

def broken(row, *given, **named):
    if row.settings.id == "broken" and row.fed >= 20:
        raise RuntimeError("injected")
    return feed(row, *given, **named)

vllm_ledger.Row.feed = broken

class Faulty(vllm.EntropyStop):
    pass
"""


def test_an_error_inside_ends_the_watching_of_its_row_only(vllm, tmp_path, monkeypatch):
    """The row with the injected error runs in full, the others are closed, and the server lives on."""
    (tmp_path / "faulty.py").write_text(FAULTY)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(engines.ROOT))]))
    with engines.start("vllm", extra=["--logits-processors", "faulty:Faulty"]) as engine:

        def run(n):
            keys = {"entropy_chains_threshold": 9, "entropy_chains_id": "broken" if n % 2 else "sound", **LINE}
            return ask(engine, QUESTIONS[n], vllm_xargs=keys)["token_ids"]

        found = at_once(run, range(8))
        log = engine.log.read_text()
        assert engine.alive
    full = at_once(lambda q: ask(vllm, q)["token_ids"], QUESTIONS[:8])
    assert found[1::2] == full[1::2]
    assert all(len(a) < len(b) for a, b in zip(found[::2], full[::2], strict=True))
    assert log.count("RuntimeError: injected") == 1


V2 = Path(__file__).with_name("model_runner_v2.py")


def test_the_class_for_model_runner_v2_keeps_its_contract():
    """Against the real base class, with a context made by hand: V2 itself needs a GPU."""
    environment = os.environ | {"PYTHONPATH": str(engines.ROOT), "OMP_NUM_THREADS": "1"}
    if engines.installed("vllm") is None:
        pytest.skip("vllm is not installed; `make test-servers` installs it")
    python = engines.VLLM / "bin" / "python"
    done = subprocess.run([str(python), str(V2)], env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "ok"
