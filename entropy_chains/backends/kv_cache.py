"""A KV cache that grows in place. The default one copies itself for every token, which on a CPU is most of the time."""

from __future__ import annotations

from typing import Any

from transformers.cache_utils import DynamicCache

try:
    from transformers.cache_utils import DynamicLayer
except ImportError:  # transformers before 4.56 has no layers
    DynamicLayer = None

BLOCK = 256
"""Tokens of room added at a time."""


def growing_cache(model: Any) -> Any | None:
    """A fresh cache for one ``generate()`` call, or None where the default must be used.

    Only for models on a CPU whose layers all attend to everything: sliding windows and recurrent layers have caches of their
    own, and GPU allocators do not pay for the copies with page faults.
    """
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    plain = kinds == {"full_attention"} and not getattr(config, "is_encoder_decoder", False)
    sliding = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    if DynamicLayer is None or not plain or sliding or model.get_input_embeddings().weight.device.type != "cpu":
        return None
    if not hasattr(DynamicCache(), "layer_class_to_replicate"):
        return None

    class GrowingLayer(DynamicLayer):  # type: ignore[misc]
        """Keys and values in blocks of room, [rows, heads, room, head size]; the used part is handed out as a view."""

        keys: Any
        values: Any
        _room: tuple[Any, Any] | None = None

        def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
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

    cache = DynamicCache()
    cache.layer_class_to_replicate = GrowingLayer
    return cache
