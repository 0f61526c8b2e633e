"""A KV cache that grows in place, and can be forked. The default one copies itself for every token: on a CPU most of the time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

try:
    from transformers.cache_utils import DynamicLayer
except ImportError:  # transformers before 4.56 has no layers
    DynamicLayer = None

BLOCK = 256
"""Tokens of room added at a time."""

ROWS = 16
"""Rows that a CPU prefills at a time: more of them leave its caches, and take twice as long."""


def growing_cache(model: Any) -> Any | None:
    """A fresh cache for one ``generate()`` call, or None where the default must be used.

    Only for models on a CPU whose layers all attend to everything: sliding windows and recurrent layers have caches of their
    own, so have checkpoints that ask for one, and GPU allocators do not pay for the copies with page faults.
    """
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    plain = kinds == {"full_attention"} and not getattr(config, "is_encoder_decoder", False)
    sliding = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    implementation = getattr(model.generation_config, "cache_implementation", None)
    if DynamicLayer is None or not plain or sliding or implementation or model.get_input_embeddings().weight.device.type != "cpu":
        return None
    return _growing() if hasattr(DynamicCache(), "layer_class_to_replicate") else None


def _growing() -> Any:
    class GrowingLayer(DynamicLayer):  # type: ignore[misc]
        """Keys and values in blocks of room, [rows, heads, room, head size]; the used part is handed out as a view."""

        keys: Any
        values: Any
        is_initialized: bool
        _room: tuple[Any, Any] | None = None

        def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            if not self.is_initialized:  # by hand: what the base class's own takes differs between transformers 4 and 5
                self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
                self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
            used = self.get_seq_length()
            length = used + key_states.shape[-2]
            if self._room is None or length > self._room[0].shape[-2]:
                room = -(-length // BLOCK) * BLOCK
                grown = tuple(s.new_empty(*s.shape[:2], room, s.shape[-1]) for s in (key_states, value_states))
                if used:
                    grown[0][:, :, :used], grown[1][:, :, :used] = self.keys, self.values
                self._room = (grown[0], grown[1])
            for room_, new in zip(self._room, (key_states, value_states), strict=True):
                room_[:, :, used:length] = new
            self.keys, self.values = (r[:, :, :length] for r in self._room)
            return self.keys, self.values

        def batch_select_indices(self, indices: Any) -> None:
            super().batch_select_indices(indices)
            self._room = None  # it has the rows of before

    cache = DynamicCache()
    cache.layer_class_to_replicate = GrowingLayer
    return cache


def prefilled(model: Any, rows: Sequence[Sequence[int]]) -> Any | None:
    """A cache that holds these tokens, padded at the *end*, which may be cropped and have rows taken from it.

    None where the model's cache must be its own. No token sees a later one, so this needs no mask (which costs as much as the
    model): whoever goes on hides the padding. Rows of like length should stand together.
    """
    cache = growing_cache(model)
    if cache is None:
        return None
    device, longest, parts = model.get_input_embeddings().weight.device, max(map(len, rows)), []
    for start in range(0, len(rows), ROWS):
        some, part = rows[start : start + ROWS], _growing()
        length = max(map(len, some))
        ids = torch.tensor([[*row, *[0] * (length - len(row))] for row in some], device=device)
        with torch.inference_mode():
            model(input_ids=ids, past_key_values=part, logits_to_keep=1)
        end = (0, 0, 0, longest - length)
        parts.append([[torch.nn.functional.pad(states, end) for states in (x.keys, x.values)] for x in part.layers])
    for n, layer in enumerate(zip(*parts, strict=True)):
        cache.update(*map(torch.cat, zip(*layer, strict=True)), n)
    return cache


def taken(cache: Any, parts: Sequence[tuple[int, int, int]], *, at_end: bool) -> Any:
    """A new cache of some rows, each with a part of its columns only.

    Args:
        cache: a growing one.
        parts: row, first column, number of columns of each.
        at_end: the parts end together, as ``generate()`` wants it; else they begin together, which may then be gone on with as
            after :func:`prefilled`. Zeros fill up: whoever goes on hides them.
    """
    subset, width = _growing(), max(length for _, _, length in parts)
    for n, layer in enumerate(cache.layers):
        states = []
        for old in (layer.keys, layer.values):
            new = old.new_zeros(len(parts), old.shape[1], width, old.shape[3])
            for m, (row, first, length) in enumerate(parts):
                to = width - length if at_end else 0
                new[m, :, to : to + length] = old[row, :, first : first + length]
            states.append(new)
        subset.update(*states, n)
    return subset
