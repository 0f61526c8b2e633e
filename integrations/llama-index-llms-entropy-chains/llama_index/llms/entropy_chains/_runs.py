"""What runs came to, where a user looks: a call of a wrapper is one run, and a query, a chat or an agent adds up its runs.

LlamaIndex opens a span around every public call of its objects. Here each becomes a :class:`Scope`; when a query, a chat or an
agent returns, what its runs came to is written on the response, and on the root's OpenTelemetry span where there is one. It needs
no handler of the user's.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator, Sequence
from contextlib import aclosing, closing
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from llama_index.core.agent.workflow.workflow_events import AgentOutput
from llama_index.core.base.response.schema import AsyncStreamingResponse, PydanticResponse, Response, StreamingResponse
from llama_index.core.chat_engine.types import AgentChatResponse, StreamingAgentChatResponse
from llama_index.core.instrumentation.span import active_span_id
from llama_index.core.workflow import StopEvent
from llama_index.llms.entropy_chains.tracing import current_span, lasting, mark_request, mark_root
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.span_handlers.base import BaseSpanHandler
from pydantic import PrivateAttr

from entropy_chains import Outcome

G = TypeVar("G")

RESPONSES = (
    Response,
    StreamingResponse,
    AsyncStreamingResponse,
    PydanticResponse,
    AgentChatResponse,
    StreamingAgentChatResponse,
    AgentOutput,
)
"""What queries, chats and agents return: what their runs came to is written there."""

STREAMS = (Generator, AsyncGenerator, StreamingResponse, AsyncStreamingResponse, StreamingAgentChatResponse)

_lock = threading.RLock()


class Scope:
    """One open span of LlamaIndex, and the runs inside it; those of a span within it are its own, too.

    Attributes:
        outer: the span around it, if that is known.
        outcomes: of the runs inside it, in order, each under a key of its own.
    """

    __slots__ = ("__weakref__", "_result", "_span", "at_end", "has_returned", "open_runs", "outcomes", "outer")

    def __init__(self, outer: Scope | None = None):
        self.outer, self.outcomes = outer, dict[Any, Outcome]()
        self.open_runs, self.at_end = set[Any](), list[Callable[[], None]]()
        self.has_returned, self._span = False, None
        self._result: Callable[[], Any] = lambda: None

    @property
    def _chain(self) -> Iterator[Scope]:
        scope: Scope | None = self
        while scope is not None:
            yield scope
            scope = scope.outer

    def add(self, key: Any, outcome: Outcome) -> None:
        """A run came to this; under a key that is known it takes the earlier one's place."""
        for scope in self._chain:
            with _lock:
                scope.outcomes[key] = outcome
            if scope.has_returned:  # a stream: what was returned is told when its tokens have come
                scope.write_totals()

    def add_loop(self, name: str, outcome: Outcome) -> None:
        """An agent's loop came to this; tokens of its calls that are told already are not told again."""
        scope = self.outer or self  # a step's, inside the run's
        earlier_tokens = sum(o.tokens for key, o in scope.outcomes.items() if key != name)
        self.add(name, replace(outcome, tokens=max(0, outcome.tokens - earlier_tokens)))

    def began(self, run: Any) -> None:
        """A stream of a run was handed out."""
        for scope in self._chain:
            with _lock:
                scope.open_runs.add(run)

    def over(self, run: Any) -> None:
        """It has ended, or was given up."""
        for scope in self._chain:
            with _lock:
                scope.open_runs.discard(run)
                callbacks = [] if scope.open_runs else scope.at_end
                scope.at_end = [] if callbacks else scope.at_end
            for callback in callbacks:
                callback()

    def leave(self, result: Any) -> None:
        """The call has returned this."""
        self._span, self.has_returned = current_span(), True
        if isinstance(result, StopEvent):  # a workflow's; it holds what is returned
            result = getattr(result, "result", None)
        if isinstance(result, RESPONSES):
            self._result = weakref.ref(result)
        if isinstance(result, STREAMS):  # a model may be called first when it is read: that call belongs in here
            weakref.finalize(result, self._given_up).atexit = False
        if self.open_runs and self._span is not None:
            self.at_end.append(lasting(self._span, lambda: bool(self.open_runs)))
        self.write_totals()

    def _given_up(self) -> None:
        """Nobody can read the stream any more, nor what it came to."""

    def write_totals(self) -> None:
        with _lock:
            outcomes = list(self.outcomes.values())
        if not outcomes:
            return
        table, result = totals(outcomes), self._result()
        if isinstance(result, AgentOutput):
            for name, value in table.items():  # an event takes further fields
                setattr(result, name, value)
        elif result is not None:
            result.metadata = (getattr(result, "metadata", None) or {}) | table
        if self.outer is None:
            mark_root(table, self._span)


class Scopes(BaseSpanHandler[Any]):
    """Follows LlamaIndex's spans; it stands before every tracer, which would end a span before it is marked."""

    _open: dict[str, Scope] = PrivateAttr(default_factory=dict)
    _scopes: Any = PrivateAttr(default_factory=weakref.WeakValueDictionary)  # also those that were left, as long as a run is in one

    @classmethod
    def class_name(cls) -> str:
        """As LlamaIndex wants it."""
        return "EntropyChainsScopes"

    def new_span(self, *args: Any, **kwargs: Any) -> None:
        """Not used; see :meth:`span_enter`."""

    def prepare_to_exit_span(self, *args: Any, **kwargs: Any) -> None:
        """Not used; see :meth:`span_exit`."""

    def prepare_to_drop_span(self, *args: Any, **kwargs: Any) -> None:
        """Not used; see :meth:`span_drop`."""

    def span_enter(
        self, id_: str, bound_args: Any, instance: Any = None, parent_id: str | None = None, tags: Any = None, **kwargs: Any
    ) -> None:
        """A call begins."""
        self._open[id_] = self._scopes[id_] = Scope(self._scopes.get(parent_id or ""))

    def span_exit(self, id_: str, bound_args: Any, instance: Any = None, result: Any = None, **kwargs: Any) -> None:
        """A call has returned."""
        scope, run_request = self._open.pop(id_, None), current_request.get()
        if run_request is not None and isinstance(result, Generator | AsyncGenerator) and (span := current_span()) is not None:
            run_request.add_span(span)
        if scope is not None:
            scope.leave(result)
        if isinstance(result, StreamingResponse | AsyncStreamingResponse) and not _keeps_context():
            stream = result.response_gen
            result.response_gen = _in_span(id_, stream) if isinstance(stream, Generator) else _ain_span(id_, stream)

    def span_drop(self, id_: str, bound_args: Any, instance: Any = None, err: Any = None, **kwargs: Any) -> None:
        """A call has failed."""
        self._open.pop(id_, None)

    def at(self, span_id: str | None) -> Scope | None:
        """The scope of a span, if it is known."""
        scope: Scope | None = self._scopes.get(span_id or "")
        return scope


def _keeps_context() -> bool:
    """Whether a tracer does what :func:`_in_span` does; it would not know a stream that was put around its own."""
    return any(type(handler).__module__.startswith("openinference.") for handler in get_dispatcher().span_handlers)


def _in_span(span_id: str, stream: Any) -> Generator[Any, None, None]:
    """A stream of a response: a model that is called first when it is read is called inside of the span, all the same."""
    with closing(stream):
        while True:
            token = active_span_id.set(span_id)
            try:
                part = next(stream)
            except StopIteration:
                return
            finally:
                active_span_id.reset(token)
            yield part


async def _ain_span(span_id: str, stream: Any) -> AsyncGenerator[Any, None]:
    """The same for ``asyncio``."""
    async with aclosing(stream):
        while True:
            token = active_span_id.set(span_id)
            try:
                part = await anext(stream)
            except StopAsyncIteration:
                return
            finally:
                active_span_id.reset(token)
            yield part


SCOPES = Scopes()


def follow_spans() -> None:
    """Begin to follow LlamaIndex's spans, unless that is done already."""
    handlers = get_dispatcher().span_handlers
    if SCOPES not in handlers[:1]:
        handlers[:] = [SCOPES, *(h for h in handlers if h is not SCOPES)]


@dataclass(slots=True, eq=False, weakref_slot=True)
class Run:
    """One call of a wrapper: its requests belong together, and it comes to one outcome.

    Attributes:
        span_id: LlamaIndex's span of the call.
        watchers: are told the outcome.
        reasoning_field: in which field the server sends the reasoning, once some came.
        refusal: text of a refusal.
    """

    span_id: str | None = field(default_factory=active_span_id.get)
    watchers: list[Callable[[Run, Outcome], None]] = field(default_factory=list)
    reasoning_field: str | None = None
    refusal: str = ""
    _scope: Scope | None = None
    _last: Asked | None = None  # the request whose stream was over last: the outcome is written on its span

    def __post_init__(self) -> None:
        self._scope = SCOPES.at(self.span_id)

    def streamed(self, stream: G) -> G:
        """A stream of this run, as it is: the spans around it last until it has ended, or is given up."""
        if self._scope is not None:
            self._scope.began(self)
            weakref.finalize(stream, self.over).atexit = False
        return stream

    def ask(self, purpose: str) -> Asked:
        """A request begins."""
        self._settle()
        return Asked(self, purpose)

    def request_over(self, request: Asked) -> None:
        """A request's stream is over."""
        self._settle()
        self._last = request

    def _settle(self, table: dict[str, Any] | None = None) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.settle(table or {})

    def finish(self, outcome: Outcome) -> None:
        """The run has come to this."""
        table = outcome.metadata()
        del table["early_stop_tokens"]  # each request's span has its own
        self._settle(table)
        for watcher in self.watchers:
            watcher(self, outcome)
        if self._scope is not None:
            self._scope.add(self.span_id, outcome)
        self.over()

    def over(self) -> None:
        """Nothing more comes, with or without an outcome."""
        self._settle()
        if self._scope is not None:
            self._scope.over(self)


class Asked:
    """One request of a run: its tokens and, once it is known, its OpenTelemetry span, which lasts as long as the request.

    Attributes:
        run: whose request it is.
        purpose: what it is for, as in the core's requests.
        tokens: completion tokens so far.
        prompt: tokens of the prompt, once the server told.
    """

    def __init__(self, run: Run, purpose: str):
        self.run, self.purpose, self.tokens = run, purpose, 0
        self.prompt: int | None = None
        self._settled, self._table = False, dict[str, Any]()
        self._ends = list[Callable[[], None]]()

    def add_span(self, span: Any) -> None:
        """Its span. A class that calls its parent's method has a second one around it, which tells nothing."""
        before = bool if self._ends else lambda: mark_request(self._table, self.tokens, span, self.prompt)
        self._ends.append(lasting(span, lambda: not self._settled, before))

    def count(self, response: Any, tokens: int, prompt: int | None) -> None:
        """A chunk came: the LLM's own object, which events and callbacks get, says how many tokens it has made by then."""
        self.tokens, self.prompt = tokens, prompt
        response.additional_kwargs.update(completion_tokens=tokens, early_stop_tokens=tokens)

    def over(self) -> None:
        """Its stream is over."""
        self.run.request_over(self)

    def settle(self, table: dict[str, Any]) -> None:
        """All is known. ``table``: the run's outcome, if it is written here."""
        self._settled, self._table = True, table
        for end in self._ends:
            end()


current_request: ContextVar[Asked | None] = ContextVar("current_request", default=None)
"""The request that a wrapper is just making of the LLM inside."""


def totals(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The contract's table for several runs: the last that was decided, with sums over all."""
    outcome = next((o for o in reversed(outcomes) if o.stopped), None)
    outcome = outcome or next((o for o in reversed(outcomes) if o.step is not None), outcomes[-1])
    saved = _sum_or_none(o.tokens_saved for o in outcomes)
    whole = replace(
        outcome,
        active=any(o.active for o in outcomes),
        holdout=any(o.holdout for o in outcomes),
        tokens=sum(o.tokens for o in outcomes),
        tokens_saved=saved,
    )
    counts: dict[str, Any] = {
        "early_stop_runs": len(outcomes),
        "early_stop_stopped_runs": sum(o.stopped for o in outcomes),
    }
    if saved is not None and whole.tokens + saved:
        counts["early_stop_tokens_saved_share"] = saved / (whole.tokens + saved)
    return whole.metadata() | counts


def _sum_or_none(values: Iterable[int | None]) -> int | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) if numbers else None
