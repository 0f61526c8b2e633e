"""Which settings of ``generate()`` a user may give: each reaches it, or is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import torch
import transformers
from transformers import GenerationConfig

from entropy_chains.backends.local.sampling import WARPERS
from entropy_chains.errors import SettingsError, reason
from entropy_chains.validation import short

TAKEN = (
    "bad_words_ids",
    "bos_token_id",
    "disable_compile",
    "do_sample",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "eos_token_id",
    "epsilon_cutoff",
    "eta_cutoff",
    "guidance_scale",
    "min_p",
    "no_repeat_ngram_size",
    "pad_token_id",
    "remove_invalid_values",
    "renormalize_logits",
    "repetition_penalty",
    "sequence_bias",
    "suppress_tokens",
    "temperature",
    "top_h",
    "top_k",
    "top_p",
    "typical_p",
    "watermarking_config",
)
"""Settings that shape the next token, or end a row at one: they do the same in every ``generate()`` call that a run is made of."""

ONE_STREAM = {
    "num_beams": 1,
    "assistant_model": None,
    "prompt_lookup_num_tokens": None,
    "num_return_sequences": 1,
    "dola_layers": None,
    "penalty_alpha": None,
}
"""Settings under which a row is not one stream of tokens, and the only value each may have, be it the checkpoint's own."""

LENGTHS = ("max_new_tokens", "max_length")
"""How long a reply may be: :class:`entropy_chains.backends.Sampling` says so."""

PENALTIES = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1.0, "guidance_scale": None}
"""Settings that change the logits before the entropy is read, and their neutral values."""


_ANY = torch.tensor([[0]])

JUDGES: tuple[tuple[str, Any, Any], ...] = (
    ("repetition_penalty", transformers.RepetitionPenaltyLogitsProcessor, 1.0),
    ("encoder_repetition_penalty", lambda value: transformers.EncoderRepetitionPenaltyLogitsProcessor(value, _ANY), 1.0),
    ("no_repeat_ngram_size", transformers.NoRepeatNGramLogitsProcessor, 0),
    ("encoder_no_repeat_ngram_size", lambda value: transformers.EncoderNoRepeatNGramLogitsProcessor(value, _ANY), 0),
    ("bad_words_ids", lambda value: transformers.NoBadWordsLogitsProcessor(value, torch.tensor([0])), None),
    ("sequence_bias", transformers.SequenceBiasLogitsProcessor, None),
)
"""Settings besides those that shape the draw: each with the class of transformers that applies it and refuses a bad value, and with
the value under which it does nothing."""


def check_one_stream(settings: Mapping[str, Any], config: Any) -> None:
    """Refuse a model of which no row would be one stream of tokens.

    Args:
        settings: the user's.
        config: the checkpoint's own.

    Raises:
        SettingsError: it names the setting.
    """
    for name, allowed in ONE_STREAM.items():
        value = settings.get(name, getattr(config, name, allowed))
        if value not in (allowed, None):
            raise SettingsError(
                f"{name}={short(value)} is not supported: early stopping needs one stream of tokens a row; remove it"
            )


def check_names(settings: Mapping[str, Any]) -> None:
    """Refuse, before a run, what would not do in it what it does in ``generate()``.

    Raises:
        SettingsError: it names the setting and the remedy.
    """
    defaults = GenerationConfig()
    for name, value in settings.items():
        if name in TAKEN or name in ONE_STREAM:
            continue
        if name in LENGTHS:
            remedy = "give the number of tokens as Sampling(max_tokens=…)"
        elif not hasattr(defaults, name) and (close := get_close_matches(name, (*TAKEN, *LENGTHS), 1, 0.8)):
            remedy = f"did you mean {close[0]}?"
        else:
            remedy = f"remove it; these are: {', '.join(TAKEN)}"
        raise SettingsError(f"{name}={short(value)} is no setting of generate() that stopping can go with: {remedy}")


def check_values(config: Any) -> None:
    """Refuse, before a run, values that transformers would stumble over in it.

    Args:
        config: the run's whole configuration, the user's settings in it.

    Raises:
        SettingsError: it names the setting and the value, and says what transformers says of it.
    """
    for name, judge, neutral in (*(WARPERS if config.do_sample else ()), *JUDGES):
        value = getattr(config, name, None)
        if value is None or value == neutral:
            continue
        try:
            judge(value)
        except Exception as error:  # each class has errors of its own
            raise SettingsError(f"{name}={short(value)} is refused by transformers: {reason(error)}") from error
