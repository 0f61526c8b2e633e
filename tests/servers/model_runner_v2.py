"""Runs in vLLM's own environment (see test_vllm_plugin.py): the class for Model Runner V2 against its real base class.

V2 needs a GPU, so the batch is made by hand, after the base class's own description: slots, rows in another order in every step,
prompts read in parts. Every request must get what the monitor gives it alone. Prints ``ok``.
"""

from __future__ import annotations

import inspect
import random
from types import SimpleNamespace

import numpy as np
import torch
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.v1.sample.logits_processor import _load_logitsprocs_by_fqcns as load_v1
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcessor, LogitsProcRequestState
from vllm.v1.worker.gpu.sample.logits_processor.loader import _load_v2_logitsprocs_by_fqcns as load_v2
from vllm.v1.worker.gpu.sample.logits_processor.loader import build_custom_logits_processors_params_validator as validator

from entropy_chains.backends import vllm
from entropy_chains.backends.engine.settings import read
from entropy_chains.core.entropy import EntropyBounds
from entropy_chains.core.entropy_rows import logits_entropy
from entropy_chains.core.monitor import Decision, Monitor
from entropy_chains.core.tokens import Token
from entropy_chains.demo import MODEL_FOLDER

HOME = "entropy_chains.backends.vllm:"
CONFIG = EngineArgs(model=str(MODEL_FOLDER), dtype="float32").create_engine_config()
WORDS = vllm._serving(CONFIG).vocabulary
LINE, OPEN = WORDS.encode("\n")[0], WORDS.encode("<think>")[0]
CLOSE = WORDS.encode("</think>\n\n")
STRANGE = [n for n in range(102) if not (WORDS.text(n).isalnum() or n == LINE)]
SLOTS, LONGEST, LENGTH = 6, 128, 50


class Request:
    """A request with a model of its own: the logits of its next token follow from a seed and the tokens so far."""

    def __init__(self, seed, threshold):
        keys = {"threshold": threshold, "boundary": "line", "min_tokens": 4}
        given = {f"entropy_chains_{k}": v for k, v in keys.items()} if threshold is not None else None
        self.seed, self.params, self.output = seed, SamplingParams(extra_args=given), []
        self.opened = bool(seed % 2)
        self.prompt = WORDS.encode("1+1=?" + ("<think>\n" if self.opened else ""))
        self.read = 0  # tokens of the prompt that were read

    def logits(self, output):
        drawn = np.random.default_rng([self.seed, len(output), *output[-3:]])
        row = drawn.normal(0, drawn.choice([1.0, 3.0, 6.0]), 102)
        row[LINE] += 4.0
        row[STRANGE] = -20.0
        if not output and not self.opened:
            row[OPEN] = 30.0
        return torch.tensor(row, dtype=torch.float32)

    def alone(self):
        settings, output, closing = read(self.params.extra_args), [], []
        monitor = settings and Monitor(settings.policy, tags=WORDS.tags, thinking=self.opened)
        while len(output) < LENGTH:
            row = self.logits(output)
            output.append(closing[0] if closing else int(row.argmax()))
            if monitor:
                e = logits_entropy(row[None], settings.policy.k)
                bounds = EntropyBounds(*(float(f[0]) for f in e[:4]), 0, float(e.confidence[0]))
                decision = monitor.feed(Token(WORDS.text(output[-1])), bounds, forced=bool(closing))
                closing = closing[1:] if closing else CLOSE if decision is Decision.CLOSE else []
        return output, bool(monitor and monitor.finish().stopped)


def buffer(*shape):
    """What the class reads of vLLM's buffers: a device and a host side of the same memory."""
    gpu = torch.zeros(shape, dtype=torch.int32)
    return SimpleNamespace(gpu=gpu, np=gpu.numpy())


def signatures():
    """The classes are what the loaders want, and their methods are called as the base class's are."""
    for name in ("__init__", "validate_params", "add_request", "apply"):
        own, base = (list(inspect.signature(getattr(c, name)).parameters) for c in (vllm.EntropyStopV2, LogitsProcessor))
        assert own == base, (name, own, base)
    assert not vllm.EntropyStopV2.__abstractmethods__
    assert load_v2([HOME + "EntropyStopV2", HOME + "EntropyStopAny"]) == [vllm.EntropyStopV2, vllm.EntropyStopAny]
    assert load_v1([HOME + "EntropyStop", HOME + "EntropyStopAny"]) == [vllm.EntropyStop, vllm.EntropyStopAny]
    validate = validator((HOME + "EntropyStopV2",))
    validate(SamplingParams(extra_args={"entropy_chains_threshold": 0.5}))
    said = ""
    try:
        validate(SamplingParams(extra_args={"entropy_chains_treshold": 0.5}))
    except VLLMValidationError as error:
        said = str(error)
    assert "entropy_chains_treshold is unknown" in said


def run(kind, seed):
    """A batch whose rows come, go, pause and change their order; returns its requests and how many were closed."""
    drawn = random.Random(seed)
    tokens, prompt_len, prefill_len, total_len = buffer(SLOTS, LONGEST), buffer(SLOTS), buffer(SLOTS), buffer(SLOTS)
    states = LogitsProcRequestState(torch.device("cpu"), SLOTS, 102, tokens, prompt_len, prefill_len, total_len)
    processor = kind(CONFIG, states)
    requests = [Request(seed * 100 + n, drawn.choice([None, 1.5, 2.0, 3.0])) for n in range(16)]
    waiting, seated = list(requests), {}
    while waiting or seated:
        for slot in range(SLOTS):
            if slot in seated and len(seated[slot].output) == LENGTH:
                del seated[slot]
            if slot not in seated and waiting and drawn.random() < 0.5:
                request = seated[slot] = waiting.pop(0)
                prompt_len.np[slot] = prefill_len.np[slot] = len(request.prompt)
                tokens.np[slot, : len(request.prompt)] = request.prompt
                processor.add_request(slot, request.params)
        processor.apply_staged_writes()
        slots = [slot for slot in seated if drawn.random() < 0.9]  # not every request runs in every step
        drawn.shuffle(slots)
        if not slots:
            continue
        seen = []
        for slot in slots:
            request = seated[slot]
            if request.read < len(request.prompt):
                request.read = len(request.prompt) if drawn.random() < 0.5 else min(request.read + 2, len(request.prompt))
            seen.append(request.read + len(request.output))
        mapping = torch.tensor(slots)
        context = LogitsContext(
            expanded_idx_mapping=mapping,
            idx_mapping=mapping,
            idx_mapping_np=mapping.numpy(),
            expanded_local_pos=torch.zeros_like(mapping),
            input_ids=torch.tensor([int(tokens.np[slot, n - 1]) for slot, n in zip(slots, seen, strict=True)]),
            pos=torch.tensor(seen) - 1,
            seq_lens_upper_bound_np=np.array(seen, dtype=np.int32),
        )
        logits = processor.apply(torch.stack([seated[slot].logits(seated[slot].output) for slot in slots]), context)
        for slot, token in zip(slots, logits.argmax(-1).tolist(), strict=True):
            request = seated[slot]
            if request.read == len(request.prompt):
                tokens.np[slot, len(request.prompt) + len(request.output)] = token
                request.output.append(token)
    return requests


def main():
    """All of it."""
    signatures()
    closed = 0
    for seed in range(6):
        for kind in (vllm.EntropyStopV2, vllm.EntropyStopAny):
            for request in run(kind, seed):
                expected, stopped = request.alone()
                assert request.output == expected, (seed, request.seed)
                closed += stopped
    assert closed > 20, closed
    print("ok")


if __name__ == "__main__":
    main()
