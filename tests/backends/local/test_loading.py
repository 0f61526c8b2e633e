"""A checkpoint is loaded as transformers loads it, model and tokenizer from one place; what fails is one error."""

from __future__ import annotations

import json
import os
import shutil

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from entropy_chains.backends.transformers import TransformersBackend
from entropy_chains.core.families import ThinkTags
from entropy_chains.demo import MODEL_FOLDER
from entropy_chains.errors import SettingsError


@pytest.fixture
def copied(tmp_path):
    """The bundled model's folder, to be changed."""
    return shutil.copytree(MODEL_FOLDER, tmp_path / "copy")


def marked(folder, mark):
    """Its chat template begins with a comment."""
    template = folder / "chat_template.jinja"
    if template.exists():
        template.write_text("{#- " + mark + " -#}" + template.read_text())
    else:
        file = folder / "tokenizer_config.json"
        settings = json.loads(file.read_text())
        file.write_text(json.dumps(settings | {"chat_template": "{#- " + mark + " -#}" + settings["chat_template"]}))


def test_a_folder_inside_a_repository(tmp_path):
    """``subfolder`` holds for the tokenizer, too."""
    shutil.copytree(MODEL_FOLDER, tmp_path / "inside")
    assert TransformersBackend.from_pretrained(tmp_path, subfolder="inside").vocab_size


def test_the_tokenizer_is_of_the_model_s_revision(tmp_path):
    """Of two revisions in a cache, offline, both come from the one that is named."""
    for revision, mark in (("a" * 40, "main"), ("b" * 40, "second")):
        folder = shutil.copytree(MODEL_FOLDER, tmp_path / "models--me--m" / "snapshots" / revision)
        marked(folder, mark)
        refs = tmp_path / "models--me--m" / "refs"
        refs.mkdir(exist_ok=True)
        (refs / mark).write_text(revision)
    backend = TransformersBackend.from_pretrained("me/m", cache_dir=tmp_path, revision="second", local_files_only=True)
    assert "second" in backend._vocabulary.chat_template


def test_settings_of_the_backend_are_taken_beside_those_of_the_model():
    """Tags, template and ``generate()`` settings, as from a loaded model."""
    tags = ThinkTags("<a>", "</a>")
    backend = TransformersBackend.from_pretrained(
        MODEL_FOLDER, think_tags=tags, template_kwargs={"enable_thinking": False}, generate_kwargs={"top_k": 3}, dtype="float32"
    )
    assert backend.tags == tags
    assert backend._vocabulary._template_kwargs == {"enable_thinking": False}
    assert backend._generate_kwargs == {"top_k": 3}


@pytest.mark.parametrize("given", [{"dtype": "nonsense"}, {"device": "nowhere"}, {"device": "cuda:77"}, {"device_map": "nonsense"}])
def test_an_argument_that_cannot_be_followed_is_named(given):
    """One error of this library, with the argument and its value, whatever the libraries raise."""
    name, value = next(iter(given.items()))
    with pytest.raises(SettingsError, match=rf"cannot be loaded with .*{name}='{value}'"):
        TransformersBackend.from_pretrained(MODEL_FOLDER, **given)


def test_half_a_file_of_weights(copied):
    """As after a broken download."""
    weights = copied / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    with pytest.raises(SettingsError, match=str(copied)):
        TransformersBackend.from_pretrained(copied)


def test_a_key_is_not_repeated(tmp_path):
    """The hub's token stands in no message."""
    with pytest.raises(SettingsError) as refused:
        TransformersBackend.from_pretrained(tmp_path, token="hf_secretsecretsecret")
    assert "secret" not in str(refused.value)
    for name, value in {"use_auth_token": "hf_secret", "proxies": {"https": "http://u:secretpw@h"}, "dtyp": "secret"}.items():
        with pytest.raises(SettingsError, match=name) as refused:
            TransformersBackend.from_pretrained(MODEL_FOLDER, device="nowhere", **{name: value})
        assert "secret" not in str(refused.value)
