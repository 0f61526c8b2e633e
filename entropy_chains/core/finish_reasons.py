"""How a reply ended: the words of servers, and the five that a trace knows.

A reply that did not end by itself was cut off: nobody knows what the whole one would have said.
"""

from __future__ import annotations

from typing import Literal, get_args

Finish = Literal["stop", "length", "content_filter", "error", "other"]
FINISHES: tuple[Finish, ...] = get_args(Finish)

_WORDS: dict[Finish, tuple[str, ...]] = {
    "stop": (
        *("stop", "eos", "eos_token", "end_turn", "stop_sequence", "complete", "completed"),
        *("tool_calls", "tool_call", "tool_use", "function_call"),
    ),
    "length": (
        *("length", "max_tokens", "max_output_tokens", "max_new_tokens", "max_length", "model_length"),
        *("model_context_window_exceeded", "context_length_exceeded", "error_limit"),
    ),
    "content_filter": (
        *("content_filter", "content_filtered", "guardrail_intervened", "refusal", "sensitive", "safety"),
        *("recitation", "blocklist", "prohibited_content", "spii", "error_toxic"),
    ),
    "error": ("error", "abort", "failed", "network_error", "insufficient_system_resource", "timeout", "malformed_function_call"),
}
_FINISH_OF = {word: finish for finish, words in _WORDS.items() for word in words}


def finish_of(word: str | None) -> Finish:
    """What a server's own word means; a word that is not known is ``other``, none at a proper end of a stream is ``stop``."""
    return "stop" if word is None else _FINISH_OF.get(word.strip().lower(), "other")


def is_cut(word: str | None) -> bool:
    """Whether a reply with this word did not end by itself."""
    return finish_of(word) != "stop"


def finish_reason(word: str | None) -> str:
    """``stop`` or ``length`` in the place of the many words for them; any other word as the server gave it."""
    finish = finish_of(word)
    return word if word is not None and finish not in ("stop", "length") else finish


def run_is_cut(finish: str | None, last_answer: str | None) -> bool:
    """Whether a recorded run was cut off; ``finish`` as in its trace: without one, a missing last answer tells it."""
    return last_answer is None if finish is None else finish != "stop"
