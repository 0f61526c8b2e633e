"""Tokens that a scripted server makes for one question, by the class of the inner model.

A full run is 244, one that stops about 124. ``python providers.py`` prints them as JSON, by class: without ``asyncio`` and with it.
A class whose package is missing is left out.
"""

from __future__ import annotations

import asyncio
import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[4] / "tests" / "support"))
from langchain_entropy_chains import EarlyStopChatModel
from loopback import Loopback, sums

from entropy_chains import Policy
from entropy_chains.core.steps import Segmentation

POLICY = Policy("scripted", (0.2,), segmentation=Segmentation("line", 32))

CLASSES: dict[str, tuple[str, Callable[[str], dict[str, Any]]]] = {
    "ChatOpenAI": ("langchain_openai", lambda url: {"base_url": url, "max_retries": 0}),
    "ChatDeepSeek": ("langchain_deepseek", lambda url: {"api_base": url}),
    "ChatGroq": ("langchain_groq", lambda url: {"base_url": url.removesuffix("/v1"), "max_retries": 0}),
    "ChatFireworks": ("langchain_fireworks", lambda url: {"base_url": url}),
    "ChatMistralAI": ("langchain_mistralai", lambda url: {"base_url": url}),
}
"""Name of the class to its package, and how it is pointed at an address."""


def made(name: str, *, asynchronous: bool) -> int:
    """Tokens that the server made for one question."""
    package, settings = CLASSES[name]
    with Loopback(lambda body: replace(sums(body), pace=0.004), owned_by="someone") as server:
        chat = getattr(import_module(package), name)(model="scripted", api_key="none", **settings(server.url))
        model = EarlyStopChatModel(chat, POLICY)
        message = asyncio.run(model.ainvoke("q")) if asynchronous else model.invoke("q")
        tokens = server.settled(5)
    told = message.response_metadata
    if not tokens - 30 < told["early_stop_tokens"] <= tokens:
        raise AssertionError(f"{name} was told {told['early_stop_tokens']} tokens, the server made {tokens}")
    return tokens


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    found = {}
    for each in CLASSES:
        try:
            import_module(CLASSES[each][0])
        except ImportError:
            continue
        found[each] = [made(each, asynchronous=False), made(each, asynchronous=True)]
    print(json.dumps(found))
