"""Values that no run could have: one error of our own that names the setting and the value, before anything is asked."""

from __future__ import annotations

import json
import math

import openai
import pytest
from click.testing import CliRunner
from hostile import Hostile

pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import AutoModelForCausalLM, AutoTokenizer

from entropy_chains import OpenAIBackend, Sampling, ThinkTags, TransformersBackend
from entropy_chains.backends.text.vocabulary import RESERVED
from entropy_chains.cli import main
from entropy_chains.demo import MODEL_FOLDER
from entropy_chains.errors import BackendError, InputError, SettingsError
from entropy_chains.recording import record

ASKED = [[{"role": "user", "content": "34*7=?"}]]


@pytest.fixture(scope="module")
def parts():
    """The bundled model, which draws its tokens by default, and its tokenizer."""
    return AutoModelForCausalLM.from_pretrained(MODEL_FOLDER), AutoTokenizer.from_pretrained(MODEL_FOLDER)


DRAWN = [("temperature", 0), ("temperature", -1.0), ("top_p", 2), ("top_p", -0.1), ("top_k", -3), ("top_k", 1.5), ("min_p", 2.0)]
DRAWN += [("typical_p", -1.0), ("epsilon_cutoff", 1.0), ("eta_cutoff", -1.0), ("temperature", "hot"), ("top_h", 3.0)]
OTHERS = [("repetition_penalty", 0.0), ("repetition_penalty", -1.0), ("no_repeat_ngram_size", -2), ("no_repeat_ngram_size", "2")]
OTHERS += [("bad_words_ids", []), ("bad_words_ids", [["a"]]), ("sequence_bias", {}), ("encoder_no_repeat_ngram_size", -1)]


@pytest.mark.parametrize(("name", "value"), [*DRAWN, *OTHERS])
def test_a_value_of_generate_kwargs(parts, name, value):
    """As transformers judges it, when the backend is made."""
    with pytest.raises(SettingsError, match=rf"^{name}=.* is refused by transformers: "):
        TransformersBackend(*parts, generate_kwargs={"do_sample": True, name: value})


def test_what_does_nothing_is_left_alone(parts):
    """Without a draw its settings do nothing, as in ``generate()``; a run with one judges them."""
    backend = TransformersBackend(*parts, generate_kwargs={"do_sample": False, "temperature": 0, "top_k": -3})
    assert backend.generate(ASKED, sampling=Sampling(max_tokens=4))[0].tokens == 4
    with pytest.raises(SettingsError, match="top_k=-3 is refused"):
        backend.generate(ASKED, sampling=Sampling(temperature=1.0, max_tokens=4))
    with pytest.raises(SettingsError, match="top_k=-3 is refused"):
        list(record(backend, [{"id": "1", "question": "1+1"}], sampling=Sampling(temperature=1.0)))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"template_kwargs": 3}, "template_kwargs is 3"),
        ({"generate_kwargs": [1]}, r"generate_kwargs is \[1\]"),
        ({"batch_size": 1.5}, r"batch_size is 1\.5"),
        ({"batch_size": "4"}, "batch_size is '4'"),
        ({"k": 2.5}, r"k is 2\.5; it must be a whole number, and at least 1, or None for the whole vocabulary"),
        ({"k": True}, "k is True"),
        *(({"template_kwargs": {name: 1}}, f"template_kwargs has {name}=1") for name in RESERVED),
    ],
)
def test_settings_of_a_local_model(parts, settings, told):
    """None of them is what it must be, or is the backend's own."""
    with pytest.raises(SettingsError, match=told):
        TransformersBackend(*parts, **settings)


def test_template_settings_of_a_call(parts):
    """Those of one call are judged alike; tools are the template's."""
    backend = TransformersBackend(*parts)
    assert backend.with_template(tools=[]).template == backend.template
    with pytest.raises(SettingsError, match="tokenize"):
        backend.with_template(tokenize=True)


@pytest.mark.parametrize(("name", "value"), [("output_loading_info", True), ("return_unused_kwargs", True)])
def test_arguments_that_give_no_model(name, value):
    """Refused before anything is loaded."""
    with pytest.raises(SettingsError, match=f"{name}=True.*leave it out"):
        TransformersBackend.from_pretrained("/nowhere", **{name: value})


@pytest.mark.parametrize("given", [{"device": "meta"}, {"device_map": "meta"}])
def test_a_model_without_weights(given):
    """The device ``meta`` holds none."""
    if "device_map" in given:
        pytest.importorskip("accelerate")
    with pytest.raises(SettingsError, match="'meta', which holds no weights"):
        TransformersBackend.from_pretrained(MODEL_FOLDER, **given)


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"k": 1.5}, r"k is 1\.5"), ({"concurrency": "8"}, "concurrency is '8'"), ({"request": 3}, "request is 3")],
)
def test_settings_of_a_served_model(settings, told):
    """As of a local one."""
    with openai.OpenAI(api_key="none", base_url="http://127.0.0.1:9/v1") as client, pytest.raises(SettingsError, match=told):
        OpenAIBackend(client, "m", **settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", value) for value in (-1, 100, math.nan, "hot")),
        *(("top_p", value) for value in (-0.1, 1.1, math.nan, "x")),
        *(("top_k", value) for value in (1.5, "x")),
        *(("max_tokens", value) for value in (0, 1.5, "x", None) if value is not None),
        *(("seed", value) for value in (1.5, "x")),
    ],
)
def test_sampling(name, value):
    """A request or batch under these would fail, or mean something else."""
    with pytest.raises(SettingsError, match=f"{name} is "):
        Sampling(**{name: value})


def test_tags_that_are_the_same():
    """Nobody could tell a beginning from an end."""
    with pytest.raises(InputError, match=r"open and close are both '<think>'.*give two tags"):
        ThinkTags("<think>", "<think>")


def command(tmp_path, *options, env=None):
    data = tmp_path / "q.jsonl"
    data.write_text(json.dumps({"id": "1", "question": "34*7=?"}) + "\n")
    run = ["record", "--data", str(data), "--out", str(tmp_path / "t.jsonl"), *options]
    return CliRunner().invoke(main, run, env=env)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--model", "demo", "--device", "meta"], "'meta', which holds no weights"),
        (["--model", "demo", "--template-kwargs", '{"tokenize": true}'], "template_kwargs has tokenize=True"),
        (["--model", "demo", "--think-tags", "<a>", "<a>", ""], "open and close are both '<a>'"),
    ],
)
def test_the_command(tmp_path, options, told):
    """Exit status 2, one line, nothing written."""
    done = command(tmp_path, *options)
    assert (done.exit_code, told in done.output, "Traceback" in done.output) == (2, True, False), done.output
    assert not (tmp_path / "t.jsonl").exists()


@pytest.mark.parametrize("key", ["schlüssel-abcdef", "sk-abcdef\n", "sk-“abcdef”"])
def test_a_key_that_no_header_may_have(tmp_path, key):
    """Said of the variable, without its value, before a request."""
    done = command(tmp_path, "--base-url", "http://127.0.0.1:9/v1", "--model", "m", env={"OPENAI_API_KEY": key})
    assert (done.exit_code, "OPENAI_API_KEY holds characters" in done.output, "abcdef" in done.output) == (2, True, False)


def test_such_a_key_of_a_client():
    """What the user's own client has is named as that, not as something the server sent; without the key."""
    with Hostile(lambda request: []) as server, openai.OpenAI(base_url=server.url, api_key="schlüssel-abcdef") as client:
        with pytest.raises(BackendError, match="check the client's api_key and headers") as failed:
            OpenAIBackend(client, "m").generate(ASKED)
        assert "abcdef" not in str(failed.value)
        assert server.requests == []
