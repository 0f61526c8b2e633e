"""Local models: any ``AutoModelForCausalLM`` with its chat template, through ``generate()``.

Entropy is computed on the device from the logits before temperature. At a boundary the thinking is closed *in place*: the
closing tag is forced as the row's next tokens, the KV cache is kept, and the model writes its answer. No row disturbs
another. A token takes one path: ``Watch.process`` sees the logits it is drawn from, ``Watch.chosen`` the token itself.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from itertools import count
from typing import Any

from entropy_chains.backends import Chunk, Generation, Message, Probe, Sampling
from entropy_chains.backends.text.answer import MALFORMED, run_instead
from entropy_chains.core.batch_monitor import BatchMonitor
from entropy_chains.core.entropy_rows import SMALL, logits_entropy
from entropy_chains.core.phases import Phase
from entropy_chains.core.policy import Policy, stopping_enabled
from entropy_chains.core.signals import Tally
from entropy_chains.core.steps import Segmentation
from entropy_chains.errors import MissingExtraError, all_of, outcome
from entropy_chains.options import OnMismatch

try:
    import torch
    import transformers

    from entropy_chains.backends.local.generate_hooks import Cancelled, TrialProcessor, Watch
    from entropy_chains.backends.local.kv_cache import growing_cache, prefilled, taken
    from entropy_chains.backends.local.model import LocalModel
    from entropy_chains.backends.local.sampling import Numbers, warped
except ImportError as error:
    raise MissingExtraError("transformers with torch", "transformers") from error

OWN_CONFIG = {"use_model_defaults": False} if int(transformers.__version__.partition(".")[0]) < 5 else {}
"""Transformers 4 takes a setting that equals the global default for none, and puts the model's own in its place."""

PROBES = 1
"""The purpose of numbers that probes are drawn by."""


class TransformersBackend(LocalModel):
    """A local model that answers, streams, is stopped early, and can be recorded.

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

    def generate(
        self,
        conversations: Sequence[Sequence[Message]],
        *,
        policy: Policy | None = None,
        sampling: Sampling = Sampling(),
        segmentation: Segmentation | None = None,
        stop: bool = True,
        holdout: Sequence[bool] | None = None,
        on_mismatch: OnMismatch = "error",
    ) -> list[Generation]:
        """Answer every conversation in batches; see :class:`entropy_chains.backends.Backend`.

        Raises:
            BatchError: some conversations are too long, or no prompt can be made of them; the others' runs are on it. Where that
                is true of every one, the first one's own error.
        """
        segmentation = self._check(policy, sampling, segmentation, on_mismatch)
        stop = stop and stopping_enabled()
        done: list[Generation | Exception] = []
        for start in range(0, len(conversations), self._batch_size):
            part = [outcome(self._prompt, m) for m in conversations[start : start + self._batch_size]]
            places = [start + n for n, prompt in enumerate(part) if not isinstance(prompt, Exception)]
            held = [holdout[place] for place in places] if holdout is not None else None
            prompts = [prompt for prompt in part if not isinstance(prompt, Exception)]
            runs = iter(self._batch(prompts, policy, sampling, segmentation, stop, held, places, cancelled=self._cancelled))
            done += [prompt if isinstance(prompt, Exception) else next(runs) for prompt in part]
        return all_of(done)

    def stream(
        self,
        messages: Sequence[Message],
        *,
        policy: Policy | None = None,
        sampling: Sampling = Sampling(),
        segmentation: Segmentation | None = None,
        stop: bool = True,
        holdout: bool = False,
        on_mismatch: OnMismatch = "error",
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
                    [self._prompt(messages)], policy, sampling, segmentation, stop and stopping_enabled(), [holdout], [0], put,
                    cancelled,
                )  # fmt: skip
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
        probes: dict[int, Probe] = {}
        # By run: its tokens, and where to close it for which probe.
        requests: dict[int, tuple[list[int], list[tuple[int, int]]]] = {}
        for n, (messages, run, step) in enumerate(runs):
            prompt = self._vocabulary.prompt(messages)[0]
            end = len(prompt) + run.steps[step - 1].end
            if self._has_room(end):
                requests.setdefault(id(run) if self._forks else -n, ([*prompt, *run.token_ids], []))[1].append((end, n))
            else:
                probes[n] = Probe(None, 0)
        rows = [(tokens[: max(ends)[0]], sorted(ends)) for tokens, ends in requests.values()]
        rows.sort(key=lambda row: len(row[0]))  # of like length together: padding is computed too
        for start in range(0, len(rows), self._batch_size):
            probes |= self._probe_batch(rows[start : start + self._batch_size], sampling)
        return [probes[n] for n in range(len(runs))]

    def _probe_batch(self, rows: list[tuple[list[int], list[tuple[int, int]]]], sampling: Sampling) -> dict[int, Probe]:
        """The probes of some runs. All of a run share one prefill: what comes after a probe's end is hidden from it."""
        cache = prefilled(self._model, [tokens for tokens, _ in rows]) if self._forks else None
        results: dict[int, Probe] = {}
        for n in range(max(len(ends) for _, ends in rows)):
            left = [m for m, (_, ends) in enumerate(rows) if len(ends) > n]
            if cache is not None and len(left) < len(rows):
                cache.batch_select_indices(torch.tensor(left))
            rows = [rows[m] for m in left]
            prefixes = [tokens[: ends[n][0]] for tokens, ends in rows]
            probes = self._close_and_answer(prefixes, sampling, cancelled=self._cancelled, cache=cache)
            results |= {ends[n][1]: probe for (_, ends), probe in zip(rows, probes, strict=True)}
        return results

    def _run(
        self,
        prompts: tuple[torch.Tensor, torch.Tensor],
        sampling: Sampling,
        max_tokens: int,
        draw: Callable[[], Sequence[float]],
        *,
        watch: Watch | None = None,
        trial: TrialProcessor | None = None,
        cancelled: threading.Event | None = None,
        cache: Any | None = None,
    ) -> torch.Tensor:
        """``generate()`` on ids and mask; returns prompts and new ids, [rows, length]. ``cache``: what came before; it grows."""
        ids, mask = prompts
        room, width = self.context_window, int(mask.sum(-1).max())
        config = self._config(sampling, min(max_tokens, room - width) if room else max_tokens)
        config.pad_token_id = self._vocabulary.pad
        reader = watch.processor if watch else trial
        hooks: dict[str, Any] = {"logits_processor": [*([reader] if reader else []), *warped(config, draw)], **OWN_CONFIG}
        if watch:
            hooks["stopping_criteria"] = [watch.criterion]
        elif cancelled:
            hooks["stopping_criteria"] = [Cancelled(cancelled)]
        if cache is not None:  # an empty cache is falsy
            hooks["past_key_values"] = cache
        with torch.inference_mode():
            out: torch.Tensor = self._model.generate(input_ids=ids, attention_mask=mask, generation_config=config, **hooks)
        return out

    def _close_and_answer(
        self,
        prefixes: Sequence[list[int]],
        sampling: Sampling,
        policy: Policy | None = None,
        cancelled: threading.Event | None = None,
        cache: Any | None = None,
    ) -> list[Probe]:
        """Close the thinking after each prefix, which must leave room to, and let the model answer.

        ``cache``: holds all but the last token of each prefix, from its first column on, and may go on after them, differently for
        each. It is given back as it was.
        """
        if not prefixes:
            return []
        close, probes, pad = self._close_ids, list[Probe](), self._vocabulary.pad
        ids, masks = [], []
        for prefix in prefixes:
            held = len(prefix) - 1
            hidden = cache.get_seq_length() - held if cache is not None else 0
            ids.append([*prefix[:held], *[pad] * hidden, prefix[held], *close])
            masks.append([1] * held + [0] * hidden + [1] * (1 + len(close)))
        prompts = self._padded(ids, masks)
        numbers, step = Numbers(sampling.seed, range(len(prefixes)), PROBES), count()
        trial = TrialProcessor(self._k if policy is None else policy.k)

        def draw() -> list[float]:
            position = next(step)
            return [numbers.at(n, position) for n in range(len(prefixes))]

        cache_length, used = (0, growing_cache(self._model)) if cache is None else (cache.get_seq_length(), cache)
        output = self._run(prompts, sampling, sampling.max_tokens, draw, trial=trial, cancelled=cancelled, cache=used)
        if cache is not None:  # as it was
            cache.crop(cache_length - cache.get_seq_length())
        rows = output[:, prompts[0].shape[1] :].tolist()
        read = trial.chances(output[:, -1:]), trial.entropies.tolist(), trial.figures
        for row, chances, entropy, figures in zip(rows, *read, strict=True):
            written = next((i for i, token in enumerate(row) if token in self._vocabulary.eos), len(row))
            answer, signals = self._vocabulary.answer(row[:written]), {"eat": entropy}
            if written == len(row):  # it was cut off
                answer = None
            if answer is not None:  # of nothing nobody is sure
                tally = Tally(policy.mass_floor if policy else None)
                tally.add_many(figures[:written])
                signals |= tally.trial()
                signals["trial_confidence"] = sum(chances[:written]) / written
            finite = {name: value for name, value in signals.items() if math.isfinite(value)}
            probes.append(Probe(answer, len(close) + min(written + 1, len(row)), finite))
        return probes

    def _to_the_end(
        self, prompts: Sequence[list[int]], watch: Watch, sampling: Sampling, drawn: Numbers, policy: Policy | None
    ) -> None:
        """``generate()`` until every row of ``watch`` has ended, or was stopped with a probe's answer.

        Where the cache can be taken apart, rows that are over leave the batch on the way, half of it at a time, and rows that wait
        for a probe are probed on a copy of theirs. Otherwise the batch runs until all are over or wait, and probes are prefilled.
        """
        rows, cache = list(range(len(prompts))), growing_cache(self._model)
        watch.thins = cache is not None
        while rows:
            watch.begin(rows)
            begun = [[*prompts[r], *watch.ids[r]] for r in rows]
            width = max(map(len, begun))
            self._run(self._padded(begun), sampling, watch.left, lambda: watch.numbers(drawn), watch=watch, cache=cache)
            if watch.is_cancelled:
                return
            so_far = {r: [*prompts[r], *watch.ids[r]] for r in rows}
            # Where each row's tokens stand in the cache, all but its last; what comes after them was computed for nothing.
            held = {r: (n, width - len(b), len(so_far[r]) - 1) for n, (r, b) in enumerate(zip(rows, begun, strict=True))}
            waiting = [r for r in rows if watch.paused[r]]
            trial_rows = [r for r in waiting if self._has_room(len(so_far[r]))]
            fork = taken(cache, [held[r] for r in trial_rows], at_end=False) if cache is not None and trial_rows else None
            probes = self._close_and_answer([so_far[r] for r in trial_rows], sampling, policy, watch.cancelled, fork)
            probe_of = dict(zip(trial_rows, probes, strict=True))
            for r in waiting:
                again = 0 if r not in probe_of else len(so_far[r]) if fork is None else 1
                watch.tried(r, probe_of.get(r, Probe(None, 0)), again)
            rows = [r for r in rows if not watch.has_ended(r)]
            if cache is None:
                for r in rows:
                    watch.prefill[r] += len(so_far[r])
            elif rows:
                cache = taken(cache, [held[r] for r in rows], at_end=True)

    def _batch(
        self,
        inputs: Sequence[tuple[list[int], Phase]],
        policy: Policy | None,
        sampling: Sampling,
        segmentation: Segmentation,
        stop: bool,
        holdout: Sequence[bool] | None,
        numbers: Sequence[int],
        put: Callable[[Chunk], None] | None = None,
        cancelled: threading.Event | None = None,
    ) -> list[Generation]:
        """``inputs``: prompts, and where each output begins. ``numbers``: their places in the call: each draws by its own."""
        if not inputs:
            return []
        prompts, phases = zip(*inputs, strict=True)
        k = self._k if policy is None else policy.k
        # A small model's logits are kept until a step ends: many small computations would cost more than the model itself.
        # Rounded as in a stream, whose figures come as tensors: both must give the same run.
        late = put is None and self._device.type == "cpu" and len(prompts) * self.vocab_size <= SMALL
        monitor = BatchMonitor(
            policy,
            len(prompts),
            segmentation=segmentation,
            tags=self._vocabulary.tags,
            stop=stop,
            holdout=holdout,
            read=(lambda logits: logits_entropy(logits, k).figures().astype("float32")) if late else None,
        )
        close = self._close_ids if segmentation.boundary != "call" else []
        limits = [
            sampling.max_tokens if self.context_window is None else min(sampling.max_tokens, self.context_window - len(p))
            for p in prompts
        ]
        watch = Watch(self._vocabulary, monitor, k, close, phases, limits, put, cancelled, late=late)
        self._to_the_end(prompts, watch, sampling, Numbers(sampling.seed, numbers), policy)
        runs = [watch.finished(r, len(prompts[r])) for r in range(len(prompts))]
        unanswered = [r for r, run in enumerate(runs) if run.outcome.stopped and run.answer is None and not run.tool_calls]
        broken = [] if watch.is_cancelled else unanswered
        if broken:  # a full answer is always acceptable, a cut one never
            again, same = [inputs[r] for r in broken], [numbers[r] for r in broken]
            redone = self._batch(again, policy, sampling, segmentation, False, None, same, put, cancelled)
            for r, full in zip(broken, redone, strict=True):
                runs[r] = run_instead(full, runs[r], monitor.rows[r].finish(MALFORMED))
        return runs
