"""What the transformers backend knows of its model before anything runs: settings, prompts, room, and whether a policy fits."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from entropy_chains.backends import Message, Sampling
from entropy_chains.backends.local.generate_settings import PENALTIES, check_names, check_one_stream, check_values
from entropy_chains.backends.text.vocabulary import Vocabulary
from entropy_chains.core.families import ThinkTags
from entropy_chains.core.phases import Phase
from entropy_chains.core.policy import Policy
from entropy_chains.core.steps import Segmentation, detect_segmentation
from entropy_chains.errors import BackendError, MissingExtraError, SettingsError
from entropy_chains.options import OnMismatch, check_counts, check_mappings
from entropy_chains.validation import not_json, short

try:
    import torch

    from entropy_chains.backends.local.kv_cache import growing_cache
    from entropy_chains.backends.local.loading import load
except ImportError as error:
    raise MissingExtraError("transformers with torch", "transformers") from error


class LocalModel:
    """A model and its tokenizer, with the settings of every run.

    Args:
        model: a causal language model, already on its device.
        tokenizer: its tokenizer, with a chat template.
        name: the label compared with the policy's model; the model's own path or id by default.
        k: alternatives that entropy is computed from when there is no policy; None = the whole vocabulary.
        think_tags: thinking tags; found in the chat template by default.
        template_kwargs: passed to the chat template (``enable_thinking`` and the like).
        generate_kwargs: passed to ``generate()``; what stopping cannot go with (beams, criteria of your own, …) is refused by name.
        batch_size: conversations that ``generate`` runs at a time.
    """

    estimator_mode = "raw"
    concurrency: int | None = None
    _cancelled: threading.Event | None = None

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str | None = None,
        k: int | None = 20,
        think_tags: ThinkTags | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
        batch_size: int = 64,
    ):
        check_counts({"k": k}, ", or None for the whole vocabulary")
        check_counts({"batch_size": batch_size})
        check_mappings({"template_kwargs": template_kwargs, "generate_kwargs": generate_kwargs})
        self._model, self._k, self._batch_size = model, k, batch_size
        self._name = name or getattr(model.config, "_name_or_path", "") or "unknown"
        self._generate_kwargs = dict(generate_kwargs or {})
        check_one_stream(self._generate_kwargs, model.generation_config)
        self._check_weights()
        self._vocabulary = Vocabulary(
            tokenizer, self._name, think_tags, self._config(Sampling(), None).eos_token_id, template_kwargs
        )
        check_values(self._config(Sampling(), None))

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        *,
        name: str | None = None,
        device: str | None = None,
        k: int | None = 20,
        think_tags: ThinkTags | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
        batch_size: int = 64,
        **model_kwargs: Any,
    ) -> Self:
        """Load a checkpoint folder or hub id.

        Args:
            path_or_id: the folder or id.
            name: as for the class; by default ``path_or_id``.
            device: where the model goes; by default where ``from_pretrained`` puts it.
            k: as for the class, and so the next four.
            think_tags: tags.
            template_kwargs: of the chat template.
            generate_kwargs: of ``generate()``.
            batch_size: conversations at a time.
            model_kwargs: for transformers' ``from_pretrained`` (``dtype``, ``device_map``, quantisation); what says where files are
                (``revision``, ``subfolder``, ``gguf_file``, ``trust_remote_code``, ``token``, …) holds for the tokenizer as well.

        Raises:
            SettingsError: it cannot be loaded, or an argument cannot be followed.
        """
        model, tokenizer = load(path_or_id, device, model_kwargs)
        return cls(
            model,
            tokenizer,
            name=name or str(path_or_id),
            k=k,
            think_tags=think_tags,
            template_kwargs=template_kwargs,
            generate_kwargs=generate_kwargs,
            batch_size=batch_size,
        )

    @property
    def model(self) -> str:
        """The model's label."""
        return self._name

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self._model.parameters())

    @property
    def vocab_size(self) -> int:
        """Size of the model's vocabulary."""
        return int(self._model.get_output_embeddings().weight.shape[0])

    @property
    def tags(self) -> ThinkTags:
        """The family's thinking tags. Raises SettingsError for a model that has none."""
        if self._vocabulary.tags is None:
            remedy = "use mode 'refine', or pass think_tags=ThinkTags(…)"
            raise SettingsError(f"{self._name} has no thinking tags in its chat template: {remedy}")
        return self._vocabulary.tags

    @property
    def segmentation(self) -> Segmentation:
        """The model's own steps."""
        return detect_segmentation(self._vocabulary.chat_template)

    @property
    def template(self) -> str:
        """Hash of the chat template and the closing text: a policy belongs to it."""
        return self._vocabulary.template

    def temperature(self, sampling: Sampling) -> float:
        """The temperature a run will have; 0 = greedy."""
        config = self._config(sampling, None)
        return float(config.temperature or 1.0) if config.do_sample else 0.0

    def token_ids(self, text: str) -> list[int]:
        """A text's tokens by the model's own tokenizer, without those that a template adds."""
        return self._vocabulary.encode(text)

    @property
    def vocabulary(self) -> Vocabulary:
        """Its tokenizer, as the backend uses it."""
        return self._vocabulary

    def penalties(self, sampling: Sampling = Sampling()) -> list[str]:
        """Names of the settings that change the logits before the entropy is read."""
        config = self._config(sampling, None)
        return [name for name, neutral in PENALTIES.items() if getattr(config, name, neutral) not in (neutral, None)]

    def with_template(self, **settings: Any) -> Self:
        """The same model with further settings of its chat template, such as ``tools``."""
        other = copy.copy(self)
        other._vocabulary = self._vocabulary.with_template(settings)
        return other

    def worker(self, cancelled: threading.Event) -> Self:
        """See :class:`entropy_chains.backends.Backend`: batches as ever, which end once ``cancelled`` is set."""
        other = copy.copy(self)
        other._cancelled = cancelled
        return other

    def details(self, sampling: Sampling = Sampling(), segmentation: Segmentation | None = None) -> dict[str, Any]:
        """What a trace says about how its entropies came about."""
        return {
            "estimator": "full" if self._k is None else "renormalised",
            "k": self._k,
            "temperature": self.temperature(sampling),
            "temperature_mode": self.estimator_mode,
            "segmentation": (segmentation or self.segmentation).to_dict(),
            "template": self.template,
            "vocab_size": self.vocab_size,
            "recorded_with": {
                "think_tags": self._vocabulary.tags.to_list() if self._vocabulary.tags else None,
                "template_kwargs": {
                    name: value if not_json(value) is None else short(value)
                    for name, value in self._vocabulary.template_kwargs.items()
                },
                "dtype": str(getattr(self._model, "dtype", None)).removeprefix("torch."),
            },
        }

    def _check(
        self, policy: Policy | None, sampling: Sampling, segmentation: Segmentation | None, on_mismatch: OnMismatch
    ) -> Segmentation:
        """The steps to use; raises where a setting cannot work, or the policy is for something else."""
        check_names(self._generate_kwargs)
        check_values(self._config(sampling, None))
        if policy is None:
            segmentation = segmentation or self.segmentation
        else:
            policy.check(
                on_mismatch=on_mismatch,
                temperature=self.temperature(sampling),
                max_tokens=sampling.max_tokens,
                mode="thinking",
                model=self._name,
                template=self.template,
                temperature_mode=self.estimator_mode,
                **({"segmentation": segmentation} if segmentation else {}),
            )
            segmentation = policy.segmentation
            if policy.active and (changed := self.penalties(sampling)):
                text = f"{', '.join(changed)} changes the logits that the policy's entropy was calibrated on; set it to neutral"
                warnings.warn(text, stacklevel=3)
        if segmentation.boundary != "call":
            _ = self.tags  # thinking mode needs them
        return segmentation

    def _check_weights(self) -> None:
        """Raise SettingsError for a model on the device ``meta``, unless its weights are elsewhere and loaded as they are used."""
        places = {str(place) for place in (getattr(self._model, "hf_device_map", None) or {}).values()}
        if self._device.type == "meta" and places <= {"meta"}:
            raise SettingsError(f"{self._name} is on the device 'meta', which holds no weights: give another one, such as 'cpu'")

    def _config(self, sampling: Sampling, max_tokens: int | None) -> Any:
        config = copy.deepcopy(self._model.generation_config)
        settings = dict(self._generate_kwargs)
        for name in ("temperature", "top_p", "top_k"):
            if getattr(sampling, name) is not None:
                settings[name] = getattr(sampling, name)
        if sampling.temperature is not None:
            settings["do_sample"] = sampling.temperature > 0
        if not settings.get("do_sample", config.do_sample):
            settings |= dict.fromkeys(("temperature", "top_p", "top_k", "top_h", "min_p", "typical_p"), None)  # or it warns
        config.update(**settings)
        config.max_new_tokens = max_tokens or sampling.max_tokens
        config.max_length = None
        return config

    @property
    def _close_ids(self) -> list[int]:
        return self._vocabulary.encode(self.tags.close + self.tags.after)

    @property
    def _device(self) -> torch.device:
        device: torch.device = self._model.get_input_embeddings().weight.device
        return device

    @property
    def _forks(self) -> bool:
        """Whether the model's cache may be forked: one prefill serves all probes of a run."""
        return growing_cache(self._model) is not None

    @property
    def context_window(self) -> int | None:
        """Tokens that prompt and reply may have together, or None where the model does not say."""
        return getattr(self._model.config, "max_position_embeddings", None)

    def _prompt(self, messages: Sequence[Message]) -> tuple[list[int], Phase]:
        """The prompt's ids, and where the output begins. Raises BackendError where it leaves no room, or cannot be made."""
        try:
            ids, phase = self._vocabulary.prompt(messages)
        except Exception as error:
            raise BackendError(f"no prompt can be made of the conversation ({type(error).__name__}: {error})") from error
        if self.context_window is not None and len(ids) >= self.context_window:
            remedy = "shorten the conversation"
            raise BackendError(f"a prompt of {len(ids)} tokens leaves no room in the model's {self.context_window}; {remedy}")
        return ids, phase

    def _has_room(self, length: int) -> bool:
        """Whether a prefix of this many tokens can be closed and answered."""
        return self.context_window is None or length + len(self._close_ids) < self.context_window

    def _padded(
        self, prompts: Sequence[Sequence[int]], masks: Sequence[Sequence[int]] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Left-padded ids and attention mask, [rows, longest]; ``masks``: the tokens of each prompt that the model may see."""
        width, pad = max(map(len, prompts)), self._vocabulary.pad
        seen = masks or [[1] * len(p) for p in prompts]
        ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=self._device)
        return ids, torch.tensor([[0] * (width - len(m)) + list(m) for m in seen], device=self._device)
