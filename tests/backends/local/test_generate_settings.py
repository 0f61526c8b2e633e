"""A setting of ``generate()`` does in a run what it does there, or is refused by name; on the bundled model."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from entropy_chains.backends import Sampling
from entropy_chains.backends.local.generate_settings import LENGTHS, ONE_STREAM, PENALTIES, TAKEN
from entropy_chains.backends.transformers import TransformersBackend
from entropy_chains.core.steps import Segmentation
from entropy_chains.demo import MODEL_FOLDER
from entropy_chains.errors import SettingsError

QUESTION = [{"role": "user", "content": "34*7=?"}]
GREEDY = Sampling(temperature=0.0, max_tokens=40)
WHOLE = Segmentation("call", 1)
"""Nothing is cut."""


@pytest.fixture(scope="module")
def parts():
    """The bundled model and its tokenizer."""
    return AutoModelForCausalLM.from_pretrained(MODEL_FOLDER), AutoTokenizer.from_pretrained(MODEL_FOLDER)


def ids(parts, sampling=GREEDY, **settings):
    """Tokens of a run under these settings."""
    backend = TransformersBackend(*parts, name="demo", generate_kwargs=settings)
    return list(backend.generate([QUESTION], sampling=sampling, segmentation=WHOLE)[0].token_ids)


def plain(parts, **settings):
    """Tokens of plain ``generate()``."""
    model, tokenizer = parts
    given = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    prompt = given["input_ids"]
    made = model.generate(prompt, attention_mask=given["attention_mask"], max_new_tokens=40, do_sample=False, **settings)
    return made[0, prompt.shape[1] :].tolist()


@pytest.mark.parametrize(
    "settings",
    [
        lambda usual: {},
        lambda usual: {"suppress_tokens": [usual[3]]},
        lambda usual: {"bad_words_ids": [[usual[3]]]},
        lambda usual: {"repetition_penalty": 1.3},
        lambda usual: {"no_repeat_ngram_size": 2},
        lambda usual: {"sequence_bias": [[[usual[3]], -10.0]]},
        lambda usual: {"eos_token_id": usual[12]},
        lambda usual: {"eos_token_id": [usual[12], usual[20]]},
    ],
)
def test_a_setting_that_is_taken_gives_the_tokens_of_plain_generate(parts, settings):
    """Greedy; a row ends at an end token of the user's own, which is no part of the answer."""
    given = settings(plain(parts))
    assert ids(parts, **given) == plain(parts, **given)


def test_an_end_token_of_one_s_own_is_no_part_of_the_answer(parts):
    """The answer ends before it, and the run says that it ended by itself."""
    usual = TransformersBackend(*parts, name="demo").generate([QUESTION], sampling=Sampling(0.0, max_tokens=400))[0]
    last = usual.token_ids[-2]  # of the answer, before the checkpoint's own end token
    backend = TransformersBackend(*parts, name="demo", generate_kwargs={"eos_token_id": last})
    run = backend.generate([QUESTION], sampling=Sampling(0.0, max_tokens=400), segmentation=WHOLE)[0]
    assert run.finish_reason == "stop"
    assert parts[1].decode([last]) not in (run.answer or "")


def test_top_h_shapes_what_is_drawn_from(parts):
    """At almost no entropy nothing but the likeliest token is left, at any seed."""
    if not hasattr(transformers, "TopHLogitsWarper"):
        pytest.skip("this transformers has no top_h")
    drawn = [ids(parts, Sampling(1.0, max_tokens=12, seed=seed), top_h=1e-6) for seed in range(3)]
    assert drawn == [ids(parts, Sampling(0.0, max_tokens=12))] * 3


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"repetion_penalty": 1.5}, "did you mean repetition_penalty?"),
        ({"max_new_tokens": 5}, "Sampling"),
        ({"max_length": 5}, "Sampling"),
        ({"logits_processor": LogitsProcessorList()}, "remove it"),
        ({"stopping_criteria": StoppingCriteriaList()}, "remove it"),
        ({"max_time": 1e-6}, "remove it"),
        ({"stop_strings": ["238"]}, "remove it"),
        ({"min_new_tokens": 8}, "remove it"),
        ({"begin_suppress_tokens": [5]}, "remove it"),
        ({"return_dict_in_generate": True}, "remove it"),
        ({"cache_implementation": "static"}, "remove it"),
        ({"position_ids": None}, "remove it"),
    ],
)
def test_another_setting_is_refused_by_name(parts, settings, remedy):
    """Before the model is asked, with what to do; a misspelt name with the one that was meant."""
    with pytest.raises(SettingsError) as refused:
        ids(parts, **settings)
    assert next(iter(settings)) in str(refused.value)
    assert remedy in str(refused.value)


def test_every_name_is_one_of_generate_s_own():
    """No table names a setting that no version of ``GenerationConfig`` knows."""
    known = set(GenerationConfig().to_dict()) | {"assistant_model", "top_h", "dola_layers", "penalty_alpha"}
    assert {*TAKEN, *ONE_STREAM, *LENGTHS, *PENALTIES} <= known


def test_a_checkpoint_with_a_cache_of_its_own_kind_runs(parts):
    """``cache_implementation`` in the checkpoint's settings, as Gemma 2 has it, gives the same tokens."""
    model, usual = parts[0], ids(parts)
    model.generation_config.cache_implementation = "dynamic"
    try:
        assert ids(parts) == usual
    finally:
        model.generation_config.cache_implementation = None
