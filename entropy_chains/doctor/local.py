"""Examine a local model: its template, tags, vocabulary and settings, and its entropy on one real prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from entropy_chains.backends import Generation, Sampling
from entropy_chains.core.families import ThinkTags
from entropy_chains.core.phases import Phase
from entropy_chains.doctor.asking import ASKED
from entropy_chains.doctor.findings import Examination, Finding, judge
from entropy_chains.errors import BackendError, SettingsError
from entropy_chains.refine import PER_CALL

if TYPE_CHECKING:
    from entropy_chains.backends.text.vocabulary import Vocabulary
    from entropy_chains.backends.transformers import TransformersBackend

LENGTH = 64
"""Tokens that the entropy is measured on."""


def examine_local(backend: TransformersBackend) -> Examination:
    """Examine a loaded model, with the settings it was loaded with."""
    vocabulary, tags = backend.vocabulary, _tags(backend)
    findings = [Finding("template", backend.template, "the tokenizer's chat template", "a policy belongs to it")]
    if tags is None:
        none = "the chat template holds no tags that are known"
        findings.append(Finding("reasoning", "none", none, "there is nothing to cut in mode 'thinking'"))
    else:
        evidence = f"{tags.open}…{tags.close} in the chat template"
        form = "channels" if tags.in_channels else "inline"
        findings.append(Finding("reasoning", form, evidence, "steps can be told from the answer"))
        findings.append(_closing_text(vocabulary, tags))
    cut = backend.segmentation
    findings.append(Finding("segmentation", cut.boundary, f"steps of at least {cut.min_tokens} tokens", "where a stop may be"))
    token_count, width = len(vocabulary), backend.vocab_size
    evidence = f"{token_count} tokens in the tokenizer, {width} logits"
    findings.append(Finding("vocabulary", width, evidence, "entropies are of all logits, or of the k likeliest"))
    room = backend.context_window
    evidence = "the model does not say" if room is None else "prompt and reply together"
    findings.append(Finding("room", room, evidence, "a run ends there; a stop near it may leave no room for an answer"))
    entropy, run = _entropy(backend)
    findings += [_penalties(backend), entropy]
    stopping, verdict, remedies = judge({f.name: f.value for f in findings})
    return Examination(backend.model, stopping, verdict, remedies, tuple(findings), 1, run.prompt_tokens, run.tokens)


def _tags(backend: TransformersBackend) -> ThinkTags | None:
    try:
        return backend.tags
    except SettingsError:
        return None


def _closing_text(vocabulary: Vocabulary, tags: ThinkTags) -> Finding:
    text = tags.close + tags.after
    ids = vocabulary.encode(text)
    same = vocabulary.decode(ids) == text
    evidence = f"{text!r} is {len(ids)} tokens, and {'the same' if same else 'another text'} when read back"
    meaning = "it can be forced as it is" if same else "what is forced is not what closes the thinking"
    return Finding("closing_text", same, evidence, meaning)


def _penalties(backend: TransformersBackend) -> Finding:
    changed = ", ".join(backend.penalties())
    meaning = "entropy would be read from changed logits" if changed else "entropy is read from the model's own logits"
    return Finding("penalties", changed or None, f"{changed or 'none'} in the generation settings", meaning)


def _entropy(backend: TransformersBackend) -> tuple[Finding, Generation]:
    """The mean over the first tokens of a thinking, and the run they are of; of the whole call where there is no thinking."""
    thinks = _tags(backend) is not None
    cut = backend.segmentation if thinks else PER_CALL
    *chunks, last = backend.stream(ASKED, sampling=Sampling(temperature=0, max_tokens=LENGTH), segmentation=cut)
    run = last.final
    bounds = [c.bounds for c in chunks if c.bounds is not None and (c.phase is Phase.THINKING or not thinks)]
    bits, mass = [b.entropy for b in bounds], [b.mass for b in bounds]
    if run is None:
        raise BackendError(f"{backend.model} gave no reply; is it the right checkpoint?")
    if not bits:
        evidence = f"no thinking in the first {LENGTH} tokens"
        return Finding("entropy", "not seen", evidence, "record some questions: `entropy-chains record`"), run
    mean = sum(bits) / len(bits)
    value = round(mean, 4) if mean == mean else None
    evidence = f"bits a token, over {len(bits)} tokens; the 20 likeliest hold {sum(mass) / len(mass):.4f} of the mass"
    meaning = "it can be measured; whether it tells right from wrong says `entropy-chains diagnose`"
    return Finding("entropy", value, evidence, meaning), run
