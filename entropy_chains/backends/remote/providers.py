"""What is known of the providers and servers that people use: the table behind ``docs/providers.md`` and what ``doctor`` names.

Facts of November 2026, from public recordings, threads and documentation; vLLM and llama.cpp were also tried. What a server can
do is read from the server itself (:mod:`.servers`, ``doctor``); nothing is switched by a provider's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Provider:
    """One row of the table.

    Attributes:
        name: as people call it.
        reasoning: whether tokens of the thinking have logprobs: True, False, or None where it depends.
        gives: what it gives, in words, and since when.
        refuses: what it answers where it is asked for what it does not give.
        use: how it is used with early stopping.
        hosts: ends of the host names of its API; none for a server that people run themselves.
        stream: its stream in the tests, ``tests/data/streams/<stream>.sse``.
        classes: classes of LangChain that pass on no logprobs, whatever the server gives.
    """

    name: str
    reasoning: bool | None
    gives: str
    refuses: str
    use: str
    stream: str
    hosts: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()


_ELSEWHERE = "no entropy: another rule (`agreement`, `fixed-step`), or serve the model with vLLM or llama.cpp"

PROVIDERS = (
    Provider(
        "vLLM", True, "on reasoning and answer, in `delta.reasoning`", "400 above `--max-logprobs` (20 by default)",
        "as it is, and best: exact continuation, or the plug-in; texts that come late with `stop` strings are followed", "vllm",
    ),
    Provider(
        "SGLang", True, "on reasoning and answer since June 2026, a step's bundled on its first chunk; none on reasoning before",
        "-", "as it is; with multi-token prediction several tokens carry the list of the first, which are then missing", "sglang",
    ),
    Provider(
        "llama.cpp server", True, "on reasoning and answer, in `delta.reasoning_content`", "400 to a streamed call with tools",
        "as it is; calls with tools run in full", "llama_cpp",
    ),
    Provider(
        "DeepSeek API", True, "on reasoning in a list of its own, `logprobs.reasoning_content`, up to 20", "-",
        "as it is; the answer after a stop is asked for in a turn", "deepseek", ("api.deepseek.com",),
    ),
    Provider(
        "ROCm ATOM", True, "on reasoning, `logprobs.reasoning_content`; -9999 stands for impossible", "-", "as it is", "atom",
    ),
    Provider(
        "Ollama", True, "on thinking and answer since 0.12.11, by its own API and at `/v1`, up to 20 (as its code has it)",
        "400 above 20; silence before 0.12.11",
        "`ChatOllama`, LlamaIndex's `Ollama`, or `/v1`; the answer after a stop is asked for in a turn with thinking off: gpt-oss, "
        "which always thinks, runs in full", "ollama",
    ),
    Provider(
        "OpenAI reasoning models", False, "none", "403", _ELSEWHERE, "openai_reasoning", ("api.openai.com",),
    ),
    Provider(
        "OpenAI gpt-5 without effort", False, "on the answer, up to 5", "400 above 5", "mode `refine` with k=5", "openai_gpt5",
        ("api.openai.com",),
    ),
    Provider("Mistral", False, "none", "400", _ELSEWHERE, "mistral", ("api.mistral.ai",), ("ChatMistralAI",)),
    Provider("Groq", False, "none", "400", _ELSEWHERE, "groq", ("api.groq.com",)),
    Provider(
        "Gemini API", None, "by model", "400 on several models", "`doctor` tells", "gemini", ("generativelanguage.googleapis.com",),
    ),
    Provider(
        "Anthropic", False, "none: its API knows no such setting", "400", _ELSEWHERE, "anthropic", ("api.anthropic.com",),
        ("ChatAnthropic",),
    ),
    Provider(
        "OpenRouter", None, "none on the reasoning models tried", "silence", "`doctor` tells; `reasoning_details` are read",
        "openrouter", ("openrouter.ai",),
    ),
    Provider(
        "Fireworks", None, "on the answer for some models", "silence", "`doctor` tells", "fireworks", ("api.fireworks.ai",),
    ),
    Provider(
        "Together", None, "on the answer for some models, in the lists of completions", "silence", "`doctor` tells", "together",
        ("api.together.xyz", "api.together.ai"),
    ),
    Provider("Cerebras", None, "on the answer for some models", "silence", "`doctor` tells", "cerebras", ("api.cerebras.ai",)),
    Provider("LM Studio", None, "empty lists", "silence", "`doctor` tells", "lm_studio"),
    Provider(
        "NVIDIA NIM", None, "on the answer for some models", "silence", "`doctor` tells", "nim", ("integrate.api.nvidia.com",),
    ),
    Provider("DeepInfra", None, "on the answer for some models", "silence", "`doctor` tells", "deepinfra", ("api.deepinfra.com",)),
    Provider(
        "LiteLLM and other gateways", None, "what is behind them, passed on or dropped", "an error in the stream, or silence",
        "`doctor` tells; a missing finish reason and a usage of 0 are followed", "gateway",
    ),
)  # fmt: skip
"""The table. A host that stands in two rows is named by both."""


def at(base_url: str) -> Sequence[Provider]:
    """The providers whose API stands at an address."""
    try:
        host = (urlsplit(base_url).hostname or "").lower()
    except ValueError:
        return ()
    return [p for p in PROVIDERS if any(host == end or host.endswith(f".{end}") for end in p.hosts)]


def of_class(name: str) -> Provider | None:
    """The provider of a class of LangChain that passes on no logprobs."""
    return next((p for p in PROVIDERS if name in p.classes), None)


def page() -> str:
    """The table as Markdown."""
    words = {True: "yes", False: "no", None: "depends"}
    head = ["| | logprobs on thinking | gives | asked for more | use |", "|---|---|---|---|---|"]
    rows = [f"| {p.name} | {words[p.reasoning]} | {p.gives} | {p.refuses} | {p.use} |" for p in PROVIDERS]
    return "\n".join([*head, *rows])
