"""Checked by mypy, not run: every backend keeps the protocols that the package and both integrations rely on."""

from entropy_chains.backends import AsyncBackend, Backend, MayLackLogprobs
from entropy_chains.backends.openai import AsyncOpenAIBackend, OpenAIBackend
from entropy_chains.backends.scripted import ScriptedBackend
from entropy_chains.backends.transformers import TransformersBackend


def sync_backends(scripted: ScriptedBackend, local: TransformersBackend, served: OpenAIBackend) -> list[Backend]:
    """All that answer in the calling thread."""
    return [scripted, local, served]


def async_backends(scripted: ScriptedBackend, served: AsyncOpenAIBackend) -> list[AsyncBackend]:
    """All for ``asyncio``."""
    return [scripted, served]


def served_backends(served: OpenAIBackend, other: AsyncOpenAIBackend) -> list[MayLackLogprobs]:
    """Those whose model may give no logprobs."""
    return [served, other]
