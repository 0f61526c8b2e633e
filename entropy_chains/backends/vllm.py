"""The plug-in for vLLM: a logits processor that watches entropies inside the engine and closes the thinking there.

``vllm serve MODEL --logits-processors entropy_chains.backends.vllm:EntropyStop``. A request asks for it with ``vllm_xargs``
(:mod:`entropy_chains.backends.engine.settings`); one that does not is not touched, and no entropy is computed for it. At the
decision the closing tag is forced as the row's next tokens: nothing is aborted and nothing is read twice.

vLLM has two kinds of model runner with a base class each; what both do stands in
:mod:`entropy_chains.backends.engine.requests`, how the first tells of its batch in :mod:`entropy_chains.backends.engine.slots`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import entropy_chains
from entropy_chains.backends.engine.settings import HELLO, PREFIX, Serving, check, read
from entropy_chains.core.entropy_rows import SMALL
from entropy_chains.errors import MissingExtraError, SettingsError

try:
    import torch
    from vllm.v1.sample.logits_processor import LogitsProcessor  # type: ignore[import-not-found]
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as LogitsProcessorV2  # type: ignore[import-not-found]

    from entropy_chains.backends.engine.buffers import Row
    from entropy_chains.backends.engine.requests import PROMPT_TAIL, Rows
    from entropy_chains.backends.engine.slots import Seats
except ImportError as error:
    raise MissingExtraError("vllm", "vllm") from error

if TYPE_CHECKING:
    from vllm.v1.sample.logits_processor import BatchUpdate
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcRequestState


class _Asked:
    """What the two runners' classes have in common towards a request."""

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuse settings that cannot work; vLLM answers the request with HTTP 400 and the message.

        Raises:
            InputError: a ``ValueError`` that names the value and the remedy.
        """
        arguments = sampling_params.extra_args or {}
        if PREFIX + HELLO in arguments:
            serving = _asking()
            description = serving.describe() if serving else "it does not know its model here"
            raise SettingsError(f"entropy-chains plug-in {entropy_chains.__version__} ({cls.__name__}) is here: {description}")
        settings = read(arguments)
        if settings is not None:
            check(settings, _asking(), sampling_params)


class EntropyStop(_Asked, LogitsProcessor):  # type: ignore[misc]
    """For the V1 model runner. Created by vLLM, once a rank."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        most = vllm_config.scheduler_config.max_num_seqs
        late = torch.device(device).type == "cpu" and most * vllm_config.model_config.get_vocab_size() <= SMALL
        rows = Rows(_serving(vllm_config), most, late=late, silent=bool(vllm_config.parallel_config.rank))
        self._seats = Seats(rows, max(256, most))

    def is_argmax_invariant(self) -> bool:
        """False: it changes what a greedy request gets."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the batch: requests that left it, came, or changed places."""
        if batch_update is not None:
            self._seats.update(batch_update)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Read the last tokens, measure the next ones, close where it was decided; never raises."""
        return self._seats.step(logits)


class EntropyStopV2(_Asked, LogitsProcessorV2):  # type: ignore[misc]
    """For Model Runner V2, which runs where Triton does. Its logic is tested, the class itself was never run on a GPU."""

    def __init__(self, vllm_config: Any, req_states: LogitsProcRequestState) -> None:
        self._rows = Rows(_serving(vllm_config), req_states.max_num_reqs, silent=bool(vllm_config.parallel_config.rank))
        self._states = req_states
        self._slots: dict[int, Row] = {}
        self._new: dict[int, Any] = {}  # came since the last step; their prompts can be read in the next

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """A request takes a slot. One that comes back after a preemption is not watched any more: it runs in full."""
        self._slots.pop(req_idx, None)
        self._new.pop(req_idx, None)
        try:
            settings = read(sampling_params.extra_args)
            if settings is None:
                return False
            if self._states.prefill_len.np[req_idx] > self._states.prompt_len.np[req_idx]:
                self._rows.say("runs in full: it was preempted", settings)
                return False
        except Exception as error:  # noqa: BLE001 (it would end the server; settings that are wrong were refused at the door)
            self._rows.failed([], error)
            return False
        self._new[req_idx] = sampling_params
        return True

    def apply(self, logits: torch.Tensor, ctx: LogitsContext) -> torch.Tensor:
        """Read the last tokens, measure the next ones, close where it was decided; never raises."""
        try:
            slots = ctx.idx_mapping_np.tolist()
            for slot in self._new.keys() & set(slots):
                self._begin(slot)
            rows = [(place, self._slots[slot]) for place, slot in enumerate(slots) if slot in self._slots]
            rows = [(place, row) for place, row in rows if row.on]
            if not rows:
                return logits
            lengths = ctx.seq_lens_upper_bound_np - self._states.prompt_len.np[ctx.idx_mapping_np]
            tokens = ctx.input_ids.tolist()  # waits for the tokens of the last step
        except Exception as error:  # noqa: BLE001 (it would end the server)
            self._rows.failed(self._slots.values(), error)
            return logits
        # A prompt read in parts shows fewer tokens than were taken: there is no new one.
        token_counts = [max(int(lengths[place]), row.fed) for place, row in rows]
        return self._rows.step(logits, rows, token_counts, [tokens[place] for place, _ in rows])

    def _begin(self, slot: int) -> None:
        params = self._new.pop(slot)
        try:
            length = int(self._states.prompt_len.np[slot])
            prompt = self._states.all_token_ids.gpu[slot, max(0, length - PROMPT_TAIL) : length].tolist()
            if row := self._rows.begin(read(params.extra_args), prompt, params):
                row.sit(slot)
                self._slots[slot] = row
        except Exception as error:  # noqa: BLE001 (it would end the watching of all)
            self._rows.failed([], error)


class EntropyStopAny(EntropyStop, EntropyStopV2):
    """Either of the two, by what vLLM creates it with: for the entry point, which has one name for both runners."""

    def __init__(self, vllm_config: Any, place: Any, is_pin_memory: bool | None = None) -> None:
        self._is_v2 = is_pin_memory is None
        if is_pin_memory is None:
            EntropyStopV2.__init__(self, vllm_config, place)
        else:
            EntropyStop.__init__(self, vllm_config, place, is_pin_memory)

    def apply(self, logits: torch.Tensor, ctx: LogitsContext | None = None) -> torch.Tensor:
        """As the class whose part it plays."""
        return EntropyStop.apply(self, logits) if ctx is None else EntropyStopV2.apply(self, logits, ctx)


_SERVED: dict[int, Serving] = {}


def _serving(vllm_config: Any) -> Serving:
    """What the engine serves; read once, for a configuration lasts as long as its process."""
    if id(vllm_config) not in _SERVED:
        from vllm.tokenizers import cached_tokenizer_from_config  # type: ignore[import-not-found]

        model = vllm_config.model_config
        served = model.served_model_name or ()
        names = (model.model, *([served] if isinstance(served, str) else served))
        speculative = vllm_config.speculative_config is not None
        _SERVED[id(vllm_config)] = Serving.of(names, cached_tokenizer_from_config(model), speculative=speculative)
    return _SERVED[id(vllm_config)]


def _asking() -> Serving | None:
    """What the server that checks a request serves.

    vLLM hands ``validate_params`` nothing but the parameters, and a policy for another model must be refused at the door, not
    ignored inside. The one who asks is vLLM's input processor, a few calls up, and it knows. If it is not found there, the
    engine's own check is left: the request runs in full, and the log says why.
    """
    frame: Any = sys._getframe(1)
    for _ in range(8):
        if frame is None:
            return None
        config = getattr(frame.f_locals.get("self"), "vllm_config", None)
        if config is not None:
            return _serving(config)
        frame = frame.f_back
    return None
