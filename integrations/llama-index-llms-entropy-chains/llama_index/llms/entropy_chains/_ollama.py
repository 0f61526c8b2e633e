"""Ollama's own API through LlamaIndex's ``Ollama``: what its client is asked besides what the class asks for.

The class takes no wish for logprobs, and passes on all that its client gives. So a call is made by a copy of the LLM, over a client
that adds the settings of a request, and whose streams end when told; the user's LLM and client are not changed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llama_index.llms.entropy_chains._streams import soft_stream

from entropy_chains.adapters import Request

if TYPE_CHECKING:
    from llama_index.core.llms import LLM
    from llama_index.llms.entropy_chains._streams import End

SINCE = "its Python client 0.6.1"
"""The first release that passes logprobs on."""


def speaks_ollama(llm: LLM) -> bool:
    """Whether the LLM asks Ollama by its own API; its package is loaded if so."""
    module = sys.modules.get("llama_index.llms.ollama")
    return module is not None and isinstance(llm, module.Ollama)


def model_of(llm: Any) -> str:
    """The model's name. Ollama's class asks its server for the rest of its metadata, which may be down when it is wrapped."""
    name: str = llm.model if speaks_ollama(llm) else llm.metadata.model_name
    return name


def settings_of(request: Request) -> dict[str, Any]:
    """A request's settings besides the user's own."""
    logprobs = {"logprobs": True, "top_logprobs": request.k} if request.logprobs else {}
    return {**logprobs, **request.extra}


class Asking:
    """A client, sync or async, whose chats have further settings, and streams that end when told. All else is the client's own."""

    def __init__(self, client: Any, settings: Mapping[str, Any], end: End):
        self._client, self._settings, self._end = client, settings, end

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def chat(self, **kwargs: Any) -> Any:
        """As the client's own."""
        response = self._client.chat(**{**kwargs, **self._settings})
        return soft_stream(response, self._end) if kwargs.get("stream") else response
