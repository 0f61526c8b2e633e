"""Small local models for the tests of the transformers backend: each module has its own, for tests change their settings."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint folder as the training script writes it."""
    from small_models import small_model
    from transformers import Qwen3ForCausalLM

    from entropy_chains.demo.train import ID, save

    out = tmp_path_factory.mktemp("small")
    model = Qwen3ForCausalLM(small_model().config)
    model.generation_config.eos_token_id = ID["<|im_end|>"]
    save(model, out)
    return out


@pytest.fixture(scope="module")
def tokenizer(folder):
    """Its tokenizer, with the thinking opened by the prompt."""
    from small_models import OPENED
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(str(folder))
    found.chat_template = OPENED
    return found


@pytest.fixture(scope="module")
def small(tokenizer):
    """Random weights, leaning to line ends, so that there are steps to see."""
    from small_models import small_model

    from entropy_chains.backends.transformers import TransformersBackend

    return TransformersBackend(small_model(), tokenizer, name="small")


@pytest.fixture(scope="module")
def bundled():
    """The bundled reasoner."""
    from small_models import BUNDLED

    from entropy_chains.backends.transformers import TransformersBackend

    return TransformersBackend.from_pretrained(BUNDLED, name="entropy-chains/demo")
