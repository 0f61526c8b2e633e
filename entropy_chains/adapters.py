"""What the integrations take of the package beyond its public names: for authors of wrappers, complete and explicit.

Everything here is loaded on first use, so that a package that is not installed is missed only where it is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from entropy_chains.backends.remote import forms
from entropy_chains.lazy import lazy_names

if TYPE_CHECKING:
    from entropy_chains.backends.local.threads import astream, in_thread
    from entropy_chains.backends.remote.alignment import Piece, is_special
    from entropy_chains.backends.remote.continuations import WAYS, Request, Turn, Way, begun, way
    from entropy_chains.backends.remote.dialogue import Dialogue
    from entropy_chains.backends.remote.drive import adrive, drive
    from entropy_chains.backends.remote.echo import BegunTurn, without_echo
    from entropy_chains.backends.remote.events import Close, Show
    from entropy_chains.backends.remote.introductions import Introduction, awho, who
    from entropy_chains.backends.remote.logprob_entries import Characters, entries_of, fields, listed_entries, tokens_of
    from entropy_chains.backends.remote.model import ServedModel, ended, prompt_of
    from entropy_chains.backends.remote.plan import Plan
    from entropy_chains.backends.remote.providers import of_class
    from entropy_chains.backends.remote.readers import (
        REASONING,
        ChatReader,
        CompletionReader,
        ResponsesReader,
        Update,
        held_back,
        read_message,
        reasoning_in,
    )
    from entropy_chains.backends.remote.redaction import hiding, secrets_of, without_secrets
    from entropy_chains.backends.remote.refused import (
        IN_AN_APP,
        Known,
        additions,
        doubted,
        known,
        refusal,
        refusals,
        without_logprobs,
    )
    from entropy_chains.backends.remote.reply import Reply
    from entropy_chains.backends.remote.servers import OLLAMA, Server
    from entropy_chains.backends.remote.token_count import TokenCount
    from entropy_chains.backends.remote.transfer import Listening, Transfer
    from entropy_chains.backends.text.answer import MALFORMED
    from entropy_chains.backends.text.markup import clean_answer
    from entropy_chains.backends.text.stream import Shown, tags_of, text_before
    from entropy_chains.core.families import FAMILIES, TOOL_CALL
    from entropy_chains.core.finish_reasons import finish_of
    from entropy_chains.core.monitor import FLAT, TOTAL
    from entropy_chains.core.phases import Phase
    from entropy_chains.core.tool_calls import ToolCall, calls_in, offered
    from entropy_chains.options import (
        Continuation,
        Mode,
        OnMismatch,
        TemperatureMode,
        WithoutLogprobs,
        check_holdout,
        check_options,
        check_settings,
    )
    from entropy_chains.refine import PER_CALL, RefineRun
    from entropy_chains.savings.spans import (
        langfuse_savings,
        phoenix_savings,
        root_attributes,
        run_attributes,
        usage_attributes,
    )
    from entropy_chains.subclasses import Added, give_class, own_class, subclass, unpickled

_HOME = {
    "Added": "subclasses",
    "additions": "backends.remote.refused",
    "adrive": "backends.remote.drive",
    "astream": "backends.local.threads",
    "awho": "backends.remote.introductions",
    "begun": "backends.remote.continuations",
    "BegunTurn": "backends.remote.echo",
    "Characters": "backends.remote.logprob_entries",
    "ChatReader": "backends.remote.readers",
    "calls_in": "core.tool_calls",
    "check_holdout": "options",
    "check_options": "options",
    "check_settings": "options",
    "clean_answer": "backends.text.markup",
    "Close": "backends.remote.events",
    "CompletionReader": "backends.remote.readers",
    "Continuation": "options",
    "Dialogue": "backends.remote.dialogue",
    "doubted": "backends.remote.refused",
    "drive": "backends.remote.drive",
    "ended": "backends.remote.model",
    "entries_of": "backends.remote.logprob_entries",
    "fields": "backends.remote.logprob_entries",
    "finish_of": "core.finish_reasons",
    "FLAT": "core.monitor",
    "give_class": "subclasses",
    "held_back": "backends.remote.readers",
    "hiding": "backends.remote.redaction",
    "IN_AN_APP": "backends.remote.refused",
    "in_thread": "backends.local.threads",
    "Introduction": "backends.remote.introductions",
    "Known": "backends.remote.refused",
    "known": "backends.remote.refused",
    "langfuse_savings": "savings.spans",
    "listed_entries": "backends.remote.logprob_entries",
    "Listening": "backends.remote.transfer",
    "MALFORMED": "backends.text.answer",
    "Mode": "options",
    "OLLAMA": "backends.remote.servers",
    "of_class": "backends.remote.providers",
    "offered": "core.tool_calls",
    "OnMismatch": "options",
    "own_class": "subclasses",
    "PER_CALL": "refine",
    "Phase": "core.phases",
    "phoenix_savings": "savings.spans",
    "Piece": "backends.remote.alignment",
    "is_special": "backends.remote.alignment",
    "Plan": "backends.remote.plan",
    "prompt_of": "backends.remote.model",
    "read_message": "backends.remote.readers",
    "REASONING": "backends.remote.readers",
    "reasoning_in": "backends.remote.readers",
    "RefineRun": "refine",
    "refusal": "backends.remote.refused",
    "refusals": "backends.remote.refused",
    "Reply": "backends.remote.reply",
    "Request": "backends.remote.continuations",
    "ResponsesReader": "backends.remote.readers",
    "root_attributes": "savings.spans",
    "run_attributes": "savings.spans",
    "secrets_of": "backends.remote.redaction",
    "ServedModel": "backends.remote.model",
    "Server": "backends.remote.servers",
    "Show": "backends.remote.events",
    "Shown": "backends.text.stream",
    "subclass": "subclasses",
    "tags_of": "backends.text.stream",
    "TemperatureMode": "options",
    "text_before": "backends.text.stream",
    "TokenCount": "backends.remote.token_count",
    "tokens_of": "backends.remote.logprob_entries",
    "FAMILIES": "core.families",
    "TOOL_CALL": "core.families",
    "ToolCall": "core.tool_calls",
    "TOTAL": "core.monitor",
    "Transfer": "backends.remote.transfer",
    "Turn": "backends.remote.continuations",
    "unpickled": "subclasses",
    "Update": "backends.remote.readers",
    "usage_attributes": "savings.spans",
    "Way": "backends.remote.continuations",
    "way": "backends.remote.continuations",
    "WAYS": "backends.remote.continuations",
    "who": "backends.remote.introductions",
    "without_echo": "backends.remote.echo",
    "without_logprobs": "backends.remote.refused",
    "without_secrets": "backends.remote.redaction",
    "WithoutLogprobs": "options",
}
"""Name to the module it lives in."""

__all__ = [
    "Added",
    "additions",
    "adrive",
    "astream",
    "awho",
    "begun",
    "BegunTurn",
    "calls_in",
    "Characters",
    "ChatReader",
    "check_holdout",
    "check_options",
    "check_settings",
    "clean_answer",
    "Close",
    "CompletionReader",
    "Continuation",
    "Dialogue",
    "doubted",
    "drive",
    "ended",
    "entries_of",
    "FAMILIES",
    "fields",
    "finish_of",
    "FLAT",
    "forms",
    "give_class",
    "held_back",
    "hiding",
    "IN_AN_APP",
    "in_thread",
    "Introduction",
    "is_special",
    "Known",
    "known",
    "langfuse_savings",
    "lazy_names",
    "listed_entries",
    "Listening",
    "MALFORMED",
    "Mode",
    "of_class",
    "offered",
    "OLLAMA",
    "OnMismatch",
    "own_class",
    "PER_CALL",
    "Phase",
    "phoenix_savings",
    "Piece",
    "Plan",
    "prompt_of",
    "read_message",
    "REASONING",
    "reasoning_in",
    "RefineRun",
    "refusal",
    "refusals",
    "Reply",
    "Request",
    "ResponsesReader",
    "root_attributes",
    "run_attributes",
    "secrets_of",
    "ServedModel",
    "Server",
    "Show",
    "Shown",
    "subclass",
    "tags_of",
    "TemperatureMode",
    "text_before",
    "TokenCount",
    "tokens_of",
    "TOOL_CALL",
    "ToolCall",
    "TOTAL",
    "Transfer",
    "Turn",
    "unpickled",
    "Update",
    "usage_attributes",
    "Way",
    "way",
    "WAYS",
    "who",
    "without_echo",
    "without_logprobs",
    "without_secrets",
    "WithoutLogprobs",
]

if not TYPE_CHECKING:  # so that a misspelt name is an error to type checkers
    __getattr__, __dir__ = lazy_names(globals(), _HOME, "entropy_chains")
