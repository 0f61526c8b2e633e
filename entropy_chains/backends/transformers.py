"""Local models: any ``AutoModelForCausalLM`` with its chat template, through ``generate()``.

Entropy is computed on the device from the logits before temperature. At a boundary the thinking is closed *in place*: the
closing tag is forced as the row's next tokens, the KV cache is kept, and the model writes its answer. No row disturbs
another. A token takes one path: ``Watch.process`` sees the logits it is drawn from, ``Watch.chosen`` the token itself.
"""

from __future__ import annotations

import copy
import queue
import threading
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from entropy_chains.backends import Chunk, Generation, Message, Probe, Sampling
from entropy_chains.backends.assembly import MALFORMED, run_instead
from entropy_chains.backends.vocabulary import Vocabulary
from entropy_chains.entropy import logits_entropy
from entropy_chains.errors import BackendError, MissingExtraError, SettingsError
from entropy_chains.monitor import BatchMonitor, Decision
from entropy_chains.policy import Policy, stopping_enabled
from entropy_chains.steps import Phase, Segmentation, ThinkTags, detect_segmentation

try:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from entropy_chains.backends.kv_cache import growing_cache
    from entropy_chains.backends.watching import Cancelled, Watch
except ImportError as error:
    raise MissingExtraError("transformers with torch", "transformers") from error

REFUSED = {
    "num_beams": 1,
    "assistant_model": None,
    "prompt_lookup_num_tokens": None,
    "num_return_sequences": 1,
    "dola_layers": None,
    "penalty_alpha": None,
}
"""Settings of ``generate()`` under which a row is not one stream of tokens, and the only value each may have."""

PENALTIES = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1.0, "guidance_scale": None}
"""Settings that change the logits before the entropy is read, and their neutral values."""


SMALL = 2**16
"""Logits of one token of all rows up to which they are kept; 64 tokens of them take 16 MB at most."""


class TransformersBackend:
    """A local model that answers, streams, is stopped early, and can be recorded.

    Args:
        model: a causal language model, already on its device.
        tokenizer: its tokenizer, with a chat template.
        name: the label compared with the policy's model; the model's own path or id by default.
        k: alternatives that entropy is computed from when there is no policy; None = the whole vocabulary.
        tags: thinking tags; found in the chat template by default.
        template_kwargs: passed to the chat template (``enable_thinking`` and the like).
        generate_kwargs: passed to ``generate()``; beams, assisted decoding and several returned sequences are refused.
        batch_size: conversations that ``generate`` runs at a time.
    """

    estimator_mode = "raw"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str | None = None,
        k: int | None = 20,
        tags: ThinkTags | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
        batch_size: int = 64,
    ):
        if k is not None and k < 1:
            raise SettingsError(f"k is {k}; it must be at least 1, or None for the whole vocabulary")
        if batch_size < 1:
            raise SettingsError(f"batch_size is {batch_size}; it must be at least 1")
        self._model, self._k, self._batch_size = model, k, batch_size
        self._name = name or getattr(model.config, "_name_or_path", "") or "unknown"
        self._vocabulary = Vocabulary(tokenizer, self._name, tags, model.generation_config.eos_token_id, template_kwargs)
        self._generate_kwargs = dict(generate_kwargs or {})
        self._config({}, Sampling(), None)  # refuse what cannot work before anything runs

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        *,
        name: str | None = None,
        device: str | None = None,
        k: int | None = 20,
        batch_size: int = 64,
        **model_kwargs: Any,
    ) -> TransformersBackend:
        """Load a checkpoint folder or hub id; ``model_kwargs`` go to ``from_pretrained`` (dtype, device_map, quantisation)."""
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(path_or_id))
            model = AutoModelForCausalLM.from_pretrained(str(path_or_id), **model_kwargs)
        except (OSError, ValueError) as error:
            first = str(error).strip().splitlines()[0]
            remedy = "give a folder with config.json, weights and tokenizer, or a hub id"
            raise SettingsError(f"model {str(path_or_id)!r} cannot be loaded: {first} ({remedy})") from error
        return cls(model.to(device) if device else model, tokenizer, name=name or str(path_or_id), k=k, batch_size=batch_size)

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
            remedy = "use mode 'refine', or pass tags=ThinkTags(…)"
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
        config = self._config({}, sampling, None)
        return float(config.temperature or 1.0) if config.do_sample else 0.0

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
        }

    def generate(
        self,
        conversations: Sequence[Sequence[Message]],
        *,
        policy: Policy | None = None,
        sampling: Sampling = Sampling(),
        segmentation: Segmentation | None = None,
        stop: bool = True,
        holdout: Sequence[bool] | None = None,
        on_mismatch: str = "error",
        on_done: Callable[[int], None] | None = None,
    ) -> list[Generation]:
        """Answer every conversation in batches; see :class:`entropy_chains.backends.Backend`. ``on_done(n)``: n more are done."""
        segmentation = self._check(policy, sampling, segmentation, on_mismatch)
        done: list[Generation] = []
        for start in range(0, len(conversations), self._batch_size):
            part = conversations[start : start + self._batch_size]
            held = holdout[start : start + self._batch_size] if holdout is not None else None
            done += self._batch(part, policy, sampling, segmentation, stop and stopping_enabled(), held)
            if on_done:
                on_done(len(part))
        return done

    def stream(
        self,
        messages: Sequence[Message],
        *,
        policy: Policy | None = None,
        sampling: Sampling = Sampling(),
        segmentation: Segmentation | None = None,
        stop: bool = True,
        holdout: bool = False,
        on_mismatch: str = "error",
    ) -> Generator[Chunk, None, None]:
        """Answer one conversation token by token; closing the generator ends ``generate()`` and its thread before it returns."""
        segmentation = self._check(policy, sampling, segmentation, on_mismatch)
        # One slot: a consumer that waits makes the model wait, so nothing is computed that nobody has read.
        chunks: queue.Queue[Chunk | BaseException] = queue.Queue(maxsize=1)
        cancelled = threading.Event()

        def put(item: Chunk | BaseException) -> None:
            while not cancelled.is_set():
                with suppress(queue.Full):
                    chunks.put(item, timeout=0.05)
                    return

        def work() -> None:
            try:
                run = self._batch(
                    [messages], policy, sampling, segmentation, stop and stopping_enabled(), [holdout], put=put, cancelled=cancelled
                )
                put(Chunk("", Phase.ANSWER, final=run[0]))
            except BaseException as error:  # noqa: BLE001 (handed to the reader, who raises it)
                put(error)

        worker = threading.Thread(target=work, name="entropy-chains-generate", daemon=True)
        worker.start()
        try:
            while True:
                item = chunks.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
                if item.final is not None:
                    return
        finally:
            cancelled.set()
            worker.join()

    def probe(self, runs: Sequence[tuple[Sequence[Message], Generation, int]], *, sampling: Sampling) -> list[Probe]:
        """See :class:`entropy_chains.backends.Backend`: the live closing text and the live settings, from the same tokens."""
        prefixes = [self._vocabulary.prompt(m)[0] + list(g.token_ids[: g.steps[step - 1].end]) for m, g, step in runs]
        # Rows of like length together: padding is computed too.
        order = sorted(range(len(prefixes)), key=lambda n: len(prefixes[n]))
        found: dict[int, Probe] = {}
        for start in range(0, len(order), self._batch_size):
            part = order[start : start + self._batch_size]
            found |= zip(part, self._close_and_answer([prefixes[n] for n in part], sampling), strict=True)
        return [found[n] for n in range(len(prefixes))]

    def _check(
        self, policy: Policy | None, sampling: Sampling, segmentation: Segmentation | None, on_mismatch: str
    ) -> Segmentation:
        """The steps to use; raises where the policy is for something else."""
        if policy is None:
            segmentation = segmentation or self.segmentation
        else:
            policy.check(
                on_mismatch=on_mismatch,
                temperature=self.temperature(sampling),
                mode="thinking",
                model=self._name,
                template=self.template,
                temperature_mode=self.estimator_mode,
                **({"segmentation": segmentation} if segmentation else {}),
            )
            segmentation = policy.segmentation
            config = self._config({}, sampling, None)
            changed = [n for n, neutral in PENALTIES.items() if getattr(config, n, neutral) not in (neutral, None)]
            if policy.active and changed:
                text = f"{', '.join(changed)} changes the logits that the policy's entropy was calibrated on; set it to neutral"
                warnings.warn(text, stacklevel=3)
        if segmentation.boundary != "call":
            _ = self.tags  # thinking mode needs them
        return segmentation

    def _config(self, extra: Mapping[str, Any], sampling: Sampling, max_tokens: int | None) -> Any:
        config = copy.deepcopy(self._model.generation_config)
        settings = {**self._generate_kwargs, **extra}
        for name in ("temperature", "top_p", "top_k"):
            if getattr(sampling, name) is not None:
                settings[name] = getattr(sampling, name)
        if sampling.temperature is not None:
            settings["do_sample"] = sampling.temperature > 0
        for name, allowed in REFUSED.items():
            value = settings.get(name, getattr(config, name, allowed))
            if value not in (allowed, None):
                raise SettingsError(
                    f"{name}={value!r} is not supported: early stopping needs one stream of tokens a row; remove it"
                )
        if not settings.get("do_sample", config.do_sample):
            settings |= dict.fromkeys(("temperature", "top_p", "top_k", "min_p", "typical_p"), None)  # or it warns
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
    def _room(self) -> int | None:
        """Tokens that prompt and reply may have together, or None where the model does not say."""
        return getattr(self._model.config, "max_position_embeddings", None)

    def _run(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        max_tokens: int,
        watch: Watch | None,
        cancelled: threading.Event | None = None,
    ) -> torch.Tensor:
        """``generate()`` on left-padded prompts; returns the new ids, [rows, length]."""
        device = self._device
        width = max(len(p) for p in prompts)
        ids = torch.tensor([[self._vocabulary.pad] * (width - len(p)) + list(p) for p in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        room = self._room
        if room is not None and width >= room:
            raise BackendError(f"a prompt of {width} tokens leaves no room in the model's {room}; shorten the conversation")
        config = self._config({}, sampling, min(max_tokens, room - width) if room else max_tokens)
        config.pad_token_id = self._vocabulary.pad
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices, enabled=sampling.seed is not None), torch.inference_mode():
            if sampling.seed is not None:
                torch.manual_seed(sampling.seed)
            cache = growing_cache(self._model)
            hooks: dict[str, Any] = {} if cache is None else {"past_key_values": cache}  # an empty cache is falsy
            if watch:
                hooks |= {"logits_processor": [watch.processor], "stopping_criteria": [watch.criterion]}
            elif cancelled:
                hooks["stopping_criteria"] = [Cancelled(cancelled)]
            out = self._model.generate(input_ids=ids, attention_mask=mask, generation_config=config, **hooks)
        new: torch.Tensor = out[:, width:]
        return new

    def _close_and_answer(
        self, prefixes: Sequence[list[int]], sampling: Sampling, cancelled: threading.Event | None = None
    ) -> list[Probe]:
        """Close the thinking after each prefix and let the model answer; where there is no room to, there is no answer."""
        close = self._close_ids
        probes = [Probe(None, 0)] * len(prefixes)
        fitting = [n for n, p in enumerate(prefixes) if self._room is None or len(p) + len(close) < self._room]
        if not fitting:
            return probes
        rows = self._run([prefixes[n] + close for n in fitting], sampling, sampling.max_tokens, None, cancelled).tolist()
        for n, row in zip(fitting, rows, strict=True):
            end = next((i for i, token in enumerate(row) if token in self._vocabulary.eos), len(row) - 1) + 1
            probes[n] = Probe(self._vocabulary.answer(row[:end]), len(close) + end)
        return probes

    def _batch(
        self,
        conversations: Sequence[Sequence[Message]],
        policy: Policy | None,
        sampling: Sampling,
        segmentation: Segmentation,
        stop: bool,
        holdout: Sequence[bool] | None,
        put: Callable[[Chunk], None] | None = None,
        cancelled: threading.Event | None = None,
    ) -> list[Generation]:
        if not conversations:
            return []
        prompts, opened = zip(*(self._vocabulary.prompt(m) for m in conversations), strict=True)
        k = self._k if policy is None else policy.k
        # A small model's logits are kept until a step ends: many small computations would cost more than the model itself.
        # Rounded as in a stream, whose figures come as tensors: both must give the same run.
        late = put is None and self._device.type == "cpu" and len(prompts) * self.vocab_size <= SMALL
        monitor = BatchMonitor(
            policy,
            len(prompts),
            segmentation=segmentation,
            tags=self._vocabulary.tags,
            thinking=all(opened),
            stop=stop,
            holdout=holdout,
            read=(lambda logits: logits_entropy(logits, k).figures().astype("float32")) if late else None,
        )
        close = self._close_ids if segmentation.boundary != "call" else []
        limits = [sampling.max_tokens if self._room is None else min(sampling.max_tokens, self._room - len(p)) for p in prompts]
        watch = Watch(self._vocabulary, monitor, k, close, limits, put, cancelled, late=late)
        rows, prefill, probes = list(range(len(prompts))), [0] * len(prompts), [0] * len(prompts)
        answers: dict[int, str | None] = {}
        left, seeded = sampling.max_tokens, sampling
        while rows:
            watch.rows = rows
            watch.begin()
            self._run([list(prompts[r]) + watch.ids[r] for r in rows], seeded, left, watch)
            rows = [r for r in rows if watch.paused[r] and not watch.is_cancelled]
            found = self._close_and_answer([list(prompts[r]) + watch.ids[r] for r in rows], sampling, cancelled)
            goes_on = []
            for r, probe in zip(rows, found, strict=True):
                probes[r] += probe.tokens
                if monitor.rows[r].answer(probe.answer) is Decision.CLOSE and probe.answer is not None:
                    answers[r] = probe.answer
                    if put:
                        put(Chunk(probe.answer, Phase.ANSWER))
                else:
                    goes_on.append(r)
                    prefill[r] += len(watch.ids[r])
            rows = [r for r in goes_on if len(watch.ids[r]) < limits[r]]
            left = max((limits[r] - len(watch.ids[r]) for r in rows), default=0)
            if seeded.seed is not None:  # the numbers drawn so far must not be drawn again
                seeded = replace(seeded, seed=seeded.seed + 1_000_003)
        runs = [watch.finished(r, len(prompts[r]), probes[r], prefill[r], answers) for r in range(len(prompts))]
        broken = [r for r, run in enumerate(runs) if run.outcome.stopped and run.answer is None and not watch.is_cancelled]
        if broken:  # a full answer is always acceptable, a cut one never
            redone = self._batch([conversations[r] for r in broken], policy, sampling, segmentation, False, None, put, cancelled)
            for r, full in zip(broken, redone, strict=True):
                runs[r] = run_instead(full, runs[r], monitor.rows[r].finish(MALFORMED))
        return runs
