"""Settings of the transformers backend that cannot work, and conversations that cannot run."""

from __future__ import annotations

import copy
import threading
import warnings
from dataclasses import replace

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from small_models import ASKED, GREEDY, always, ask, small_model

from entropy_chains.backends import Probe, Sampling
from entropy_chains.backends.transformers import TransformersBackend
from entropy_chains.errors import BackendError, SettingsError

# --- settings that cannot work


@pytest.mark.parametrize(
    "setting", [{"num_beams": 2}, {"num_return_sequences": 2}, {"prompt_lookup_num_tokens": 3}, {"penalty_alpha": 0.6}]
)
def test_settings_under_which_a_row_is_not_one_stream(small, tokenizer, setting):
    """Refused when the backend is made, from its own settings or from the model's; the message names the setting."""
    name = next(iter(setting))
    with pytest.raises(SettingsError, match=name):
        TransformersBackend(small._model, tokenizer, generate_kwargs=setting)
    model = copy.copy(small._model)
    model.generation_config = copy.deepcopy(model.generation_config)
    setattr(model.generation_config, name, setting[name])
    with pytest.raises(SettingsError, match=name):
        TransformersBackend(model, tokenizer)


def test_assisted_decoding_is_refused(small, tokenizer):
    """A draft model makes several tokens a step."""
    with pytest.raises(SettingsError, match="assistant_model"):
        TransformersBackend(small._model, tokenizer, generate_kwargs={"assistant_model": small._model})


@pytest.mark.parametrize("setting", [{"repetition_penalty": 1.2}, {"no_repeat_ngram_size": 3}])
def test_penalties_warn(small, tokenizer, setting):
    """They change the logits that entropy is read from; without an active policy nobody is bothered."""
    backend = TransformersBackend(small._model, tokenizer, name="small", generate_kwargs=setting)
    with pytest.warns(UserWarning, match=next(iter(setting))):
        backend.generate(ASKED[:1], policy=always(backend), sampling=Sampling(0.0, max_tokens=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        backend.generate(ASKED[:1], sampling=Sampling(0.0, max_tokens=2))


def test_impossible_settings(small, tokenizer):
    """``k`` = 0 and batches of nothing; a tokenizer without a chat template; thinking without tags."""
    with pytest.raises(SettingsError, match="k is 0"):
        TransformersBackend(small._model, tokenizer, k=0)
    with pytest.raises(SettingsError, match="batch_size is 0"):
        TransformersBackend(small._model, tokenizer, batch_size=0)
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(SettingsError, match="no chat template"):
        TransformersBackend(small._model, bare)
    bare.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(SettingsError, match=r"no thinking tags.*refine"):
        TransformersBackend(small._model, bare, name="plain").generate(ASKED[:1])


@pytest.mark.parametrize("missing", ["tokenizer", "everything", "config"])
def test_a_folder_that_is_no_model(folder, tmp_path, missing):
    """An error that names the folder and says what it must hold, not a traceback of a library."""
    if missing != "everything":
        for file in folder.iterdir():
            if not file.name.startswith(missing):
                (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(SettingsError, match=str(tmp_path)):
        TransformersBackend.from_pretrained(tmp_path)


def test_a_prompt_longer_than_the_context(small):
    """The message gives both lengths."""
    with pytest.raises(BackendError, match=r"\d+ tokens.*512"):
        small.generate([ask("x" * 600)])


def test_a_worker_that_is_cancelled_ends_at_its_next_token(small):
    """Runs and probes alike; the backend that it was made of goes on."""
    cancelled = threading.Event()
    worker = small.worker(cancelled)
    (run,) = worker.generate([ASKED[0]], sampling=GREEDY)
    assert run.tokens == 60
    (probe,) = worker.probe([(ASKED[0], run, 1)], sampling=GREEDY)
    cancelled.set()
    assert worker.generate([ASKED[0]], sampling=GREEDY)[0].tokens <= 2
    assert worker.probe([(ASKED[0], run, 1)], sampling=GREEDY)[0].tokens < probe.tokens
    assert small.generate([ASKED[0]], sampling=GREEDY)[0].tokens == 60


def test_the_context_is_a_limit(tokenizer):
    """A run ends where the context does; a probe for which no room is left has no answer instead of an error."""
    backend = TransformersBackend(small_model(context=64), tokenizer, name="small")
    runs = [backend.generate(ASKED[:1], sampling=Sampling(1.0, max_tokens=500, seed=seed))[0] for seed in range(11, 21)]
    assert all(run.prompt_tokens + run.tokens <= 64 for run in runs)
    run = next(run for run in runs if run.steps)
    full = replace(run, token_ids=(5,) * (64 - run.prompt_tokens), steps=(replace(run.steps[0], end=64 - run.prompt_tokens - 2),))
    assert backend.probe([(ASKED[0], full, 1)], sampling=GREEDY)[0] == Probe(None, 0, {})
